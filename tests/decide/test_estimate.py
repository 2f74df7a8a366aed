"""Harmful shares: exact intervals by enumeration, the prediction-powered one over draws."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binom, hypergeom

from saft_hf.decide.estimate import clopper_pearson, harmful_shares, prediction_powered
from saft_hf.errors import SAFTInputError

SIZE = 2000


def noisy_pool(share: float, shift: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and truth; `shift` standard deviations lie between the classes."""
    harmful = np.arange(SIZE) < share * SIZE
    return np.random.default_rng(7).normal(size=SIZE) + shift * harmful, harmful


@pytest.mark.smoke
@pytest.mark.parametrize("labels", [1, 7, 40])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_clopper_pearson_covers_every_share(labels: int, confidence: float) -> None:
    found = [clopper_pearson(x, labels, confidence=confidence) for x in range(labels + 1)]
    for share in np.linspace(0.0, 1.0, 97):
        covered = sum(binom.pmf(x, labels, share) for x, of in enumerate(found) if of.low <= share <= of.high)
        assert covered >= confidence - 1e-9
    side = (1 - confidence) / 2
    for x, of in enumerate(found):  # no wider than it must be
        assert x == 0 or binom.sf(x - 1, labels, of.low) == pytest.approx(side)
        assert x == labels or binom.cdf(x, labels, of.high) == pytest.approx(side)


@pytest.mark.parametrize(("size", "labels"), [(30, 8), (60, 40)])
def test_the_interval_of_a_known_population_covers(size: int, labels: int) -> None:
    rows = np.arange(size)
    found = [harmful_shares(rows, rows[:labels], rows[:labels] < x, size).before for x in range(labels + 1)]
    for bad in range(size + 1):
        covered = sum(
            hypergeom.pmf(x, size, bad, labels) for x, of in enumerate(found) if of.low <= bad / size <= of.high
        )
        assert covered >= 0.95 - 1e-9
    for x, of in enumerate(found):
        plain = clopper_pearson(x, labels)
        # Never wider than the binomial one, up to the one row that a count is rounded to.
        assert plain.low - 1 / size <= of.low <= of.share <= of.high <= plain.high + 1 / size


@given(st.integers(1, 60), st.data())
@settings(max_examples=40)
def test_labelling_every_row_leaves_no_doubt(size: int, data: st.DataObject) -> None:
    harmful = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    threshold = data.draw(st.integers(0, size - 1))
    strata = np.arange(size) % 3 if data.draw(st.booleans()) else None
    report = harmful_shares(np.arange(size), np.arange(size), harmful, threshold, strata=strata)
    assert report.after is not None
    for of, truth in ((report.before, harmful.mean()), (report.after, harmful[: threshold + 1].mean())):
        assert of.low == pytest.approx(truth)
        assert of.share == pytest.approx(truth)
        assert of.high == pytest.approx(truth)


def test_strata_are_weighed_by_their_rows() -> None:
    scores, strata = np.arange(1000), np.arange(1000) >= 900
    rows = np.r_[0:100, 900:1000]  # nine in ten of the rows are sampled at a ninth of the rate
    harmful = np.r_[np.zeros(90), np.ones(10), np.ones(50), np.zeros(50)]
    report = harmful_shares(scores, rows, harmful, 899, strata=strata)
    assert report.before.share == pytest.approx((0.1 * 900 + 50) / 1000)
    assert report.before.low < 0.14 < report.before.high
    assert report.after is not None
    assert report.after.share == pytest.approx(0.1)
    assert report.before_predicted is report.after_predicted is None
    assert report.before.method == "stratified"
    unseen = harmful_shares(scores, rows[:100], harmful[:100], 999, strata=strata).before
    assert unseen.share == pytest.approx(0.1)
    assert unseen.high > 0.1 + 0.1  # the stratum that no one looked into may be all harmful


def test_after_is_the_kept_rows_alone() -> None:
    scores = np.r_[np.arange(100.0), np.nan]
    rows = np.r_[0:100:2, 100]
    report = harmful_shares(scores, rows, rows >= 80, 79.0, excluded=np.arange(1, 100, 4))
    assert (report.before.rows, report.before.labels, report.before.harmful) == (75, 50, 10)
    assert report.after is not None
    assert (report.after.rows, report.after.labels, report.after.harmful) == (60, 40, 0)
    assert harmful_shares(scores, rows, rows >= 80, -1.0).after is None
    assert json.loads(json.dumps(report.as_dict()))["after"]["share"] == 0


def test_scores_that_say_nothing_change_nothing() -> None:
    rows = np.arange(0, SIZE, 10)
    found = prediction_powered(np.zeros(SIZE), rows, rows % 100 == 0)
    assert found.share == pytest.approx(0.1)
    plain = clopper_pearson(20, 200)
    assert plain.low < found.low < 0.1 < found.high < plain.high  # a tenth of a known population was labelled


def test_good_scores_shorten_the_interval() -> None:
    scores, harmful = noisy_pool(0.2, 3.0)
    rows = np.random.default_rng(0).permutation(SIZE)[:200]
    helped = prediction_powered(scores, rows, harmful[rows])
    plain = harmful_shares(scores, rows, harmful[rows], 9.0).before
    assert helped.high - helped.low < 0.6 * (plain.high - plain.low)
    assert helped == harmful_shares(scores, rows, harmful[rows], 9.0).before_predicted
    order = np.argsort(harmful[rows])  # the order of rows is no information
    assert prediction_powered(scores, rows[order], harmful[rows[order]]) == helped
    # A strictly ascending change of scale keeps ranks.
    assert prediction_powered(np.exp(5 * scores), rows, harmful[rows]) == helped


@pytest.mark.parametrize(("share", "shift", "labels"), [(0.05, 2.5, 100), (0.2, 0.3, 60), (0.1, 6.0, 100)])
def test_prediction_powered_intervals_cover(share: float, shift: float, labels: int) -> None:
    scores, harmful = noisy_pool(share, shift)
    rng = np.random.default_rng(3)
    draws = 120
    found = []
    for _ in range(draws):
        rows = rng.permutation(SIZE)[:labels]
        found.append(prediction_powered(scores, rows, harmful[rows]))
    covered = sum(of.low <= share <= of.high for of in found)
    assert beta.ppf(0.99, covered + 1, draws - covered) >= 0.95
    shares = np.array([of.share for of in found])
    assert abs(shares.mean() - share) < 4 * shares.std() / draws**0.5
    if shift > 2:  # predictions alone, with no correction, or labels alone, would do no better
        assert shares.std() < 0.9 * (share * (1 - share) / labels * (1 - labels / SIZE)) ** 0.5


def test_wrong_input_is_refused() -> None:
    for args in ((2, 1), (-1, 3), (0, 0)):
        with pytest.raises(SAFTInputError, match="harmful must lie"):
            clopper_pearson(*args)
    with pytest.raises(SAFTInputError, match="confidence must be"):
        clopper_pearson(0, 1, confidence=95)
    with pytest.raises(SAFTInputError, match="no fresh label"):
        harmful_shares([1.0, np.nan], [1], [True], 0.5)
    with pytest.raises(SAFTInputError, match="no fresh label"):
        prediction_powered([1.0, np.nan], [1], [True])
    with pytest.raises(SAFTInputError, match="used for fitting too"):
        prediction_powered([1.0, 2.0], [1], [True], excluded=[1])
