"""Learn then test (Angelopoulos et al., arXiv 2110.01052) over nested kept sets, lowest scores first.

The sets are fixed by the scores and the number of labels, never by the labels. Given how many fresh labels fall into a
set, they are a uniform sample of it, so `exact.share_test` tests "more than alpha of it is harmful". The walk starts at
the smallest set and stops at the first that cannot be ruled out; the last one ruled out is certified. It is wrong only
if the first set that is truly over alpha passes its own test, which has chance delta at most: no price for the number
of sets.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide.certify.exact import Counts, share_test
from saft_hf.decide.certify.statements import Step

STEPS = 100  # the kept shares tried are the multiples of 1 / STEPS
SMALLEST = 0.25  # the smallest of them: a smaller set would hold few labels, and one harmful label there ends the walk
_Z_95 = 1.645
_ROUNDS, _ROUNDING = 12, 1e-9


def kept_sets(ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds of the kept sets, smallest first, from sorted scores; equal scores go together.

    Rows with a score of -inf are in every set: the smallest has the lowest other score with them.
    """
    shares = np.arange(math.ceil(SMALLEST * STEPS), STEPS + 1)
    lowest = ordered[np.isfinite(ordered)][:1]
    return np.unique(np.maximum(ordered[-(-shares * ordered.size // STEPS) - 1], lowest if lowest.size else 0.0))


def walk(
    thresholds: NDArray[np.float64], counts: Counts, alpha: float, delta: float, errored: int
) -> tuple[tuple[Step, ...], int | None]:
    """Test kept sets, smallest first, up to the first that fails. One set alone is tested, whatever its labels.

    Args:
        thresholds: of the sets, ascending, [J].
        counts: of their rows.
        alpha: largest harmful share.
        delta: chance that a set passes which holds more.
        errored: rows that are kept with every set and count as harmful.

    Returns:
        The sets tested; and where none passed about how many labels it would take, None where no number would do.
    """
    limits = harmful_limits(alpha, counts, errored)
    start = first_set(counts, limits, delta) if thresholds.size > 1 else 0
    steps: list[Step] = []
    for j in range(start, thresholds.size):
        kept, labels, harmful = (int(each.sum()) for each in counts.of(j))
        p_value = share_test(limits[j], *counts.of(j))
        steps.append(Step(float(thresholds[j]), kept, labels, harmful, limits[j], p_value))
        if p_value > delta:
            break
    nothing = not steps or steps[0].p_value > delta
    return tuple(steps), labels_needed(counts, limits, delta, start) if nothing else None


def harmful_limits(alpha: float, counts: Counts, errored: int) -> list[int]:
    """Harmful rows that each set may hold. In fractions: 0.29 * 100 is 28.999... in floating point."""
    share = Fraction(str(float(alpha)))
    kept = counts.sizes.sum(axis=1).tolist()
    return [share.numerator * (size + errored) // share.denominator - errored for size in kept]


def first_set(counts: Counts, limits: list[int], delta: float) -> int:
    """The set that the walk starts at; past the last where no set could pass."""
    sizes, all_sizes, all_labels = counts.sizes, counts.sizes[-1], counts.labels[-1]
    share = sizes / np.maximum(all_sizes, 1)
    spread = np.sqrt(all_labels * share * (1 - share) * (all_sizes - all_labels) / np.maximum(all_sizes - 1, 1))
    # How many labels a set holds is drawn with them and must not choose the start: so many hold in 95 % of draws.
    low = np.floor(np.maximum(all_labels * share - _Z_95 * spread, 0)).astype(np.int64)
    largest = int(np.argmax(all_sizes))
    # A start that one harmful label cannot end, unless it costs the chance to certify the smaller half.
    for spare, most in ((1, all_sizes.sum() / 2), (0, all_sizes.sum())):
        harmful = np.where(np.arange(all_sizes.size) == largest, spare, 0)
        for j, limit in enumerate(limits):
            if sizes[j].sum() > most:
                break
            if low[j, largest] >= spare and share_test(limit, sizes[j], low[j], harmful) <= delta:
                return j
    return len(limits)


def labels_needed(counts: Counts, limits: list[int], delta: float, start: int) -> int | None:
    """About how many labels in all would certify one of a few sets, at the harmful rates seen in it."""
    last = len(limits) - 1
    needed = [
        _needed_at(counts, j, limits[j], delta)
        for j in {min(start, last), last // 3, 2 * last // 3, last}
        # A set that would pass now lies behind one that did not: that one is asked.
        if share_test(limits[j], *counts.of(j)) > delta
    ]
    return min((total for total in needed if total is not None), default=None)


def _needed_at(counts: Counts, j: int, limit: int, delta: float) -> int | None:
    sizes, labelled, harmful = counts.of(j)
    all_sizes, all_labels, _ = counts.of(-1)
    rates = harmful / np.maximum(labelled, 1)
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
