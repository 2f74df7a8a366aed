"""`directed` and `auto`: a direction learned from labels, and the choice among directions and the published score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide import Goal, ThresholdAim, threshold_for_aim
from saft_hf.distributed import World
from saft_hf.embed.extract import Embedded, Extractor
from saft_hf.embed.features import layers_of
from saft_hf.errors import SAFTInputError
from saft_hf.score import Frame, Moments, PublishedScore, learn_direction, saft_scores
from saft_hf.score.directed import COMPONENTS
from saft_hf.score.select import Candidate, Selection, choose, default_candidates
from saft_hf.scorer.fitted import Score
from saft_hf.scorer.pool import Labelled, frame_moments, pool_scores, pool_subspace
from saft_hf.scorer.task import Found, Task


def fit_learned(task: Task, extractor: Extractor, embedded: Embedded, labelled: Labelled, world: World) -> Found:
    """Compare candidates on the labels, learn the winner's direction from all of them, choose the threshold.

    Args:
        task: what was asked for; `directed` or `auto`.
        extractor: says which features were captured.
        embedded: the pool.
        labelled: labelled rows.
        world: the processes that work together.

    Raises:
        SAFTInputError: no row can be used, or the labels cannot serve.
    """
    aim = check_aim(task)
    features = extractor.features.names
    frame = Frame.of({feature: pool_subspace(embedded, feature, COMPONENTS, world) for feature in features})
    moments = frame_moments(embedded, frame, world)
    coordinates = labelled.compute(features, frame.coordinates, frame.size)
    usable = np.asarray(~np.isnan(coordinates).any(axis=1))
    if not usable.any():
        raise SAFTInputError(f"none of the {len(usable)} labelled rows can be read at {', '.join(features)}.")
    space = frame.subspaces[task.published]
    ks = tuple(k for k in task.ks if k <= len(space.directions)) if task.method == "auto" else ()
    published: Mapping[int, NDArray[np.float32]] = {}
    if ks:

        def energies(vectors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
            by_k = saft_scores(vectors[task.published], space, ks)
            return np.stack([by_k[k] for k in ks], axis=1)

        found = labelled.compute((task.published,), energies, len(ks))[usable]
        published = dict(zip(ks, found.T, strict=True))
    labels, prompts = labelled.harmful[usable], labelled.prompts()[usable]
    chosen: tuple[Selection, Score] | None = None
    with world.sync_errors("choosing among scores"):
        if world.is_main:
            candidates = _candidates(task, features, ks)
            selection = choose(candidates, frame, moments, coordinates[usable], labels, prompts, published)
            chosen = selection, _score(selection.winner, task, frame, moments, coordinates[usable], labels)
    shared = world.broadcast(chosen)
    assert shared is not None  # noqa: S101 - `sync_errors` has raised otherwise
    selection, score = shared
    scores = pool_scores(embedded, score)
    figures: dict[str, Any] = {"selection": selection.figures(), "aim": str(aim)}
    if task.threshold is not None:
        return Found(score, scores, float(task.threshold), "given", figures)
    if selection.undecided is not None:
        more = selection.undecided.more_labels
        advice = f"About {more} more labels, drawn like these, may help" if more else "More labels may help"
        return Found(score, scores, None, "none", figures, selection.undecided.reason, advice)
    aimed = threshold_for_aim(aim, selection.out_of_fold, labels, scores, contamination=task.contamination)
    source = "contamination" if task.aim is None and task.contamination is not None else str(aim)
    return Found(score, scores, aimed.threshold, source, {**figures, "expected": asdict(aimed)})


def check_aim(task: Task) -> ThresholdAim:
    """The aim of the threshold: the one given, the expected share, or to lose at most 5 % of the benign rows.

    Raises:
        SAFTInputError: F1, with labels that say nothing of the harmful share.
    """
    if task.aim is None:
        return ThresholdAim() if task.contamination is None else ThresholdAim(Goal.SHARE, task.contamination)
    if task.aim.goal is Goal.F1 and not task.uniform and task.contamination is None:
        raise SAFTInputError(
            "`aim='f1'` needs the harmful share, which labels tell only where they were drawn uniformly from the pool "
            "(`label_sampling='other'` was given). Give `contamination`, or another `aim`."
        )
    return task.aim


def _candidates(task: Task, features: tuple[str, ...], ks: tuple[int, ...]) -> tuple[Candidate, ...]:
    layers = {feature: layers_of((feature,))[0] for feature in features}
    found = default_candidates(layers, task.published if ks else None, ks)
    # `directed` picks nothing: it is the first learned candidate, all features weighted by how much they tell.
    return found if task.method == "auto" else found[:1]


def _score(
    winner: Candidate,
    task: Task,
    frame: Frame,
    moments: Moments,
    coordinates: NDArray[np.float32],
    labels: NDArray[np.bool_],
) -> Score:
    """The winner, learned from all labels; the published score where labels of one class give no direction."""
    if winner.k is not None or labels.all() or not labels.any():
        return PublishedScore(task.published, frame.subspaces[task.published], winner.k or 1)
    return learn_direction(frame, moments, coordinates, labels, parts=winner.parts, shrinkage=winner.shrinkage)
