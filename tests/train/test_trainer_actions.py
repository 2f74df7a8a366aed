"""Masks and demonstrations: training equals that of SFTTrainer on rows that were masked and mixed by hand."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import concatenate_datasets as concatenated
from hypothesis import given, settings
from hypothesis import strategies as st
from train_kit import SPECIAL, losses, make_args, make_tokenizer, pool_rows, save_model
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast
from trl import SFTTrainer

from saft_hf import FilterResult, SAFTSFTTrainer
from saft_hf.assets import pairs
from saft_hf.decide import decide
from saft_hf.demonstrations import demonstrations_for, interleaved
from saft_hf.errors import SAFTInputError
from saft_hf.render import Renderer
from saft_hf.summary import Summary
from saft_hf.train.masking import MASKED, masked_labels, with_masks
from saft_hf.train.record import TrainedRows

POOL, RENDERER = pool_rows("messages", 30), Renderer(make_tokenizer())
SAFE = Dataset.from_list([{"prompt": f"bad wish {n}", "completion": f"no, rather {n}"} for n in range(5)])


def encode(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, *, masked: bool) -> dict[str, Any]:
    """A row of any shape as tokens and labels, and without its response in the labels where it is masked."""
    user, assistant = SPECIAL[2:]
    if "messages" in row:
        prompt = f"{user}{row['messages'][0]['content']}{assistant}"
        answer = f"{row['messages'][1]['content']}<eos>"
    elif "prompt" in row:
        prompt, answer = row["prompt"], f"{row['completion']}<eos>"
    else:
        prompt, answer = "", f"{row['text']}<eos>"
    head, ids = (tokenizer(text)["input_ids"] for text in (prompt, prompt + answer))
    start = next((i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), min(len(head), len(ids)))
    in_loss = [position >= start or "messages" in row for position in range(len(ids))]
    shown = [there and not (masked and position >= start) for position, there in enumerate(in_loss)]
    return {"input_ids": ids, "labels": [t if s else -100 for t, s in zip(ids, shown, strict=True)]}


def by_hand(rows: Dataset, masked: list[int], **only: bool) -> Dataset:
    tokenizer = make_tokenizer()
    made = [encode(row, tokenizer, masked=number in masked) for number, row in enumerate(rows)]
    if only.get("assistant_only"):  # prompts are in no loss, and so masked rows in none at all
        whole = [encode(row, tokenizer, masked=True)["labels"] for row in rows]
        for row, prompt in zip(made, whole, strict=True):
            row["labels"] = [-100 if p != -100 else t for p, t in zip(prompt, row["labels"], strict=True)]
    return Dataset.from_list(made)


COMBINATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt_completion": ("prompt_completion", {}),
    "messages": ("messages", {}),
    "text": ("text", {}),
    "assistant_only_loss": ("messages", {"assistant_only_loss": True}),
    "packing_bfd": ("messages", {"packing": True, "max_length": 64}),
    "packing_bfd_cut": ("messages", {"packing": True, "max_length": 20}),
    "packing_bfd_split": ("messages", {"packing": True, "packing_strategy": "bfd_split", "max_length": 20}),
    "packing_wrapped": ("messages", {"packing": True, "packing_strategy": "wrapped", "max_length": 32}),
    "padding_free": ("messages", {"padding_free": True, "max_length": None}),
    "shuffled": ("messages", {"shuffle_dataset": True}),
    "dft": ("messages", {"loss_type": "dft"}),
}


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.smoke
def test_masks_equal_data_masked_by_hand(combination: str, tmp_path: Path) -> None:
    kind, options = COMBINATIONS[combination]
    name, pool = save_model(tmp_path / "model"), pool_rows(kind)
    saft = SAFTSFTTrainer(name, make_args(tmp_path, saft_action="mask", **options), train_dataset=pool)
    assert saft.saft_result is not None
    scored = [row for row in range(len(pool)) if row not in saft.saft_result.errored_indices]  # the others are left out
    masked = [scored.index(row) for row in saft.saft_result.removed_indices]
    assert 0 < len(masked) < len(scored) / 2
    assert (saft.saft_summary.action, saft.saft_summary.masked) == ("mask", len(masked))
    rows = by_hand(pool.select(scored), masked, assistant_only=combination == "assistant_only_loss")
    # SFTTrainer drops rows that are masked as a whole where it cuts; nothing here is longer.
    uncut = options if options.get("packing") else {**options, "max_length": None}
    uncut = {key: value for key, value in uncut.items() if key != "assistant_only_loss"}
    plain = SFTTrainer(name, make_args(tmp_path / "plain", **uncut), train_dataset=rows)
    names = ["input_ids", "labels", *({"seq_lengths"} & set(plain.train_dataset.column_names))]
    assert saft.train_dataset.select_columns(names)[:] == plain.train_dataset.select_columns(names)[:]
    if not options.get("packing"):
        assert len(saft.train_dataset) == len(pool)
    else:
        assert len(scored) > len(pool) / 2
    plain.train(), saft.train()
    torch.testing.assert_close(torch.tensor(losses(saft)), torch.tensor(losses(plain)), atol=1e-6, rtol=0)
    for key, weight in plain.model.state_dict().items():
        torch.testing.assert_close(saft.model.state_dict()[key], weight, atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"loss_type": "dft"}])
@pytest.mark.smoke
def test_a_batch_that_is_masked_as_a_whole_teaches_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    one = {"per_device_train_batch_size": 1, "max_steps": 12, "saft_contamination": 0.9}
    args = make_args(tmp_path, saft_action="mask", **one, **options)
    trainer = SAFTSFTTrainer(save_model(tmp_path / "model"), args, train_dataset=pool_rows())
    trainer.train()
    found = losses(trainer)
    assert found.count(0.0) >= 8
    assert all(map(math.isfinite, found))
    assert all(bool(weight.isfinite().all()) for weight in trainer.model.state_dict().values())


@pytest.mark.parametrize("kind", ["prompt_completion", "chat_prompt_completion", "messages", "text"])
@pytest.mark.parametrize("action", ["remove", "mask"])
def test_demonstrations_equal_rows_mixed_by_hand(kind: str, action: str, tmp_path: Path) -> None:
    name, pool = save_model(tmp_path / "model"), pool_rows(kind)
    args = make_args(tmp_path, saft_demonstrations_share=0.25, saft_action=action)
    saft = SAFTSFTTrainer(name, args, train_dataset=pool, saft_demonstrations=SAFE)
    result, summary = saft.saft_result, saft.saft_summary
    kept = result.kept if action == "remove" else pool
    count = round(0.25 * len(result.kept))
    assert (summary.demonstrations.rows, summary.kept) == (count, len(result.kept))
    assert summary.demonstrations.share == count / len(result.kept)
    assert summary.kept + summary.removed + summary.errored == len(pool)
    chats = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in SAFE.select([number % 5 for number in range(count)])
    ]
    shapes = {
        "prompt_completion": [{"prompt": c[0]["content"], "completion": c[1]["content"]} for c in chats],
        "chat_prompt_completion": [{"prompt": c[:1], "completion": c[1:]} for c in chats],
        "messages": [{"messages": c} for c in chats],
        "text": [{"text": f"{c[0]['content']}\n{c[1]['content']}"} for c in chats],
    }
    shown = Dataset.from_list([{**row, "is_harmful": None} for row in shapes[kind]], features=pool.features)
    total = len(kept) + count
    places = {int((number + 0.5) * total / count): len(kept) + number for number in range(count)}
    others = iter(range(len(kept)))
    mixed = concatenated([kept, shown]).select(
        [places.get(i, -1) if i in places else next(others) for i in range(total)]
    )
    if action == "remove":
        assert result.train_rows()[:] == mixed[:]
        plain = SFTTrainer(name, make_args(tmp_path / "plain"), train_dataset=mixed)
        assert (
            saft.train_dataset.select_columns(["input_ids", "labels"])[:]
            == (plain.train_dataset.select_columns(["input_ids", "labels"])[:])
        )
        plain.train(), saft.train()
        torch.testing.assert_close(torch.tensor(losses(saft)), torch.tensor(losses(plain)), atol=1e-6, rtol=0)
    else:
        assert len(saft.train_dataset) == total
        nothing = [set(row) <= {-100} for row in saft.train_dataset["labels"]]
        assert not any(nothing[place] for place in places)
    lines = Dataset.from_parquet(str(tmp_path / "out" / "_saft" / "audit.parquet"), cache_dir=str(tmp_path / "c"))
    assert lines["source"][:] == ["input"] * len(pool) + ["demonstration"] * count
    assert set(lines["decision"][len(pool) :]) == {"added"}


ASKED, SAID = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
FORMS: dict[str, dict[str, Any]] = {
    "conversations": {"conversations": [ASKED, SAID]},
    "sharegpt": {"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]},
    "more_keys": {"messages": [{**ASKED, "name": "A"}, {**SAID, "name": None}]},
    "prompt_beside_messages": {"prompt": "Hi", "completion": "Hello", "messages": [ASKED, SAID]},
    "options": {"messages": [ASKED, SAID], "chat_template_kwargs": {"thinking": True}, "tools": "[]", "is_safe": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_demonstrations_take_the_form_of_the_rows(form: str) -> None:
    pool = Dataset.from_list([FORMS[form]] * 3)
    rows, _ = demonstrations_for(pool, 3, SAFE, 1.0)
    assert rows.features == pool.features
    dialogues = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in SAFE.select([0, 1, 3])
    ]
    plain = SAFE.select([0, 1, 3]) if "prompt" in pool.column_names else Dataset.from_dict({"messages": dialogues})
    for ours, theirs in zip(RENDERER(rows[:]), RENDERER(plain[:]), strict=True):
        assert ours.status == "ok"
        assert (ours.input_ids.tolist(), ours.spans) == (theirs.input_ids.tolist(), theirs.spans)


def test_demonstrations_take_the_roles_of_the_rows() -> None:
    pool = Dataset.from_list([{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}])
    (row,) = demonstrations_for(pool, 1, SAFE.select([0]), 1.0)[0]
    assert row["conversations"] == [
        {"from": "human", "value": "bad wish 0"},
        {"from": "gpt", "value": "no, rather 0"},
    ]


def test_built_in_demonstrations_are_declining_answers_of_the_pairs() -> None:
    rows, told = demonstrations_for(pool_rows("messages"), 1000, "built-in", 0.05)
    known = {(pair.request, pair.declines) for pair in pairs()}
    shown = [tuple(turn["content"] for turn in messages) for messages in rows["messages"]]
    assert len(shown) == len(set(shown)) == 50
    assert set(shown) <= known
    assert (told.rows, told.different, told.share, told.source) == (50, 50, 0.05, "built-in")
    # From all over the set: of its languages, as many as it has.
    languages = {pair.request: pair.language for pair in pairs()}
    assert len({languages[request] for request, _ in shown}) == len(set(languages.values()))


def test_demonstrations_without_a_decision(tmp_path: Path) -> None:
    # Nothing decides and the rows cannot be scored: they are trained on as they are, with demonstrations among them.
    args = make_args(tmp_path, saft_method=None, saft_contamination=None, saft_demonstrations_share=0.1)
    pool = pool_rows()
    trainer = SAFTSFTTrainer(
        save_model(tmp_path / "model"), args, train_dataset=pool, saft_demonstrations=SAFE, formatting_func=None
    )
    assert not trainer.saft_summary.filtered
    assert trainer.saft_summary.demonstrations.rows == 4
    assert len(trainer.train_dataset) == len(pool) + 4


@pytest.mark.parametrize(
    "change",
    [{"saft_action": "mask"}, {"saft_demonstrations_share": 0.2}, {"saft_demonstrations": SAFE.select([1, 0])}],
)
def test_resuming_with_another_action_or_other_demonstrations_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    name, pool = save_model(tmp_path / "model"), pool_rows()
    saving = {"save_strategy": "steps", "save_steps": 2}

    def trainer(**changed: Any) -> SAFTSFTTrainer:
        shown = changed.pop("saft_demonstrations", SAFE)
        args = make_args(tmp_path, **{**saving, "saft_demonstrations_share": 0.1, **changed})
        return SAFTSFTTrainer(name, args, train_dataset=pool, saft_demonstrations=shown)

    whole = trainer()
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert TrainedRows.load(checkpoint).demonstrations is not None
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed) == losses(whole)
    with pytest.raises(
        SAFTInputError, match="action: remove then, mask now" if "saft_action" in change else "demonstr"
    ):
        trainer(**change).train(resume_from_checkpoint=str(checkpoint))


@given(
    st.lists(st.sampled_from("kkkkrre"), min_size=30, max_size=30).filter(lambda words: "k" in words),
    st.booleans(),
    st.sampled_from(["remove", "mask"]),
    st.floats(0.01, 1),
    st.integers(1, 40),
)
@settings(max_examples=40)
def test_every_row_is_there_once_with_demonstrations_and_masks(
    words: list[str], keep: bool, action: str, share: float, found: int
) -> None:
    scores = np.array([{"k": 0.0, "r": 1.0, "e": math.nan}[word] for word in words], np.float32)
    statuses = ["truncated" if word == "e" else "ok" for word in words]
    decisions = decide(scores, statuses, 0.5, on_error="keep" if keep else "exclude")
    result = FilterResult(POOL, scores, statuses, decisions, Summary(filtered=True))
    safe = Dataset.from_list([{"prompt": f"bad wish {n}", "completion": f"no: {n}"} for n in range(found)])
    result.demonstrate(safe, share)
    rows = (
        result.train_rows() if action == "remove" else interleaved(with_masks(result, RENDERER), result.demonstrations)
    )
    said = [row["messages"][1]["content"] for row in rows]
    shown = [place for place, text in enumerate(said) if text.startswith("no: ")]
    stay = {"k", *(["r"] if action == "mask" else []), *(["e"] if keep else [])}
    # The input's rows: in their order, each at most once, and together with those left out exactly the input.
    assert [text for place, text in enumerate(said) if place not in shown] == [
        row["messages"][1]["content"] for row, word in zip(POOL, words, strict=True) if word in stay
    ]
    summary = result.summary
    assert summary.rows == 30 == summary.kept + summary.removed + summary.errored
    assert (len(result.kept), len(result.removed), len(result.errored)) == tuple(map(words.count, "kre"))
    assert summary.masked == (words.count("r") if action == "mask" else 0)
    # The demonstrations: as many as were asked for, equally often, and never two side by side where there is room.
    count = max(1, round(share * len(decisions.train_rows())))
    assert len(shown) == count == summary.demonstrations.rows
    often = Counter(said[place] for place in shown).values()
    assert max(often) - min(often) <= 1
    assert len(often) == min(count, found) == summary.demonstrations.different
    gaps = np.diff([-1, *shown, len(rows)])
    assert max(gaps[1:-1], default=1) - min(gaps[1:-1], default=1) <= 1
    if action == "mask":
        marked = [tokens is not None for tokens in rows[MASKED]]
        assert sum(marked) == words.count("r")
        assert not any(marked[place] for place in shown)


def test_a_row_without_a_response_cannot_be_masked_and_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    broken = POOL.select(range(4)).map(
        lambda row, number: {"messages": row["messages"][:1]} if number == 2 else {}, with_indices=True
    )
    scores, statuses = np.array([0, 1, math.nan, 0], np.float32), ["ok", "ok", "no_response", "ok"]
    decisions = decide(scores, statuses, 0.5, labels={2: True})  # a person called it harmful
    result = FilterResult(broken, scores, statuses, decisions, Summary(filtered=True))
    rows = with_masks(result, RENDERER)
    assert rows.remove_columns(MASKED).to_list() == broken.select([0, 1, 3]).to_list()
    assert [tokens is not None for tokens in rows[MASKED]] == [False, True, False]
    assert (result.summary.removed, result.summary.masked) == (2, 1)
    assert "1 rows have no response that could be masked" in caplog.text


def test_labels_are_masked_where_the_tokens_are_those_that_were_scored() -> None:
    row = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], MASKED: [5, -100, -100]}
    assert masked_labels(row) == {"labels": [5, -100, -100, -100]}
    assert masked_labels({**row, MASKED: None}) == {"labels": [5, 6, 7, 8]}
    assert masked_labels({**row, "labels": [-100, 6, 7, 8]}) == {"labels": [-100] * 4}
    for other in ([4, -100, -100], [5, -100, -100, -100, -100]):
        with pytest.raises(SAFTInputError, match="other tokens of a row"):
            masked_labels({**row, MASKED: other})


CANNOT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "stream": ({"saft_action": "mask"}, {"stream": True}, "a stream is filtered before"),
    "stream_demonstrations": ({}, {"stream": True, "saft_demonstrations": SAFE}, "not known before it ends"),
    "prepared": (
        {"saft_action": "mask", "dataset_kwargs": {"skip_prepare_dataset": True}},
        {},
        "makes no labels that could be masked",
    ),
    "collator": (
        {"saft_action": "mask"},
        {"data_collator": DataCollatorForLanguageModeling(make_tokenizer(), mlm=False)},
        "may make labels of its own",
    ),
    "smoothing": ({"saft_action": "mask", "label_smoothing_factor": 0.1}, {}, "would give no number"),
    "idle": ({"saft_demonstrations_share": 0.1}, {}, "without effect without `saft_demonstrations`"),
    "share": ({"saft_demonstrations_share": 0.0}, {"saft_demonstrations": SAFE}, "above 0"),
    "columns": ({}, {"saft_demonstrations": SAFE.rename_column("prompt", "asked")}, "expected `prompt` and"),
    "formatted": (
        {"completion_only_loss": False},
        {"saft_demonstrations": SAFE, "formatting_func": lambda row: row["prompt"] + row["completion"]},
        "read by a `formatting_func`",
    ),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_be_done_is_refused_with_the_cause(case: str, tmp_path: Path) -> None:
    options, call, cause = CANNOT[case]
    pool, call = pool_rows(), dict(call)
    if call.pop("stream", False):
        pool = pool.to_iterable_dataset()
    if options.get("dataset_kwargs"):
        pool = by_hand(pool, [])
    with pytest.raises(SAFTInputError, match=cause):
        SAFTSFTTrainer(save_model(tmp_path / "model"), make_args(tmp_path, **options), train_dataset=pool, **call)
