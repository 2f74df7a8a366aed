"""Which rows to label next, and what fresh labels certify about the rows that a fitted scorer keeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.decide.certify import Certificate, FreshLabels
from saft_hf.decide.labelling import suggest_rows
from saft_hf.embed import Survey, find_keys
from saft_hf.errors import SAFTInputError
from saft_hf.scorer.fit import Fit
from saft_hf.scorer.inputs import with_columns
from saft_hf.scorer.labels import LABEL, PURPOSE, ROW, Suggested, without_labels

_SHOWN = 5


def suggest(
    dataset: Dataset,
    fit: Fit,
    scores: NDArray[np.float32],
    survey: Survey,
    *,
    uniform: int,
    informative: int,
    seed: int,
) -> Dataset:
    """Lay out rows to be labelled, see `SAFTScorer.suggest_labels`."""
    suggestion = suggest_rows(
        scores,
        uniform=uniform,
        informative=informative,
        threshold=fit.threshold,
        labelled=fit.labelled.used(survey.identities),
        groups=[key.tobytes() for key in survey.keys],
        seed=seed,
    )
    rows = without_labels(dataset).select(suggestion.rows)
    purposes = [str(purpose) for purpose in suggestion.purposes]
    unlabelled = pa.nulls(len(rows), pa.bool_())
    return with_columns(rows, **{ROW: suggestion.rows, PURPOSE: purposes, LABEL: unlabelled})


def certify(
    fit: Fit,
    scores: NDArray[np.float32],
    identities: NDArray[np.uint8],
    fresh_identities: NDArray[np.uint8],
    labels: Suggested,
    strata: tuple[list[str], list[str]] | None,
    *,
    alpha: float,
    delta: float,
    keep_errored: bool,
) -> Certificate:
    """What fresh labels say of scored rows, see `SAFTScorer.certify`.

    Args:
        fit: of the scorer.
        scores: of all rows, `float32 [N]`, NaN where a row has none.
        identities: digests of the tokens of all rows, `uint8 [N, 16]`.
        fresh_identities: those of the labelled rows, `uint8 [m, 16]`.
        labels: what people said of them.
        strata: a value for each of all rows and for each of the labelled ones, where each stratum was drawn alone.
        alpha: largest harmful share.
        delta: chance that a certificate is issued and false.
        keep_errored: whether rows without a score are trained on too; they count as harmful.

    Raises:
        SAFTInputError: a label is of no row of the dataset, or of one that the scorer was fitted on.
    """
    rows = match_rows(identities, fresh_identities, strata)
    counts = np.flatnonzero(labels.counts)
    if (overlap := counts[fit.labelled.used(fresh_identities[counts])]).size:
        raise SAFTInputError(
            f"{overlap.size} of {counts.size} fresh labels are of rows that the scorer was fitted on (rows "
            f"{_show(overlap)} of fresh_labels), by their tokens: a certificate needs labels that chose nothing. Draw "
            "and label other rows, for example those that `suggest_labels` gives."
        )
    excluded = np.union1d(fit.labelled.used(identities), rows[labels.informative])
    errored = np.setdiff1d(np.flatnonzero(np.isnan(scores)), excluded).size if keep_errored else 0
    own = scores.astype(np.float64)
    fresh = FreshLabels.of(own, rows[counts], labels.harmful, excluded, strata and strata[0])
    certificate = fresh.certify(alpha=alpha, delta=delta, errored_kept=errored)
    certificate = replace(certificate, unanswered=labels.unanswered, informative=int(labels.informative.sum()))
    at = fit.threshold
    if at is None or not certificate.labels or not np.setdiff1d(np.flatnonzero(own <= at), excluded).size:
        return certificate  # there is no row kept at a threshold in use, or no label to tell
    return replace(
        certificate,
        in_use=fresh.bound(at, delta=delta, errored_kept=errored),
        shares=fresh.shares(at),
    )


def match_rows(
    identities: NDArray[np.uint8],
    fresh: NDArray[np.uint8],
    strata: tuple[list[str], list[str]] | None = None,
) -> NDArray[np.int64]:
    """Find the rows that labels are of, by their tokens.

    Args:
        identities: digests of the tokens of all rows, `uint8 [N, 16]`.
        fresh: those of the labelled rows, `uint8 [m, 16]`; of equal ones, each takes another of the equal rows.
        strata: a value for each of all rows and for each of the labelled ones, which must be equal too.

    Returns:
        Index of a row for each label, `int64 [m]`, all different.

    Raises:
        SAFTInputError: there are not so many such rows.
    """
    table, wanted = np.unique(fresh, axis=0, return_inverse=True)
    position = find_keys(table, identities)
    everywhere, here = strata or ([""] * len(identities), [""] * len(fresh))
    open_rows: dict[tuple[int, str], list[int]] = defaultdict(list)
    for row in np.flatnonzero(position >= 0)[::-1].tolist():
        open_rows[int(position[row]), everywhere[row]].append(row)
    rows, foreign = np.full(len(fresh), -1, dtype=np.int64), []
    for label, key in enumerate(wanted.ravel().tolist()):
        equal = open_rows[key, here[label]]
        if equal:
            rows[label] = equal.pop()
        else:
            foreign.append(label)
    if foreign:
        where = " with the same value of stratify_by" if strata else ""
        raise SAFTInputError(
            f"{len(foreign)} of {len(fresh)} fresh labels are of no row of the dataset{where}, or of one that has a "
            f"label already (rows {_show(foreign)} of fresh_labels): rows are recognised by their tokens. Fresh labels "
            "must be drawn without replacement from the dataset itself, and be rendered as it is."
        )
    return rows


def strata_of(dataset: Dataset, fresh: Dataset, column: str) -> tuple[list[str], list[str]]:
    """The strata of all rows and of the labelled ones.

    Raises:
        SAFTInputError: one of them lacks the column.
    """
    for name, rows in (("dataset", dataset), ("fresh_labels", fresh)):
        if column not in rows.column_names:
            raise SAFTInputError(f"`stratify_by`={column!r} is no column of `{name}`, which has {rows.column_names}.")
    own, labelled = ([str(value) for value in rows.with_format(None)[column]] for rows in (dataset, fresh))
    return own, labelled


def _show(rows: Sequence[int] | NDArray[Any]) -> str:
    return ", ".join(str(row) for row in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
