"""Training with SAFTSFTTrainer equals training with SFTTrainer on the rows that it kept."""

from __future__ import annotations

import copy
import inspect
import random
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from train_kit import (
    TEMPLATE,
    assert_same_training,
    make_args,
    make_model,
    make_tokenizer,
    pool_rows,
    save_model,
)
from trl import SFTTrainer

from saft_hf import SAFTSFTTrainer
from saft_hf.scorer import SCORE
from saft_hf.train.filtering import filter_rows

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "gaussian"}

# name -> shape of the rows, options of the config, arguments of the trainer
FEATURES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "prompt_completion": ("prompt_completion", {}, {}),
    "messages": ("messages", {}, {}),
    "text": ("text", {}, {}),
    "text_field": ("other_text", {"dataset_text_field": "content"}, {}),
    "conversational_prompt_completion": ("chat_prompt_completion", {}, {}),
    "formatting_func": ("pair", {}, {"formatting_func": lambda row: f"{row['asked']} = {row['said']}"}),
    "max_length": ("prompt_completion", {"max_length": 24}, {}),
    "completion_only_loss": ("prompt_completion", {"completion_only_loss": False}, {}),
    "assistant_only_loss": ("messages", {"assistant_only_loss": True}, {}),
    "eos_token": ("text", {"eos_token": "<pad>"}, {}),
    "packing_bfd": ("text", {"packing": True, "max_length": 48}, {}),
    "packing_bfd_split": ("text", {"packing": True, "packing_strategy": "bfd_split", "max_length": 12}, {}),
    "packing_wrapped": ("text", {"packing": True, "packing_strategy": "wrapped", "max_length": 24}, {}),
    "padding_free": ("messages", {"padding_free": True, "max_length": None}, {}),
    "shuffled": ("messages", {"shuffle_dataset": True}, {}),
}


def both(
    folder: Path, kind: str, options: dict[str, Any], call: dict[str, Any], model: Any = None
) -> tuple[SAFTSFTTrainer, SFTTrainer]:
    name = save_model(folder / "model")
    models = (name, name) if model is None else (copy.deepcopy(model), copy.deepcopy(model))
    if model is not None:
        call = {**call, "processing_class": make_tokenizer()}
    pool = pool_rows(kind)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    saft = SAFTSFTTrainer(models[0], make_args(folder, **options), train_dataset=pool, **copy.deepcopy(call))
    assert saft.saft_result is not None
    assert 0 < len(saft.saft_result.removed) < len(pool) / 2
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    plain = assert_same_training(saft, folder, saft.saft_result.kept, models[1], call, **options)
    return saft, plain


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.smoke
def test_every_feature(feature: str, tmp_path: Path) -> None:
    both(tmp_path, *FEATURES[feature])


@pytest.mark.parametrize("by", ["name", "object"])
def test_lora_starts_from_the_same_random_weights(by: str, tmp_path: Path) -> None:
    call = {"peft_config": peft.LoraConfig(**LORA)}
    saft, _ = both(tmp_path, "messages", {}, call, None if by == "name" else make_model())
    assert isinstance(saft.model, peft.PeftModel)


def test_a_model_that_has_adapters_already(tmp_path: Path) -> None:
    model = peft.get_peft_model(make_model(), peft.LoraConfig(**LORA))
    both(tmp_path, "messages", {}, {}, model)


def test_pretokenised_rows(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        prompt, full = (tokenizer(row[n])["input_ids"] for n in ("prompt", "full"))
        return {"input_ids": full, "completion_mask": [0] * len(prompt) + [1] * (len(full) - len(prompt))}

    pool = pool_rows()
    pool = pool.map(lambda row: {"full": row["prompt"] + row["completion"]}).map(
        encode, remove_columns=["prompt", "completion", "full", "is_harmful"]
    )
    name = save_model(tmp_path / "model")
    saft = SAFTSFTTrainer(name, make_args(tmp_path), train_dataset=pool)
    assert saft.saft_result is not None
    assert len(saft.saft_result.removed)
    assert_same_training(saft, tmp_path, saft.saft_result.kept, name, {})


def test_template_file_changes_the_rows_that_are_scored(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(TEMPLATE.replace("<|user|>", "").replace("{{ m.content }}", "{{ m.content | upper }}"))
    saft, _ = both(tmp_path, "messages", {"chat_template_path": str(path)}, {})
    other = SAFTSFTTrainer(save_model(tmp_path / "model"), make_args(tmp_path), train_dataset=pool_rows("messages"))
    assert saft.saft_result is not None
    assert other.saft_result is not None
    assert not np.array_equal(saft.saft_result.scores, other.saft_result.scores)


@pytest.mark.parametrize("added", [0, 40])
def test_template_of_another_tokenizer_is_cloned_for_scoring_too(added: int, tmp_path: Path) -> None:
    source = make_tokenizer(TEMPLATE.replace("<|user|>", "<|human|>"))
    # With 40 more before it, the token in the template has an id that the model has no embedding for.
    source.add_tokens([*(f"<{number}>" for number in range(added)), "<|human|>"], special_tokens=True)
    source.save_pretrained(tmp_path / "source")
    both(tmp_path, "messages", {"chat_template_path": str(tmp_path / "source")}, {})


def test_random_state_is_as_if_nothing_had_run(tmp_path: Path) -> None:
    name, draws = save_model(tmp_path / "model"), []
    for trainer, rows in ((SFTTrainer, pool_rows()), (SAFTSFTTrainer, pool_rows())):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        trainer(name, make_args(tmp_path, saft_cache_dir=str(tmp_path / trainer.__name__)), train_dataset=rows)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]


def test_the_arguments_of_the_user_stay_his(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args, tokenizer = make_args(tmp_path, eos_token="<pad>"), make_tokenizer()
    model = make_model().train()
    model.model.layers[0].eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pool = pool_rows().add_column(SCORE, [0.0] * 40)
    columns = list(pool.column_names)
    seen: dict[str, Any] = {}

    def watched(*arguments: Any) -> Any:
        record = filter_rows(*arguments)
        seen.update(eos=tokenizer.eos_token, flags=[module.training for module in model.modules()])
        return record

    monkeypatch.setattr("saft_hf.train.trainer.filter_rows", watched)
    trainer = SAFTSFTTrainer(model, args, train_dataset=pool, processing_class=tokenizer)
    assert trainer.args is args
    assert pool.column_names == columns
    assert seen["eos"] == "<eos>"
    assert seen["flags"] == [module.training for module in model.modules()]
    assert not all(seen["flags"])
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())


def test_every_argument_of_sft_trainer_by_position(tmp_path: Path) -> None:
    names = list(inspect.signature(SFTTrainer.__init__).parameters)[1:]
    given = {"model": make_model(), "args": make_args(tmp_path), "train_dataset": pool_rows()}
    given |= {"processing_class": make_tokenizer(), "optimizers": (None, None), "eval_dataset": pool_rows(seed=1)}
    trainer = SAFTSFTTrainer(*[given.get(name) for name in names])
    assert trainer.saft_result is not None
    assert len(trainer.eval_dataset) == 40
    with pytest.raises(TypeError, match="no_such_argument"):
        SAFTSFTTrainer(make_model(), no_such_argument=1)
