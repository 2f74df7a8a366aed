"""A score from labels: the weighted direction, beside a score that was fixed before, tested as one statistic.

Nothing is chosen on the labels, so nothing is paid for choosing. The statistic is the out-of-fold AUROC; it is compared
with those of labels dealt out at random among groups of equal size, so that rows of one prompt stay together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from saft_hf.errors import SAFTInputError
from saft_hf.score.crossfit import auroc, make_folds, mean_differences, out_of_fold, shuffle_groups
from saft_hf.score.directed import SHRINKAGE, Frame, combine
from saft_hf.score.moments import Moments

MIN_OF_A_CLASS = 2
"""Labels of each class below which there is nothing to hold out. From there on the test decides, not a count."""
SIGNIFICANCE = 0.02
"""Undecided above this p-value. Under 0.05, so that shuffled labels are refused in at least 95 % of any 200 draws, not
only on average."""
PERMUTATIONS = 499
REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Undecided:
    """Why no decision may rest on a score.

    Attributes:
        reason: what was seen, in words.
        more_labels: about how many more labels, drawn like these, would help; None where that is not foreseeable.
    """

    reason: str
    more_labels: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """What labels teach.

    Attributes:
        weights: the direction in the frame's coordinates, learned from all labels, float64 [q], times its own weight;
            0 where the labels are of one class.
        fixed_weight: weight of the fixed score, in units of its standard deviation over the pool; 0 without one.
        out_of_fold: scores of the labelled rows by directions that have not seen them, float64 [repeats, m].
        auroc: of these, mean over the repeats.
        p_value: share of the shuffles that do at least as well; the labels as they are count as one.
        permutations: how many there were; 0 where too few labels leave nothing to test.
        undecided: why nothing may be decided; None where it may.
        feature_weights: share of the score that each feature, and the fixed score (`reference`), makes up.
    """

    weights: NDArray[np.float64]
    fixed_weight: float
    out_of_fold: NDArray[np.float64]
    auroc: float
    p_value: float
    permutations: int
    undecided: Undecided | None
    feature_weights: Mapping[str, float]


def fit_direction(
    frame: Frame,
    pool: Moments,
    coordinates: ArrayLike,
    harmful: ArrayLike,
    groups: ArrayLike,
    fixed: ArrayLike | None = None,
    fixed_pool_scale: float = 1.0,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Direction:
    """Learn the weighted direction, and test it.

    A fixed score counts by how well it does on the labels, w = max(0, 2 AUROC - 1), and the direction by 1 - w. The
    weight is taken again for every shuffle, so the test stays exact.

    Args:
        frame: the features and their components.
        pool: moments of the whole pool's coordinates in that frame, [q].
        coordinates: the labelled rows' coordinates, [m, q], finite.
        harmful: their labels, bool [m], True where harmful.
        groups: one whole number for each labelled row; rows of the same prompt have the same, [m].
        fixed: their scores by a score that saw none of these labels, measured from the pool's mean, [m]; None without.
        fixed_pool_scale: standard deviation of that score over the pool.
        permutations: how often the labels are dealt out again, 200 or more.
        seed: of folds and shuffles: the same input gives the same bits.

    Returns:
        The direction, with an `Undecided` where it may be chance or the labels are too few.

    Raises:
        SAFTInputError: shapes differ, values are not finite, or there are too few permutations.

    Example:
        >>> from saft_hf.score import principal_subspace
        >>> x = np.random.default_rng(0).standard_normal((200, 3))
        >>> frame = Frame.of({"8.response_start": principal_subspace(Moments.of(x), 3)})
        >>> at = frame.coordinates({"8.response_start": x})
        >>> direction = fit_direction(frame, Moments.of(at), at, x[:, 1] > 1, np.arange(200))
        >>> direction.undecided is None, direction.p_value
        (True, 0.002)
    """
    rows, labels = np.asarray(coordinates, dtype=np.float64), np.asarray(harmful, dtype=np.bool_)
    prompts = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    known = None if fixed is None else np.asarray(fixed, dtype=np.float64) / (fixed_pool_scale or 1.0)
    _check(frame, rows, labels, prompts, known, permutations)
    features = [(feature,) for feature in frame.subspaces]
    learned = np.zeros(frame.size)
    if labels.any() and not labels.all():
        learned = combine(rows[labels].mean(axis=0) - rows[~labels].mean(axis=0), frame, pool, features, SHRINKAGE)
    rng = np.random.default_rng(seed)
    few = _too_few(labels)
    folds = None if few else make_folds(labels, prompts, rng)
    if folds is None:
        few = few or Undecided("the labelled rows of one class share too few prompts to hold some of them out", None)
        return Direction(learned, 0.0, np.zeros((1, labels.size)), 0.5, 1.0, 0, few, _shares(frame, pool, learned, 0.0))
    # The first order is the labels as they are.
    orders = np.concatenate([np.arange(labels.size)[None], shuffle_groups(prompts, permutations, rng)])
    differences = mean_differences(rows, labels, folds, orders)
    scores = out_of_fold(features, SHRINKAGE, frame, pool, rows, folds, orders, differences)
    weight = np.zeros(len(orders))
    if known is not None:
        weight = np.maximum(0.0, 2 * auroc(known[orders], labels) - 1)
        scores = (1 - weight)[:, None] * scores + weight[:, None] * known[orders]
    areas = np.mean([auroc(repeat, labels) for repeat in scores], axis=0)
    p_value = float(np.mean(areas >= areas[0] - 1e-12))  # exact, and never 0: the labels themselves are one of them
    own = float(weight[0])
    return Direction(
        weights=(1 - own) * learned,
        fixed_weight=own,
        out_of_fold=scores[:, 0],
        auroc=float(areas[0]),
        p_value=p_value,
        permutations=permutations,
        undecided=_chance(areas, p_value, labels.size),
        feature_weights=_shares(frame, pool, (1 - own) * learned, own),
    )


def _shares(frame: Frame, pool: Moments, weights: NDArray[np.float64], fixed: float) -> dict[str, float]:
    """How much of the score each part makes up: its standard deviation over the pool, beside those of the others."""
    spreads = {}
    for feature in frame.subspaces:
        columns = frame.columns([feature])
        part = weights[columns]
        variance = float(part @ pool.covariance[np.ix_(columns, columns)] @ part)
        spreads[feature] = math.sqrt(max(variance, 0.0))
    if fixed:
        spreads[REFERENCE] = fixed
    total = sum(spreads.values())
    return {name: spread / total if total else 0.0 for name, spread in spreads.items()}


def _check(
    frame: Frame,
    rows: NDArray[np.float64],
    labels: NDArray[np.bool_],
    prompts: NDArray[np.intp],
    known: NDArray[np.float64] | None,
    permutations: int,
) -> None:
    if permutations < 200:
        raise SAFTInputError(f"permutations must be at least 200, so that 0.05 can be told apart; found {permutations}")
    m = labels.size
    shapes = [rows.shape, prompts.shape, (m,) if known is None else known.shape]
    if m == 0 or labels.ndim != 1 or shapes != [(m, frame.size), (m,), (m,)]:
        raise SAFTInputError(
            f"for {m} labels, coordinates must be [{m}, {frame.size}], groups and fixed scores [{m}]; found shapes "
            f"{[list(shape) for shape in shapes]}"
        )
    if not np.isfinite(rows).all() or (known is not None and not np.isfinite(known).all()):
        raise SAFTInputError(f"coordinates and fixed scores must be finite for each of {m} labels: leave others out")


def _too_few(labels: NDArray[np.bool_]) -> Undecided | None:
    counts = {"harmful": int(labels.sum()), "benign": int((~labels).sum())}
    name = min(counts, key=lambda word: counts[word])
    if counts[name] >= MIN_OF_A_CLASS:
        return None
    # So many that about five of the class may be hoped for, with which a test has power.
    more = int(np.ceil(labels.size * (5 / counts[name] - 1))) if counts[name] else None
    return Undecided(
        f"{counts[name]} of {labels.size} labelled rows are {name}; at least {MIN_OF_A_CLASS} of each class are needed",
        more,
    )


def _chance(areas: NDArray[np.float64], p_value: float, m: int) -> Undecided | None:
    if p_value <= SIGNIFICANCE:
        return None
    null = areas[1:]
    centre, spread = float(null.mean()), float(null.std())
    # A signal of this size stands out of noise that shrinks as 1 / sqrt(m), four times in five.
    seen = (areas[0] - centre) / spread if spread > 0 else 0.0
    needed = float(np.quantile((null - centre) / spread, 1 - SIGNIFICANCE)) + norm.ppf(0.8) if spread > 0 else np.inf
    more = int(np.ceil(m * ((needed / seen) ** 2 - 1))) if seen > 0.5 else None
    return Undecided(
        f"the score has an out-of-fold AUROC of {areas[0]:.3f}, and labels dealt out at random do as well with "
        f"probability {p_value:.3f} (a decision is taken up to {SIGNIFICANCE})",
        more,
    )
