"""Rows that people labelled: read from a column, laid out by `suggest_labels`, and kept in digests."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.decide import LabelSource, RowLabel, read_labels, resolve_label_column
from saft_hf.decide.audit import row_digest
from saft_hf.decide.labelling import LABEL, PURPOSE, ROW, Drawn, Purpose
from saft_hf.decide.labels import LABEL_COLUMNS, plain_labels
from saft_hf.decide.marks import Mark, MarkWord, check_marks, read_marks
from saft_hf.embed import KEY_BYTES, Survey, find_keys
from saft_hf.errors import SAFTInputError
from saft_hf.render import Renderer
from saft_hf.result import rows_at
from saft_hf.scorer.inputs import check_choice, check_dataset, classes_of, values_of, with_columns
from saft_hf.summary import LabelCounts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledRows:
    """Which rows people labelled, in digests: they decide those rows, and fresh labels must not be among them.

    Attributes:
        identities: `uint8 [m, 16]`, digests of what they hold, see `identities_of`, different ones.
        harmful: `int8 [m]`: 1 harmful, 0 benign, -1 where equal rows were labelled as both.
    """

    identities: NDArray[np.uint8]
    harmful: NDArray[np.int8]

    @classmethod
    def of(cls, identities: NDArray[np.uint8], harmful: NDArray[np.bool_]) -> LabelledRows:
        """Rows as they were labelled."""
        unique, position = np.unique(identities, axis=0, return_inverse=True)
        votes = [
            np.bincount(position.ravel(), weights=harmful == value, minlength=len(unique)) for value in (False, True)
        ]
        return cls(unique, np.where(votes[0] == 0, 1, np.where(votes[1] == 0, 0, -1)).astype(np.int8))

    @classmethod
    def none(cls) -> LabelledRows:
        """No row was labelled."""
        return cls(np.zeros((0, KEY_BYTES), dtype=np.uint8), np.zeros(0, dtype=np.int8))

    @classmethod
    def from_tensors(cls, identities: NDArray[Any] | None, harmful: NDArray[Any] | None) -> Self:
        """Put together again what `to_tensors` took apart.

        Raises:
            ValueError: they are not such tensors; the message names the one.
        """
        if identities is None or identities.dtype != np.int64 or identities.shape[1:] != (KEY_BYTES // 8,):
            raise ValueError(f"labelled: missing, or not int64 [m, {KEY_BYTES // 8}]")
        rows = np.ascontiguousarray(identities.astype("<i8")).view(np.uint8).reshape(-1, KEY_BYTES)
        if len(np.unique(rows, axis=0)) != len(rows):
            raise ValueError("labelled: a row stands twice")
        if harmful is None or harmful.dtype != np.int64 or harmful.shape != rows.shape[:1]:
            raise ValueError(f"labelled_harmful: missing, or not int64 [{len(rows)}]")
        if not np.isin(harmful, (-1, 0, 1)).all():
            raise ValueError("labelled_harmful: not 1 (harmful), 0 (benign) or -1 (both)")
        return cls(rows, harmful.astype(np.int8))

    def to_tensors(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Digests and labels in the types that a saved scorer has."""
        identities = np.ascontiguousarray(self.identities).view("<i8").astype(np.int64)
        return identities.reshape(-1, KEY_BYTES // 8), self.harmful.astype(np.int64)

    def used(self, identities: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Which of the given rows (`uint8 [N, 16]`) were labelled, whatever the label, ascending."""
        return np.flatnonzero(find_keys(self.identities, identities) >= 0)

    def among(self, identities: NDArray[np.uint8]) -> dict[int, bool]:
        """Row -> harmful, for those of the given rows (`uint8 [N, 16]`) that have a label, and not two."""
        positions = find_keys(self.identities, identities)
        labels = {row: int(self.harmful[positions[row]]) for row in np.flatnonzero(positions >= 0).tolist()}
        return {row: label == 1 for row, label in labels.items() if label >= 0}

    def known(self, identities: NDArray[np.uint8]) -> dict[int, RowLabel]:
        """Row -> label, for those of the given rows (`uint8 [N, 16]`) that were labelled, as both too."""
        both = dict.fromkeys(self.used(identities).tolist())
        return {row: RowLabel(harmful, LabelSource.FIT) for row, harmful in (both | self.among(identities)).items()}


@dataclass(frozen=True)
class LabelSet:
    """Labelled rows of a pool, as they were given.

    Attributes:
        rows: the rows that have a label.
        harmful: their labels, `bool [m]`.
        column: the column that the labels came from.
        uniform: whether the rows were drawn uniformly from the pool.
    """

    rows: Dataset
    harmful: NDArray[np.bool_]
    column: str
    uniform: bool

    @classmethod
    def read(
        cls, labelled: Dataset, label_column: str | None, harmful_value: str | int | bool | None, label_sampling: str
    ) -> Self:
        """Read labels, see `SAFTScorer.fit`.

        Raises:
            SAFTInputError: the rows, the column or a label are not what they must be.
        """
        check_choice("label_sampling", label_sampling, ("uniform", "other"))
        check_dataset(labelled)
        column = resolve_label_column(labelled.column_names, label_column)
        rows = answered(labelled, column)
        uniform = label_sampling == "uniform" and set(how_drawn(rows)) == {Drawn(Purpose.UNIFORM)}
        return cls(rows, read_column(rows, column, harmful_value), column, uniform)


@dataclass(frozen=True)
class Suggested:
    """What people said of rows that were drawn to be labelled.

    Attributes:
        counts: `bool [m]`: drawn uniformly, and labelled.
        harmful: the labels of these, in order.
        informative: `bool [m]`: suggested for fitting alone, labelled or not.
        unanswered: rows drawn uniformly that have no label.
        up_to: the threshold whose kept rows they were drawn from; None where they come from all rows.
    """

    counts: NDArray[np.bool_]
    harmful: NDArray[np.bool_]
    informative: NDArray[np.bool_]
    unanswered: int
    up_to: float | None

    def warnings(self, *, uniform: bool) -> tuple[str, ...]:
        """What speaks for labels that are the wrong way round, as for those of a fit."""
        counts = LabelCounts(rows=self.harmful.size, harmful=int(self.harmful.sum()), column="", uniform=uniform)
        return counts.warnings


def read_column(dataset: Dataset, column: str, harmful_value: str | int | bool | None = None) -> NDArray[np.bool_]:
    """The labels of all rows, True = harmful, `bool [N]`; classes are read by their names, see `read_labels`.

    Raises:
        SAFTInputError: a label is missing, or not what it must be.
    """
    return read_labels(dataset.with_format(None)[column], column, harmful_value, classes_of(dataset, column))


def labelled_rows(dataset: Dataset, column: str) -> NDArray[np.int64]:
    """The rows that have a label, ascending."""
    values = plain_labels(values_of(dataset, column, "label_column"))
    return np.array([row for row, value in enumerate(values) if value is not None], dtype=np.int64)


def labels_by_row(dataset: Dataset, column: str, harmful_value: str | int | bool | None) -> dict[int, bool]:
    """Row index -> harmful, for the rows of a partly labelled dataset that have a label.

    Raises:
        SAFTInputError: the column is missing, or holds no label or unknown ones.
    """
    rows = labelled_rows(dataset, resolve_label_column(dataset.column_names, column))
    harmful = read_column(dataset.select(rows), column, harmful_value)
    return dict(zip(rows.tolist(), harmful.tolist(), strict=True))


def labels_of(harmful: Mapping[int, bool], source: LabelSource, known: Mapping[int, RowLabel]) -> dict[int, RowLabel]:
    """Labels that replace known ones. A row that the scorer was fitted on stays one, whoever labels it again."""
    fitted = {row for row, label in known.items() if label.source is LabelSource.FIT}
    return {row: RowLabel(label, LabelSource.FIT if row in fitted else source) for row, label in harmful.items()}


def read_decisions(path: str | Path, dataset: Dataset) -> tuple[dict[int, bool], dict[int, bool]]:
    """What a file of marks says of rows: row -> harmful, and row -> whether it is removed, by `keep` and `remove`.

    Raises:
        SAFTInputError: it is no such file, or about other rows.
    """
    marks = _marks_of(path, dataset)
    removed = {MarkWord.KEEP: False, MarkWord.REMOVE: True}
    return (
        {mark.row: mark.harmful for mark in marks if mark.harmful is not None},
        {mark.row: removed[mark.word] for mark in marks if mark.word in removed},
    )


def marked_rows(path: str | Path, dataset: Dataset, *, certify: bool) -> Dataset:
    """The rows that a file of marks labels, laid out as `suggest_labels` does: to fit on, or to certify with.

    Args:
        path: of the file that the page of `FilterResult.review` saved.
        dataset: the rows that were reviewed.
        certify: of the rows drawn at random all, those too that were passed over, and no others. The others were
            picked: they say nothing about the rest, and stay in what is certified.

    Raises:
        SAFTInputError: it is no such file, is about other rows, or holds no mark for this.
    """
    marks = _marks_of(path, dataset)
    chosen = [mark for mark in marks if (mark.is_uniform if certify else mark.harmful is not None)]
    if all(mark.harmful is None for mark in chosen):
        where = "on a row drawn at random ('Random kept')" if certify else "of them"
        raise SAFTInputError(f"{path} has {len(marks)} lines, and none {where} says harmful or harmless.")
    rows, harmful = [mark.row for mark in chosen], [mark.harmful for mark in chosen]
    return laid_out(dataset, rows, [mark.drawn for mark in chosen], harmful)


def laid_out(dataset: Dataset, rows: Sequence[int], drawn: Sequence[Drawn], harmful: Sequence[bool | None]) -> Dataset:
    """Some rows to be labelled, or as they were: where each stands, how it was drawn, and its label or null."""
    purposes, labels = [str(each) for each in drawn], pa.array(harmful, pa.bool_())
    return with_columns(without_labels(dataset).select(rows), **{ROW: rows, PURPOSE: purposes, LABEL: labels})


def _marks_of(path: str | Path, dataset: Dataset) -> tuple[Mark, ...]:
    marks = read_marks(path)
    check_marks(marks, len(dataset), partial(rows_at, dataset))
    return marks


def identities_of(dataset: Dataset, survey: Survey, renderer: Renderer) -> NDArray[np.uint8]:
    """Digests that rows are recognised by, `uint8 [N, 16]`: of their tokens, or of what they hold where they have none.

    A row that cannot be rendered may have a label all the same.
    """
    identities, blank = survey.identities.copy(), np.flatnonzero(~survey.identities.any(axis=1))
    rows = without_labels(dataset).with_format(None)
    rows = rows.select_columns(renderer.columns(rows.column_names)).select(blank)
    for at, row in zip(blank, rows, strict=True):
        identities[at] = np.frombuffer(bytes.fromhex(row_digest(_without_nulls(row)))[:KEY_BYTES], dtype=np.uint8)
    return identities


def _without_nulls(value: Any) -> Any:
    """What a value holds: tables fill in nulls where other rows have more fields."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def without_labels(dataset: Dataset) -> Dataset:
    """The rows without label columns of a known name, and without columns of ours."""
    return dataset.remove_columns(
        [name for name in dataset.column_names if name in LABEL_COLUMNS or name.startswith("saft_")]
    )


def answered(labelled: Dataset, column: str) -> Dataset:
    """The rows that have a label; only rows that were laid out to be labelled may have none."""
    if PURPOSE not in labelled.column_names:
        return labelled
    rows = labelled_rows(labelled, column)
    if missing := len(labelled) - len(rows):
        logger.warning("%d of %d suggested rows have no label yet and are left out.", missing, len(labelled))
    return labelled.select(rows)


def how_drawn(labelled: Dataset) -> list[Drawn]:
    """What each row was drawn for; `uniform` where nothing says so.

    Raises:
        SAFTInputError: `saft_purpose` holds other words.
    """
    if PURPOSE not in labelled.column_names:
        return [Drawn(Purpose.UNIFORM)] * len(labelled)
    words = labelled.with_format(None)[PURPOSE][:]
    try:
        known = {word: Drawn.parse(str(word)) for word in set(words)}
    except ValueError as error:
        raise SAFTInputError(
            f"column {PURPOSE!r} must hold {[str(purpose) for purpose in Purpose]} or 'uniform up to' a threshold, as "
            "`suggest_labels` wrote it; found another value"
        ) from error
    return [known[word] for word in words]


def read_fresh(labelled: Dataset, label_column: str | None, harmful_value: str | int | bool | None) -> Suggested:
    """Read fresh labels, with or without the columns of `suggest_labels`.

    Raises:
        SAFTInputError: the label column is missing, unknown, or holds no label that counts; or the rows were drawn in
            several ways.
    """
    column = resolve_label_column(labelled.column_names, label_column)
    drawn, given = how_drawn(labelled), np.ones(len(labelled), dtype=np.bool_)
    informative = np.array([each.purpose is not Purpose.UNIFORM for each in drawn], dtype=np.bool_)
    ways = {each.up_to for each in drawn if each.purpose is Purpose.UNIFORM}
    if len(ways) > 1:
        told = sorted(str(Drawn(Purpose.UNIFORM, way)) for way in ways)
        raise SAFTInputError(
            f"the fresh labels were drawn in {len(ways)} ways ({', '.join(map(repr, told[:3]))}, by {PURPOSE!r}): "
            "together they are no uniform sample of any set. Certify with those of one way."
        )
    if PURPOSE in labelled.column_names:  # elsewhere a null label is an error, which `read_labels` raises
        given = np.isin(np.arange(len(labelled)), labelled_rows(labelled, column))
    counts = given & ~informative
    return Suggested(
        counts=counts,
        harmful=read_column(labelled.select(np.flatnonzero(counts)), column, harmful_value),
        informative=informative,
        unanswered=int((~given & ~informative).sum()),
        up_to=next(iter(ways), None),
    )
