"""`directed`: a direction learned from labels, one discriminant over all features that were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide import Goal, ThresholdAim
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.score import Direction, Frame, LinearScore, PublishedScore, fit_direction
from saft_hf.scorer.methods.base import FitSpec, Method, MethodFit, check_f1, cut
from saft_hf.scorer.pool import Labelled, Pool, Score
from saft_hf.summary import LabelTest


class Directed(Method):
    """The signed projection on the class-mean difference, in the pool's principal subspace."""

    name = "directed"
    needs_labels = True

    def fit(self, spec: FitSpec, pool: Pool, labelled: Labelled | None) -> MethodFit:
        """Learn the direction from all labels, test it out of fold, choose the threshold."""
        assert labelled is not None  # noqa: S101 - checked where the fit was asked for
        return fit_labels(spec, pool, labelled)


def fit_labels(spec: FitSpec, pool: Pool, labelled: Labelled, fixed: LinearScore | None = None) -> MethodFit:
    """Learn from labels, beside a score that was fixed before anybody looked at them.

    Args:
        spec: what was asked for.
        pool: the embedded rows.
        labelled: labelled rows.
        fixed: the score of a reference set, measured from the pool's mean; None without.

    Raises:
        SAFTInputError: none of the labelled rows can be read, or F1 is asked for on labels that do not tell the share.
    """
    aim = spec.aim or ThresholdAim()
    if aim.goal is Goal.F1:
        check_f1(spec)
    stored = pool.features.names
    frame = Frame.of(pool.components)
    moments = pool.moments(stored, frame.block_coordinates)
    coordinates = labelled.compute(stored, frame.coordinates, frame.size)
    usable = np.asarray(~np.isnan(coordinates).any(axis=1))
    if not usable.any():
        raise SAFTInputError(f"none of the {len(usable)} labelled rows can be read at {', '.join(stored)}.")
    known: NDArray[np.float32] | None = None
    scale = 1.0
    if fixed is not None:
        known = labelled.scores(fixed)[usable]
        scale = float(np.nanstd(pool.scores(fixed).astype(np.float64)))
    rows, labels, groups = coordinates[usable], labelled.harmful[usable], labelled.prompts[usable]
    # On one process: threads of a numerical library may add up in another order elsewhere.
    direction: Direction = pool.world.on_main(
        "learning a direction",
        lambda: fit_direction(frame, moments, rows, labels, groups, known, scale),
    )
    score = _score(direction, frame, stored, fixed, scale, pool)
    scores = pool.scores(score)
    test = LabelTest(
        auroc=direction.auroc,
        p_value=direction.p_value,
        permutations=direction.permutations,
        weights=dict(direction.feature_weights),
    )
    answer = MethodFit(score=score, scores=scores, test=test)
    if spec.threshold is not None:
        return replace(answer, threshold=float(spec.threshold), threshold_from="given")
    if direction.undecided is not None:
        more = direction.undecided.more_labels
        advice = f"About {more} more labels, drawn like these, may help" if more else "More labels may help"
        return replace(answer, undecided=direction.undecided.reason, advice=advice, aim=str(aim))
    try:
        aimed = cut(spec, aim, direction.out_of_fold, labels, scores)
    except SAFTUndecidedError as error:  # the score stands; too few labels hold the aim
        return replace(answer, undecided=str(error), aim=str(aim))
    return replace(answer, **vars(aimed), aim=str(aim))


def _score(
    direction: Direction,
    frame: Frame,
    stored: Sequence[str],
    fixed: LinearScore | None,
    scale: float,
    pool: Pool,
) -> Score:
    """The direction as a score of vectors, with the fixed score added; labels of one class give no direction."""
    if not direction.weights.any() and fixed is None:
        # Scores there must be, though no decision rests on them.
        feature = stored[0]
        return PublishedScore(feature, pool.components[feature], 1)
    learned = frame.score(direction.weights)
    return learned if fixed is None else learned.plus(fixed, direction.fixed_weight / scale)
