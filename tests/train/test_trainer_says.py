"""Nothing is left out without a word, and nothing is said or shown that was not asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import transformers.utils.logging as transformers_logging
from datasets import Dataset
from train_kit import make_args, pool_rows, prepared, save_model
from trl import SFTTrainer

import saft_hf.distributed
from saft_hf import SAFTScorer, SAFTSFTTrainer
from saft_hf.cli.main import main
from saft_hf.scorer.probing import PoolFit
from saft_hf.summary import Confounds, Summary

NOTHING: dict[str, Any] = {"saft_method": None, "saft_contamination": None}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_model(tmp_path / "model")


def with_long_prompts() -> Dataset:
    """Of 40 rows, 10 have a prompt that fills `max_length`: SFTTrainer trains on what is left of them."""

    def lengthen(row: dict[str, Any], number: int) -> dict[str, Any]:
        asked, said = row["messages"]
        return {"messages": [{**asked, "content": asked["content"] * (90 if number % 4 == 0 else 1)}, said]}

    return pool_rows("messages").map(lengthen, with_indices=True)


def decided(learned: Any, scores: np.ndarray, far: Any, fpr: float) -> PoolFit:
    return PoolFit(None, None, None, float(np.nanquantile(scores, 0.8)), None)


def told(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.message for record in caplog.records if word in record.message]


@pytest.mark.parametrize("given", ["nothing, undecided", "nothing, decided", "share", "exclude", "keep", "trusted"])
@pytest.mark.smoke
def test_rows_without_a_score_leave_with_a_warning_and_stay_where_nothing_was_given(
    given: str, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, options = with_long_prompts(), {"max_length": 200}
    if given == "nothing, decided":
        monkeypatch.setattr("saft_hf.scorer.methods.reference.apply_probe", decided)
    if given.startswith("nothing"):
        options |= NOTHING
    elif given == "trusted":
        scorer = SAFTScorer(model, method="saft", max_length=200, cache_dir=tmp_path / "cache").fit(rows)
        rows, options = scorer.score_dataset(rows), {**options, "saft_trust_scores": True, "saft_method": None}
    elif given != "share":
        options |= {"saft_on_error": given}
    with caplog.at_level(logging.WARNING, logger="saft_hf"):
        trainer = SAFTSFTTrainer(model, make_args(tmp_path, **options), train_dataset=rows)
    result = trainer.saft_result
    assert result is not None
    stays = given.startswith("nothing") or given == "keep"
    warned = told(caplog, "10 of 40 rows could not be scored (truncated: 10)")
    if given == "nothing, undecided":
        assert len(told(caplog, "filters NOTHING")) == 1
        assert result.kept.to_list() == rows.to_list()
        assert warned == []
    else:
        assert len(warned) == 1
        assert ("trained on all the same" if stays else "left out") in warned[0]
        assert len(result.removed) > 0
    left = set(range(40)) - set(result.removed_indices.tolist())
    left -= set() if stays else set(range(0, 40, 4))
    assert len(trainer.train_dataset) == len(left)
    plain = SFTTrainer(model, make_args(tmp_path / "plain", **options), train_dataset=rows.select(sorted(left)))
    assert prepared(trainer) == prepared(plain)


def test_a_scorer_and_the_shell_say_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture, model: str) -> None:
    rows = with_long_prompts()
    scorer = SAFTScorer(model, method="saft", max_length=200, contamination=0.1, cache_dir=tmp_path / "cache").fit(rows)
    scorer.filter(rows)
    said = told(caplog, "10 of 40 rows could not be scored (truncated: 10) and are left out")
    assert len(said) == 1
    scorer.save_pretrained(tmp_path / "scorer")
    rows.to_json(tmp_path / "rows.jsonl")
    caplog.clear()
    words = ["--scorer", tmp_path / "scorer", "--dataset_name", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "o"]
    assert main(["filter", *map(str, words), "--cache_dir", str(tmp_path / "cache")]) == 0
    assert told(caplog, "could not be scored") == said


def test_rows_of_a_stream_that_could_not_be_scored_are_counted_at_the_end(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = with_long_prompts().to_iterable_dataset()
    trainer = SAFTSFTTrainer(model, make_args(tmp_path, max_length=200, max_steps=12), train_dataset=stream)
    caplog.clear()
    trainer.train()
    assert trainer.saft_summary is not None
    errored = trainer.saft_summary.errored
    assert errored
    assert len(told(caplog, f"{errored} of ")) == len(told(caplog, f"(truncated: {errored}) and are left out")) == 1


def test_what_the_score_follows_matters_only_where_rows_are_removed() -> None:
    confounds = Confounds(rows=9, spearman={"length": 0.9}, warn_above=0.3, warnings=("It follows length.",))
    assert Summary(confounds=confounds, removed=3).warnings == confounds.warnings
    for removed in (0, None):
        assert Summary(confounds=confounds, removed=removed).warnings == ()


# -- the log -----------------------------------------------------------------------------------------------------------


LOGGING: dict[str, dict[str, Any]] = {
    "loss first": {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2},
    "eval first": {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 1},
    "eval on start": {"eval_strategy": "epoch", "eval_on_start": True},
    "no steps": {"logging_strategy": "no"},
    "first step": {"logging_first_step": True, "logging_steps": 3},
}


@pytest.mark.parametrize(
    ("filters", "when"), [("off", "loss first"), ("a stream", "eval first"), *(("keeps all", when) for when in LOGGING)]
)
def test_the_log_is_that_of_sft_trainer(filters: str, when: str, model: str, tmp_path: Path) -> None:
    options = {**LOGGING[when], "saft_contamination": None, "saft_threshold": 1e30, "saft_enabled": filters != "off"}
    logs = []
    for trainer_class in (SFTTrainer, SAFTSFTTrainer):
        rows: Any = pool_rows(rows=8)
        rows = rows.to_iterable_dataset() if filters == "a stream" else rows
        args = make_args(tmp_path / trainer_class.__name__, **options)
        trainer = trainer_class(model, args, train_dataset=rows, eval_dataset=pool_rows(rows=4, seed=1))
        trainer.train()
        logs.append(trainer.state.log_history)
    ours = [{name: value for name, value in entry.items() if not name.startswith("saft_")} for entry in logs[1]]
    timed = ("_runtime", "_per_second")
    for entry, plain in zip(ours, logs[0], strict=True):
        assert list(entry) == list(plain)
        assert all(entry[name] == plain[name] for name in plain if not name.endswith(timed))
    marked = [{"loss", "train_loss"} & set(entry) for entry in logs[1] if any(n.startswith("saft_") for n in entry)]
    with_loss = [entry for entry in ours if {"loss", "train_loss"} & set(entry)]
    assert all(marked)
    assert len(marked) == {"off": 0, "keeps all": 1, "a stream": len(with_loss)}[filters]


# -- progress bars -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", ["nothing", "disable_tqdm", "datasets", "transformers"])
def test_every_switch_turns_progress_bars_off(
    off: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars, real = [], saft_hf.distributed.tqdm

    def watched(**options: Any) -> Any:
        bars.append(not options["disable"])
        return real(**{**options, "disable": True})

    monkeypatch.setattr(saft_hf.distributed, "tqdm", watched)
    switches = {"datasets": datasets, "transformers": transformers_logging}
    name = "bars" if off == "datasets" else "bar"
    if off in switches:
        getattr(switches[off], f"disable_progress_{name}")()
    try:
        args = make_args(tmp_path, disable_tqdm=off == "disable_tqdm")
        trainer = SAFTSFTTrainer(model, args, train_dataset=pool_rows())
        if trainer.saft_scorer is not None and off != "disable_tqdm":
            trainer.saft_scorer.score_dataset(pool_rows(seed=9))
    finally:
        if off in switches:
            getattr(switches[off], f"enable_progress_{name}")()
    assert bars
    assert set(bars) == {off == "nothing"}
