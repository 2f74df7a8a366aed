"""Labels and their polarity: from a column of the user's to True = harmful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.errors import SAFTInputError

_HARMFUL_VALUE = {"is_safe": False, "safe": False, "is_harmful": True, "harmful": True, "unsafe": True}
LABEL_COLUMNS = tuple(_HARMFUL_VALUE)  # names whose polarity is known
_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_SHOWN = 5
_SHOWN_LENGTH = 24


def resolve_label_column(column_names: Sequence[str], label_column: str | None = None) -> str:
    """The column that holds the labels: the one that was named, else the only one with a known name.

    Args:
        column_names: columns of the labelled rows.
        label_column: the name that the user gave, or None.

    Raises:
        SAFTInputError: the named column is missing, or none or several columns have a known name.
    """
    if label_column is not None:
        if label_column not in column_names:
            columns = list(column_names)
            raise SAFTInputError(f"label_column={label_column!r} is not in the labelled rows; found columns {columns}")
        return label_column
    known = [name for name in column_names if name in _HARMFUL_VALUE]
    if len(known) != 1:
        several = f"several: {known}" if known else f"none in {list(column_names)}"
        raise SAFTInputError(
            f"one label column was expected ({', '.join(_HARMFUL_VALUE)}), found {several}: pass label_column=..., "
            "and harmful_value=... where the name does not tell which value is the harmful one"
        )
    return known[0]


def read_labels(values: Iterable[Any], column: str, harmful_value: str | int | bool | None = None) -> NDArray[np.bool_]:
    """Read a label column as True = harmful, bool [n].

    A column of booleans or of 0 and 1 named `is_safe` or `safe` means harmful = False; `is_harmful`, `harmful`,
    `unsafe` mean harmful = True. Any other column needs `harmful_value`, and may hold two values: that one and one
    other.

    Args:
        values: the labels, booleans, integers or strings, one a row.
        column: the column's name.
        harmful_value: the value that marks a harmful row; overrides the name. A string such as "1" or "true", as it
            comes from a shell, matches the number or the boolean.

    Raises:
        SAFTInputError: no label at all, null labels, values of another kind, more than two values, a `harmful_value`
            that is not among them, or a name whose polarity is unknown.

    Example:
        >>> read_labels([True, False], "is_safe").tolist()
        [False, True]
        >>> read_labels(["ok", "toxic"], "verdict", harmful_value="toxic").tolist()
        [False, True]
    """
    labels = [value.item() if isinstance(value, np.generic) else value for value in values]
    if not labels:
        raise SAFTInputError(f"label column {column!r} has no row: at least one labelled row is needed")
    # NaN, the one value unlike itself, stands for null in pandas.
    nulls = sum(value is None or value != value for value in labels)
    if nulls:
        raise SAFTInputError(
            f"label column {column!r} has {nulls} null label(s) in {len(labels)} rows: fill them in or drop those rows"
        )
    if foreign := Counter(type(value).__name__ for value in labels if not isinstance(value, str | int)):
        raise SAFTInputError(
            f"label column {column!r} must hold booleans, integers or strings; found {dict(foreign)}: convert it first"
        )
    counts = Counter(labels)
    target = _HARMFUL_VALUE.get(column) if harmful_value is None else harmful_value
    if target is None:
        raise SAFTInputError(
            f"the name of label column {column!r} does not tell which value is harmful; found {_show(counts)}: pass "
            f"harmful_value=..., or rename the column to one of {', '.join(_HARMFUL_VALUE)}"
        )
    if all(not isinstance(value, str) and value in (0, 1) for value in counts):
        truth = _TRUTH.get(str(target).strip().casefold())
        if truth is None:
            held = f"label column {column!r}, which holds {_show(counts)}"
            raise SAFTInputError(f"harmful_value={harmful_value!r} does not fit {held}")
        return np.array([value == truth for value in labels], dtype=np.bool_)
    if harmful_value is None:
        raise SAFTInputError(
            f"label column {column!r} must hold booleans or 0 and 1; found {_show(counts)}: convert it, or pass "
            "harmful_value=..."
        )
    harmful = [str(value) == str(harmful_value) for value in labels]
    if not any(harmful) or len(counts) > 2:
        raise SAFTInputError(
            f"label column {column!r} must hold harmful_value={harmful_value!r} and one other value; found "
            f"{_show(counts)}: correct harmful_value, or make a column of booleans named is_harmful"
        )
    return np.array(harmful, dtype=np.bool_)


def _show(counts: Counter[Any]) -> str:
    """The commonest values with their counts; long text is named by its length, it may be that of a row."""
    shown = [
        f"{value!r} x {n}" if len(str(value)) <= _SHOWN_LENGTH else f"a text of {len(str(value))} characters x {n}"
        for value, n in counts.most_common(_SHOWN)
    ]
    more = [f"and {len(counts) - _SHOWN} other values"] if len(counts) > _SHOWN else []
    return ", ".join(shown + more)
