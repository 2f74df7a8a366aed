"""A bound on what is left: the largest kept set whose harmful share is at most alpha, with confidence 1 - delta.

Learn then test (Angelopoulos et al., arXiv 2110.01052) over nested kept sets, lowest scores first. The sets are fixed
by the scores and the number of labels, never by the labels. Given how many fresh labels fall into a set, they are a
uniform sample of it, so `exact.share_test` tests "more than alpha of it is harmful". The walk starts at the smallest
set and stops at the first that cannot be ruled out; the last one ruled out is certified. It is wrong only if the first
set that is truly over alpha passes its own test, which has chance delta at most: no price for the number of sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.decide.exact import share_test, upper_limit
from saft_hf.decide.fresh import Counts, FreshLabels, check_chance
from saft_hf.decide.statements import Bound, Certificate, Step
from saft_hf.errors import SAFTInputError

STEPS = 100
"""The kept shares tried are the multiples of 1 / STEPS."""

SMALLEST = 0.25
"""The smallest kept share tried. A smaller start would hold few labels, and one harmful label there ends the walk."""

_HALF = 0.5
_LUCK = 1.645
_ROUNDS = 12
_ROUNDING = 1e-9


def certify_kept(
    scores: ArrayLike,
    fresh_rows: ArrayLike,
    harmful: ArrayLike,
    *,
    alpha: float,
    delta: float = 0.1,
    excluded: ArrayLike | None = None,
    strata: Sequence[Any] | NDArray[Any] | None = None,
    errored_kept: int = 0,
) -> Certificate:
    """Certify the largest kept set whose harmful share is at most alpha, with confidence 1 - delta.

    The sets keep the lowest scores; rows with equal scores go together. Their sizes are multiples of 1/100 of the
    population, from 1/4 up. They start where labels with one harmful among them would pass (in 95 % of draws), or,
    where that takes more than half of the rows, labels with none. So they are fixed by the scores, the number of
    labels, alpha and delta.

    Args:
        scores: Scores of all rows, [D]; NaN where there is none.
        fresh_rows: Rows labelled for this, indices into `scores`, int [m]: drawn uniformly without replacement from
            the population (or all rows), with `strata` from each stratum, and used for no choice before.
        harmful: Their labels, bool [m], True where harmful.
        alpha: Largest harmful share, between 0 and 1.
        delta: Chance that a certificate is issued and false, between 0 and 1.
        excluded: Rows whose labels were used for fitting, indices into `scores`: not part of the statement.
        strata: A value for each row, [D], where each stratum was sampled on its own, at whatever rate. The price is a
            larger p-value (module `exact`), so it pays where one stratum was sampled far more than the others.
        errored_kept: Rows without a score that are trained on all the same; each counts as harmful.

    Returns:
        The certificate, or that there is none and about how many labels it would take.

    Raises:
        SAFTInputError: An argument is out of range, rows are labelled twice or were used for fitting too.

    Source: Angelopoulos et al., *Learn then Test*, arXiv 2110.01052, with exact hypergeometric p-values.

    Example:
        >>> scores = np.arange(1000)
        >>> found = certify_kept(scores, scores[::10], scores[::10] > 800, alpha=0.1)
        >>> found.issued, found.kept
        (True, 850)
    """
    check_chance("alpha", alpha)
    check_chance("delta", delta)
    _check_errored(errored_kept)
    sample = FreshLabels.of(scores, fresh_rows, harmful, excluded, strata)
    thresholds = _grid(sample.scores)
    counts = sample.at(thresholds)
    limits = _limits(alpha, counts, errored_kept)
    start = _start(counts, limits, delta)
    steps: list[Step] = []
    for j in range(start, thresholds.size):
        steps.append(
            Step(
                threshold=float(thresholds[j]),
                kept=int(counts.sizes[j].sum()),
                labels=int(counts.labels[j].sum()),
                harmful=int(counts.harmful[j].sum()),
                limit=limits[j],
                p_value=share_test(limits[j], counts.sizes[j], counts.labels[j], counts.harmful[j]),
            )
        )
        if steps[-1].p_value > delta:
            break
    nothing = not steps or steps[0].p_value > delta
    return Certificate(
        alpha=float(alpha),
        delta=float(delta),
        population=int(sample.scores.size),
        labels=int(counts.labels[-1].sum()),
        harmful_labels=int(counts.harmful[-1].sum()),
        unscored_labels=sample.unscored,
        strata=len(sample.groups),
        errored_kept=int(errored_kept),
        steps=tuple(steps),
        labels_needed=_labels_needed(counts, limits, delta, start) if nothing else None,
    )


def certify_at(
    scores: ArrayLike,
    fresh_rows: ArrayLike,
    harmful: ArrayLike,
    threshold: float,
    *,
    delta: float = 0.1,
    excluded: ArrayLike | None = None,
    strata: Sequence[Any] | NDArray[Any] | None = None,
    errored_kept: int = 0,
) -> Bound:
    """Bound the harmful share of the rows kept at the threshold in use, with confidence 1 - delta.

    Args:
        scores: Scores of all rows, [D]; NaN where there is none.
        fresh_rows: Rows labelled for this, as in `certify_kept`, int [m].
        harmful: Their labels, bool [m], True where harmful.
        threshold: Rows with a score above it are removed. It must not depend on these labels.
        delta: Chance that the bound is false, between 0 and 1.
        excluded: Rows whose labels were used for fitting, indices into `scores`.
        strata: As in `certify_kept`.
        errored_kept: Rows without a score that are trained on all the same; each counts as harmful.

    Returns:
        The bound.

    Raises:
        SAFTInputError: As `certify_kept`, or no row is kept at the threshold.

    Example:
        >>> scores = np.arange(1000)
        >>> certify_at(scores, scores[::10], scores[::10] > 800, 499.0).most_harmful
        21
    """
    check_chance("delta", delta)
    _check_errored(errored_kept)
    counts = FreshLabels.of(scores, fresh_rows, harmful, excluded, strata).at(threshold)
    sizes, labels, bad = counts.sizes[0], counts.labels[0], counts.harmful[0]
    if not sizes.sum():
        raise SAFTInputError(f"no scored row is kept at threshold {threshold}: there is nothing to bound")
    return Bound(
        threshold=float(threshold),
        delta=float(delta),
        kept=int(sizes.sum()),
        errored_kept=int(errored_kept),
        labels=int(labels.sum()),
        harmful_labels=int(bad.sum()),
        most_harmful=upper_limit(delta, sizes, labels, bad) + int(errored_kept),
    )


def _grid(ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds of the kept sets, smallest first; whole blocks of equal scores."""
    shares = np.arange(math.ceil(SMALLEST * STEPS), STEPS + 1)
    return np.unique(ordered[-(-shares * ordered.size // STEPS) - 1])


def _limits(alpha: float, counts: Counts, errored: int) -> list[int]:
    """Harmful rows that each set may hold. In fractions: 0.29 * 100 is 28.999... in floating point."""
    share = Fraction(str(float(alpha)))
    kept = counts.sizes.sum(axis=1).tolist()
    return [share.numerator * (size + errored) // share.denominator - errored for size in kept]


def _start(counts: Counts, limits: list[int], delta: float) -> int:
    """The first set of the walk; past the last where no set could pass."""
    sizes, all_sizes, all_labels = counts.sizes, counts.sizes[-1], counts.labels[-1]
    share = sizes / np.maximum(all_sizes, 1)
    spread = np.sqrt(all_labels * share * (1 - share) * (all_sizes - all_labels) / np.maximum(all_sizes - 1, 1))
    # How many labels a set holds is drawn with them and must not choose the start: it is foretold from the sizes.
    low = np.floor(np.maximum(all_labels * share - _LUCK * spread, 0)).astype(np.int64)
    largest = int(np.argmax(all_sizes))
    # A start that one harmful label cannot end, unless it costs the chance to certify the smaller half.
    for spare, most in ((1, _HALF * all_sizes.sum()), (0, all_sizes.sum())):
        harmful = np.where(np.arange(all_sizes.size) == largest, spare, 0)
        for j, limit in enumerate(limits):
            if sizes[j].sum() > most:
                break
            if low[j, largest] >= spare and share_test(limit, sizes[j], low[j], harmful) <= delta:
                return j
    return len(limits)


def _labels_needed(counts: Counts, limits: list[int], delta: float, start: int) -> int | None:
    """About how many labels in all would certify one of a few sets, at the harmful rates seen in it."""
    last = len(limits) - 1
    needed = [
        _needed_at(counts, j, limits[j], delta)
        for j in {min(start, last), last // 3, 2 * last // 3, last}
        # A set that would pass now lies behind one that did not: that one is asked.
        if share_test(limits[j], counts.sizes[j], counts.labels[j], counts.harmful[j]) > delta
    ]
    return min((total for total in needed if total is not None), default=None)


def _needed_at(counts: Counts, j: int, limit: int, delta: float) -> int | None:
    sizes, all_sizes, all_labels = counts.sizes[j], counts.sizes[-1], counts.labels[-1]
    rates = counts.harmful[j] / np.maximum(counts.labels[j], 1)
    drawn = all_labels / all_labels.sum() if all_labels.sum() else all_sizes / all_sizes.sum()
    a_label = drawn * sizes / np.maximum(all_sizes, 1)

    def passes(total: float) -> bool:
        labels = np.minimum(np.ceil(total * a_label), sizes).astype(np.int64)
        return share_test(limit, sizes, labels, np.ceil(rates * labels - _ROUNDING).astype(np.int64)) <= delta

    low, high = max(float(all_labels.sum()), 1.0), float(all_sizes.sum())
    if not passes(high):
        return None
    for _ in range(_ROUNDS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if passes(middle) else (middle, high)
    return math.ceil(high)


def _check_errored(errored: int) -> None:
    if errored < 0:
        raise SAFTInputError(f"errored_kept must be a number of rows, 0 or more; found {errored!r}")
