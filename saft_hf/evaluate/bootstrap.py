"""Intervals by bootstrap over prompts, and over seeds where there are several."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: of all values.
        low: lower end of the interval.
        high: upper end.
        spread: standard deviation over seeds; None with one seed.
    """

    mean: float
    low: float
    high: float
    spread: float | None = None

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def mean_interval(values: ArrayLike, *, resamples: int = 2000) -> Interval | None:
    """Mean of values on the same prompts, with the percentile bootstrap's interval.

    Prompts are drawn again with replacement, and seeds too where there are several: both are samples of what might
    have been. With few seeds the interval is a rough one. Source: Efron and Tibshirani, *An Introduction to the
    Bootstrap*, 1993, chapter 13.

    Args:
        values: [prompts], or [seeds, prompts] where each seed saw the same prompts. NaN counts as missing.
        resamples: how many.

    Returns:
        The interval; None where every value is missing.

    Examples:
        >>> f"{mean_interval([0, 1, 1, 1]):.2f}"
        '0.75 [0.25, 1.00]'
    """
    table: NDArray[np.float64] = np.atleast_2d(np.asarray(values, dtype=np.float64))
    present = ~np.isnan(table)
    if not present.any():
        return None
    filled = np.where(present, table, 0.0)
    rng = np.random.default_rng(0)
    seeds, prompts = table.shape
    # How often each seed and each prompt is drawn: the mean of a resample is then a product of three arrays.
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    by_prompt = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    sums = np.einsum("bs,sp,bp->b", by_seed, filled, by_prompt, optimize=True)
    counts = np.einsum("bs,sp,bp->b", by_seed, present.astype(np.float64), by_prompt, optimize=True)
    means = sums[counts > 0] / counts[counts > 0]
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    each = [row[known].mean() for row, known in zip(table, present, strict=True) if known.any()]
    spread = float(np.std(each, ddof=1)) if len(each) > 1 else None
    return Interval(float(table[present].mean()), float(low), float(high), spread)
