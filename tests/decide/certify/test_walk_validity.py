"""Certificates over draws: how often one is issued and false. Broken variants are caught by the same count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta

from saft_hf.decide.certify import FreshLabels, exact, walk
from saft_hf.decide.certify.exact import share_test

DRAWS = 2000
DELTA = 0.1
ALPHAS = (0.05, 0.1, 0.25)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same few tails come up in every draw; what is advised where nothing is issued is of no interest here."""
    one = lru_cache(None)(lambda *of: exact.hypergeom.cdf(*of))
    monkeypatch.setattr(exact, "log_falls", lru_cache(None)(exact.log_falls))
    plain = exact.tail
    monkeypatch.setattr(
        exact, "tail", lambda x, n, h, size: plain(x, n, h, size) if np.ndim(h) else one(int(x), int(size), h, int(n))
    )
    monkeypatch.setattr(walk, "labels_needed", lambda *_: None)
    monkeypatch.setattr(walk, "STEPS", 20)


@dataclass(frozen=True)
class Pool:
    """Rows in order of score, with the truth, and how many of each stratum are labelled."""

    bad: NDArray[np.bool_]
    labels: tuple[int, ...]
    strata: NDArray[np.int64]
    used: NDArray[np.int64]

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        free = np.setdiff1d(np.arange(self.bad.size), self.used)
        drawn = [rng.permutation(free[self.strata[free] == g])[:n] for g, n in enumerate(self.labels)]
        return np.concatenate(drawn)


SIZE = 400
LABELS = {0.05: 160, 0.1: 120, 0.25: 70}
STRATA_SIZE = 1000
STRATA_LABELS = (250, 250)


def pool(kind: str, alpha: float, stratified: bool, used: int = 0) -> Pool:
    """`first` and `middle` are at the boundary: from a set on, all have exactly floor(alpha N_j) + 1 harmful rows."""
    size = STRATA_SIZE if stratified else SIZE
    rows = np.arange(1, size + 1)
    if kind == "real":
        rng = np.random.default_rng(1)
        harmful = np.arange(size) < 1.5 * alpha * size
        bad = harmful[np.argsort(rng.normal(size=size) + 2.0 * harmful)]
    else:
        left = np.floor(alpha * rows + 1e-9).astype(int) + 1
        if kind == "middle":  # all those of the first boundary set at its end
            start = size * 11 // 20
            left = np.where(rows < start, np.maximum(rows - (start - left[start - 1]), 0), left)
        bad = np.diff(left, prepend=0) > 0
    if stratified:
        return Pool(bad, STRATA_LABELS, np.random.default_rng(2).integers(0, 2, size), np.zeros(0, np.int64))
    # Rows labelled for fitting: benign ones, spread over the scores.
    at = np.linspace(0, size, used).astype(int)
    bad = np.insert(bad, at, False)
    return Pool(bad, (LABELS[alpha],), np.zeros(bad.size, np.int64), at + np.arange(used))


Procedure = Callable[[Pool, NDArray[np.int64], float], tuple[NDArray[np.float64], float | None]]


def honest(on: Pool, drawn: NDArray[np.int64], alpha: float) -> tuple[NDArray[np.float64], float | None]:
    """Scores, and the certified threshold or None."""
    scores = np.arange(on.bad.size, dtype=np.float64)
    strata = on.strata if len(on.labels) > 1 else None
    fresh = FreshLabels.of(scores, drawn, on.bad[drawn], excluded=on.used, strata=strata)
    return scores, fresh.certify(alpha=alpha, delta=DELTA).threshold


def largest_passing(on: Pool, drawn: NDArray[np.int64], alpha: float) -> tuple[NDArray[np.float64], float | None]:
    scores = np.arange(on.bad.size, dtype=np.float64)
    sample = FreshLabels.of(scores, drawn, on.bad[drawn])
    thresholds = walk.kept_sets(sample.scores)
    counts = sample.at(thresholds)
    limits = walk.harmful_limits(alpha, counts, 0)
    passing = [float(thresholds[j]) for j, limit in enumerate(limits) if share_test(limit, *counts.of(j)) <= DELTA]
    return scores, max(passing, default=None)


def fit_labels_reused(on: Pool, drawn: NDArray[np.int64], alpha: float) -> tuple[NDArray[np.float64], float | None]:
    """A scorer that learned its labels by heart, certified on them."""
    scores = np.arange(on.bad.size, dtype=np.float64)
    scores[drawn[on.bad[drawn]]] += on.bad.size  # learned by heart: they are all removed
    return scores, FreshLabels.of(scores, drawn, on.bad[drawn]).certify(alpha=alpha, delta=DELTA).threshold


def before_exclusions(on: Pool, drawn: NDArray[np.int64], alpha: float) -> tuple[NDArray[np.float64], float | None]:
    """The limit is alpha of the sets as they were with the rows labelled for fitting."""
    scores = np.arange(on.bad.size, dtype=np.float64)
    sample = FreshLabels.of(scores, drawn, on.bad[drawn], on.used)
    thresholds = walk.kept_sets(sample.scores)
    counts = sample.at(thresholds)
    limits = walk.harmful_limits(alpha, FreshLabels.of(scores, drawn, on.bad[drawn]).at(thresholds), 0)
    threshold = None
    for j in range(walk.first_set(counts, limits, DELTA), thresholds.size):
        if share_test(limits[j], *counts.of(j)) > DELTA:
            break
        threshold = float(thresholds[j])
    return scores, threshold


def false_draws(procedure: Procedure, on: Pool, alpha: float) -> tuple[int, int]:
    """In how many draws a certificate is issued, and in how many it is issued and false."""
    rng = np.random.default_rng(0)
    issued = false = 0
    population = np.ones(on.bad.size, bool)
    population[on.used] = False
    for _ in range(DRAWS):
        scores, threshold = procedure(on, on.draw(rng), alpha)
        if threshold is None:
            continue
        issued += 1
        kept = population & (scores <= threshold)
        false += Fraction(int(on.bad[kept].sum()), int(kept.sum())) > Fraction(str(alpha))
    return issued, false


def upper_95(false: int, draws: int = DRAWS) -> float:
    return float(beta.ppf(0.95, false + 1, draws - false))


def lower_95(false: int, draws: int = DRAWS) -> float:
    return float(beta.ppf(0.05, false, draws - false + 1))


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("stratified", [False, True], ids=["iid", "stratified"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_certificates_are_false_in_at_most_delta_of_the_draws(alpha: float, stratified: bool) -> None:
    found = {kind: false_draws(honest, pool(kind, alpha, stratified), alpha) for kind in ("first", "middle", "real")}
    assert {kind: false for kind, (_, false) in found.items() if upper_95(false) > 1.2 * DELTA} == {}
    # A certificate that is hardly ever issued would pass too. The test over strata is the more careful one.
    least = {0.05: 0.15, 0.1: 0.2, 0.25: 0.35}[alpha] if stratified else 1 / 3
    assert max(found[kind][1] for kind in ("first", "middle")) >= least * DELTA * DRAWS, found
    assert found["real"][0] >= DRAWS / 2, found


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("broken", [largest_passing, fit_labels_reused, before_exclusions])
def test_broken_variants_are_caught(broken: Procedure) -> None:
    on = pool("first", 0.1, stratified=False, used=150 if broken is before_exclusions else 0)
    if broken is fit_labels_reused:  # 20 % harmful
        on = replace(on, bad=np.arange(SIZE) % 5 == 0)
    assert upper_95(false_draws(honest, on, 0.1)[1]) <= 1.2 * DELTA
    assert lower_95(false_draws(broken, on, 0.1)[1]) > DELTA


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("stratified", [False, True], ids=["iid", "stratified"])
def test_the_bound_at_a_threshold_is_false_in_at_most_delta_of_the_draws(stratified: bool) -> None:
    on, rng = pool("first", 0.1, stratified), np.random.default_rng(0)
    scores = np.arange(on.bad.size)
    strata = on.strata if stratified else None
    truth, false = int(on.bad[:300].sum()), 0
    for _ in range(DRAWS // 2):
        drawn = on.draw(rng)
        false += (
            FreshLabels.of(scores, drawn, on.bad[drawn], strata=strata).bound(299.0, delta=DELTA).most_harmful < truth
        )
    assert 2 * false >= DRAWS * DELTA / (10 if stratified else 3)
    assert upper_95(2 * false) <= 1.2 * DELTA


@pytest.mark.parametrize("stratified", [False, True], ids=["iid", "stratified"])
def test_the_walk_starts_where_one_harmful_label_would_pass_in_95_percent_of_draws(stratified: bool) -> None:
    size, draws = 3000, 1000
    scores, rng = np.arange(size), np.random.default_rng(0)
    strata = np.arange(size) % 3 == 0 if stratified else np.zeros(size, bool)
    passed, starts = 0, set()
    for draw in range(draws):
        parts = [rng.permutation(np.flatnonzero(strata == mark))[:150] for mark in (False, True)]
        rows = np.concatenate(parts)
        fresh = FreshLabels.of(scores, rows, np.zeros(rows.size), strata=strata if stratified else None)
        if draw < 3:
            step = fresh.certify(alpha=0.08).steps[0]
            starts.add(step.kept)
        sizes, labels, _ = fresh.at(step.threshold).of(0)
        one = np.eye(sizes.size, dtype=np.int64)[0]  # the larger stratum has it
        passed += share_test(step.limit, sizes, labels, one) <= DELTA
    [start] = starts  # neither the smallest set nor one of those that no harmful label may fall in
    assert size // 4 < start < size // 2
    assert 0.93 < passed / draws < 0.99
