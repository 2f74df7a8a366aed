"""Marks that people made in a review: which rows they kept or removed, or found harmful or harmless."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from saft_hf.decide.audit import row_digest
from saft_hf.decide.labelling import Drawn, Purpose
from saft_hf.errors import SAFTInputError, few

_FIELDS = ("saft_row", "saft_sha256", "saft_purpose", "saft_mark")


class MarkWord(StrEnum):
    """What a person said of a row: `harmful` and `harmless` are labels, the others decide the row and tell no more."""

    KEEP = "keep"
    REMOVE = "remove"
    HARMFUL = "harmful"
    HARMLESS = "harmless"


@dataclass(frozen=True, slots=True)
class Mark:
    """A line of a marks file.

    Attributes:
        row: position in the rows that were reviewed.
        sha256: its digest, see `row_digest`.
        drawn: how it came to be shown: only marks on rows that were drawn at random may certify.
        word: None for a row that was drawn, and has no mark.
    """

    row: int
    sha256: str
    drawn: Drawn
    word: MarkWord | None

    @property
    def harmful(self) -> bool | None:
        """The label; None where there is none."""
        labels = {MarkWord.HARMFUL: True, MarkWord.HARMLESS: False}
        return None if self.word is None else labels.get(self.word)

    @property
    def is_uniform(self) -> bool:
        """Whether the row was drawn at random."""
        return self.drawn.purpose is Purpose.UNIFORM


def is_marks_file(path: Path) -> bool:
    """Whether a file begins with a line that a review wrote."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            first = json.loads(file.readline())
        except ValueError:
            return False
    return isinstance(first, dict) and sorted(first) == sorted(_FIELDS)


def read_marks(path: str | Path) -> tuple[Mark, ...]:
    """Read the marks that a review exported: JSON lines with `saft_row`, `saft_sha256`, `saft_purpose`, `saft_mark`.

    Raises:
        SAFTInputError: a line is something else, or a row is named twice.
        OSError: the file cannot be read.
    """
    marks: dict[int, Mark] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row, sha256, purpose, word = _line(line)
            mark = Mark(row, sha256, Drawn.parse(purpose), None if word is None else MarkWord(word))
        except (ValueError, TypeError) as error:
            raise SAFTInputError(
                f"{path}, line {number}: no mark of a review, which is an object with the fields {list(_FIELDS)} "
                f"({type(error).__name__}: {error}): give the file that the page saved."
            ) from error
        if row in marks:
            raise SAFTInputError(f"{path}, line {number}: row {row} has a line already: keep one of them.")
        marks[row] = mark
    return tuple(marks.values())


def _line(line: str) -> tuple[int, str, str, str | None]:
    fields = json.loads(line)
    if not isinstance(fields, dict) or sorted(fields) != sorted(_FIELDS):
        raise ValueError(f"found {sorted(fields) if isinstance(fields, dict) else type(fields).__name__}")
    row, sha256, purpose, word = (fields[name] for name in _FIELDS)
    if type(row) is not int or not isinstance(sha256, str) or not isinstance(purpose, str):
        raise ValueError("a field has another type")
    return row, sha256, purpose, word


def check_marks(marks: Sequence[Mark], rows: int, read: Callable[[list[int]], list[dict[str, Any]]]) -> None:
    """Refuse marks of other rows.

    Args:
        marks: as they were read.
        rows: how many rows there are.
        read: positions -> the rows there, column -> value.

    Raises:
        SAFTInputError: a row is not there, or holds something else now.
    """
    there = [mark.row for mark in marks if 0 <= mark.row < rows]
    digests = dict(zip(there, map(row_digest, read(there)), strict=True))
    if wrong := [mark.row for mark in marks if digests.get(mark.row) != mark.sha256]:
        raise SAFTInputError(
            f"{len(wrong)} of {len(marks)} marks are of other rows than these {rows} (rows {few(wrong)}, by their "
            "digest): marks go with the rows that were reviewed, in the same order and with the same columns."
        )
