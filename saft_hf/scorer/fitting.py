"""The published procedure: principal directions of the pool, then k and the threshold (METHOD: arXiv 2410.10014)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.decide import calibrate_published, flagged, near_threshold, threshold_for_share
from saft_hf.embed.extract import Embedded, Extractor, survey_dataset
from saft_hf.embed.reduce import tree_reduce
from saft_hf.embed.world import World
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.render import Readout
from saft_hf.score import Moments, Subspace, principal_subspace, saft_scores
from saft_hf.status import RowStatus

logger = logging.getLogger(__name__)

_KEPT_AT_LEAST = 0.01
"""A threshold that keeps a smaller share of the pool is refused: it "works" only because nothing is trained."""

PUBLISHED_KS = (1, 2, 3, 4)
"""The numbers of directions that the paper chooses from."""


@dataclass(frozen=True)
class Aim:
    """What decides k and the threshold.

    Attributes:
        ks: numbers of directions to choose from.
        threshold: rows above it are removed; None lets labels or a share decide.
        expected_share: expected harmful share of the pool, between 0 and 1.
        harmful: labels of the labelled rows, True = harmful; None without labels.
        label_column: the column that they came from.
        uniform: whether the labelled rows were drawn uniformly from the pool.
    """

    ks: tuple[int, ...]
    threshold: float | None
    expected_share: float | None
    harmful: NDArray[np.bool_] | None
    label_column: str | None
    uniform: bool


@dataclass(frozen=True)
class Choice:
    """What was chosen: k, threshold, where it came from, and the figures behind it."""

    k: int
    threshold: float | None
    threshold_from: str
    figures: dict[str, Any]
    refusal: str | None = None


def pool_subspace(embedded: Embedded, cell: str, k: int, world: World) -> Subspace:
    """Principal directions of the pool's vectors at one cell, up to `k` or the rank.

    Rows that share a rendering count each; a vector with NaN or infinity counts not at all.

    Raises:
        SAFTInputError: no row can be used, or all rows are equal.
    """
    plan = embedded.plan

    def leaf_moments(leaf: int) -> Moments:
        vectors = embedded.store.read(leaf, cell)
        finite = np.isfinite(vectors).all(axis=1)
        return Moments.of(vectors[finite], weights=plan.counts[plan.leaf_slice(leaf)][finite])

    total = tree_reduce(world, plan.num_leaves, leaf_moments, Moments.merge)
    found: Subspace | None = None
    with world.together("principal directions"):
        if world.is_main:
            if total is None or total.count == 0:
                raise SAFTInputError(
                    "every hidden state that was read holds NaN or infinity: the model is broken, or its dtype "
                    "overflows. Try `dtype='float32'`."
                )
            found = principal_subspace(total, k, clip=True)
    shared = world.share(found)
    assert shared is not None  # noqa: S101 - `together` has raised otherwise
    return shared


def scores_for_ks(embedded: Embedded, cell: str, subspace: Subspace, ks: Sequence[int]) -> NDArray[np.float32]:
    """Published scores of every row for several k, `float32 [N, len(ks)]`; NaN where a row has none."""

    def work(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        by_k = saft_scores(vectors, subspace, ks)
        return np.stack([by_k[k] for k in ks], axis=1)

    return embedded.rows(embedded.compute(cell, work, len(ks)))


def labelled_scores(
    extractor: Extractor,
    pool: Embedded,
    pool_scores: NDArray[np.float32],
    labelled: Dataset,
    cell: str,
    subspace: Subspace,
    ks: Sequence[int],
) -> NDArray[np.float32]:
    """Scores of the labelled rows, `float32 [m, len(ks)]`: the pool's own where a row stands in the pool."""
    readout = extractor.cells.readouts[0]
    survey = survey_dataset(labelled, extractor.renderer, extractor.cells, extractor.world)
    places = pool.plan.find(survey.keys)
    places[~survey.usable] = -1
    scores = np.full((len(labelled), len(ks)), np.nan, dtype=np.float32)
    known = places >= 0
    scores[known] = pool_scores[pool.plan.first_row[places[known]]]
    foreign = np.flatnonzero(survey.usable & ~known)
    if len(foreign):
        logger.info("%d of %d labelled rows are not in the pool.", len(foreign), len(labelled))
        embedded = extractor.embed(labelled.select(foreign))
        scores[foreign] = scores_for_ks(embedded, cell, subspace, ks)
    unscored = np.isnan(scores[:, 0])
    if unscored.any():
        names = Counter(str(s) for s, bad in zip(survey.statuses(readout), unscored, strict=True) if bad)
        logger.warning(
            "%d of %d labelled rows have no score and are left out: %s.",
            unscored.sum(),
            len(labelled),
            dict(names),
        )
    return scores


def choose(aim: Aim, pool_scores: NDArray[np.float32], labelled: NDArray[np.float32] | None) -> Choice:
    """Choose k and the threshold.

    Args:
        aim: what was asked for.
        pool_scores: `float32 [N, len(aim.ks)]`, NaN where a row has none.
        labelled: `float32 [m, len(aim.ks)]` for the labelled rows, or None.

    Raises:
        SAFTInputError: the labels cannot serve what was asked for.
    """
    pool = pool_scores[~np.isnan(pool_scores[:, 0])]
    k = aim.ks[0]
    harmful = 0 if aim.harmful is None else int(aim.harmful.sum())
    if aim.threshold is not None:
        given = float(aim.threshold)
        return Choice(k, given, "given", {}, _refusal(pool[:, 0], given, harmful))
    if aim.expected_share is not None:
        quantile = threshold_for_share(pool[:, 0], aim.expected_share)
        return Choice(k, quantile, "expected_share", {}, _refusal(pool[:, 0], quantile, harmful))
    if labelled is None or aim.harmful is None:
        return Choice(k, None, "none", {})
    if not aim.uniform:
        raise SAFTInputError(
            "`label_sampling='other'`: the published threshold maximises F1 on labels, which means something only "
            "where they were drawn uniformly from the pool. Give `expected_share` or `threshold`, or draw the labels "
            "at random and say `label_sampling='uniform'`."
        )
    usable = ~np.isnan(labelled[:, 0])
    try:
        found = calibrate_published(
            {k: pool[:, column] for column, k in enumerate(aim.ks)},
            {k: labelled[usable, column] for column, k in enumerate(aim.ks)},
            aim.harmful[usable],
        )
    except SAFTUndecidedError as error:  # the scores stand; only the decision is withheld, and `fit` says so
        return Choice(k, None, "none", {}, str(error))
    refusal = _refusal(pool[:, aim.ks.index(found.k)], found.threshold, harmful)
    figures = {
        "f1": found.best.f1,
        "separating_points": found.best.pool_splits,
        "candidates": [asdict(candidate) for candidate in found.candidates],
    }
    return Choice(found.k, found.threshold, "f1", figures, refusal)


def _refusal(scores: NDArray[np.float32], threshold: float, harmful: int) -> str | None:
    """Why a threshold must not be used: it removes nearly all, or nothing although labels say that there is harm."""
    removed = int(flagged(scores, threshold).sum())
    if len(scores) - removed <= _KEPT_AT_LEAST * len(scores):
        return f"the threshold {threshold:.6g} removes {removed} of the pool's {len(scores)} scored rows"
    if removed == 0 and harmful:
        return f"the threshold {threshold:.6g} removes no row, although {harmful} labelled rows are harmful"
    return None


def undecided(choice: Choice, labels: int) -> SAFTUndecidedError:
    """The error for a threshold that must not be used, chosen on so many labels or given."""
    more = f"More labels than {labels}" if choice.threshold_from != "given" else "Another `threshold`"
    return SAFTUndecidedError(
        f"SAFT cannot tell which rows are harmful: {choice.refusal}. Scores can still be taken; no decision is. "
        f"{more}, another `layer` or `readout`, or an `expected_share` may help; `on_refusal='keep'` keeps every row "
        "and records it."
    )


def final_statuses(vectors: NDArray[np.float32], statuses: Sequence[RowStatus]) -> list[str]:
    """Statuses after the forward: a row that rendered well may still have a hidden state with NaN or infinity."""
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    return [
        str(RowStatus.NON_FINITE if status is RowStatus.OK and not good else status)
        for status, good in zip(statuses, finite.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Learned:
    """What `fit_published` found."""

    subspace: Subspace
    choice: Choice
    plan_digest: str
    summary: dict[str, Any]


def fit_published(extractor: Extractor, pool: Dataset, labelled: Dataset | None, aim: Aim) -> Learned:
    """Embed the pool, find its principal directions, choose k and the threshold.

    Collective: every process calls it with the same data and gets the same bits.

    Args:
        extractor: embeds rows at one layer and one readout.
        pool: the rows.
        labelled: labelled rows, or None.
        aim: what decides k and the threshold.

    Raises:
        SAFTInputError: no row can be used, all rows are equal, or the labels cannot serve.
    """
    world, cell, readout = extractor.world, extractor.cells.names[0], extractor.cells.readouts[0]
    embedded = extractor.embed(pool)
    statuses = Counter(map(str, embedded.survey.statuses(readout)))
    if statuses[RowStatus.OK] == 0:
        raise SAFTInputError(
            f"no row of the pool can be read at `{readout}`: {dict(statuses)}. Plain text has no response start: use "
            "`readout='response_mean'`, or give `prompt` and `completion`, or `messages`."
        )
    subspace = pool_subspace(embedded, cell, max(aim.ks), world)
    if len(aim.ks) == 1 and aim.ks[0] > len(subspace.directions):
        raise SAFTInputError(
            f"`k`={aim.ks[0]} is more than the {len(subspace.directions)} directions that the pool's "
            f"{embedded.plan.num_unique} different rows span. Use a smaller `k`, or more rows."
        )
    ks = tuple(k for k in aim.ks if k <= len(subspace.directions))
    scores = scores_for_ks(embedded, cell, subspace, ks)
    known = None
    if labelled is not None:
        known = labelled_scores(extractor, embedded, scores, labelled, cell, subspace, ks)
    choice: Choice | None = None
    with world.together("choosing the threshold"):
        if world.is_main:
            choice = choose(replace(aim, ks=ks), scores, known)
    choice = world.share(choice)
    assert choice is not None  # noqa: S101 - `together` has raised otherwise
    column = scores[:, ks.index(choice.k)]
    return Learned(subspace, choice, embedded.plan.digest, _summary(embedded, column, statuses, subspace, aim, choice))


def _summary(
    embedded: Embedded,
    scores: NDArray[np.float32],
    statuses: Counter[str],
    subspace: Subspace,
    aim: Aim,
    choice: Choice,
) -> dict[str, Any]:
    """Counts and figures, JSON-ready. No clock and no path: the scorer must be the same bytes in every process."""
    scored = scores[~np.isnan(scores)]
    pool: dict[str, Any] = {
        "rows": len(scores),
        "scored": len(scored),
        "unscored": {status: count for status, count in sorted(statuses.items()) if status != RowStatus.OK},
        "unique": embedded.plan.num_unique,
        "flagged": None,
    }
    if lost := statuses[RowStatus.OK] - len(scored):
        pool["unscored"][str(RowStatus.NON_FINITE)] = lost
    if choice.threshold is not None:
        pool["flagged"] = int(flagged(scored, choice.threshold).sum())
        pool["near_threshold"] = near_threshold(scored, choice.threshold)
    labels = None
    if aim.harmful is not None:
        rows, harmful = len(aim.harmful), int(aim.harmful.sum())
        labels = {
            "rows": rows,
            "harmful": harmful,
            "column": aim.label_column,
            "says": f"{harmful} of {rows} labelled rows are harmful",
        }
    return {
        "pool": pool,
        "padding_share": round(embedded.plan.padding_share, 4),
        "labels": labels,
        "threshold_from": choice.threshold_from,
        "expected_share": aim.expected_share,
        "refusal": choice.refusal,
        "rank": subspace.rank,
        "spectral_gap": float(subspace.spectral_gaps[choice.k - 1]),
        "variance_share": float(subspace.energies[: choice.k].sum() / subspace.total_variance),
        **choice.figures,
        "score_quantiles": {str(q): float(np.quantile(scored, q)) for q in (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)},
        "notes": [_NOTES[readout] for readout in embedded.survey.codes],
    }


_NOTES = {
    Readout.START: "`response_start` reads the start of the last assistant turn and sees only what stands before it: "
    "two answers to one prompt get the same score.",
    Readout.MEAN: "`response_mean` reads every assistant turn of a dialogue.",
    Readout.END: "`response_end` reads the last assistant turn of a dialogue.",
}
"""What the summary says of a readout."""
