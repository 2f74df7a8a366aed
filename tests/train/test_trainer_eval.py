"""The rows to evaluate on: left alone, scored, or filtered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from train_kit import make_args, pool_rows, save_model
from trl import SFTTrainer

from saft_hf import SAFTInputError, SAFTScorer, SAFTSFTTrainer, SAFTUndecidedError
from saft_hf.scorer import SCORE, STATUS

FORMS = ["dataset", "dict", "splits", "stream", "stream_dict", "stream_splits"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_model(tmp_path / "model")


def sets_of(form: str) -> dict[str, Dataset]:
    if form in ("dataset", "stream"):
        return {"eval": pool_rows(seed=1)}
    return {"a/b": pool_rows(seed=1), "c": pool_rows(rows=20, seed=2)}


def in_form(form: str) -> Any:
    sets: dict[str, Any] = sets_of(form)
    if "stream" in form:
        sets = {name: rows.to_iterable_dataset() for name, rows in sets.items()}
    if form.endswith("splits"):
        return (IterableDatasetDict if "stream" in form else DatasetDict)(sets)
    return sets if form.endswith("dict") else sets["eval"]


def sizes(prepared: Any) -> dict[str, int]:
    found = prepared if isinstance(prepared, dict) else {"eval": prepared}
    return {name: len(list(rows)) for name, rows in found.items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_left_scored_or_filtered(form: str, model: str, tmp_path: Path) -> None:
    scorer = SAFTScorer(model, method="saft", contamination=0.25, cache_dir=tmp_path / "cache").fit(pool_rows())
    expected = {name: scorer.filter(rows) for name, rows in sets_of(form).items()}
    whole = {name: len(rows) for name, rows in sets_of(form).items()}
    kept = {name: len(result.kept) for name, result in expected.items()}
    assert all(0 < kept[name] < whole[name] for name in whole)
    for mode, sized in (("leave", whole), ("score", whole), ("filter", kept)):
        given = in_form(form)
        folder = tmp_path / mode
        trainer = SAFTSFTTrainer(
            model,
            make_args(folder, saft_eval=mode, saft_cache_dir=str(tmp_path / "cache")),
            train_dataset=pool_rows(),
            eval_dataset=given,
        )
        assert sizes(trainer.eval_dataset) == sized
        streams = list(trainer.eval_dataset.values()) if isinstance(given, dict) else [trainer.eval_dataset]
        assert all(isinstance(rows, IterableDataset) is ("stream" in form) for rows in streams)
        assert len(trainer.train_dataset) == 30
        audits = sorted(path.name for path in (folder / "out" / "_saft").glob("eval-*.parquet"))
        summary = json.loads((folder / "out" / "saft_summary.json").read_text())
        if mode == "leave":
            assert summary["evaluation"] == {}
            assert audits == []
            continue
        assert audits == sorted(f"eval-{name.replace('/', '%2F')}.parquet" for name in whole)
        for name, result in expected.items():
            told = summary["evaluation"][name]
            assert told["filtered"] is (mode == "filter")
            assert (told["rows"], told["kept"], told["removed"]) == (whole[name], kept[name], whole[name] - kept[name])
            audit = pq.read_table(folder / "out" / "_saft" / f"eval-{name.replace('/', '%2F')}.parquet")
            assert np.array_equal(np.asarray(audit["saft_score"], dtype=np.float32), result.scores)


def test_what_is_left_or_scored_is_what_sft_trainer_evaluates_on(model: str, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 3}
    scorer = SAFTScorer(model, method="saft", contamination=0.25, cache_dir=tmp_path / "cache").fit(pool_rows())
    kept = scorer.filter(pool_rows()).kept
    losses = []
    for trainer_class, folder, more in (
        (SFTTrainer, "plain", {}),
        (SAFTSFTTrainer, "leave", {}),
        (SAFTSFTTrainer, "score", {"saft_eval": "score"}),
    ):
        rows = pool_rows() if trainer_class is SAFTSFTTrainer else kept
        args = make_args(tmp_path / folder, **options, **more)
        trainer = trainer_class(model, args, train_dataset=rows, eval_dataset=pool_rows(seed=1))
        trainer.train()
        losses.append([entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry])
    assert losses[0] == losses[1] == losses[2]
    assert losses[0]


def test_scores_that_came_with_eval_rows_are_not_used(model: str, tmp_path: Path) -> None:
    rows = pool_rows(seed=1).add_column(SCORE, [0.0] * 40).add_column(STATUS, ["ok"] * 40)
    call = {"train_dataset": pool_rows(), "eval_dataset": rows}
    trainer = SAFTSFTTrainer(model, make_args(tmp_path, saft_eval="filter"), **call)
    assert len(trainer.eval_dataset) < 40
    assert SCORE not in trainer.eval_dataset.column_names


def test_what_cannot_be_done_is_said(model: str, tmp_path: Path) -> None:
    rows = pool_rows(seed=1)
    with pytest.raises(SAFTInputError, match="`saft_eval` must be one of"):
        make_args(tmp_path, saft_eval="all")
    trusted = pool_rows().add_column(SCORE, np.arange(40, dtype=np.float32)).add_column(STATUS, ["ok"] * 40)
    args = make_args(tmp_path, saft_method=None, saft_eval="score", saft_trust_scores=True)
    with pytest.raises(SAFTInputError, match="needs a scorer, and there is none: the data's own scores are trusted"):
        SAFTSFTTrainer(model, args, train_dataset=trusted, eval_dataset=rows)
    with pytest.raises(SAFTInputError, match=r"eval_dataset \(eval\)` is an empty stream"):
        SAFTSFTTrainer(
            model,
            make_args(tmp_path, saft_eval="score"),
            train_dataset=pool_rows(),
            eval_dataset=rows.to_iterable_dataset().take(0),
        )
    scorer = SAFTScorer(model, method="saft", threshold=0.0, cache_dir=tmp_path / "cache").fit(
        pool_rows(), on_undecided="keep"
    )
    assert scorer.fit_ is not None
    scores = np.asarray(scorer.score_dataset(pool_rows())[SCORE])
    scorer.fit_ = replace(scorer.fit_, threshold=float(np.median(scores)))
    tools = pool_rows().select(np.flatnonzero(scores > np.median(scores)))
    args = make_args(tmp_path, saft_eval="filter", saft_method=None, saft_contamination=None)
    with pytest.raises(SAFTUndecidedError, match=r"no row of `eval_dataset` \(eval\) would be left"):
        SAFTSFTTrainer(model, args, train_dataset=pool_rows(), eval_dataset=tools, saft_scorer=scorer)
