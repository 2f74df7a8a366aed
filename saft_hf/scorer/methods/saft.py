"""`saft`: principal directions of the pool, then k and the threshold by F1, as published (arXiv 2410.10014)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide import Goal, calibrate_published
from saft_hf.decide.threshold import Calibration
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.score import PublishedScore, Subspace, saft_scores
from saft_hf.scorer.methods.base import FitSpec, Method, MethodFit, check_f1, cut, cut_without_labels
from saft_hf.scorer.pool import Labelled, Pool
from saft_hf.summary import PublishedMetrics


class Saft(Method):
    """The published score: s = (1/k) * sum over j <= k of <x - mean, v_j>^2."""

    name = "saft"
    uses_k = True
    sources = ("f1",)
    labels_decide = False  # as published: scores decide, whatever a row's own label says

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Half of the layers (the paper reads 15 of 32)."""
        return (num_layers // 2,)

    def readouts(self, boundary: bool) -> tuple[str, ...]:
        """`response_start`, as published."""
        return super().readouts(boundary)[:1]

    def fit(self, spec: FitSpec, pool: Pool, labelled: Labelled | None) -> MethodFit:
        """Find the principal directions, choose k and the threshold."""
        feature = pool.features.names[0]
        subspace = pool.subspace(feature, max(spec.ks))
        held = len(subspace.directions)
        if len(spec.ks) == 1 and spec.ks[0] > held:
            raise SAFTInputError(
                f"`k`={spec.ks[0]} is more than the {held} directions that the pool's {pool.num_unique} different rows "
                "span. Use a smaller `k`, or more rows."
            )
        ks = tuple(k for k in spec.ks if k <= held)

        def by_k(vectors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
            scores = saft_scores(vectors[feature], subspace, ks)
            return np.stack([scores[k] for k in ks], axis=1)

        scores = pool.compute((feature,), by_k, len(ks))
        known = None if labelled is None else labelled.compute((feature,), by_k, len(ks))
        harmful = None if labelled is None else labelled.harmful
        # Cheap, and from the same arrays everywhere; on one process, so that an error reaches all of them once.
        return pool.world.on_main(
            "choosing the threshold", lambda: _choose(spec, feature, subspace, ks, scores, known, harmful)
        )


def _choose(
    spec: FitSpec,
    feature: str,
    subspace: Subspace,
    ks: tuple[int, ...],
    scores: NDArray[np.float32],
    labelled: NDArray[np.float32] | None,
    harmful: NDArray[np.bool_] | None,
) -> MethodFit:
    """Choose k and the threshold from scores `[N, len(ks)]` of the pool and `[m, len(ks)]` of the labelled rows."""

    def result(k: int, calibration: Calibration | None = None, **values: Any) -> MethodFit:
        published = PublishedMetrics(
            rank=subspace.rank,
            spectral_gap=float(subspace.spectral_gaps[k - 1]),
            variance_share=float(subspace.energies[:k].sum() / subspace.total_variance),
        )
        if calibration is not None:
            by_k = {str(candidate.k): candidate.f1 for candidate in calibration.candidates}
            best = calibration.best
            published = replace(published, f1=best.f1, f1_by_k=by_k, separating_points=best.pool_splits)
        score = PublishedScore(feature, subspace, k)
        return MethodFit(score=score, scores=scores[:, ks.index(k)], published=published, **values)

    pool = scores[~np.isnan(scores[:, 0])]
    if spec.threshold is not None or spec.aim is None:
        given = cut_without_labels(spec, pool[:, 0])
        if given is not None:
            return result(ks[0], **vars(given))
    if labelled is None or harmful is None:
        return result(ks[0])
    if spec.aim is None or spec.aim.goal is Goal.F1:
        check_f1(spec)
    usable = ~np.isnan(labelled[:, 0])
    known, labels = labelled[usable], harmful[usable]
    try:
        calibration = calibrate_published(
            {k: pool[:, column] for column, k in enumerate(ks)},
            {k: known[:, column] for column, k in enumerate(ks)},
            labels,
        )
        best = calibration.best
        if spec.aim is None:
            return result(best.k, calibration, threshold=best.threshold, threshold_from="f1")
        column = ks.index(best.k)
        aimed = cut(spec, spec.aim, known[:, column], labels, pool[:, column])
    except SAFTUndecidedError as error:  # the scores stand; only the decision is withheld, and `fit` says so
        return result(ks[0], undecided=str(error))
    return result(best.k, calibration, **vars(aimed), aim=str(spec.aim))
