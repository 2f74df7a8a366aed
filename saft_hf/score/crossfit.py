"""Out-of-fold scores for the labels as they are and for many shuffles of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold

from saft_hf.score.directed import Frame, combine
from saft_hf.score.moments import Moments

FOLDS = 5
REPEATS = 4

_CHUNK = 2_000_000
"""Numbers held at once, about."""


def make_folds(
    labels: NDArray[np.bool_], prompts: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.intp] | None:
    """The fold of each row, [repeats, m]; None where some training set would lack a class."""
    most = min(FOLDS, *(np.unique(prompts[labels == value]).size for value in (True, False)))
    if most < 2:
        return None
    found = np.zeros((REPEATS, labels.size), dtype=np.intp)
    for repeat in found:
        splits = StratifiedGroupKFold(most, shuffle=True, random_state=int(rng.integers(2**31)))
        for fold, (train, test) in enumerate(splits.split(labels, labels, prompts)):
            if labels[train].all() or not labels[train].any():
                return None
            repeat[test] = fold
    return found


def shuffle_groups(prompts: NDArray[np.intp], times: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Orders of the rows, [times, m], that carry every group as a whole to the position of one of its size."""
    sizes = np.bincount(prompts)
    found = np.empty((times, prompts.size), dtype=np.intp)
    for size in np.unique(sizes):
        blocks = np.stack([np.flatnonzero(prompts == group) for group in np.flatnonzero(sizes == size)])
        moved = blocks[rng.permuted(np.tile(np.arange(len(blocks)), (times, 1)), axis=1)]
        found[:, blocks.ravel()] = rng.permuted(moved, axis=2).reshape(times, -1)
    return found


def mean_differences(
    rows: NDArray[np.float64], labels: NDArray[np.bool_], folds: NDArray[np.intp], orders: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Difference of class means in every training set, [repeats, folds, orders, q]: all that is learned from labels.

    Labels and folds stay where they are; an order moves the rows. So the folds of every shuffle are stratified alike.
    """
    training = folds[:, None] != np.arange(folds.max() + 1)[:, None]
    parts = []
    for value in (True, False):
        held = (training & (labels == value)).astype(np.float64)
        parts.append(held / held.sum(axis=2, keepdims=True))
    weights = parts[0] - parts[1]
    found = np.empty((*weights.shape[:2], len(orders), rows.shape[1]))
    for repeat, own in enumerate(weights):
        # Weights travel to the rows instead of the rows to the weights: one product for all shuffles.
        moved = np.empty((len(own), *orders.shape))
        np.put_along_axis(moved, orders[None], np.broadcast_to(own[:, None], moved.shape), axis=2)
        found[repeat] = moved @ rows
    return found


def out_of_fold(
    parts: Sequence[Sequence[str]],
    shrinkage: float,
    frame: Frame,
    pool: Moments,
    rows: NDArray[np.float64],
    folds: NDArray[np.intp],
    orders: NDArray[np.intp],
    differences: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Scores of each row by the direction of the folds that it is not in, by position: [repeats, orders, m]."""
    found = np.empty((len(folds), *orders.shape))
    step = max(1, _CHUNK // (differences.shape[1] * sum(rows.shape)))
    for repeat, fold in enumerate(folds):
        for first in range(0, len(orders), step):
            part = slice(first, first + step)
            scores = combine(differences[repeat, :, part], frame, pool, parts, shrinkage) @ rows.T
            found[repeat, part] = scores[fold, np.arange(scores.shape[1])[:, None], orders[part]]
    return found


def auroc(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    """AUROC of each line of scores, [..., m]; ties count half."""
    positives = int(labels.sum())
    ranks = rankdata(scores, axis=-1)[..., labels].sum(axis=-1)
    return np.asarray((ranks - positives * (positives + 1) / 2) / (positives * (labels.size - positives)))
