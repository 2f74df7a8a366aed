"""Where to cut the scores: by F1 on labelled rows as published, or by the contamination."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.errors import SAFTInputError, SAFTUndecidedError

GRID_POINTS = 100  # candidates for tau (arXiv 2410.10014)


@dataclass(frozen=True, slots=True)
class PublishedCandidate:
    """The best threshold for one number of directions.

    Attributes:
        k: number of directions.
        threshold: tau; a row is flagged when its score is above it.
        f1: F1 of the flag against the labels.
        pool_splits: in how many ways the grid divides the pool in two. One giant row can leave 1: hardly a choice.
    """

    k: int
    threshold: float
    f1: float
    pool_splits: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """The best candidate of each k, smallest k first, and the one of them that is in use."""

    best: PublishedCandidate
    candidates: tuple[PublishedCandidate, ...]


def flagged(scores: ArrayLike, threshold: float | NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows to remove, bool [N]: score > threshold, compared in float64. Rows without a score (NaN) are not flagged."""
    # In float32 a threshold between two float32 scores could round onto one of them.
    return np.asarray(scores, dtype=np.float64) > threshold


def calibrate_published(
    pool_scores: Mapping[int, ArrayLike], labelled_scores: Mapping[int, ArrayLike], harmful: ArrayLike
) -> Calibration:
    """Choose k and tau by F1 on labelled rows, as published (arXiv 2410.10014).

    For each k, tau runs over 100 evenly spaced values from the pool's smallest score to its largest. A row is flagged
    when its score is above tau. Equal F1: the smaller k, then the larger tau. Rows without a score (NaN) are left out.

    Args:
        pool_scores: for each k, the pool's scores, [N].
        labelled_scores: for the same k, the labelled rows' scores, [m].
        harmful: the labels, bool [m], True where harmful.

    Raises:
        SAFTInputError: the k of the two differ, lengths differ, or no row has a score.
        SAFTUndecidedError: the scored labels are of one class only, or no candidate flags a harmful label.

    Examples:
        >>> calibration = calibrate_published({1: [0.0, 1.0, 99.0]}, {1: [1.0, 50.0]}, [False, True])
        >>> calibration.best.k, calibration.best.threshold, calibration.best.f1
        (1, 49.0, 1.0)
    """
    if not pool_scores or set(pool_scores) != set(labelled_scores):
        both = f"{sorted(pool_scores)} and {sorted(labelled_scores)}"
        raise SAFTInputError(f"pool_scores and labelled_scores must have the same k; found {both}")
    labels, ks = np.asarray(harmful, dtype=np.bool_), sorted(pool_scores)
    pool, marked = (
        {k: np.asarray(scores[k], dtype=np.float64) for k in ks} for scores in (pool_scores, labelled_scores)
    )
    if bad := [k for k in ks if marked[k].shape != labels.shape]:
        raise SAFTInputError(f"labelled_scores[{bad[0]}] has shape {marked[bad[0]].shape}, labels {labels.shape}")
    scored = np.logical_and.reduce([~np.isnan(marked[k]) for k in ks])
    labels = labels[scored]
    total, positives = labels.size, int(labels.sum())
    if positives in (0, total):
        raise SAFTUndecidedError(
            f"{positives} of {total} labelled rows with a score are harmful: F1 needs rows of both classes. Label more "
            "rows, or give threshold or contamination"
        )
    candidates = tuple(_best_threshold(k, pool[k], marked[k][scored], labels) for k in ks)
    best = max(candidates, key=lambda candidate: (candidate.f1, -candidate.k))
    if best.f1 == 0:
        raise SAFTUndecidedError(
            f"no threshold between the pool's smallest and largest score flags one of the {positives} harmful labels: "
            "the score does not see them. Use another layer, readout or method, or give threshold or contamination"
        )
    return Calibration(best=best, candidates=candidates)


def _best_threshold(
    k: int, pool: NDArray[np.float64], scores: NDArray[np.float64], labels: NDArray[np.bool_]
) -> PublishedCandidate:
    pool = np.sort(pool[~np.isnan(pool)])
    if pool.size == 0:
        raise SAFTInputError(f"no row of the pool has a score (k={k})")
    grid = np.linspace(pool[0], pool[-1], GRID_POINTS)
    above = count_above(np.sort(scores), grid)
    hits = count_above(np.sort(scores[labels]), grid)
    # One division of whole numbers: equal F1 are equal to the last bit, so that ties are ties.
    f1 = 2 * hits / (above + labels.sum())
    at = GRID_POINTS - 1 - int(np.argmax(f1[::-1]))
    removed = count_above(pool, grid)  # never all: the first candidate is the smallest score
    splits = np.unique(removed[removed > 0]).size
    return PublishedCandidate(k=k, threshold=float(grid[at]), f1=float(f1[at]), pool_splits=splits)


def count_above(ordered: NDArray[np.floating], grid: ArrayLike) -> NDArray[np.int64]:
    """How many of some ascending scores are above each of others."""
    return np.asarray(ordered.size - np.searchsorted(ordered, grid, side="right"), dtype=np.int64)


def threshold_for_contamination(scores: ArrayLike, contamination: float) -> float:
    """The lowest threshold, one of the scores, that removes at most the contamination of the scored rows.

    With m = floor(contamination * N), the m highest rows are above it, unless the m-th and the next are equal: tied
    rows stay together, on the kept side. So what is removed does not depend on the order of rows.

    Args:
        scores: scores, [N]; rows without one (NaN) are left out, those at -inf count, and none of them is removed.
        contamination: expected harmful share, between 0 and 1 (both excluded).

    Raises:
        SAFTInputError: `contamination` is out of range, or no row has a score.

    Examples:
        >>> threshold_for_contamination([5.0, 1.0, 3.0, 2.0, 4.0], contamination=0.4)
        3.0
    """
    if not 0 < contamination < 1:
        raise SAFTInputError(f"contamination must be between 0 and 1, such as 0.25; found {contamination}")
    values = np.asarray(scores, dtype=np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        raise SAFTInputError("no row has a score, so a share of them cannot be taken")
    # The small term: 0.29 * 100 is 28.999... in floating point.
    most = min(math.floor(contamination * values.size + 1e-9), max(int(np.isfinite(values).sum()), 1) - 1)
    at = values.size - 1 - most
    return float(np.partition(values, at)[at])


def near_threshold(scores: ArrayLike, threshold: float) -> int:
    """How many rows lie so close to the threshold that another batch composition may decide them otherwise.

    Args:
        scores: scores, [N]; rows without one (NaN) are left out.
        threshold: tau. Rows within 1e-5 of the largest |score| of it count.
    """
    values = np.asarray(scores, dtype=np.float64)
    values = values[~np.isnan(values)]
    return int(np.count_nonzero(np.abs(values - threshold) <= 1e-5 * np.abs(values).max(initial=0)))
