"""Rows that `suggest_labels` laid out to be labelled, and reading them back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.decide import read_labels, resolve_label_column
from saft_hf.decide.labelling import Purpose
from saft_hf.decide.labels import LABEL_COLUMNS
from saft_hf.errors import SAFTInputError

logger = logging.getLogger(__name__)

ROW, PURPOSE, LABEL = "saft_row", "saft_purpose", "is_harmful"
"""Columns that `suggest_labels` writes; only the last is for people to fill in."""


@dataclass(frozen=True)
class Suggested:
    """What people said of rows that were drawn to be labelled.

    Attributes:
        counts: `bool [m]`: drawn uniformly, and labelled.
        harmful: the labels of these, in order.
        informative: `bool [m]`: suggested near the threshold, labelled or not.
        unanswered: rows drawn uniformly that have no label.
    """

    counts: NDArray[np.bool_]
    harmful: NDArray[np.bool_]
    informative: NDArray[np.bool_]
    unanswered: int


def without_labels(dataset: Dataset) -> Dataset:
    """The rows without label columns of a known name, and without columns of ours."""
    return dataset.remove_columns(
        [name for name in dataset.column_names if name in LABEL_COLUMNS or name.startswith("saft_")]
    )


def answered(labelled: Dataset, column: str) -> tuple[Dataset, list[Any]]:
    """The rows that have a label, and the labels; only rows that were laid out to be labelled may have none.

    Args:
        labelled: labelled rows.
        column: their labels.

    Returns:
        The rows and their labels, in order.
    """
    values = _values(labelled, column)
    if PURPOSE not in labelled.column_names:
        return labelled, values
    rows = [row for row, value in enumerate(values) if value is not None]
    if len(rows) < len(values):
        logger.warning(
            "%d of %d suggested rows have no label yet and are left out.", len(values) - len(rows), len(values)
        )
    return labelled.select(rows), [values[row] for row in rows]


def is_informative(labelled: Dataset) -> NDArray[np.bool_]:
    """Which rows were suggested near the threshold, `bool [m]`; none where nothing says so.

    Raises:
        SAFTInputError: `saft_purpose` holds other words.
    """
    if PURPOSE not in labelled.column_names:
        return np.zeros(len(labelled), dtype=np.bool_)
    words = labelled.with_format(None)[PURPOSE][:]
    if foreign := {word for word in words if word not in tuple(Purpose)}:
        raise SAFTInputError(
            f"column {PURPOSE!r} must hold {[str(word) for word in Purpose]}, as `suggest_labels` wrote it; found "
            f"{len(foreign)} other value(s)"
        )
    return np.array([word == Purpose.INFORMATIVE for word in words], dtype=np.bool_)


def read_fresh(labelled: Dataset, label_column: str | None, harmful_value: str | int | bool | None) -> Suggested:
    """Read fresh labels, with or without the columns of `suggest_labels`.

    Raises:
        SAFTInputError: the label column is missing, unknown, or holds no label that counts.
    """
    column = resolve_label_column(labelled.column_names, label_column)
    values, informative = _values(labelled, column), is_informative(labelled)
    given = np.array([value is not None for value in values], dtype=np.bool_)
    if PURPOSE not in labelled.column_names:
        given[:] = True  # a null label is then an error, which `read_labels` raises
    counts = given & ~informative
    return Suggested(
        counts=counts,
        harmful=read_labels([values[row] for row in np.flatnonzero(counts)], column, harmful_value),
        informative=informative,
        unanswered=int((~given & ~informative).sum()),
    )


def _values(labelled: Dataset, column: str) -> list[Any]:
    values = list(labelled.with_format(None)[column])
    if PURPOSE not in labelled.column_names:
        return values
    # A table of numbers or text with gaps comes back as floats with NaN, or with empty text.
    gaps = [None if value is None or value != value or value == "" else value for value in values]
    return [int(value) if isinstance(value, float) and value.is_integer() else value for value in gaps]
