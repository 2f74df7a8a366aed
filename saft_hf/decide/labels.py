"""Labels and their polarity: from a column of the user's to True = harmful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.errors import SAFTInputError

LABEL_COLUMNS = ("is_safe", "safe", "is_harmful", "harmful", "unsafe")  # found by name, and read by it
# Whether a word says that a row is harmful, as the name of a column of truths (with or without `is_`) or as a value.
_HARMFUL = {"safe": False, "harmless": False, "benign": False, "unsafe": True, "harmful": True, "toxic": True}
_TRUTH = {**dict.fromkeys(("true", "yes", "1", "1.0"), True), **dict.fromkeys(("false", "no", "0", "0.0"), False)}
_SHOWN = 5
_SHOWN_LENGTH = 24


class LabelSource(StrEnum):
    """Where the label of a row comes from."""

    FIT = "fit"
    """The scorer was fitted on it."""
    COLUMN = "column"
    """A column of the rows that were filtered."""
    MARK = "mark"
    """A review."""


@dataclass(frozen=True, slots=True)
class RowLabel:
    """What people said of a row.

    Attributes:
        harmful: whether it is; None where equal rows were labelled as both.
        source: where the label comes from.
    """

    harmful: bool | None
    source: LabelSource

    def __str__(self) -> str:
        return "both" if self.harmful is None else "harmful" if self.harmful else "harmless"

    @classmethod
    def parse(cls, word: str, source: str) -> RowLabel:
        """Read what `str` wrote.

        Raises:
            ValueError: it is something else.
        """
        words = {"both": None, "harmful": True, "harmless": False}
        if word not in words:
            raise ValueError(f"{word!r} is none of {list(words)}")
        return cls(words[word], LabelSource(source))


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
    known = [name for name in column_names if name in LABEL_COLUMNS]
    if len(known) != 1:
        several = f"several: {known}" if known else f"none in {list(column_names)}"
        raise SAFTInputError(
            f"one label column was expected ({', '.join(LABEL_COLUMNS)}), found {several}: pass label_column=..., "
            "and harmful_value=... where the name does not tell which value is the harmful one"
        )
    return known[0]


def named(values: Iterable[Any], classes: Sequence[str]) -> list[Any]:
    """Values of a column; where it holds numbers of classes, as `datasets.ClassLabel` does, their names.

    Args:
        values: numbers, of which -1 is no class; or whatever there is where there are no classes.
        classes: their names; none where the values are no numbers of classes.
    """
    if not classes:
        return list(values)
    return [classes[value] if value is not None and 0 <= value < len(classes) else None for value in values]


def plain_labels(values: Iterable[Any]) -> list[Any]:
    """Labels as Python values: whole floats as integers, and None where there is none: NaN and empty text."""
    labels = []
    for value in values:
        label = value.item() if isinstance(value, np.generic) else value
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        # NaN, the one value unlike itself, stands for null in pandas.
        labels.append(None if label is None or label != label or label == "" else label)
    return labels


def read_labels(
    values: Iterable[Any],
    column: str,
    harmful_value: str | int | bool | None = None,
    classes: Sequence[str] = (),
) -> NDArray[np.bool_]:
    """Read a label column as True = harmful, bool [n].

    A column of truths (booleans, 0 and 1, "true" and "false", "yes" and "no") named `is_safe` or `safe` means harmful =
    False; `is_harmful`, `harmful`, `unsafe` mean harmful = True. Such a column may hold the words "safe" and "unsafe"
    and the like too. Any other column needs `harmful_value`, and may hold two values: that one and one other.

    Args:
        values: the labels, one a row.
        column: the column's name.
        harmful_value: the value that marks a harmful row; it may not contradict the name. A string such as "1" or
            "true", as it comes from a shell, matches the number or the boolean.
        classes: names of the classes where the values are their numbers: the names are read.

    Raises:
        SAFTInputError: no label at all, null labels, values of another kind, more than two values, a `harmful_value`
            that is not among them or contradicts what name or values say, or a name whose polarity is unknown.

    Examples:
        >>> read_labels([True, False], "is_safe").tolist()
        [False, True]
        >>> read_labels(["ok", "toxic"], "verdict", harmful_value="toxic").tolist()
        [False, True]
        >>> read_labels([0, 1], "safe", classes=["safe", "unsafe"]).tolist()
        [False, True]
    """
    labels = plain_labels(named(values, classes))
    if not labels:
        raise SAFTInputError(f"label column {column!r} has no row: at least one labelled row is needed")
    if nulls := labels.count(None):
        raise SAFTInputError(
            f"label column {column!r} has {nulls} null label(s) in {len(labels)} rows: fill them in or drop those rows"
        )
    by_name = _HARMFUL.get(column.casefold().removeprefix("is_"))
    if foreign := Counter(type(label).__name__ for label in labels if not isinstance(label, str | int)):
        above = f"row[{column!r}] {'<' if by_name is False else '>'} 0.5"
        raise SAFTInputError(
            f"label column {column!r} must hold booleans, integers or strings; found {dict(foreign)}: convert it "
            f"first, such as numbers with `{_conversion(column, above)}`"
        )
    counts = Counter(dict.fromkeys(classes, 0))
    counts.update(labels)
    if harmful_value is None:
        harmful = _by_name(column, +counts, by_name, classes)
    else:
        harmful = _by_value(column, counts, by_name, classes, harmful_value)
    return np.array([harmful[label] for label in labels], dtype=np.bool_)


def _truths(counts: Counter[Any]) -> dict[Any, bool]:
    """Each value as a truth; nothing where one of them is none."""
    truths = {value: _TRUTH[word] for value in counts if (word := _word(value)) in _TRUTH}
    return truths if len(truths) == len(counts) else {}


def _said(counts: Counter[Any], by_name: bool | None) -> dict[Any, bool]:
    """Value -> harmful, for the values of which the column's name, or the word itself, says so."""
    words = _HARMFUL if by_name is None else _HARMFUL | {word: truth == by_name for word, truth in _TRUTH.items()}
    return {value: words[word] for value in counts if (word := _word(value)) in words}


def _by_name(column: str, counts: Counter[Any], by_name: bool | None, classes: Sequence[str]) -> dict[Any, bool]:
    if column not in LABEL_COLUMNS:
        raise SAFTInputError(
            f"the name of label column {column!r} does not tell which value is harmful; found {_show(counts)}: pass "
            f"harmful_value=..., or rename the column to one of {', '.join(LABEL_COLUMNS)}"
        )
    harmful = _said(counts, by_name)
    if len(harmful) < len(counts):
        value = "NUMBER_OF_A_CLASS" if classes else "VALUE"
        line = _conversion(column, f"row[{column!r}] == {value}")
        raise SAFTInputError(
            f"label column {column!r} must hold booleans or 0 and 1; found {_show(counts)}: pass harmful_value=..., or "
            f"convert it with `{line}`, where {value} is the one that means harmful"
        )
    return harmful


def _by_value(
    column: str,
    counts: Counter[Any],
    by_name: bool | None,
    classes: Sequence[str],
    harmful_value: str | int | bool,
) -> dict[Any, bool]:
    named = str(harmful_value)
    if classes and named not in classes and named.isdecimal() and int(named) < len(classes):
        named = classes[int(named)]
    if truths := _truths(counts):
        truth = _TRUTH.get(_word(named))
        if truth is None:
            raise SAFTInputError(
                f"harmful_value={harmful_value!r} does not fit label column {column!r}, which holds {_show(counts)}"
            )
        harmful = {value: found == truth for value, found in truths.items()}
    else:
        harmful = {value: str(value) == named for value in counts}
        if not any(harmful.values()) or len(+counts) > 2:
            raise SAFTInputError(
                f"label column {column!r} must hold harmful_value={harmful_value!r} and one other value; found "
                f"{_show(counts)}: correct harmful_value, or make a column of booleans, such as with "
                f"`{_conversion(column, f'row[{column!r}] == {_stored(harmful_value, named, counts, classes)}')}`"
            )
    said = _said(counts, by_name)
    if wrong := [value for value in said if said[value] != harmful[value]]:
        value = repr(wrong[0])
        other = "is_safe" if by_name else "is_harmful"
        raise SAFTInputError(
            f"harmful_value={harmful_value!r} contradicts label column {column!r}, whose name or values say that "
            f"{value} is {'harmful' if said[wrong[0]] else 'harmless'} (found {_show(counts)}): leave harmful_value out"
            + (f"; if the name is wrong, `rows = rows.rename_column({column!r}, {other!r})`" if truths else "")
        )
    return harmful


def _stored(harmful_value: object, named: str, counts: Counter[Any], classes: Sequence[str]) -> str:
    """The harmful value as rows hold it, in Python."""
    if named in classes:
        return str(list(classes).index(named))
    return repr(next((value for value in counts if str(value) == named), harmful_value))


def _word(value: object) -> str:
    return str(value).strip().casefold()


def _conversion(column: str, harmful: str) -> str:
    """The line that makes a label column of a condition."""
    return f'rows = rows.map(lambda row: {{"is_harmful": {harmful}}}, remove_columns={column!r})'


def _show(counts: Counter[Any]) -> str:
    """The commonest values with their counts; long text is named by its length, it may be that of a row."""
    shown = [
        f"{value!r} x {n}" if len(str(value)) <= _SHOWN_LENGTH else f"a text of {len(str(value))} characters x {n}"
        for value, n in counts.most_common(_SHOWN)
    ]
    more = [f"and {len(counts) - _SHOWN} other values"] if len(counts) > _SHOWN else []
    return ", ".join(shown + more)
