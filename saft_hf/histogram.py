"""Bars of a histogram of scores, for pictures and pages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 60
LOG_FROM = 200
"""A bar that is higher calls for a logarithmic axis: a few removed rows would not be seen beside it."""


def bar_edges(values: NDArray[np.float64], threshold: float | None) -> NDArray[np.floating[Any]]:
    """Edges of the bars; the threshold is one of them. Few rows lie far out: the outer bars take them.

    Args:
        values: finite scores, one at least.
        threshold: rows above it are removed; None where there is none.
    """
    low, high = (float(edge) for edge in np.quantile(values, (0.001, 0.999)))
    high = high if high > low else low + 1.0
    if threshold is None or not values.min() <= threshold < values.max():
        return np.linspace(low, high, BINS + 1)
    low, high = min(low, threshold), max(high, threshold)
    width = (high - low) / BINS
    first, last = math.floor((low - threshold) / width), math.ceil((high - threshold) / width)
    return threshold + width * np.arange(min(first, -1), max(last, 1) + 1)
