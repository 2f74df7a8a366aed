"""Fresh labels decide which rows are trained on, and the summary says what they certify."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from train_kit import make_args, pool_rows, save_model

from saft_hf import SAFTInputError, SAFTScorer, SAFTSFTTrainer, SAFTUndecidedError
from saft_hf.decide.certify import FreshLabels
from saft_hf.scorer import SCORE

ROWS = 240


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_model(tmp_path / "model")


@pytest.fixture(autouse=True)
def certify(monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate from scores alone; rows are told by their text."""

    def certify(
        self: SAFTScorer, dataset: Dataset, fresh: Dataset, *, alpha: float, delta: float, looks: int, **_: Any
    ) -> Any:
        scores = np.asarray(self.score_dataset(dataset)[SCORE], dtype=np.float32)
        found = FreshLabels.of(scores, fresh["row"], fresh["is_harmful"])
        return found.certify(alpha=alpha, delta=delta, looks=looks)

    monkeypatch.setattr(SAFTScorer, "certify", certify, raising=False)


def fresh_labels(harmful: bool | None = None) -> Dataset:
    rows = pool_rows(rows=ROWS)
    rows = rows.add_column("row", list(range(ROWS))).select(range(0, ROWS, 3))
    return rows if harmful is None else rows.map(lambda _: {"is_harmful": harmful})


def trained(model: str, folder: Path, fresh: Dataset | None, **options: Any) -> SAFTSFTTrainer:
    args = make_args(folder, saft_layer=2, **options)
    return SAFTSFTTrainer(model, args, train_dataset=pool_rows(rows=ROWS), saft_fresh_labels=fresh)


def certificate_of(folder: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((folder / "out" / "_saft" / "certificate.json").read_text())
    return written


def test_no_row_comes_back_however_much_is_certified(model: str, tmp_path: Path) -> None:
    plain = trained(model, tmp_path / "plain", None)
    assert plain.saft_result is not None
    assert len(plain.saft_result.kept) == ROWS * 3 / 4
    trainer = trained(model, tmp_path, fresh_labels(harmful=False), saft_alpha=0.2)
    assert trainer.saft_result is not None
    assert trainer.saft_summary is not None
    told, certificate = trainer.saft_summary.certificate, certificate_of(tmp_path)
    assert certificate["certified"]["kept"] == ROWS  # by these labels nothing is harmful
    assert told is not None
    assert told.trained_on is True
    kept = set(trainer.saft_result.kept_indices.tolist())
    assert kept <= set(plain.saft_result.kept_indices.tolist())
    assert len(kept) > 0.95 * len(plain.saft_result.kept)  # the largest certified set within the scorer's threshold
    assert (told.threshold, told.kept) == (trainer.saft_summary.threshold, len(kept))
    assert trainer.saft_summary.threshold in [step["threshold"] for step in certificate["steps"]]
    assert (trainer.saft_summary.threshold_from, trainer.saft_summary.filtered) == ("certificate", True)
    assert len(trainer.train_dataset) == len(kept)


def test_a_smaller_set_is_trained_on_where_only_that_is_certified(model: str, tmp_path: Path) -> None:
    options = {"saft_contamination": None, "saft_threshold": 1e30}
    scorer = SAFTScorer(model, method="saft", layer=2, threshold=1e30, cache_dir=tmp_path / "cache").fit(
        pool_rows(rows=ROWS)
    )
    scores = np.asarray(scorer.score_dataset(pool_rows(rows=ROWS))[SCORE])
    fresh = fresh_labels()
    harmful = [bool(scores[row] > np.quantile(scores, 0.6)) for row in fresh["row"]]
    fresh = fresh.remove_columns("is_harmful").add_column("is_harmful", harmful)
    trainer = trained(model, tmp_path, fresh, saft_alpha=0.1, saft_delta=0.2, **options)
    assert trainer.saft_summary is not None
    told, written = trainer.saft_summary.certificate, certificate_of(tmp_path)
    assert told is not None
    assert told.delta == written["delta"] == 0.2
    kept = trainer.saft_summary.kept
    assert kept == told.kept == written["certified"]["kept"] == len(trainer.train_dataset)
    assert 0.5 * ROWS < kept < 0.75 * ROWS
    assert trainer.saft_summary.threshold == told.threshold == written["certified"]["threshold"]
    assert written["text"] == told.text
    assert "confidence 80%" in told.text


def test_where_nothing_is_certified_it_raises_or_says_so(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = fresh_labels(harmful=True)
    with pytest.raises(SAFTUndecidedError, match="Not certifiable"):
        trained(model, tmp_path, fresh, saft_alpha=0.05)
    trainer = trained(model, tmp_path, fresh, saft_alpha=0.05, saft_on_undecided="keep")
    assert trainer.saft_summary is not None
    told = trainer.saft_summary.certificate
    assert told is not None
    assert (told.issued, told.trained_on) == (False, False)
    assert certificate_of(tmp_path)["certified"] is None
    assert trainer.saft_summary.kept == ROWS * 3 / 4
    assert "Nothing is certified" in caplog.text


def test_looks_that_were_announced_share_the_chance_of_error(model: str, tmp_path: Path) -> None:
    trainer = trained(model, tmp_path, fresh_labels(harmful=False), saft_alpha=0.2, saft_looks=3, saft_by="is_harmful")
    assert trainer.saft_summary.certificate.looks == certificate_of(tmp_path)["looks"] == 3
    assert set(trainer.saft_summary.by["is_harmful"]) == {"True", "False"}


def test_what_does_not_go_together_is_said(model: str, tmp_path: Path) -> None:
    for fresh, options in ((fresh_labels(), {}), (None, {"saft_alpha": 0.1})):
        with pytest.raises(SAFTInputError, match="`saft_fresh_labels` and `saft_alpha` go together"):
            trained(model, tmp_path, fresh, **options)
    args = make_args(tmp_path, saft_alpha=0.1)
    stream = pool_rows().to_iterable_dataset()
    with pytest.raises(SAFTInputError, match="not a stream"):
        SAFTSFTTrainer(model, args, train_dataset=stream, saft_fresh_labels=fresh_labels())


def test_rows_labelled_harmful_stay_out_also_where_the_fit_could_not_tell(model: str, tmp_path: Path) -> None:
    """Undecided sets labels aside with the threshold; a certificate brings both back."""
    pool = pool_rows(rows=ROWS)
    labelled = pool.select(range(1, 100, 3)).map(lambda _, row: {"is_harmful": row % 2 == 0}, with_indices=True)
    args = make_args(
        tmp_path, saft_method="directed", saft_contamination=None, saft_on_undecided="keep", saft_alpha=0.3
    )
    fresh = fresh_labels(harmful=False)
    trainer = SAFTSFTTrainer(model, args, train_dataset=pool, saft_labelled=labelled, saft_fresh_labels=fresh)
    assert trainer.saft_result is not None
    assert trainer.saft_scorer is not None
    if trainer.saft_scorer.threshold_ is not None:
        pytest.skip("the labels, dealt out by turns, can be told after all")
    assert trainer.saft_result.decisions.reason_counts()["removed"]["label"] > 0


def test_what_is_said_is_about_the_set_that_is_trained_on(model: str, tmp_path: Path) -> None:
    trainer = trained(model, tmp_path, fresh_labels(harmful=False), saft_alpha=0.2)
    assert trainer.saft_summary is not None
    assert trainer.saft_summary.certificate is not None
    text = trainer.saft_summary.certificate.text
    kept = len(trainer.train_dataset)
    assert f"of the {kept} rows" in text
    assert f"of the {ROWS} rows" not in text


def test_a_scorer_with_a_threshold_for_each_stratum_trains_and_evaluates_by_them(model: str, tmp_path: Path) -> None:
    pool = pool_rows(rows=ROWS).add_column("kind", ["a", "b", "c"] * (ROWS // 3))
    scorer = SAFTScorer(model, method="saft", layer=2, contamination=0.25, cache_dir=tmp_path / "cache").fit(pool)
    scores = np.asarray(scorer.score_dataset(pool)[SCORE])
    fit = scorer.fit_
    assert fit is not None
    at = {"a": float(np.quantile(scores, 0.5)), "b": float(np.quantile(scores, 0.8)), "c": None}
    scorer.fit_ = replace(fit, threshold=None, threshold_from="certificate", stratify_by="kind", thresholds=at)
    kept = [
        row
        for row, (kind, score) in enumerate(zip(pool["kind"], scores, strict=True))
        if (limit := at[kind]) is not None and score <= limit
    ]
    options = {"saft_contamination": None, "saft_method": None, "saft_cache_dir": str(tmp_path / "cache")}
    call: dict[str, Any] = {"train_dataset": pool, "saft_scorer": scorer}
    args = make_args(tmp_path, saft_eval="filter", **options)
    trainer = SAFTSFTTrainer(model, args, eval_dataset=pool, **call)
    assert trainer.saft_result is not None
    assert trainer.saft_result.kept_indices.tolist() == kept
    assert len(trainer.train_dataset) == len(trainer.eval_dataset) == len(kept)
    with pytest.raises(SAFTInputError, match="has a threshold for each stratum already"):
        SAFTSFTTrainer(model, make_args(tmp_path, saft_alpha=0.2, **options), saft_fresh_labels=fresh_labels(), **call)
    trusted = scorer.score_dataset(pool)
    by_stratum = "has a threshold for each stratum already, of column 'kind'"
    for rows, more in ((pool.to_iterable_dataset(), {}), (trusted, {"saft_trust_scores": True})):
        with pytest.raises(SAFTInputError, match=by_stratum):
            SAFTSFTTrainer(model, make_args(tmp_path, **options, **more), train_dataset=rows, saft_scorer=scorer)
