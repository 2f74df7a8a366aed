"""What labels say: a direction, beside a score that was fixed before them, and one test of both together.

The statistic is the out-of-fold AUROC of one score; nothing is picked. Its weights are found again in every permutation
of the labels, so its p-value is exact, however few labels there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from saft_hf.errors import SAFTInputError
from saft_hf.score.directed import Frame, combine
from saft_hf.score.moments import Moments

FOLDS = 5
REPEATS = 4
PERMUTATIONS = 499
SIGNIFICANCE = 0.02
"""Undecided above this p-value. Under 0.05, so that shuffled labels are undecided in at least 95 % of any 200 draws,
not only on average."""
MIN_OF_A_CLASS = 2
"""Labels, and prompts, of each class below which none can be held out."""

_BEST = 0.99
"""What an AUROC counts for at most: on few labels, 1 is cheap."""
_CHUNK = 2_000_000
"""Numbers held at once, about."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """Why no decision may rest on a score.

    Attributes:
        reason: what was found, in words.
        more_labels: about how many more labels, drawn like these, would help; None where that is not foreseeable.
    """

    reason: str
    more_labels: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """What `fit_direction` learned.

    The score of a row is <coordinates, `weights`> + `fixed_weight` * fixed / `fixed_pool_scale`.

    Attributes:
        weights: the direction learned from all labels, of one standard deviation over the pool, times
            1 - `fixed_weight`, float64 [q]; all zero where labels of one class, or of equal means, teach none.
        fixed_weight: weight of the fixed score, 0 to 1; 0 where there is none.
        out_of_fold: scores of the labelled rows by directions that have not seen them, one line a repeat, float64
            [repeats, m]; zeros where the labels are too few to hold some out.
        auroc: of these, mean over the repeats; above 0.5 where harmful rows score higher.
        p_value: share of permutations of the labels that do at least as well, the labels as they are among them.
        permutations: their number; 0 where too few labels leave nothing to test.
        undecided: why nothing may be decided; None where it may.
        feature_weights: share of the score that each feature, and the fixed score ("reference"), makes up; sums to
            1.
    """

    weights: NDArray[np.float64]
    fixed_weight: float
    out_of_fold: NDArray[np.float64]
    auroc: float
    p_value: float
    permutations: int
    undecided: Undecided | None
    feature_weights: dict[str, float]


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
) -> Direction:
    """Learn a direction from labelled rows, and test it against chance, together with a fixed score where there is one.

    Fixed score and direction each weigh d'^2: the squared distance of two normal classes that have its AUROC, out of
    fold; below 0.5 it weighs nothing. So a few labels that a poor reference set ranks well by luck do little harm.
    Permutations deal the labels out again among groups of equal size, so rows of one prompt stay together.

    Args:
        frame: the features and their components.
        pool: moments of the whole pool's coordinates in that frame, [q].
        coordinates: the labelled rows' coordinates, [m, q], finite.
        harmful: their labels, bool [m], True where harmful.
        groups: one whole number for each labelled row; rows of the same prompt have the same, [m].
        fixed: their scores by a score that has not seen the labels, such as a reference set's, [m], finite.
        fixed_pool_scale: standard deviation of that score over the pool; 0 where it is constant, and says nothing.
        permutations: how often the labels are dealt out again; the same input gives the same bits.

    Raises:
        SAFTInputError: shapes differ, values are not finite, or there are too few permutations to tell 0.02.

    Examples:
        >>> from saft_hf.score import principal_subspace
        >>> x = np.random.default_rng(0).standard_normal((200, 3))
        >>> frame = Frame.of({"8.start": principal_subspace(Moments.of(x), 3)})
        >>> at = frame.coordinates({"8.start": x})
        >>> direction = fit_direction(frame, Moments.of(at), at[:60], x[:60, 1] > 0, np.arange(60))
        >>> direction.auroc > 0.9, direction.p_value, direction.undecided
        (True, 0.002, None)
    """
    rows, labels = np.asarray(coordinates, dtype=np.float64), np.asarray(harmful, dtype=np.bool_)
    prompts = np.unique(np.asarray(groups), return_inverse=True)[1]
    scaled = None if fixed is None else np.asarray(fixed, dtype=np.float64) / (fixed_pool_scale or 1.0)
    _check(frame, rows, labels, prompts, scaled, permutations)
    weights = np.zeros(frame.size)
    if labels.any() and not labels.all():
        weights = combine(rows[labels].mean(axis=0) - rows[~labels].mean(axis=0), pool)
    rng = np.random.default_rng(0)
    folds = make_folds(labels, prompts, rng)
    if folds is None:
        own = 0.0 if scaled is None else 1.0  # nothing speaks for the direction
        few, shares = _too_few(labels, prompts), _feature_weights(weights, frame, pool, own)
        return Direction((1 - own) * weights, own, np.zeros((1, labels.size)), 0.5, 1.0, 0, few, shares)
    # The first order is the labels as they are.
    orders = np.concatenate([np.arange(labels.size)[None], permuted_orders(prompts, permutations, rng)])
    step = max(1, _CHUNK // (rows.size + FOLDS * sum(rows.shape)))
    parts = [orders[first : first + step] for first in range(0, len(orders), step)]
    scores = np.concatenate([out_of_fold(rows, labels, folds, part, pool) for part in parts], axis=1)
    share = np.zeros(len(orders))
    if scaled is not None:
        share = _fixed_weight(auroc(scaled[orders], labels), auroc(scores, labels).mean(axis=0))
        scores = (1 - share)[:, None] * scores + share[:, None] * scaled[orders]
    values, own = auroc(scores, labels).mean(axis=0), float(share[0])
    p_value = float(np.mean(values >= values[0] - 1e-12))
    return Direction(
        weights=(1 - own) * weights,
        fixed_weight=own,
        out_of_fold=scores[:, 0],
        auroc=float(values[0]),
        p_value=p_value,
        permutations=permutations,
        undecided=_chance(values, p_value, labels.size),
        feature_weights=_feature_weights(weights, frame, pool, own),
    )


def make_folds(
    labels: NDArray[np.bool_], prompts: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.intp] | None:
    """The fold of each row, [repeats, m]; None where some training set would lack a class.

    Prompts are dealt out by turns in order of their labels: folds are stratified, and with fewer prompts of a class
    than `FOLDS`, each of these is held out alone.
    """
    harmful, benign = np.bincount(prompts, labels), np.bincount(prompts, ~labels)
    count = min(FOLDS, int(np.count_nonzero(harmful)), int(np.count_nonzero(benign)))
    if count < MIN_OF_A_CLASS:
        return None
    folds = np.empty((REPEATS, labels.size), dtype=np.intp)
    fold_of = np.empty(harmful.size, dtype=np.intp)
    for repeat in folds:
        fold_of[np.lexsort((rng.random(harmful.size), benign, harmful))] = np.arange(harmful.size) % count
        repeat[:] = fold_of[prompts]
        if any(np.unique(labels[repeat != fold]).size < 2 for fold in range(count)):
            return None
    return folds


def permuted_orders(prompts: NDArray[np.intp], times: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Orders of the rows, [times, m], that carry every group as a whole to the position of one of its size."""
    sizes = np.bincount(prompts)
    orders = np.empty((times, prompts.size), dtype=np.intp)
    for size in np.unique(sizes):
        blocks = np.stack([np.flatnonzero(prompts == group) for group in np.flatnonzero(sizes == size)])
        moved = blocks[rng.permuted(np.tile(np.arange(len(blocks)), (times, 1)), axis=1)]
        orders[:, blocks.ravel()] = rng.permuted(moved, axis=2).reshape(times, -1)
    return orders


def out_of_fold(
    rows: NDArray[np.float64],
    labels: NDArray[np.bool_],
    folds: NDArray[np.intp],
    orders: NDArray[np.intp],
    pool: Moments,
) -> NDArray[np.float64]:
    """Scores of each row by the direction of the folds that it is not in, [repeats, orders, m].

    Labels and folds stay where they are; an order moves the rows. So the folds of every order are stratified alike.
    """
    training = folds[:, None] != np.arange(folds.max() + 1)[:, None]
    harmful, benign = (training & (labels == value) for value in (True, False))
    means = harmful / harmful.sum(axis=2, keepdims=True) - benign / benign.sum(axis=2, keepdims=True)
    moved = rows[orders]
    scores = np.empty((len(folds), *orders.shape))
    for repeat, fold in enumerate(folds):
        directions = combine(means[repeat] @ moved, pool)
        every = directions @ moved.transpose(0, 2, 1)
        scores[repeat] = np.take_along_axis(every, fold[None, None], axis=1)[:, 0]
    return scores


def auroc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """AUROC of each line of scores, [..., m]; ties count half."""
    positives = int(labels.sum())
    ranks = rankdata(scores, axis=-1)[..., labels].sum(axis=-1)
    return np.asarray((ranks - positives * (positives + 1) / 2) / (positives * (labels.size - positives)))


def _fixed_weight(fixed: NDArray[np.float64], direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight of the fixed score beside the direction, from the AUROC of both."""
    known, learned = (np.square(ndtri(np.clip(area, 0.5, _BEST))) for area in (fixed, direction))
    return np.asarray(known / np.maximum(known + learned, 1e-12))


def _feature_weights(
    weights: NDArray[np.float64], frame: Frame, pool: Moments, fixed_weight: float
) -> dict[str, float]:
    """By the standard deviation over the pool of what each feature says."""
    parts = {
        feature: float(np.sqrt(weights[own] @ pool.covariance[own, own] @ weights[own]))
        for feature, own in frame.columns.items()
    }
    scale = (1 - fixed_weight) / (sum(parts.values()) or 1.0)
    shares = {feature: scale * part for feature, part in parts.items()}
    return shares | {"reference": fixed_weight} if fixed_weight else shares


def _check(
    frame: Frame,
    rows: NDArray[np.float64],
    labels: NDArray[np.bool_],
    prompts: NDArray[np.intp],
    fixed: NDArray[np.float64] | None,
    permutations: int,
) -> None:
    least = int(np.ceil(1 / SIGNIFICANCE)) - 1
    if permutations < least:
        raise SAFTInputError(f"permutations must be at least {least}, to reach {SIGNIFICANCE}; found {permutations}")
    m, known = labels.size, np.zeros(labels.shape) if fixed is None else fixed
    if not m or rows.shape != (m, frame.size) or not labels.shape == prompts.shape == known.shape == (m,):
        raise SAFTInputError(
            f"for {m} labels, coordinates must be [{m}, {frame.size}], groups and fixed scores [{m}]; found "
            f"{list(rows.shape)}, {list(prompts.shape)} and {list(known.shape)}"
        )
    if not np.isfinite(rows).all() or not np.isfinite(known).all():
        raise SAFTInputError("coordinates and fixed scores must be finite: leave unscored rows out")


def _too_few(labels: NDArray[np.bool_], prompts: NDArray[np.intp]) -> Undecided:
    counts = {name: np.unique(prompts[own]).size for name, own in (("harmful", labels), ("benign", ~labels))}
    name = min(counts, key=lambda word: counts[word])
    rows = int(labels.sum() if name == "harmful" else (~labels).sum())
    # So many that about twice what is needed may be hoped for: a draw can be unlucky again.
    more = int(np.ceil(labels.size * max(2 * MIN_OF_A_CLASS / counts[name] - 1, 1))) if rows else None
    return Undecided(
        f"{rows} of {labels.size} labelled rows are {name}{', of one prompt' if rows > counts[name] == 1 else ''}; at "
        f"least {MIN_OF_A_CLASS} of each class are needed, of different prompts, to hold some out",
        more,
    )


def _chance(values: NDArray[np.float64], p_value: float, m: int) -> Undecided | None:
    if p_value <= SIGNIFICANCE:
        return None
    null = values[1:]
    centre, spread = float(null.mean()), float(null.std())
    # A signal of this size stands out of noise that shrinks as 1 / sqrt(m), four times in five.
    signal = (values[0] - centre) / spread if spread > 0 else 0.0
    needed = (np.quantile(null, 1 - SIGNIFICANCE) - centre) / spread + ndtri(0.8) if spread > 0 else np.inf
    more = int(np.ceil(m * ((needed / signal) ** 2 - 1))) if signal > 0.5 else None
    return Undecided(
        f"the score has an out-of-fold AUROC of {values[0]:.3f} on {m} labels, and labels dealt out at random do as "
        f"well with probability {np.ceil(1000 * p_value - 1e-6) / 1000:.3f} (at most {SIGNIFICANCE} is needed)",
        more,
    )
