"""The make-up of a pool, where it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.errors import SAFTInputError
from saft_hf.score.mixture import Densities, explain

MEANS = (0.0, 1.5, 4.0)
"""Of two benign sources and a harmful one."""


def draw(rng: np.random.Generator, counts: tuple[int, ...]) -> Any:
    return np.concatenate([rng.normal(mean, 1, count) for mean, count in zip(MEANS, counts, strict=True)])


def densities(seed: int = 0, rows: int = 1500) -> Densities:
    scores = draw(np.random.default_rng(seed), (rows,) * 3)
    return Densities.of(scores, scores, np.repeat([0, 1, 2], rows), np.array([False, False, True]))


KNOWN = densities()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_harmful_share_is_estimated(share: float) -> None:
    covered = []
    for seed in range(20):
        harmful = round(1000 * share)
        found = explain(densities(seed), draw(np.random.default_rng(100 + seed), (600 - harmful // 2, 400, harmful)))
        covered.append(found.interval[0] <= harmful / (1000 + harmful - harmful // 2) <= found.interval[1])
    assert np.mean(covered) >= 0.75


@settings(max_examples=25)
@given(
    st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400)), st.floats(0.01, 0.2), st.integers(0, 99)
)
def test_what_holds_of_every_pool(counts: tuple[int, int, int], fpr: float, seed: int) -> None:
    if not sum(counts):
        return
    scores = draw(np.random.default_rng(seed), counts)
    found = explain(KNOWN, scores, fpr)
    assert found.weights.sum() == pytest.approx(1)
    assert found.interval[0] <= found.share <= found.interval[1]
    assert (np.diff(found.posterior) >= 0).all()
    assert found.lost <= fpr + 1e-12
    if found.threshold is not None:
        removed = scores.astype(np.float32) > np.float32(found.threshold)
        assert (found.posterior[KNOWN.bins(scores[removed])] > 0.5).all()
    assert found.share == explain(KNOWN, scores, fpr).share


@pytest.mark.parametrize("counts", [(1000, 0, 0), (0, 1000, 0), (500, 500, 0)])
def test_nothing_goes_where_there_is_nothing_harmful(counts: tuple[int, int, int]) -> None:
    found = explain(KNOWN, draw(np.random.default_rng(5), counts))
    assert found.threshold is None
    assert found.undecided is None
    assert found.share < 0.02


def test_rows_lost_are_those_that_are_expected() -> None:
    scores = draw(np.random.default_rng(7), (20_000, 10_000, 10_000))
    found = explain(KNOWN, scores)
    assert found.threshold is not None
    benign, harmful = scores[:30_000], scores[30_000:]
    assert np.mean(benign > found.threshold) == pytest.approx(found.lost, abs=0.01)
    assert np.mean(harmful > found.threshold) == pytest.approx(found.recall, abs=0.03)


def test_a_pool_of_another_kind_is_not_decided() -> None:
    found = explain(KNOWN, np.random.default_rng(0).uniform(2.3, 2.6, 500))
    assert found.undecided is not None
    assert "unlike the reference" in found.undecided
    assert found.threshold is None


def test_a_score_on_an_edge_is_kept() -> None:
    edge = float(KNOWN.edges[10])
    assert KNOWN.bins([edge, np.nextafter(np.float32(edge), np.float32(9))]).tolist() == [10, 11]


def test_no_scores_are_refused() -> None:
    with pytest.raises(SAFTInputError, match="at least one row"):
        explain(KNOWN, np.zeros(0))
