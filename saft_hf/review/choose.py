"""Which rows a review shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide import Decisions, LabelSource, RowLabel
from saft_hf.decide.labelling import Drawn, Purpose


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Some rows under a title.

    Attributes:
        name: what it is called.
        about: what is in it, in a sentence.
        rows: their positions in the input, in the order in which they are shown, int64 [m].
    """

    name: str
    about: str
    rows: NDArray[np.int64]


def choose_tables(
    scores: NDArray[np.float64],
    decisions: Decisions,
    labels: Mapping[int, RowLabel],
    *,
    size: int,
    seed: int,
    every_row: bool,
) -> list[Table]:
    """Choose the rows of each table.

    Args:
        scores: of all rows, [N], NaN where there is none.
        decisions: of the same rows.
        labels: row -> what people said of it.
        size: rows of a table, at most.
        seed: of the draws.
        every_row: one more table has all rows.
    """
    descending = np.lexsort((np.arange(scores.size), -scores))  # NaN comes last
    descending = descending[~np.isnan(scores[descending])]
    tables = [Table("Highest", "The highest scores.", descending[:size])]
    if decisions.threshold is not None:
        distance = np.abs(scores - decisions.threshold)
        near = descending[np.argsort(distance[descending], kind="stable")][:size]
        tables.append(Table("Nearest", "The scores nearest to the threshold, on both sides of it.", near))
    rng = np.random.default_rng(seed)
    open_rows, drawn = drawable(scores, decisions, labels), drawn_as(decisions)
    about = "Drawn at random from the rows that their score keeps, less those that the scorer was fitted on. "
    about += (
        "Marks on them may certify: go through them from the top, and leave none out."
        if drawn.purpose is Purpose.UNIFORM
        else "The threshold differs by row: marks on them certify nothing."
    )
    tables.append(Table("Random kept", about, rng.permutation(open_rows)[:size]))
    removed = rng.permutation(decisions.removed)[:size]
    tables.append(Table("Random removed", "Drawn at random from the removed rows.", removed))
    if decisions.errored.size:
        tables.append(Table("Errored", "The first rows that could not be scored.", decisions.errored[:size]))
    if every_row:
        rest = np.setdiff1d(np.arange(scores.size), descending)
        tables.append(Table("All", "All rows, the highest score first.", np.concatenate([descending, rest])))
    return tables


def drawable(scores: NDArray[np.float64], decisions: Decisions, labels: Mapping[int, RowLabel]) -> NDArray[np.int64]:
    """The rows that a certificate may speak of: kept by their score, and not used to fit the scorer, ascending."""
    limit = np.inf if decisions.threshold is None else decisions.threshold
    inside = scores <= limit  # False for NaN
    inside[[row for row, label in labels.items() if label.source is LabelSource.FIT]] = False
    return np.flatnonzero(inside)


def drawn_as(decisions: Decisions) -> Drawn:
    """How the rows that are drawn from these were drawn, as a labels file says it."""
    if isinstance(decisions.threshold, np.ndarray):
        return Drawn(Purpose.INFORMATIVE)
    return Drawn(Purpose.UNIFORM, decisions.threshold)
