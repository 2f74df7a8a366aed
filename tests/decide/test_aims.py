"""Thresholds for an aim: held in expectation, steady over label draws, honest where labels are too few."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom

from saft_hf.decide import calibrate_published, flagged, threshold_for_contamination
from saft_hf.decide.aims import ChosenThreshold, Goal, ThresholdAim, threshold_for_aim
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.summary import ThresholdEffect

seeds = st.integers(0, 2**32 - 1)


def world(seed: int, n: int = 20_000, share: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    harmful = rng.random(n) < share
    return rng.standard_normal(n) ** 3 + 4.0 * harmful, harmful


@pytest.mark.smoke
@pytest.mark.parametrize("text", ["fpr=0.05", "fpr=0.2", "recall=0.9", "recall=0.6"])
def test_the_share_is_held_on_average_over_label_draws(text: str) -> None:
    aim = ThresholdAim.parse(text)
    scores, harmful = world(0)
    lost, found, expected = [], [], []
    for seed in range(400):
        rows = np.random.default_rng(seed).choice(scores.size, 100, replace=False)
        got = threshold_for_aim(aim, scores[rows], harmful[rows], scores)
        cut = flagged(scores, got.threshold)
        lost.append(cut[~harmful].mean())
        found.append(cut[harmful].mean())
        expected.append((got.expected.fpr, got.expected.recall))
        assert got.expected.attainable
    held = lost if aim.goal is Goal.FPR else found
    assert aim.value is not None
    assert abs(np.mean(held) - aim.value) < 4 * np.std(held) / 20
    # What is expected of either class is true on average too.
    np.testing.assert_allclose(np.mean(expected, axis=0), [np.mean(lost), np.mean(found)], atol=0.02)


def lost_in_draws(text: str, labels: int, draws: int, share: float = 0.25) -> np.ndarray:
    """Share of all benign rows that a threshold on each draw of labels loses."""
    scores, harmful = world(7, share=share)
    aim, lost = ThresholdAim.parse(text), []
    for seed in range(draws):
        rows = np.random.default_rng(seed).choice(scores.size, labels, replace=False)
        got = threshold_for_aim(aim, scores[rows], harmful[rows], scores)
        lost.append(flagged(scores[~harmful], got.threshold).mean())
    return np.array(lost)


@pytest.mark.parametrize(("labels", "share"), [(100, 0.1), (100, 0.25), (100, 0.4), (400, 0.25)])
def test_a_confidence_is_held_over_label_draws_and_the_plain_aim_loses_more_in_many(labels: int, share: float) -> None:
    draws = 400
    # So many misses have a chance of 1 in 1,000 where each has one of 10 %.
    most = binom.ppf(0.999, draws, 0.1)
    assert (lost_in_draws("fpr=0.05@0.9", labels, draws, share) > 0.05).sum() <= most
    plain = lost_in_draws("fpr=0.05", labels, draws, share)
    assert (plain > 0.05).sum() > 2.5 * most
    assert np.quantile(plain, 0.95) > 0.06
    assert abs(plain.mean() - 0.05) < 4 * plain.std() / 20


@given(seeds, st.floats(0.01, 0.3), st.floats(0.5, 0.99), st.integers(2, 300))
def test_the_rank_for_a_confidence_is_the_lowest_that_the_beta_law_allows(
    seed: int, value: float, confidence: float, n: int
) -> None:
    scores = np.random.default_rng(seed).permutation(np.arange(n + 1.0))
    harmful = scores == n  # the benign scores are 0 to n - 1
    aim = ThresholdAim(Goal.FPR, value, confidence)
    sure = [beta.cdf(value, n + 1 - rank, rank) >= confidence for rank in range(1, n + 1)]
    if any(sure):
        got = threshold_for_aim(aim, scores, harmful, scores)
        assert got.threshold == sure.index(True)
        assert got.expected.attainable
    else:
        with pytest.raises(SAFTUndecidedError, match=f"^{n} benign labelled rows") as caught:
            threshold_for_aim(aim, scores, harmful, scores)
        needed = int(re.search(r"needs (\d+): label about (\d+) more", str(caught.value))[1])  # type: ignore[index]
        assert beta.cdf(value, 1, needed) >= confidence - 1e-9 > beta.cdf(value, 1, needed - 1) - 2e-9


def test_f1_is_steadier_than_the_published_rule_and_as_good() -> None:
    rng = np.random.default_rng(1)
    harmful = rng.random(20_000) < 0.1
    scores = rng.standard_normal(20_000) + 2 * harmful
    kept: dict[str, list[float]] = {"ours": [], "published": []}
    f1: dict[str, list[float]] = {"ours": [], "published": []}
    for seed in range(200):
        rows = np.random.default_rng(seed).choice(scores.size, 100, replace=False)
        if harmful[rows].sum() < 3:
            continue
        cuts = {
            "ours": threshold_for_aim(ThresholdAim.parse("f1"), scores[rows], harmful[rows], scores).threshold,
            "published": calibrate_published({1: scores}, {1: scores[rows]}, harmful[rows]).best.threshold,
        }
        for name, cut in cuts.items():
            above = flagged(scores, cut)
            kept[name].append(1 - above.mean())
            f1[name].append(2 * (above & harmful).sum() / (above.sum() + harmful.sum()))
    assert np.std(kept["ours"]) < 0.8 * np.std(kept["published"])
    assert np.mean(f1["ours"]) > np.mean(f1["published"])


def test_f1_follows_the_expected_share_of_the_pool() -> None:
    scores, harmful = world(2, n=400, share=0.5)
    aim = ThresholdAim.parse("f1")
    cuts = [threshold_for_aim(aim, scores, harmful, scores, contamination=c).threshold for c in (0.02, 0.2, 0.8)]
    assert cuts[0] > cuts[1] > cuts[2]
    assert threshold_for_aim(aim, scores, harmful, scores).threshold == pytest.approx(
        threshold_for_aim(aim, scores, harmful, scores, contamination=float(harmful.mean())).threshold
    )


def test_a_share_of_the_pool_is_the_rule_of_contamination() -> None:
    scores, harmful = world(3, n=500)
    got = threshold_for_aim(ThresholdAim.parse("share=0.3"), scores[:50], harmful[:50], scores)
    assert got.threshold == threshold_for_contamination(scores, 0.3)


@given(seeds, st.floats(0.02, 0.9))
def test_asking_for_less_loss_never_lowers_the_threshold(seed: int, value: float) -> None:
    rng = np.random.default_rng(seed)
    scores, harmful = rng.standard_normal(40), np.arange(40) < 12
    got = [threshold_for_aim(ThresholdAim(Goal.FPR, v), scores, harmful, scores) for v in (value / 2, value)]
    assert got[0].threshold >= got[1].threshold
    assert got[0].expected.fpr <= got[1].expected.fpr
    recall = [threshold_for_aim(ThresholdAim(Goal.RECALL, v), scores, harmful, scores) for v in (value / 2, value)]
    assert recall[0].threshold >= recall[1].threshold


@given(seeds, st.sampled_from(["fpr=0.1", "recall=0.8", "f1"]), st.floats(0.1, 10), st.floats(-5, 5))
def test_scaling_and_shifting_the_scores_carries_the_threshold(seed: int, text: str, scale: float, by: float) -> None:
    rng = np.random.default_rng(seed)
    scores, harmful = rng.standard_normal((3, 40)), np.arange(40) < 12
    aim = ThresholdAim.parse(text)
    plain = threshold_for_aim(aim, scores, harmful, scores[0])
    moved = threshold_for_aim(aim, scores * scale + by, harmful, scores[0] * scale + by)
    step = 1e-9 if aim.goal is not Goal.F1 else np.ptp(scores) / 511
    assert abs(moved.threshold - (plain.threshold * scale + by)) <= 1.01 * step * scale + 1e-9


def test_repeats_are_averaged_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    scores, harmful = rng.standard_normal((4, 60)), np.arange(60) < 20
    aim = ThresholdAim()
    each = [threshold_for_aim(aim, line, harmful, line).threshold for line in scores]
    assert threshold_for_aim(aim, scores, harmful, scores[0]).threshold == pytest.approx(np.mean(each))
    order = rng.permutation(60)
    assert threshold_for_aim(aim, scores[:, order], harmful[order], scores[0]) == threshold_for_aim(
        aim, scores, harmful, scores[0]
    )


def test_too_few_labels_for_a_share_are_reported() -> None:
    scores, harmful = np.arange(20.0), np.arange(20) >= 10
    got = threshold_for_aim(ThresholdAim(), scores, harmful, scores)
    effect = ThresholdEffect(fpr=pytest.approx(1 / 11), recall=1.0, attainable=False, curve=got.expected.curve)
    assert got == ChosenThreshold(9.0, "fpr=0.05", effect)
    got = threshold_for_aim(ThresholdAim.parse("recall=0.99"), scores, harmful, scores)
    assert (got.threshold, got.expected.attainable) == (10.0, False)


def test_the_curve_tells_of_other_thresholds_what_the_effect_tells_of_this_one() -> None:
    rng = np.random.default_rng(0)
    harmful = np.arange(60) >= 45
    scores = rng.normal(size=60) + 2 * harmful
    curve = threshold_for_aim(ThresholdAim(), scores, harmful, scores).expected.curve
    for point in curve:
        if 1 / 46 <= point.fpr <= 45 / 46:  # between the outermost of 45 benign rows, where one share is one threshold
            got = threshold_for_aim(ThresholdAim(Goal.FPR, point.fpr), scores, harmful, scores)
            assert got.threshold == pytest.approx(point.threshold)
            assert got.expected.recall == pytest.approx(point.recall)
    for name in ("fpr", "recall"):
        shares = [getattr(point, name) for point in curve]
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (None, ThresholdAim(Goal.FPR, 0.05)),
        ("recall = 0.9", ThresholdAim(Goal.RECALL, 0.9)),
        ("fpr=0.05@0.9", ThresholdAim(Goal.FPR, 0.05, 0.9)),
        (" fpr = 0.1 @ 0.95 ", ThresholdAim(Goal.FPR, 0.1, 0.95)),
        ("share=0.1", ThresholdAim(Goal.SHARE, 0.1)),
        ("f1", ThresholdAim(Goal.F1, None)),
    ],
)
def test_aims_are_read_and_written(text: str | None, read: ThresholdAim) -> None:
    assert ThresholdAim.parse(text) == read
    assert ThresholdAim.parse(str(read)) == read


WRONG = ["precision=0.9", "recall", "recall=", "recall=1", "fpr=0", "f1=0.5", "recall=x", ""]


@pytest.mark.parametrize(
    "text", [*WRONG, "fpr=0.05@", "fpr=0.05@1", "fpr=0.05@90%", "recall=0.9@0.9", "fpr@0.9", "f1@0.9"]
)
def test_other_aims_are_refused_by_name(text: str) -> None:
    with pytest.raises(SAFTInputError, match="aim"):
        ThresholdAim.parse(text)


def test_bad_input_is_named() -> None:
    scores, harmful = np.arange(10.0), np.arange(10) < 5
    with pytest.raises(SAFTUndecidedError, match="0 of 10"):
        threshold_for_aim(ThresholdAim(), scores, harmful & False, scores)
    with pytest.raises(SAFTInputError, match=r"\[repeats, 10\]"):
        threshold_for_aim(ThresholdAim(), scores[:9], harmful, scores)
    with pytest.raises(SAFTInputError, match="finite"):
        threshold_for_aim(ThresholdAim(), scores * np.nan, harmful, scores)
    with pytest.raises(SAFTInputError, match="contamination"):
        threshold_for_aim(ThresholdAim.parse("f1"), scores, harmful, scores, contamination=1.5)


def test_equal_scores_flag_nothing() -> None:
    harmful = np.arange(10) < 5
    for text in ("f1", "fpr=0.2", "recall=0.5"):
        got = threshold_for_aim(ThresholdAim.parse(text), np.ones(10), harmful, np.ones(10))
        assert not flagged(np.ones(10), got.threshold).any()
