"""In SFTTrainer's place: what it takes is taken, what it makes of it is made, and what it refuses is refused by it."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from datasets import Dataset, DatasetDict, IterableDatasetDict
from train_kit import TEMPLATE, losses, make_args, make_tokenizer, pool_rows, prepared
from transformers import TrainingArguments
from trl import SFTTrainer

from saft_hf import SAFTArtifactError, SAFTInputError, SAFTSFTTrainer
from saft_hf.errors import SAFTError
from saft_hf.train import filtering

NO_MARKERS = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + NO_MARKERS.replace("{{ m.content }}", "{{ m.content or '' }}")
NOTHING: dict[str, Any] = {"saft_method": None, "saft_contamination": None}
EVERYTHING: dict[str, Any] = {"saft_contamination": None, "saft_threshold": 1e30}

_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _llava() -> Any:
    return tf.LlavaConfig(
        text_config=tf.LlamaConfig(**_SIZES),
        vision_config=tf.CLIPVisionConfig(**_VISION, image_size=8, patch_size=4),
        image_token_index=319,
    )


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: tf.Qwen2Config(**_SIZES),
    "mistral": lambda: tf.MistralConfig(**_SIZES),
    "cohere2": lambda: tf.Cohere2Config(**_SIZES),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**{k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(
        **_SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8
    ),
    "gpt_oss": lambda: tf.GptOssConfig(
        **_SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, rope_scaling=None
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Architecture, and chat template or None -> folder of a random model with a tokenizer."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def save(name: str = "qwen2", template: str | None = NO_MARKERS) -> str:
        if (name, template) not in made:
            folder = root / str(len(made))
            state = torch.get_rng_state()
            torch.manual_seed(0)
            tf.AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).float().save_pretrained(folder)
            torch.set_rng_state(state)
            tokenizer = make_tokenizer()
            tokenizer.chat_template = template
            tokenizer.save_pretrained(folder)
            made[name, template] = str(folder)
        return made[name, template]

    return save


def assert_as_sft(folder: Path, model: Callable[[], Any], rows: Any, call: dict[str, Any], **options: Any) -> None:
    """Train with the filter on, first removing nothing and then a quarter, and with SFTTrainer on what was kept."""
    for name, deciding in (("everything", EVERYTHING), ("share", {})):
        here = folder / name
        saft = SAFTSFTTrainer(
            model(), make_args(here, **options, **deciding), train_dataset=rows, **copy.deepcopy(call)
        )
        result = saft.saft_result
        assert result is not None
        assert (len(result.removed) == 0) is (name == "everything")
        assert len(result.errored) == 0
        plain = SFTTrainer(
            model(), make_args(here / "plain", **options), train_dataset=result.kept, **copy.deepcopy(call)
        )
        assert prepared(saft) == prepared(plain)
        for trainer in (plain, saft):
            torch.manual_seed(7)
            trainer.train()
        torch.testing.assert_close(torch.tensor(losses(saft)), torch.tensor(losses(plain)), atol=1e-6, rtol=0)
        assert len(losses(plain)) == plain.state.global_step == saft.state.global_step > 0
        told = [[h for h in t.state.log_history if "eval_runtime" in str(h)] for t in (saft, plain)]
        assert [set(entry) for entry in told[0]] == [set(entry) for entry in told[1]]


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.smoke
def test_architectures(architecture: str, saved: Callable[..., str], tmp_path: Path) -> None:
    assert_as_sft(tmp_path, lambda: saved(architecture), pool_rows("text", 16), {}, max_steps=2)


PEFT: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(),
    "prompt_tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prompt_encoder": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16
    ),
}


@pytest.mark.parametrize("kind", PEFT)
@pytest.mark.parametrize("by", ["name", "object"])
def test_adapters(kind: str, by: str, saved: Callable[..., str], tmp_path: Path) -> None:
    torch.manual_seed(3)

    def model() -> Any:
        if by == "name":
            return saved()
        torch.manual_seed(3)
        return peft.get_peft_model(tf.AutoModelForCausalLM.from_pretrained(saved(), dtype="float32"), PEFT[kind]())

    # TRL 1.10 draws adapters from whatever state it finds, so each trainer is made from the same one.
    def seeded() -> Any:
        made = model()
        torch.manual_seed(5)
        return made

    call = {"peft_config": PEFT[kind]()} if by == "name" else {}
    assert_as_sft(tmp_path, seeded, pool_rows("text", 16), call, max_steps=2)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool, saved: Callable[..., str], tmp_path: Path) -> None:
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    assert_as_sft(tmp_path, saved, pool_rows("messages", 16), {}, max_steps=2, **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes(dtype: str, saved: Callable[..., str], tmp_path: Path) -> None:
    kwargs = {"dtype": getattr(torch, dtype), "device_map": "auto"}
    assert_as_sft(tmp_path, saved, pool_rows("text", 16), {}, max_steps=2, model_init_kwargs=kwargs)


# -- rows --------------------------------------------------------------------------------------------------------------


def conversations() -> Dataset:
    def turn(row: dict[str, Any]) -> dict[str, Any]:
        return {"conversations": [{"from": m["role"], "value": m["content"]} for m in row["messages"]]}

    return pool_rows("messages", 16).map(turn, remove_columns=["messages"])


def with_template_kwargs() -> Dataset:
    rows = pool_rows("messages", 16)
    return rows.add_column("chat_template_kwargs", [{"loud": bool(number % 2)} for number in range(len(rows))])


def with_tools(*, as_json: bool) -> Dataset:
    tool = [{"type": "function", "function": {"name": "find", "description": "d", "parameters": {"type": "object"}}}]
    rows = pool_rows("messages", 16)
    return rows.add_column("tools", [json.dumps(tool) if as_json else tool] * len(rows))


def longer_completions() -> Dataset:
    def go_on(row: dict[str, Any]) -> dict[str, Any]:
        return {"completion": [*row["completion"], row["prompt"][0], *row["completion"]]}

    return pool_rows("chat_prompt_completion", 16).map(go_on)


def pretokenised(mask: str | None) -> Dataset:
    tokenizer = make_tokenizer()

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer(row["text"])["input_ids"]
        masks = {"labels": [-100, *ids[1:]], "assistant_masks": [0] + [1] * (len(ids) - 1)}
        return {"input_ids": ids, **({mask: masks[mask]} if mask else {})}

    return pool_rows("text", 16).map(encode, remove_columns=["text", "is_harmful"])


ROWS: dict[str, tuple[Callable[[], Dataset], str, dict[str, Any]]] = {
    "conversations": (conversations, NO_MARKERS, {}),
    "chat_template_kwargs": (
        with_template_kwargs,
        NO_MARKERS.replace("{{ m.role }}", "{{ m.role | upper if loud else m.role }}"),
        {},
    ),
    "tools": (lambda: with_tools(as_json=False), TOOLS, {}),
    "tools_as_json": (lambda: with_tools(as_json=True), TOOLS, {}),
    "both_masks": (longer_completions, TEMPLATE, {"assistant_only_loss": True, "completion_only_loss": True}),
    "pretokenised": (lambda: pretokenised(None), NO_MARKERS, {}),
    "pretokenised_labels": (lambda: pretokenised("labels"), NO_MARKERS, {}),
    "pretokenised_masks": (lambda: pretokenised("assistant_masks"), NO_MARKERS, {}),
    "packed_pairs": (lambda: pool_rows(rows=16), NO_MARKERS, {"packing": True, "max_length": 64}),
    "short": (lambda: pool_rows("text", 16), NO_MARKERS, {"max_length": 4}),
    "dft": (lambda: pool_rows("text", 16), NO_MARKERS, {"loss_type": "dft"}),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows(kind: str, saved: Callable[..., str], tmp_path: Path) -> None:
    rows, template, options = ROWS[kind]
    assert_as_sft(tmp_path, lambda: saved("qwen2", template), rows(), {}, max_steps=2, **options)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("kind", ["text", "messages", "prompt_completion"])
def test_a_handful_of_rows_with_nothing_given(kind: str, rows: int, saved: Callable[..., str], tmp_path: Path) -> None:
    plain = SFTTrainer(saved(), make_args(tmp_path / "plain"), train_dataset=pool_rows(kind, rows))
    saft = SAFTSFTTrainer(saved(), make_args(tmp_path, **NOTHING), train_dataset=pool_rows(kind, rows))
    assert prepared(saft) == prepared(plain)
    plain.train(), saft.train()
    assert losses(saft) == losses(plain)


# -- evaluation --------------------------------------------------------------------------------------------------------


def eval_form(form: str) -> Any:
    rows: Any = pool_rows("text", 4, seed=1)
    if "stream" in form:
        rows = rows.to_iterable_dataset()
    if form.endswith("_splits"):
        return (IterableDatasetDict if "stream" in form else DatasetDict)({"a": rows, "b": rows})
    return {"a": rows, "b": rows} if form.endswith("_dict") else rows


FORMS = ["dataset", "stream", "dataset_splits", "stream_splits", "dataset_dict", "stream_dict"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_eval_dataset(form: str, saved: Callable[..., str], tmp_path: Path) -> None:
    told = []
    for trainer_class, folder in ((SFTTrainer, "plain"), (SAFTSFTTrainer, "saft")):
        args = make_args(tmp_path / folder, **EVERYTHING, eval_strategy="steps", eval_steps=2, max_steps=2)
        trainer = trainer_class(saved(), args, train_dataset=pool_rows("text", 8), eval_dataset=eval_form(form))
        trainer.train()
        later = trainer.evaluate(eval_dataset=eval_form(form))  # raw rows, at any time
        found = {name: value for name, value in later.items() if name.endswith("loss")}
        found |= {k: v for entry in trainer.state.log_history for k, v in entry.items() if k.endswith("loss")}
        told.append(found)
    assert told[0] == told[1]
    assert len([name for name in told[0] if name.startswith("eval")]) == (1 if form in ("dataset", "stream") else 2)


def test_metrics_and_predictions(saved: Callable[..., str], tmp_path: Path) -> None:
    told = []
    for trainer_class, folder in ((SFTTrainer, "plain"), (SAFTSFTTrainer, "saft")):
        args = make_args(tmp_path / folder, **EVERYTHING, eval_strategy="steps", eval_steps=2, max_steps=2)
        rows = {"train_dataset": pool_rows("text", 8), "eval_dataset": pool_rows("text", 4, seed=1)}
        trainer = trainer_class(saved(), args, compute_metrics=lambda _: {"mine": 0.5}, **rows)
        trainer.train()
        told.append(next(entry for entry in trainer.state.log_history if "eval_mine" in entry)["eval_mine"])
        assert {"sft", "trl"} <= set(trainer.model.model_tags)
    assert told == [0.5, 0.5]


# -- what cannot be scored ---------------------------------------------------------------------------------------------


def with_images(rows: int = 4) -> Dataset:
    image = pytest.importorskip("PIL.Image")
    said = pool_rows("messages", rows)["messages"]
    shown = [image.new("RGB", (8, 8), (9 * number, 0, 0)) for number in range(rows)]
    return Dataset.from_list([{"messages": m, "images": [i]} for m, i in zip(said, shown, strict=True)])


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "no rows": (lambda: None, {}, {}),
    "a dict of splits": (lambda: DatasetDict({"train": pool_rows()}), {}, {}),
    "no chat template": (lambda: pool_rows("messages"), {}, {"template": None}),
    "a transform": (lambda: pool_rows("text").with_transform(lambda batch: batch), {}, {}),
    "an unknown end token": (lambda: pool_rows("text"), {"eos_token": "<no>"}, {}),
    "no tokenizer": (lambda: pool_rows("text"), {}, {"call": {"processing_class": 3}}),
    "images and a text model": (with_images, {}, {}),
    "the same adapter twice": (lambda: pool_rows("text"), {}, {"call": {"peft_config": 3}}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_with_nothing_given_sft_trainer_refuses(case: str, saved: Callable[..., str], tmp_path: Path) -> None:
    rows, options, more = REFUSED[case]
    model, call = saved("qwen2", more.get("template", NO_MARKERS)), more.get("call", {})
    said = []
    for trainer_class in (SFTTrainer, SAFTSFTTrainer):
        with pytest.raises((ValueError, TypeError)) as refused:
            trainer_class(model, make_args(tmp_path, **NOTHING, **options), train_dataset=rows(), **call)
        said.append((refused.type, str(refused.value)))
    assert said[0] == said[1]


def vision_model(folder: Path) -> str:
    tokenizer = make_tokenizer(
        NO_MARKERS.replace(
            "{{ m.content }}",
            "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
            "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}",
        )
    )
    tokenizer.add_tokens([*(f"<{n}>" for n in range(319 - len(tokenizer))), "<image>"], special_tokens=True)
    images = tf.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    tf.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    tf.AutoModelForImageTextToText.from_config(_llava()).float().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_pass_through_unless_they_were_to_be_filtered(
    streaming: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: Any = with_images()
    rows = rows.to_iterable_dataset() if streaming else rows
    model = vision_model(tmp_path / "model")
    options = {"max_length": None, "per_device_train_batch_size": 1, "max_steps": 2}
    with pytest.raises(SAFTInputError, match=r"has images .*saft_on_undecided='keep'"):
        SAFTSFTTrainer(model, make_args(tmp_path, **options), train_dataset=rows)
    plain = SFTTrainer(model, make_args(tmp_path / "plain", **options), train_dataset=rows)
    plain.train()
    for deciding in (NOTHING, {"saft_on_undecided": "keep"}):
        caplog.clear()
        saft = SAFTSFTTrainer(model, make_args(tmp_path, **options, **deciding), train_dataset=rows)
        saft.train()
        assert losses(saft) == losses(plain)
        assert sum("filters NOTHING: the rows have images" in record.message for record in caplog.records) == 1
        assert saft.saft_summary is not None
        assert saft.saft_summary.undecided == "the rows have images, and SAFT scores text only"


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_text_rows_of_a_vision_model(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    model = vision_model(tmp_path / "model")
    assert_as_sft(tmp_path, lambda: model, pool_rows(kind, 16), {}, max_steps=2)


@pytest.mark.parametrize(
    "error",
    [
        SAFTInputError("model='{model}' is odd"),
        RuntimeError("a heron's row"),
        SAFTArtifactError("/home/heron/store: 'size': damaged, and so is ~/heron (neither prompt/completion)"),
        SAFTError("scoring failed on process 1 of 2: OSError: No space left on device: 'heron'"),
    ],
)
@pytest.mark.smoke
def test_whatever_stops_the_scoring_does_not_stop_a_run_that_asked_for_nothing(
    error: Exception,
    saved: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise type(error)(str(error).replace("{model}", saved()))

    monkeypatch.setattr(filtering, "decide_rows", fail)
    with caplog.at_level(logging.WARNING, logger="saft_hf"):
        saft = SAFTSFTTrainer(saved(), make_args(tmp_path, **NOTHING), train_dataset=pool_rows())
    assert ["filters NOTHING" in record.message for record in caplog.records] == [True]
    plain = SFTTrainer(saved(), make_args(tmp_path / "plain"), train_dataset=pool_rows())
    assert prepared(saft) == prepared(plain)
    summary = (tmp_path / "out" / "saft_summary.json").read_text()
    assert json.loads(summary)["filtered"] is False
    assert type(error).__name__ in summary
    assert saved() not in summary
    assert "heron" not in summary
    assert ("prompt/completion" in summary) == ("prompt/completion" in str(error))
    assert ("on process 1 of 2" in summary) == ("on process 1 of 2" in str(error))


def test_told_to_raise_it_raises(saved: Callable[..., str], tmp_path: Path) -> None:
    model, args = saved("qwen2", None), make_args(tmp_path, saft_on_undecided="raise", **NOTHING)
    with pytest.raises(SAFTInputError, match="no chat template"):
        SAFTSFTTrainer(model, args, train_dataset=pool_rows("messages"))


def test_plain_training_arguments(saved: Callable[..., str], tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", max_steps=1, logging_steps=1)
    told = [
        trainer_class(saved(), copy.deepcopy(args), train_dataset=pool_rows("text", 8))
        for trainer_class in (SFTTrainer, SAFTSFTTrainer)
    ]
    for trainer in told:
        trainer.train()
    assert losses(told[0]) == losses(told[1])
