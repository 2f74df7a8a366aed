"""What `fit` learns: the published score and threshold, computed here a second time the plain way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from scorer_kit import plain_scores, plain_vectors

from saft_hf import SAFTScorer
from saft_hf.embed.backbone import Backbone
from saft_hf.errors import SAFTInputError

READOUTS = ("response_start", "response_mean", "response_end")


def scores_of(scorer: SAFTScorer, rows: Dataset) -> np.ndarray:
    return np.asarray(scorer.score_dataset(rows)["saft_score"], dtype=np.float32)


@pytest.mark.smoke
def test_the_constructor_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_pool: Dataset) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(Backbone, "load", refuse)
    name, cache = str(tmp_path / "no-such-model"), tmp_path / "cache"
    scorer = SAFTScorer(name, method="saft", layer=10**6, k=10**6, cache_dir=cache)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SAFTInputError, match="no-such-model"):
        scorer.fit(demo_pool)
    with pytest.raises(SAFTInputError, match="not fitted"):
        scorer.score_dataset(demo_pool)


@pytest.mark.smoke
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("layer", "k"), [(1, 1), (2, 2), (4, 4)])
def test_scores_equal_an_independent_computation(
    demo_model: str, demo_pool: Dataset, store_dir: Path, readout: str, layer: int, k: int
) -> None:
    # One row stands there 30 times: without its multiplicity the mean would be elsewhere.
    rows = concatenate_datasets([demo_pool.select(range(70)), demo_pool.select([5] * 30)])
    scorer = SAFTScorer(demo_model, method="saft", layer=layer, readout=readout, k=k, cache_dir=store_dir).fit(rows)
    ours, plain = scores_of(scorer, rows), plain_scores(plain_vectors(rows, layer, readout), k)
    assert np.abs(ours - plain).max() <= 1e-5 * plain.max()
    assert scorer.summary_.fit.pool.unique < len(rows) - 28
    assert scorer.layers_ == (layer,)
    assert scorer.readouts_ == (readout,)
    assert scorer.k_ == k
    assert scorer.threshold_ is None


@pytest.mark.smoke
def test_k_and_threshold_are_the_best_f1_of_the_published_grid(
    scorer: SAFTScorer, demo_model: str, demo_pool: Dataset, demo_labelled: Dataset, store_dir: Path
) -> None:
    harmful = ~np.asarray(demo_labelled["is_safe"])
    best: tuple[float, int, float] = (0.0, 0, 0.0)
    for k in (1, 2, 3, 4):
        single = SAFTScorer(demo_model, method="saft", layer=2, k=k, cache_dir=store_dir).fit(demo_pool)
        pool, labelled = scores_of(single, demo_pool), scores_of(single, demo_labelled)
        # From above, so that of equal ones the larger stays.
        for tau in np.linspace(float(pool.min()), float(pool.max()), 100)[::-1]:
            flag = labelled.astype(np.float64) > tau
            f1 = 2 * int((flag & harmful).sum()) / (int(flag.sum()) + int(harmful.sum()))
            if f1 > best[0] + 1e-12:
                best = (f1, k, tau)
    assert scorer.k_ == best[1]
    assert scorer.threshold_ == pytest.approx(best[2], rel=1e-9)
    assert scorer.summary_.fit.published.f1 == pytest.approx(best[0])
    assert str(scorer.summary_.fit.labels) == f"{harmful.sum()} of 100 labelled rows are harmful"


def test_a_given_threshold_is_used_as_it_is(demo_model: str, demo_pool: Dataset, store_dir: Path) -> None:
    scorer = SAFTScorer(demo_model, method="saft", layer=2, k=2, threshold=0.25, cache_dir=store_dir).fit(demo_pool)
    result = scorer.filter(demo_pool)
    assert scorer.threshold_ == 0.25
    assert scorer.summary_.threshold_from == "given"
    assert 0 < len(result.removed_indices) < len(demo_pool)
    assert result.removed_indices.tolist() == np.flatnonzero(result.scores > 0.25).tolist()


def test_an_expected_share_removes_the_rows_with_the_highest_scores(
    demo_model: str, demo_pool: Dataset, store_dir: Path
) -> None:
    scorer = SAFTScorer(demo_model, method="saft", layer=2, k=1, contamination=0.2, cache_dir=store_dir).fit(demo_pool)
    result = scorer.filter(demo_pool)
    removed, kept = result.scores[result.removed_indices], result.scores[result.kept_indices]
    # Equal rows share a score and stay together on the kept side, so a few fewer may go.
    assert 116 <= len(removed) <= 120
    assert removed.min() > kept.max()


def test_fit_rows_fits_on_the_first_rows(
    demo_model: str, demo_pool: Dataset, demo_labelled: Dataset, store_dir: Path
) -> None:
    def fitted(pool: Any, **options: Any) -> SAFTScorer:
        return SAFTScorer(demo_model, method="saft", layer=2, cache_dir=store_dir).fit(pool, demo_labelled, **options)

    first = fitted(demo_pool.select(range(150)))
    some, stream = fitted(demo_pool, fit_rows=150), fitted(demo_pool.to_iterable_dataset(), fit_rows=150)
    expected = scores_of(first, demo_pool)
    assert np.array_equal(scores_of(some, demo_pool), expected)
    assert np.array_equal(scores_of(stream, demo_pool), expected)
    assert first.threshold_ == some.threshold_ == stream.threshold_
    assert fitted(demo_pool, fit_rows=10**6).summary_.fit.pool.rows == len(demo_pool)


def test_fit_can_be_called_again_and_forgets(demo_model: str, demo_pool: Dataset, store_dir: Path) -> None:
    scorer = SAFTScorer(demo_model, method="saft", layer=2, k=1, cache_dir=store_dir).fit(demo_pool.select(range(50)))
    scorer(demo_pool[:3])
    again = scorer.fit(demo_pool)
    assert again is scorer
    fresh = SAFTScorer(demo_model, method="saft", layer=2, k=1, cache_dir=store_dir).fit(demo_pool)
    assert scorer(demo_pool[:20])["saft_score"].tolist() == fresh(demo_pool[:20])["saft_score"].tolist()
    assert fresh(demo_pool[:20])["saft_score"].tolist() != [0.0] * 20


def test_rows_read_through_another_format_or_order_have_the_same_scores(scorer: SAFTScorer, demo_pool: Dataset) -> None:
    expected = scores_of(scorer, demo_pool)
    order = np.random.default_rng(0).permutation(len(demo_pool))
    shuffled = scorer.score_dataset(demo_pool.select(order))
    assert np.array_equal(np.asarray(shuffled["saft_score"], np.float32), expected[order])
    assert shuffled["messages"][:5] == demo_pool.select(order[:5])["messages"][:]


def test_scoring_again_replaces_the_columns(scorer: SAFTScorer, demo_pool: Dataset) -> None:
    once = scorer.score_dataset(demo_pool.select(range(20)))
    wrong = once.remove_columns("saft_score").add_column("saft_score", [7.0] * 20)
    twice = scorer.score_dataset(wrong)
    assert twice["saft_score"][:] == once["saft_score"][:]
    assert sorted(twice.column_names) == sorted(once.column_names)
    assert once.features["saft_score"].dtype == "float32"
    assert set(once["saft_status"]) == {"ok"}
