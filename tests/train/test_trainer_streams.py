"""Streams: fitted on their first rows, filtered while the model trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import IterableDataset
from train_kit import assert_same_training, make_args, make_model, make_tokenizer, pool_rows, save_model

from saft_hf import SAFTInputError, SAFTScorer, SAFTSFTTrainer, SAFTUndecidedError
from saft_hf.scorer import SCORE, STATUS
from saft_hf.train import trainer as trainer_module
from saft_hf.train.filtering import filter_rows
from saft_hf.train.stream import StreamFilter

LORA = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "gaussian"}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_model(tmp_path / "model")


@pytest.mark.parametrize("tuned", ["name", "object", "lora"])
@pytest.mark.smoke
def test_a_stream_trains_as_its_kept_rows_do(tuned: str, model: str, tmp_path: Path) -> None:
    pool = pool_rows("messages")
    options = {"saft_fit_rows": 30, "max_steps": 12}
    scorer = SAFTScorer(model, method="saft", contamination=0.25, cache_dir=tmp_path / "cache").fit(pool, fit_rows=30)
    kept = scorer.filter(pool).kept
    assert 20 < len(kept) < 40
    make: Any = (lambda: model) if tuned == "name" else make_model
    call: dict[str, Any] = {} if tuned == "name" else {"processing_class": make_tokenizer()}
    if tuned == "lora":
        call["peft_config"] = peft.LoraConfig(**LORA)
    torch.manual_seed(3)  # TRL 1.10 draws adapters from whatever state it finds
    trainer = SAFTSFTTrainer(make(), make_args(tmp_path, **options), train_dataset=pool.to_iterable_dataset(), **call)
    torch.manual_seed(3)
    assert_same_training(trainer, tmp_path, kept.to_iterable_dataset(), make(), call, **options)
    assert trainer.saft_result is None
    assert trainer.saft_scorer is not None
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    counts = (last["saft_kept"], last["saft_removed"], last["saft_errored"])
    # 24 rows were trained on; the stream is read in batches of 16.
    assert sum(counts) == 40 or sum(counts) == 32
    assert counts[0] >= 24
    assert last["saft_kept_share"] == counts[0] / sum(counts)
    summary = json.loads((tmp_path / "out" / "saft_summary.json").read_text())
    assert (summary["kept"], summary["removed"], summary["errored"]) == counts
    assert summary["stream"] is True


def test_a_fitted_scorer_filters_a_stream(model: str, tmp_path: Path) -> None:
    pool = pool_rows()
    scorer = SAFTScorer(model, method="saft", contamination=0.25, cache_dir=tmp_path / "cache").fit(pool)
    args = make_args(tmp_path, saft_method=None, saft_contamination=None)
    trainer = SAFTSFTTrainer(model, args, train_dataset=pool.to_iterable_dataset(), saft_scorer=scorer)
    kept = list(trainer.train_dataset.remove_columns("is_harmful"))
    assert len(kept) == len(scorer.filter(pool).kept)
    trainer.train()


@pytest.mark.parametrize("labelled", [True, False])
def test_a_stream_says_that_labels_do_not_decide_its_rows(
    labelled: bool, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool, options = pool_rows(), {"saft_method": None, "saft_contamination": None}
    call = {"saft_labelled": pool} if labelled else {}
    options |= {} if labelled else {"saft_method": "saft", "saft_contamination": 0.25}
    SAFTSFTTrainer(model, make_args(tmp_path, **options), train_dataset=pool.to_iterable_dataset(), **call)
    warned = [text for text in caplog.messages if "rows that people labelled" in text]
    assert len(warned) == labelled
    assert all("decided by their scores" in text for text in warned)


def test_trusted_scores_of_a_stream(model: str, tmp_path: Path) -> None:
    pool = pool_rows().add_column(SCORE, np.arange(40, dtype=np.float32)).add_column(STATUS, ["ok"] * 40)
    args = make_args(tmp_path, saft_method=None, saft_contamination=None, saft_threshold=29.0, saft_trust_scores=True)
    trainer = SAFTSFTTrainer(model, args, train_dataset=pool.to_iterable_dataset())
    assert len(list(trainer.train_dataset)) == 30
    trainer.train()


def test_with_nothing_to_decide_by_the_stream_passes_untouched(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = pool_rows().to_iterable_dataset()
    handed: list[Any] = []

    def watched(*arguments: Any) -> Any:
        record = filter_rows(*arguments)
        handed.append(record.dataset)
        return record

    monkeypatch.setattr(trainer_module, "filter_rows", watched)
    SAFTSFTTrainer(model, make_args(tmp_path, saft_contamination=None), train_dataset=stream)
    assert handed == [stream]


def test_what_a_stream_cannot_do(model: str, tmp_path: Path) -> None:
    stream = pool_rows().to_iterable_dataset()
    with pytest.raises(SAFTInputError, match="`dataloader_num_workers`=2"):
        SAFTSFTTrainer(model, make_args(tmp_path, dataloader_num_workers=2), train_dataset=stream)
    with pytest.raises(SAFTInputError, match="empty stream"):
        SAFTSFTTrainer(model, make_args(tmp_path), train_dataset=stream.take(0))
    scorer = SAFTScorer(model, method="saft", cache_dir=tmp_path / "cache").fit(pool_rows())
    args = make_args(tmp_path, saft_method=None, saft_contamination=None)
    with pytest.raises(SAFTUndecidedError, match="saft_on_undecided='keep'"):
        SAFTSFTTrainer(model, args, train_dataset=stream, saft_scorer=scorer)


class Ranks:
    """A world in which other processes reported these."""

    def __init__(self, others: list[Any]) -> None:
        self.others = others

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


def test_counts_add_up_over_processes_that_read_different_parts() -> None:
    def score(batch: Any) -> dict[str, Any]:
        return {SCORE: batch["n"], STATUS: ["ok"] * len(batch["n"])}

    def count(*rows: int) -> StreamFilter:
        kept = StreamFilter(score, 5.0, "exclude")
        assert kept({"n": list(rows)}) == [row <= 5 for row in rows]
        return kept

    alone = Ranks([])
    one, other = count(1, 9), count(2, 3, 8)
    assert one.totals(alone) == {"kept": 1, "removed": 1, "errored": 0}  # type: ignore[arg-type]
    split = Ranks([(other._begin, other._counts)])
    assert one.totals(split) == {"kept": 3, "removed": 2, "errored": 0}  # type: ignore[arg-type]
    whole = Ranks([(one._begin, {"kept": 4, "removed": 1, "errored": 0})])
    assert one.totals(whole) == {"kept": 4, "removed": 1, "errored": 0}  # type: ignore[arg-type]
    one.restart()
    assert one.totals(alone) == {"kept": 0, "removed": 0, "errored": 0}  # type: ignore[arg-type]


def test_an_empty_stream_is_refused(model: str, tmp_path: Path) -> None:
    empty = IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(SAFTInputError, match="empty stream"):
        SAFTSFTTrainer(model, make_args(tmp_path), train_dataset=empty)


def test_a_stream_is_scored_by_what_the_model_was_when_training_began(tmp_path: Path) -> None:
    """Also by a scorer that was fitted on the very object that is trained."""
    pool, later = pool_rows(), pool_rows(seed=5)  # later rows are in no store
    frozen, tuned = (
        SAFTScorer(
            make_model(),
            method="saft",
            contamination=0.25,
            cache_dir=tmp_path / name,
            processing_class=make_tokenizer(),
        ).fit(pool)
        for name in ("frozen", "tuned")
    )
    kept = len(frozen.filter(later).kept)
    assert kept < len(later)
    args = make_args(tmp_path, saft_method=None, saft_contamination=None)
    call = {"processing_class": make_tokenizer(), "saft_scorer": tuned}
    model = tuned.model
    trainer = SAFTSFTTrainer(model, args, train_dataset=later.to_iterable_dataset(), **call)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert len(list(trainer.train_dataset)) == kept
    assert tuned.model is model
