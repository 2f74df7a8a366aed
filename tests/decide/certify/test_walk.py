"""Certificates: exact tests by enumeration, the walk's properties, words and errors."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, hypergeom

from saft_hf.decide.certify import Certificate, FreshLabels, exact
from saft_hf.decide.certify.exact import share_test, tail, upper_limit
from saft_hf.errors import SAFTInputError

DELTA = 0.1


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


# -- p-values by enumeration ---------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_the_tail_is_what_counting_all_samples_gives() -> None:
    for size in range(1, 8):
        for bad, labels in itertools.product(range(size + 1), repeat=2):
            counts = [sum(row < bad for row in rows) for rows in itertools.combinations(range(size), labels)]
            for harmful in range(labels + 1):
                share = sum(count <= harmful for count in counts) / len(counts)
                assert tail(harmful, labels, bad, size) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(("size", "labels", "harmful"), [(3000, 200, 7), (10**7, 1000, 30), (10**7, 50, 0)])
def test_the_tail_is_exact_in_large_populations(size: int, labels: int, harmful: int) -> None:
    bad = size // 20 + 1
    ways = sum(math.comb(bad, i) * math.comb(size - bad, labels - i) for i in range(harmful + 1))
    assert tail(harmful, labels, bad, size) == pytest.approx(float(Fraction(ways, math.comb(size, labels))), rel=1e-7)
    assert share_test(bad - 1, ints(size), ints(labels), ints(harmful)) == tail(harmful, labels, bad, size)


STRATA = [(ints(9, 7), ints(4, 5)), (ints(12, 6), ints(6, 2)), (ints(5, 4, 6), ints(3, 2, 4)), (ints(8, 5), ints(5, 0))]


def outcomes(sizes: NDArray[Any], labels: NDArray[Any], bad: tuple[int, ...]) -> Iterator[tuple[NDArray[Any], float]]:
    """Every count of harmful labels by stratum, with its chance."""
    for harmful in itertools.product(*(range(n + 1) for n in labels)):
        if (chance := float(np.prod(hypergeom.pmf(harmful, sizes, bad, labels)))) > 0:
            yield np.array(harmful), chance


@pytest.mark.parametrize(("sizes", "labels"), STRATA)
@pytest.mark.parametrize("features", [200, 3])
def test_strata_are_valid_for_every_allocation(
    sizes: NDArray[Any], labels: NDArray[Any], features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "_STEPS", features)
    p_value = lru_cache(None)(lambda limit, *harmful: share_test(limit, sizes, labels, np.array(harmful)))
    for bad in itertools.product(*(range(size + 1) for size in sizes)):
        if not 0 < sum(bad) <= 8:
            continue
        # The null is true at limit = sum - 1 and, with room, below.
        for limit in {sum(bad) - 1, sum(bad) // 2 - 1}:
            drawn = [(p_value(limit, *map(int, harmful)), chance) for harmful, chance in outcomes(sizes, labels, bad)]
            for u in {p for p, _ in drawn}:
                assert sum(chance for p, chance in drawn if p <= u) <= u + 1e-9


@pytest.mark.parametrize(("sizes", "labels"), STRATA[:3])
def test_strata_take_the_worst_allocation(sizes: NDArray[Any], labels: NDArray[Any]) -> None:
    for limit, share in itertools.product((1, 3, 6), (0.0, 0.4)):
        harmful = np.floor(share * labels).astype(int)
        worst = max(
            float(np.prod(tail(harmful, labels, bad, sizes)))
            for bad in itertools.product(*(range(size + 1) for size in sizes))
            if sum(bad) == limit + 1
        )
        expected = chi2.sf(-2 * np.log(worst), 2 * sizes.size) if worst > 0 else 0.0
        assert share_test(limit, sizes, labels, harmful) == pytest.approx(expected, rel=1e-9)


def test_coarse_steps_only_raise_the_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, labels, harmful = ints(900, 2100), ints(120, 100), ints(5, 1)
    fine = share_test(150, sizes, labels, harmful)
    monkeypatch.setattr(exact, "_STEPS", 30)
    assert fine < share_test(150, sizes, labels, harmful) < 4 * fine


@pytest.mark.parametrize(("sizes", "labels"), [(ints(12), ints(5)), *STRATA[:2]])
def test_the_limit_covers(sizes: NDArray[Any], labels: NDArray[Any]) -> None:
    limit = lru_cache(None)(lambda *harmful: upper_limit(DELTA, sizes, labels, np.array(harmful)))
    for bad in itertools.product(*(range(0, size + 1, 2) for size in sizes)):
        wrong = sum(chance for x, chance in outcomes(sizes, labels, bad) if limit(*map(int, x)) < sum(bad))
        assert wrong <= DELTA + 1e-9


# -- the walk ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    harmful: NDArray[np.bool_]
    strata: NDArray[np.str_] | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(30, 300))
    labels = draw(st.integers(0, size))
    values = rng.normal(size=size).astype(np.float32)
    if draw(st.booleans()):
        values = np.round(values)  # ties
    values[rng.random(size) < draw(st.sampled_from([0, 0.1]))] = np.nan
    values[0] = 0.0
    strata = rng.choice(["a", "b"], size, p=[0.7, 0.3]) if draw(st.booleans()) else None
    rate = draw(st.sampled_from([0.0, 0.02, 0.2])) * (1 + np.sign(np.nan_to_num(values)))
    return Case(values, rng.permutation(size)[:labels], (rng.random(size) < rate)[: labels or None][:labels], strata)


def certify(case: Case) -> Certificate:
    return FreshLabels.of(case.scores, case.rows, case.harmful, strata=case.strata).certify(alpha=0.1, delta=0.2)


@pytest.mark.smoke
@settings(max_examples=60)
@given(cases(), st.data())
def test_a_label_turned_benign_never_shrinks_the_certificate(case: Case, data: st.DataObject) -> None:
    before = certify(case)
    for row in np.flatnonzero(case.harmful)[:3]:
        harmful = case.harmful.copy()
        harmful[row] = False
        assert certify(replace(case, harmful=harmful)).kept >= before.kept
    order = data.draw(st.permutations(range(case.rows.size)))
    assert certify(replace(case, rows=case.rows[order], harmful=case.harmful[order])) == before


@settings(max_examples=60)
@given(cases())
def test_the_walk_is_over_fixed_nested_sets_and_stops_at_the_first_failure(case: Case) -> None:
    found = certify(case)
    scored = case.scores[~np.isnan(case.scores)]
    # With no harmful label the walk goes furthest: its sets are all there are, whatever the labels.
    furthest = certify(replace(case, harmful=np.zeros_like(case.harmful)))
    assert [step.threshold for step in found.steps] == [step.threshold for step in furthest.steps][: len(found.steps)]
    for step in found.steps:
        inside = case.scores[case.rows] <= step.threshold
        assert step.kept == (scored <= step.threshold).sum()
        assert (step.labels, step.harmful) == (inside.sum(), (inside & case.harmful).sum())
        assert step.limit == step.kept // 10
        assert 4 * step.kept >= scored.size
        if case.strata is None:
            assert step.p_value == pytest.approx(hypergeom.cdf(step.harmful, step.kept, step.limit + 1, step.labels))
    assert [step.p_value <= 0.2 for step in found.steps[:-1]] == [True] * (len(found.steps) - 1)
    assert found.issued == bool(found.steps and found.steps[0].p_value <= 0.2)
    assert found.kept == max([step.kept for step in found.steps if step.p_value <= 0.2], default=0)
    assert found.unscored_labels == np.isnan(case.scores[case.rows]).sum()
    assert json.loads(json.dumps(found.to_dict()))["certified"] == found.to_dict()["certified"]


def test_the_grid_does_not_look_at_which_rows_were_drawn() -> None:
    scores = np.arange(1000)
    low, spread = np.arange(300), np.arange(0, 900, 3)
    sets = [
        [step.threshold for step in FreshLabels.of(scores, rows, np.zeros(300)).certify(alpha=0.05).steps]
        for rows in (low, spread)
    ]
    assert sets[0][0] == sets[1][0]


def test_all_rows_can_be_certified_and_equal_scores_stay_together() -> None:
    rows, benign = np.arange(0, 1000, 5), np.zeros(200)
    for scores, sets in ((np.repeat([1.0, 2.0], [500, 500]), [500, 1000]), (np.zeros(1000), [1000])):
        tied = FreshLabels.of(scores, rows, benign).certify(alpha=0.05)
        assert [step.kept for step in tied.steps] == sets
    assert FreshLabels.of(np.arange(1000), rows, benign).certify(alpha=0.05).kept == 1000


def test_the_limit_is_counted_in_fractions() -> None:
    found = FreshLabels.of(np.zeros(100), np.arange(50), np.zeros(50)).certify(alpha=0.29)
    assert found.steps[0].limit == 29  # 0.29 * 100 is 28.999... in floating point


def test_errored_rows_that_are_kept_count_as_harmful() -> None:
    fresh = FreshLabels.of(np.arange(1000), np.arange(0, 1000, 2), np.zeros(500))
    some, many = (fresh.certify(alpha=0.05, errored_kept=errored) for errored in (20, 60))
    assert some.issued
    assert [step.limit for step in some.steps] == [(step.kept + 20) * 5 // 100 - 20 for step in some.steps]
    assert not many.issued
    assert many.labels_needed is None
    assert "no number of labels" in many.says()
    plain, errored = (fresh.bound(499.0, errored_kept=n) for n in (0, 20))
    assert errored.most_harmful == plain.most_harmful + 20
    assert errored.share == errored.most_harmful / 520


def test_excluded_rows_are_no_part_of_the_statement() -> None:
    scores = np.arange(1000.0)
    used = np.arange(0, 1000, 4)
    rows = np.arange(1, 1000, 4)
    found = FreshLabels.of(scores, rows, rows > 800, excluded=used).certify(alpha=0.1)
    scores[used] = np.nan
    assert found == FreshLabels.of(scores, rows, rows > 800).certify(alpha=0.1)
    assert found.population == 750


def test_too_few_labels_says_about_how_many() -> None:
    rows = np.arange(0, 3000, 60)
    found = FreshLabels.of(np.arange(3000), rows, np.zeros(50)).certify(alpha=0.02)
    need = found.labels_needed
    assert not found.issued
    assert need is not None
    assert hypergeom.cdf(0, 3000, 61, need) <= DELTA < hypergeom.cdf(0, 3000, 61, int(0.97 * need))
    assert f"About {need - 50} more labels" in found.says()
    # The lowest scores are the most harmful here, and 4 % over all.
    hopeless = FreshLabels.of(np.arange(3000), rows, rows < 120).certify(alpha=0.02)
    assert not hopeless.issued
    assert hopeless.labels_needed is None


def test_more_labels_at_the_rate_seen_do_certify() -> None:
    rows = np.arange(0, 3000, 30)
    found = FreshLabels.of(np.arange(3000), rows, rows % 1500 == 0).certify(alpha=0.05)  # 2 of 100
    assert not found.issued
    need = found.labels_needed
    assert need is not None
    assert 100 < need < 400
    more = np.random.default_rng(0).permutation(3000)[: 2 * need]
    assert FreshLabels.of(np.arange(3000), more, np.arange(2 * need) % 50 == 0).certify(alpha=0.05).issued


def test_the_text_names_the_numbers_and_what_is_not_bounded() -> None:
    rows = np.arange(0, 1000, 5)
    fresh = FreshLabels.of(np.arange(1000), rows, rows > 800)
    found = fresh.certify(alpha=0.05, errored_kept=1)
    text = found.says()
    for part in (
        "90%",
        "5.00%",
        f"{found.kept} rows",
        "1 row without",
        "200 fresh labels (39 harmful)",
        "says nothing",
    ):
        assert part in text
    strata = FreshLabels.of(np.arange(1000), rows, rows > 800, strata=np.arange(1000) % 2)
    assert "in 2 strata" in strata.certify(alpha=0.05).says()
    bound = fresh.bound(500.0)
    assert f"{bound.share:.2%} of the 501 rows" in bound.says()


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_dictionary_and_summary_say_what_the_certificate_says(alpha: float) -> None:
    rows = np.arange(0, 1000, 5)
    fresh = FreshLabels.of(np.arange(1000), rows, rows > 800)
    found = replace(fresh.certify(alpha=alpha), in_use=fresh.bound(500.0), shares=fresh.shares(500.0))
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["in_use"]["share"] == found.in_use.share
    assert plain["shares"]["before"]["harmful"] == 39
    assert plain["threshold"] == found.threshold
    assert (plain["certified"] is not None) == found.issued == (alpha == 0.05)
    assert plain["text"] == found.says()
    summary = found.summary(trained_on=True)
    for name in ("issued", "alpha", "delta", "labels", "harmful_labels", "threshold", "kept"):
        assert getattr(summary, name) == getattr(found, name)
    assert (summary.text, summary.trained_on) == (found.says(), True)
    assert found.summary().trained_on is None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fresh_rows": [1, 1]}, "more than once"),
        ({"fresh_rows": [1, 9]}, "between 0 and 8"),
        ({"fresh_rows": [-1, 2]}, "between 0 and 8"),
        ({"fresh_rows": [True, False]}, "row numbers"),
        ({"fresh_rows": [0.0, 1.0]}, "row numbers"),
        ({"harmful": [True]}, "one label for each of 2"),
        ({"harmful": [0, 2]}, "True or False"),
        ({"excluded": [1, 5]}, r"used for fitting too \(rows 1\)"),
        ({"excluded": [9]}, "excluded must lie"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"alpha": 5}, "alpha must be"),
        ({"delta": 1.0}, "delta must be"),
        ({"delta": float("nan")}, "delta must be"),
        ({"errored_kept": -1}, "errored_kept"),
        ({"strata": ["a"]}, "one value for each of 9"),
        ({"scores": np.full(9, np.nan)}, "no row is left"),
        ({"scores": np.zeros((9, 1))}, "one number a row"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, Any], match: str) -> None:
    options: dict[str, Any] = {"alpha": 0.1}
    labels: dict[str, Any] = {"scores": np.arange(9.0), "fresh_rows": [1, 2], "harmful": [False, True]}
    for name, value in change.items():
        (options if name in ("alpha", "delta", "errored_kept") else labels)[name] = value
    with pytest.raises(SAFTInputError, match=match):
        FreshLabels.of(**labels).certify(**options)


def test_a_threshold_that_keeps_nothing_has_no_bound() -> None:
    with pytest.raises(SAFTInputError, match="no scored row is kept"):
        FreshLabels.of(np.arange(9.0), [1, 2], [False, True]).bound(-1.0)
