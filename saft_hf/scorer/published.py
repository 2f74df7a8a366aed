"""The published procedure: principal directions of the pool, then k and the threshold by F1 (arXiv 2410.10014)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide import Goal, calibrate_published, threshold_for_aim, threshold_for_share
from saft_hf.distributed import World
from saft_hf.embed.extract import Embedded
from saft_hf.embed.store import Vectors
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.score import PublishedScore, Subspace, saft_scores
from saft_hf.scorer.pool import Labelled, pool_subspace
from saft_hf.scorer.task import Found, Task


def fit_published(task: Task, embedded: Embedded, labelled: Labelled | None, world: World) -> Found:
    """Find the pool's principal directions, choose k and the threshold.

    Args:
        task: what was asked for.
        embedded: the pool.
        labelled: labelled rows, or None.
        world: the processes that work together.

    Raises:
        SAFTInputError: no row can be used, `k` is above the pool's rank, or the labels cannot serve.
    """
    feature = task.published
    subspace = pool_subspace(embedded, feature, max(task.ks), world)
    if len(task.ks) == 1 and task.ks[0] > len(subspace.directions):
        raise SAFTInputError(
            f"`k`={task.ks[0]} is more than the {len(subspace.directions)} directions that the pool's "
            f"{embedded.plan.num_unique} different rows span. Use a smaller `k`, or more rows."
        )
    ks = tuple(k for k in task.ks if k <= len(subspace.directions))

    def work(vectors: Vectors) -> NDArray[np.float32]:
        by_k = saft_scores(vectors[feature], subspace, ks)
        return np.stack([by_k[k] for k in ks], axis=1)

    scores = embedded.rows(embedded.compute((feature,), work, len(ks)))
    known = None if labelled is None else labelled.compute((feature,), work, len(ks))
    found: Found | None = None
    with world.sync_errors("choosing the threshold"):
        if world.is_main:
            found = choose(replace(task, ks=ks), subspace, scores, known)
    shared = world.broadcast(found)
    assert shared is not None  # noqa: S101 - `sync_errors` has raised otherwise
    return shared


def choose(task: Task, subspace: Subspace, scores: NDArray[np.float32], labelled: NDArray[np.float32] | None) -> Found:
    """Choose k and the threshold.

    Args:
        task: what was asked for.
        subspace: the pool's directions.
        scores: the pool's, `float32 [N, len(task.ks)]`, NaN where a row has none.
        labelled: `float32 [m, len(task.ks)]` for the labelled rows, or None.

    Raises:
        SAFTInputError: the labels cannot serve what was asked for.
    """
    pool = scores[~np.isnan(scores[:, 0])]

    def answer(
        k: int,
        threshold: float | None,
        source: str,
        figures: Mapping[str, Any] | None = None,
        undecided: str | None = None,
    ) -> Found:
        of_the_pool = {
            "rank": subspace.rank,
            "spectral_gap": float(subspace.spectral_gaps[k - 1]),
            "variance_share": float(subspace.energies[:k].sum() / subspace.total_variance),
        }
        score, own = PublishedScore(task.published, subspace, k), scores[:, task.ks.index(k)]
        return Found(score, own, threshold, source, {**of_the_pool, **(figures or {})}, undecided)

    if task.threshold is not None:
        return answer(task.ks[0], float(task.threshold), "given")
    if task.contamination is not None and task.aim is None:
        return answer(task.ks[0], threshold_for_share(pool[:, 0], task.contamination), "contamination")
    if labelled is None or task.harmful is None:
        return answer(task.ks[0], None, "none")
    if not task.uniform and (task.aim is None or task.aim.goal is Goal.F1) and task.contamination is None:
        raise SAFTInputError(
            "`label_sampling='other'`: the published threshold maximises F1 on labels, which means something only "
            "where they were drawn uniformly from the pool. Give `contamination` or `threshold`, or draw the labels "
            "at random and say `label_sampling='uniform'`."
        )
    usable = ~np.isnan(labelled[:, 0])
    labels = task.harmful[usable]
    try:
        found = calibrate_published(
            {k: pool[:, column] for column, k in enumerate(task.ks)},
            {k: labelled[usable, column] for column, k in enumerate(task.ks)},
            labels,
        )
        if task.aim is not None:
            at = task.ks.index(found.k)
            aimed = threshold_for_aim(
                task.aim, labelled[usable, at], labels, pool[:, at], contamination=task.contamination
            )
    except SAFTUndecidedError as error:  # the scores stand; only the decision is withheld, and `fit` says so
        return answer(task.ks[0], None, "none", undecided=str(error))
    figures = {
        "f1": found.best.f1,
        "separating_points": found.best.pool_splits,
        "candidates": [asdict(candidate) for candidate in found.candidates],
    }
    if task.aim is None:
        return answer(found.k, found.threshold, "f1", figures)
    return answer(found.k, aimed.threshold, str(task.aim), {**figures, "expected": asdict(aimed)})
