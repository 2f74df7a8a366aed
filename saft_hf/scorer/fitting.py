"""A pool and labels -> what a scorer learns: embed once, let the method answer, refuse what cannot be told, sum up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.decide import flagged, near_threshold
from saft_hf.decide.estimate import clopper_pearson
from saft_hf.embed.extract import Embedded, Extractor
from saft_hf.embed.features import readouts_of
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.render import Readout
from saft_hf.scorer.fitted import LabelledRows
from saft_hf.scorer.learned import fit_learned
from saft_hf.scorer.pool import Labelled
from saft_hf.scorer.published import fit_published
from saft_hf.scorer.referenced import Reference, fit_reference
from saft_hf.scorer.task import Found, Task
from saft_hf.status import RowStatus

_KEPT_AT_LEAST = 0.01
"""A threshold that keeps a smaller share of the pool is refused: it "works" only because nothing is trained."""


@dataclass(frozen=True)
class Learned:
    """What `fit_scorer` found."""

    found: Found
    labelled: LabelledRows
    plan_digest: str
    undecided: str | None
    summary: dict[str, Any]


def fit_scorer(
    extractor: Extractor, pool: Dataset, labelled: Dataset | None, reference: Reference | None, task: Task
) -> Learned:
    """Embed the pool, and find a score and a threshold as the task says.

    Collective: every process calls it with the same data and gets the same bits.

    Args:
        extractor: embeds rows at all features that the method needs.
        pool: the rows.
        labelled: labelled rows, or None.
        reference: the reference set, for the method `reference`.
        task: what was asked for.

    Raises:
        SAFTInputError: no row can be used, all rows are equal, or the labels cannot serve.
    """
    world = extractor.world
    embedded = extractor.embed(pool)
    _check_readable(embedded, extractor.features.readouts)
    labels = None
    if labelled is not None and task.harmful is not None:
        labels = Labelled(extractor, embedded, labelled, task.harmful)
    if task.method == "saft":
        found = fit_published(task, embedded, labels, world)
    elif reference is not None:
        found = fit_reference(task, reference, pool, extractor, embedded)
    else:
        assert labels is not None  # noqa: S101 - checked where the task was made
        found = fit_learned(task, extractor, embedded, labels, world)
    scored = found.scores[~np.isnan(found.scores)]
    harmful = 0 if task.harmful is None else int(task.harmful.sum())
    undecided = found.undecided or (None if found.threshold is None else degenerate(scored, found.threshold, harmful))
    return Learned(
        found=found,
        labelled=LabelledRows.none() if labels is None else labels.rows(),
        plan_digest=embedded.plan.digest,
        undecided=undecided,
        summary=_summary(embedded, scored, found, task, undecided),
    )


def _check_readable(embedded: Embedded, readouts: Sequence[Readout]) -> None:
    for readout in readouts:
        statuses = embedded.survey.status_counts((readout,))
        if statuses[RowStatus.OK] == 0:
            raise SAFTInputError(
                f"no row of the pool can be read at `{readout}`: {dict(statuses)}. Plain text has no response start: "
                "use `readout='response_mean'`, or give `prompt` and `completion`, or `messages`."
            )


def degenerate(scores: NDArray[np.float32], threshold: float, harmful: int) -> str | None:
    """Why a threshold must not be used: it removes nearly all, or nothing although labels say that there is harm."""
    removed = int(flagged(scores, threshold).sum())
    if len(scores) - removed <= _KEPT_AT_LEAST * len(scores):
        return f"the threshold {threshold:.6g} removes {removed} of the pool's {len(scores)} scored rows"
    if removed == 0 and harmful:
        return f"the threshold {threshold:.6g} removes no row, although {harmful} labelled rows are harmful"
    return None


def undecided(learned: Learned, labels: int) -> SAFTUndecidedError:
    """The error for a score that no decision may rest on, found with so many labels."""
    advice = learned.found.advice
    if advice is None:
        given = learned.found.threshold_from == "given"
        advice = "Another `threshold` may help" if given else f"More labels than {labels} may help"
    return SAFTUndecidedError(
        f"SAFT cannot tell which rows are harmful: {learned.undecided}. Scores can still be taken; no decision is. "
        f"{advice}; so may another `layer` or `readout`, or a `contamination`. `on_undecided='keep'` keeps every row "
        "and records it."
    )


def final_statuses(scores: NDArray[np.float32], statuses: Sequence[RowStatus]) -> list[str]:
    """Statuses after the forward: a row that rendered well may still have a hidden state with NaN or infinity."""
    return [
        (RowStatus.NON_FINITE if status is RowStatus.OK and bad else status).value  # `str` would make a new one each
        for status, bad in zip(statuses, np.isnan(scores).tolist(), strict=True)
    ]


def _summary(
    embedded: Embedded, scored: NDArray[np.float32], found: Found, task: Task, undecided: str | None
) -> dict[str, Any]:
    """Counts and figures, JSON-ready. No clock and no path: the scorer must be the same bytes in every process."""
    readouts = readouts_of(found.score.features)
    statuses = embedded.survey.status_counts(readouts)
    pool: dict[str, Any] = {
        "rows": len(found.scores),
        "scored": len(scored),
        "unscored": {status: count for status, count in sorted(statuses.items()) if status != RowStatus.OK},
        "unique": embedded.plan.num_unique,
        "flagged": None,
    }
    if lost := statuses[RowStatus.OK] - len(scored):
        pool["unscored"][str(RowStatus.NON_FINITE)] = lost
    if found.threshold is not None:
        pool["flagged"] = int(flagged(scored, found.threshold).sum())
        pool["near_threshold"] = near_threshold(scored, found.threshold)
    quantiles = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    return {
        "pool": pool,
        "padding_share": round(embedded.plan.padding_share, 4),
        "labels": None if task.harmful is None else _labels(task.harmful, task.label_column),
        "harmful_share": _share(task),
        "threshold_from": found.threshold_from,
        "contamination": task.contamination,
        "undecided": undecided,
        **found.figures,
        "score_quantiles": {str(q): float(np.quantile(scored, q)) for q in quantiles},
        "notes": [_NOTES[readout] for readout in readouts],
    }


def _labels(labels: NDArray[np.bool_], column: str | None) -> Mapping[str, Any]:
    rows, harmful = len(labels), int(labels.sum())
    says = f"{harmful} of {rows} labelled rows are harmful"
    return {"rows": rows, "harmful": harmful, "column": column, "says": says}


def _share(task: Task) -> Mapping[str, Any] | None:
    """The pool's harmful share before filtering, which labels tell only where they were drawn uniformly from it."""
    if task.harmful is None or not task.uniform:
        return None
    return clopper_pearson(int(task.harmful.sum()), len(task.harmful)).as_dict()


_NOTES = {
    Readout.START: "`response_start` reads the start of the last assistant turn and sees only what stands before it: "
    "two answers to one prompt get the same score.",
    Readout.MEAN: "`response_mean` reads every assistant turn of a dialogue.",
    Readout.END: "`response_end` reads the last assistant turn of a dialogue.",
}
"""What the summary says of a readout."""
