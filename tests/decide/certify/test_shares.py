"""Harmful shares: exact intervals by enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, hypergeom

from saft_hf.decide.certify import FreshLabels, clopper_pearson
from saft_hf.errors import SAFTInputError


@pytest.mark.smoke
@pytest.mark.parametrize("labels", [1, 7, 40])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_clopper_pearson_covers_every_share(labels: int, confidence: float) -> None:
    estimates = [clopper_pearson(x, labels, confidence=confidence) for x in range(labels + 1)]
    for share in np.linspace(0.0, 1.0, 97):
        covered = sum(binom.pmf(x, labels, share) for x, of in enumerate(estimates) if of.low <= share <= of.high)
        assert covered >= confidence - 1e-9
    side = (1 - confidence) / 2
    for x, of in enumerate(estimates):  # no wider than it must be
        assert x == 0 or binom.sf(x - 1, labels, of.low) == pytest.approx(side)
        assert x == labels or binom.cdf(x, labels, of.high) == pytest.approx(side)


@given(st.integers(1, 10**5).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_clopper_pearson_has_the_ends_of_the_beta_formula(counts: tuple[int, int], confidence: float) -> None:
    harmful, labels = counts
    estimate, side = clopper_pearson(harmful, labels, confidence=confidence), (1 - confidence) / 2
    low = beta.ppf(side, harmful, labels - harmful + 1) if harmful else 0.0
    high = beta.ppf(1 - side, harmful + 1, labels - harmful) if harmful < labels else 1.0
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=0, abs=1e-12)


@pytest.mark.parametrize(("size", "labels"), [(30, 8), (60, 40)])
def test_the_interval_of_a_known_population_covers(size: int, labels: int) -> None:
    rows = np.arange(size)
    estimates = [FreshLabels.of(rows, rows[:labels], rows[:labels] < x).shares(size).before for x in range(labels + 1)]
    for bad in range(size + 1):
        covered = sum(
            hypergeom.pmf(x, size, bad, labels) for x, of in enumerate(estimates) if of.low <= bad / size <= of.high
        )
        assert covered >= 0.95 - 1e-9
    for x, of in enumerate(estimates):
        plain = clopper_pearson(x, labels)
        # Never wider than the binomial one, up to the one row that a count is rounded to.
        assert plain.low - 1 / size <= of.low <= of.share <= of.high <= plain.high + 1 / size


@given(st.integers(1, 60), st.data())
@settings(max_examples=40)
def test_labelling_every_row_leaves_no_doubt(size: int, data: st.DataObject) -> None:
    harmful = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    threshold = data.draw(st.integers(0, size - 1))
    strata = np.arange(size) % 3 if data.draw(st.booleans()) else None
    report = FreshLabels.of(np.arange(size), np.arange(size), harmful, strata=strata).shares(threshold)
    assert report.after is not None
    for of, truth in ((report.before, harmful.mean()), (report.after, harmful[: threshold + 1].mean())):
        assert of.low == pytest.approx(truth)
        assert of.share == pytest.approx(truth)
        assert of.high == pytest.approx(truth)


def test_strata_are_weighed_by_their_rows() -> None:
    scores, strata = np.arange(1000), np.arange(1000) >= 900
    rows = np.r_[0:100, 900:1000]  # nine in ten of the rows are sampled at a ninth of the rate
    harmful = np.r_[np.zeros(90), np.ones(10), np.ones(50), np.zeros(50)]
    report = FreshLabels.of(scores, rows, harmful, strata=strata).shares(899)
    assert report.before.share == pytest.approx((0.1 * 900 + 50) / 1000)
    assert report.before.low < 0.14 < report.before.high
    assert report.after is not None
    assert report.after.share == pytest.approx(0.1)
    assert report.before.method == "stratified"
    unseen = FreshLabels.of(scores, rows[:100], harmful[:100], strata=strata).shares(999).before
    assert unseen.share == pytest.approx(0.1)
    assert unseen.high > 0.1 + 0.1  # the stratum that no one looked into may be all harmful


def test_after_is_the_kept_rows_alone() -> None:
    scores = np.r_[np.arange(100.0), np.nan]
    rows = np.r_[0:100:2, 100]
    report = FreshLabels.of(scores, rows, rows >= 80, excluded=np.arange(1, 100, 4)).shares(79.0)
    assert (report.before.rows, report.before.labels, report.before.harmful) == (75, 50, 10)
    assert report.after is not None
    assert (report.after.rows, report.after.labels, report.after.harmful) == (60, 40, 0)
    assert report.after.share == 0
    assert report.says() == f"Estimated harmful share before filtering: {report.before}, after: {report.after}."
    nothing = FreshLabels.of(scores, rows, rows >= 80).shares(-1.0)
    assert nothing.after is None
    assert "after: unknown, no label" in nothing.says()


def test_wrong_input_is_refused() -> None:
    for args in ((2, 1), (-1, 3), (0, 0)):
        with pytest.raises(SAFTInputError, match="harmful must lie"):
            clopper_pearson(*args)
    with pytest.raises(SAFTInputError, match="confidence must be"):
        clopper_pearson(0, 1, confidence=95)
    with pytest.raises(SAFTInputError, match="no fresh label"):
        FreshLabels.of([1.0, np.nan], [1], [True]).shares(0.5)
    with pytest.raises(SAFTInputError, match="confidence must be"):
        FreshLabels.of([1.0, 2.0], [1], [True]).shares(0.5, confidence=95)


@given(st.data())
def test_no_statement_depends_on_the_order_of_labels_nor_on_which_of_equal_scores_was_drawn(
    data: st.DataObject,
) -> None:
    size = data.draw(st.integers(8, 60))
    scores = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=size, max_size=size)))
    strata = data.draw(st.none() | st.just(np.arange(size) % 2))
    rows = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=4, unique=True)))
    harmful = np.array(data.draw(st.lists(st.booleans(), min_size=rows.size, max_size=rows.size)))
    threshold = data.draw(st.sampled_from(scores.tolist()))

    def statements(
        rows: np.ndarray, harmful: np.ndarray, scores: np.ndarray, strata: np.ndarray | None
    ) -> list[object]:
        fresh = FreshLabels.of(scores, rows, harmful, strata=strata)
        arrays = [part.tolist() for part in (*fresh.strata, *fresh.labelled, *fresh.harmful)]
        return [arrays, fresh.certify(alpha=0.2, delta=0.3), fresh.bound(threshold), fresh.shares(threshold)]

    plain = statements(rows, harmful, scores, strata)
    order = np.array(data.draw(st.permutations(range(rows.size))))
    assert statements(rows[order], harmful[order], scores, strata) == plain
    turned = size - 1 - rows  # the dataset the other way round: of equal scores, others come first
    assert statements(turned, harmful, scores[::-1], None if strata is None else strata[::-1]) == plain
