"""Thresholds: the published choice against a plain reference, shares by their definition."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saft_hf.decide import calibrate_published, flagged, near_threshold, threshold_for_contamination
from saft_hf.errors import SAFTInputError, SAFTUndecidedError

# Few distinct values make ties, of scores and of F1.
tied = st.integers(0, 6).map(lambda value: value / 2)
free = st.floats(0, 1e6, width=32)


def reference(
    pool: dict[int, list[float]], labelled: dict[int, list[float]], harmful: list[bool]
) -> tuple[Fraction, int, float]:
    """METHOD 1, step 5, one row at a time, with exact fractions."""
    best: tuple[Fraction, int, float] = (Fraction(-1), 0, 0.0)
    for k in sorted(pool):
        low, high = min(pool[k]), max(pool[k])
        step = (high - low) / 99
        for i in range(100):
            tau = high if i == 99 else low + i * step
            hit = sum(score > tau and bad for score, bad in zip(labelled[k], harmful, strict=True))
            wrong = sum(score > tau and not bad for score, bad in zip(labelled[k], harmful, strict=True))
            f1 = Fraction(2 * hit, 2 * hit + wrong + (sum(harmful) - hit))
            if f1 > best[0] or (f1 == best[0] and k == best[1]):
                best = (f1, k, tau)
    return best


@pytest.mark.smoke
@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from([tied, free]), st.integers(1, 4), st.integers(2, 12), st.integers(1, 12))
def test_the_published_choice_is_the_references(
    data: st.DataObject, scores: st.SearchStrategy[float], ks: int, m: int, n: int
) -> None:
    harmful = data.draw(st.lists(st.booleans(), min_size=m, max_size=m))
    assume(0 < sum(harmful) < m)
    labelled = {k: data.draw(st.lists(scores, min_size=m, max_size=m)) for k in range(1, ks + 1)}
    others = {k: data.draw(st.lists(scores, min_size=n, max_size=n)) for k in labelled}
    in_pool = data.draw(st.booleans())
    pool = {k: labelled[k] + others[k] if in_pool else others[k] for k in labelled}
    f1, k, tau = reference(pool, labelled, harmful)
    if f1 == 0:
        with pytest.raises(SAFTUndecidedError, match="flags one of the"):
            calibrate_published(pool, labelled, harmful)
        return
    found = calibrate_published(
        {k: np.asarray(values, np.float32) for k, values in pool.items()},
        {k: np.asarray(values, np.float32) for k, values in labelled.items()},
        np.asarray(harmful),
    )
    assert (found.best.k, found.best.threshold) == (k, tau)
    assert found.best.f1 == pytest.approx(float(f1), rel=1e-15)
    assert [candidate.k for candidate in found.candidates] == sorted(pool)
    cuts = {sum(score > at for score in pool[k]) for at in np.linspace(min(pool[k]), max(pool[k]), 100)}
    assert found.best.pool_splits == len(cuts - {0, len(pool[k])})


def test_equal_f1_goes_to_the_smaller_k_then_the_larger_tau() -> None:
    pool, labels = [0.0, 1.0, 2.0, 99.0], [False, True]
    found = calibrate_published(dict.fromkeys((4, 2, 3), pool), {k: [10.0, 50.0] for k in (2, 3, 4)}, labels)
    # Every tau from 10 to 49 is as good.
    assert (found.best.k, found.best.threshold) == (2, 49.0)


def test_one_giant_row_shows() -> None:
    rng = np.random.default_rng(0)
    calm = rng.random(200)
    labels = calm[:50] > 0.5
    found = calibrate_published({1: calm}, {1: calm[:50]}, labels)
    assert found.best.f1 > 0.95
    assert found.best.pool_splits > 60
    giant = calibrate_published({1: np.append(calm, 1e9)}, {1: calm[:50]}, labels)
    # tau = the smallest score, or one above all others.
    assert giant.best.pool_splits == 2


def test_rows_without_a_score_are_left_out() -> None:
    nan = float("nan")
    whole = calibrate_published({1: [0.0, 3.0, 9.0]}, {1: [1.0, 5.0]}, [False, True])
    holes = calibrate_published({1: [nan, 0.0, 3.0, nan, 9.0]}, {1: [1.0, nan, 5.0]}, [False, True, True])
    assert holes == whole


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_labels_of_one_class_decide_nothing(labels: list[bool]) -> None:
    with pytest.raises(SAFTUndecidedError, match=f"{sum(labels)} of 2 labelled rows .* both classes"):
        calibrate_published({1: [0.0, 1.0]}, {1: [0.0, 1.0]}, labels)


def test_a_pool_without_spread_decides_nothing() -> None:
    with pytest.raises(SAFTUndecidedError, match="no threshold"):
        calibrate_published({1: [2.0, 2.0]}, {1: [2.0, 2.0]}, [True, False])


@pytest.mark.parametrize(
    ("pool", "labelled", "message"),
    [
        ({}, {}, r"same k; found \[\] and \[\]"),
        ({1: [0.0]}, {2: [0.0, 1.0]}, r"found \[1\] and \[2\]"),
        ({1: [0.0]}, {1: [0.0]}, r"labelled_scores\[1\] has shape \(1,\)"),
        ({1: [float("nan")]}, {1: [0.0, 1.0]}, r"no row of the pool has a score \(k=1\)"),
    ],
)
def test_bad_calibration_input_is_named(pool: dict, labelled: dict, message: str) -> None:
    with pytest.raises(SAFTInputError, match=message):
        calibrate_published(pool, labelled, [True, False])


@pytest.mark.smoke
@settings(deadline=None)
@given(st.lists(st.one_of(tied, free), min_size=1, max_size=60), st.floats(0.001, 0.999), st.randoms())
def test_a_share_removes_as_many_as_it_may_and_no_more(scores: list[float], share: float, random: object) -> None:
    tau = threshold_for_contamination(np.asarray(scores, np.float32), share)
    most = int(share * len(scores) + 1e-9)
    values = np.asarray(scores)
    assert tau in scores
    assert np.count_nonzero(values > tau) <= most
    # Any lower threshold would let the rows at tau go as well, and that is too many.
    assert np.count_nonzero(values >= tau) > most
    shuffled = scores.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert threshold_for_contamination([*shuffled, float("nan")], share) == tau


@pytest.mark.parametrize(
    ("n", "share", "removed"), [(100, 0.29, 29), (30, 0.1, 3), (10, 0.99, 9), (4, 0.2, 0), (1, 0.9, 0)]
)
def test_without_ties_a_share_is_met_exactly(n: int, share: float, removed: int) -> None:
    scores = np.random.default_rng(n).permutation(n).astype(np.float32)
    assert flagged(scores, threshold_for_contamination(scores, share)).sum() == removed


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 25.0, float("nan")])
def test_a_share_outside_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(SAFTInputError, match="contamination must be between 0 and 1"):
        threshold_for_contamination([1.0, 2.0], share)


def test_a_share_of_no_scores_is_refused() -> None:
    for scores in ([], [float("nan")]):
        with pytest.raises(SAFTInputError, match="no row has a score"):
            threshold_for_contamination(scores, 0.5)


def test_the_threshold_is_compared_in_float64() -> None:
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2))
    just_below_high = float(high) - 1e-9
    assert np.float32(just_below_high) == high
    assert flagged(np.array([low, high, np.nan], np.float32), just_below_high).tolist() == [False, True, False]


def test_rows_near_the_threshold_are_counted() -> None:
    scores: NDArray[np.float32] = np.array([100.0, 50.0, 50.0009, 50.002, np.nan, 0.0], dtype=np.float32)
    assert near_threshold(scores, 50.0) == 2
    assert near_threshold(np.empty(0), 1.0) == 0
