"""The score without labels: its scale is the reference set's, and a pool can raise the threshold, never lower it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.score.reference import (
    FPR,
    MIN_AUROC,
    ReferenceScore,
    choose_reference,
    find_gap,
    learn_reference,
    reference_threshold,
)

seeds = st.integers(0, 2**32 - 1)
GROUPS = np.arange(200) // 20
HARMFUL = np.arange(200) % 2 == 0
Vectors = dict[str, NDArray[np.float64]]


def rows(seed: int, harmful: NDArray[np.bool_], shift: float = 6.0) -> Vectors:
    """Two features of different scale; the classes differ along axis 2 of each."""
    rng = np.random.default_rng(seed)
    found = {"a": rng.standard_normal((harmful.size, 12)) + 3, "b": 50 * rng.standard_normal((harmful.size, 12))}
    found["a"][harmful, 2] += shift
    found["b"][harmful, 2] += 50 * shift
    return found


def learned(seed: int = 0, shift: float = 6.0) -> ReferenceScore:
    return learn_reference(rows(seed, HARMFUL, shift), HARMFUL, GROUPS)


def pool(reference: ReferenceScore, seed: int, n: int, bad: int, shift: float = 6.0) -> NDArray[np.float32]:
    return reference.score(rows(seed, np.arange(n) < bad, shift))


@pytest.mark.smoke
def test_the_planted_direction_is_found_at_every_feature() -> None:
    found = learned()
    assert np.argmax(np.abs(found.score.weights), axis=1).tolist() == [2, 2]
    assert found.auroc > 0.99
    # Features count alike, whatever their scale.
    parts = found.score.weights[:, 2] * np.array([1, 50])
    assert parts[0] == pytest.approx(parts[1], rel=0.2)


def test_scale_and_threshold_come_from_the_reference_rows() -> None:
    x = rows(0, HARMFUL)
    found = learn_reference(x, HARMFUL, GROUPS)
    seen = found.score(x).astype(np.float64)
    within = seen - np.where(HARMFUL, seen[HARMFUL].mean(), seen[~HARMFUL].mean())
    assert np.sqrt(np.square(within).sum() / 198) == pytest.approx(1, abs=1e-5)
    assert seen[~HARMFUL].mean() == pytest.approx(0, abs=1e-5)
    benign = found.out_of_fold[~HARMFUL]
    assert (benign > found.threshold).sum() == int(FPR * 100)
    # A unit of the vectors is no part of it.
    scaled = learn_reference({feature: 7 * own for feature, own in x.items()}, HARMFUL, GROUPS)
    assert scaled.threshold == pytest.approx(found.threshold)


def test_no_row_is_scored_by_a_direction_that_saw_its_group() -> None:
    x = rows(0, HARMFUL)
    own = GROUPS == 3
    rest = learn_reference({feature: v[~own] for feature, v in x.items()}, HARMFUL[~own], GROUPS[~own])
    expected = rest.score({feature: v[own] for feature, v in x.items()})
    assert np.array_equal(learn_reference(x, HARMFUL, GROUPS).out_of_fold[own], expected)


def test_classes_swapped_turn_the_score_round() -> None:
    x = rows(0, HARMFUL)
    one, other = learn_reference(x, HARMFUL, GROUPS), learn_reference(x, ~HARMFUL, GROUPS)
    assert np.allclose(one.score.weights, -other.score.weights)
    assert other.auroc == pytest.approx(one.auroc, abs=0.01)


def test_the_same_input_gives_the_same_bits() -> None:
    assert np.array_equal(learned().score.weights, learned().score.weights)
    assert learned().threshold == learned().threshold


def test_the_better_feature_is_chosen_and_the_first_of_equals() -> None:
    x = rows(0, HARMFUL, 2.0) | {"noise": np.random.default_rng(1).standard_normal((200, 8))}
    assert choose_reference(x, [("noise",), ("a",)], HARMFUL, GROUPS).score.features == ("a",)
    assert choose_reference(x | {"c": x["a"]}, [("c",), ("a",)], HARMFUL, GROUPS).score.features == ("c",)


@pytest.mark.parametrize("bad", [150, 300, 900])
def test_a_planted_group_is_cut(bad: int) -> None:
    found = learned()
    scores = pool(found, 5, 3000, bad)
    decision = reference_threshold(found, scores)
    assert decision.undecided is None
    assert (scores[:bad] > decision.threshold).mean() > 0.97
    assert (scores[bad:] > decision.threshold).mean() < 0.01


@settings(max_examples=25)
@given(seed=seeds, bad=st.integers(0, 3000))
def test_a_pool_never_lowers_the_threshold_and_its_order_does_not_matter(seed: int, bad: int) -> None:
    found = learned(1)
    scores = pool(found, seed, 3000, bad)
    decision = reference_threshold(found, scores)
    assert decision.threshold >= found.threshold
    assert decision.raised == (decision.threshold > found.threshold)
    assert reference_threshold(found, np.random.default_rng(seed).permutation(scores)) == decision
    assert reference_threshold(found, np.append(scores, np.nan)) == decision


@settings(max_examples=25)
@given(seed=seeds, shift=st.floats(-3, 3))
def test_rows_below_the_threshold_are_never_removed(seed: int, shift: float) -> None:
    """Two benign kinds below it, however far apart: a mixture alone removes nothing."""
    found = learned(2)
    rng = np.random.default_rng(seed)
    scores = np.minimum(np.concatenate([rng.normal(-6, 1, 2000), rng.normal(shift, 0.5, 1000)]), found.threshold)
    decision = reference_threshold(found, scores)
    assert decision.undecided is None
    assert not (scores > decision.threshold).any()


@settings(max_examples=25)
@given(seed=seeds)
def test_a_benign_pool_loses_about_what_the_reference_set_loses(seed: int) -> None:
    found = learned(3)
    decision = reference_threshold(found, scores := pool(found, seed, 2000, 0))
    assert decision.undecided is not None or (scores > decision.threshold).mean() < 2 * FPR


def test_a_pool_that_runs_across_the_threshold_is_undecided() -> None:
    found = learned()
    scores = np.random.default_rng(0).normal(found.threshold - 1, 1, 3000)
    decision = reference_threshold(found, scores)
    assert decision.undecided is not None
    assert "do not stand apart" in decision.undecided
    assert decision.metrics.share_above == pytest.approx(0.16, abs=0.02)


def test_a_group_that_is_most_of_the_pool_is_undecided() -> None:
    found = learned()
    assert reference_threshold(found, pool(found, 0, 3000, 2000)).undecided is not None
    assert reference_threshold(found, pool(found, 0, 3000, 1400)).undecided is None


def test_a_group_of_which_few_look_harmful_is_undecided() -> None:
    """A second benign kind, apart from the first, of which a fifth lies above the threshold."""
    found, rng = learned(), np.random.default_rng(0)
    scores = np.concatenate([rng.normal(-6, 1, 2000), rng.normal(found.threshold - 0.84, 1, 1000)])
    assert reference_threshold(found, scores).undecided is not None


def test_a_gap_below_the_threshold_does_not_lower_it() -> None:
    found, rng = learned(), np.random.default_rng(0)
    scores = np.concatenate([rng.normal(-6, 1, 2700), rng.normal(found.threshold + 0.5, 0.7, 300)])
    decision = reference_threshold(found, scores)
    assert decision.undecided is None
    assert decision.metrics.gap is not None
    assert decision.metrics.gap < decision.threshold == found.threshold
    assert not decision.raised


def test_a_far_group_raises_the_threshold_to_the_gap() -> None:
    found, rng = learned(), np.random.default_rng(0)
    scores = np.concatenate([rng.normal(found.threshold - 1.5, 1, 2700), rng.normal(found.threshold + 8, 1, 300)])
    decision = reference_threshold(found, scores)
    assert decision.raised
    assert (scores > decision.threshold).sum() == pytest.approx(300, abs=5)


def test_a_reference_set_that_the_model_cannot_read_decides_nothing() -> None:
    blind = learned(0, shift=0.0)
    assert blind.auroc < 0.75
    decision = reference_threshold(blind, pool(blind, 0, 1000, 0))
    assert decision.undecided is not None
    assert "reference rows themselves" in decision.undecided
    # Rounded, it would be the 0.75 that is needed.
    assert "AUROC 0.749, at least" in str(reference_threshold(replace(blind, auroc=0.7496), [0.0]).undecided)


def test_the_metrics_are_of_what_was_read() -> None:
    reference = learned()
    scores = np.append(pool(reference, 5, 3000, 300), np.nan)
    decision = reference_threshold(reference, scores)
    metrics = decision.metrics
    assert (metrics.rows, metrics.auroc, metrics.absolute_threshold) == (200, reference.auroc, reference.threshold)
    assert metrics.share_above == (scores > reference.threshold).sum() / 3000
    assert metrics.share_flagged == (scores > decision.threshold).sum() / 3000
    assert metrics.gap is not None
    assert metrics.gap_depth is not None
    assert metrics.gap <= decision.threshold


@pytest.mark.parametrize("draw", ["normal", "uniform", "logistic", "exponential"])
def test_one_kind_alone_seldom_shows_a_gap(draw: str) -> None:
    rng, found = np.random.default_rng(0), 0
    for _ in range(60):
        scores = np.sort(getattr(rng, draw)(size=1000))
        found += find_gap(scores, float(scores[900])) is not None
    assert found <= 6


@pytest.mark.parametrize("seed", range(5))
def test_the_tail_of_a_wide_kind_beside_a_narrow_one_is_no_gap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    narrow, wide = rng.normal(-4, 0.3, 1500), rng.normal(0, 1, 1500)
    scores = np.sort(np.concatenate([narrow, wide]))
    gap = find_gap(scores, 1.6)  # 5 % of the wide kind lie above
    assert gap is None
    with_bad = np.sort(np.concatenate([scores, rng.normal(5, 0.7, 300)]))
    gap = find_gap(with_bad, 1.6)
    assert gap is not None
    assert 2 < gap.position < 4


def test_scores_that_are_all_equal_or_few_have_no_gap() -> None:
    found = learned()
    high = np.full(50, found.threshold + 1, dtype=np.float32)
    assert reference_threshold(found, high).undecided is not None
    assert reference_threshold(found, high[:1]).undecided is not None
    assert reference_threshold(replace(found, threshold=1e6), high).undecided is None


def test_errors_say_what_was_found() -> None:
    x = rows(0, HARMFUL)
    with pytest.raises(SAFTInputError, match="at least one feature"):
        learn_reference({}, HARMFUL, GROUPS)
    with pytest.raises(SAFTInputError, match=r"\[200\] and \[199\]"):
        learn_reference(x, HARMFUL, GROUPS[1:])
    with pytest.raises(SAFTInputError, match="NaN"):
        learn_reference({"a": np.full((200, 3), np.nan)}, HARMFUL, GROUPS)
    with pytest.raises(SAFTInputError, match=r"one width and one row .* 'b': \(200, 11\)"):
        learn_reference(x | {"b": x["b"][:, 1:]}, HARMFUL, GROUPS)
    with pytest.raises(SAFTInputError, match="candidates"):
        choose_reference(x, [], HARMFUL, GROUPS)
    with pytest.raises(SAFTInputError, match="not NaN"):
        reference_threshold(learned(), [np.nan])
    with pytest.raises(SAFTUndecidedError, match="10 harmful and 190 benign"):
        learn_reference(x, np.arange(200) < 10, GROUPS)
    with pytest.raises(SAFTUndecidedError, match="one class only"):
        learn_reference(x, HARMFUL, HARMFUL)
    with pytest.raises(SAFTUndecidedError, match="same mean vector"):
        learn_reference({"a": np.ones((200, 3))}, HARMFUL, GROUPS)


@given(st.floats(0.5, MIN_AUROC, exclude_max=True))
def test_an_area_that_is_too_small_is_shown_as_smaller_than_what_is_needed(area: float) -> None:
    told = reference_threshold(replace(learned(), auroc=area), np.zeros(10)).undecided
    shown = re.search(r"AUROC ([\d.]+), at least ([\d.]+) is needed", told or "")
    assert shown is not None
    assert float(shown[1]) < float(shown[2]) == MIN_AUROC
    assert abs(float(shown[1]) - area) < 1.01e-3
