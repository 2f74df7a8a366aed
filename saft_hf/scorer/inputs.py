"""Checks of what users hand in, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, IterableDataset

from saft_hf.decide import read_labels, resolve_label_column
from saft_hf.errors import SAFTInputError
from saft_hf.render import Readout, Renderer
from saft_hf.scorer.fitted import METHODS
from saft_hf.status import RowStatus

if TYPE_CHECKING:
    from saft_hf.scorer.base import ScorerBase

logger = logging.getLogger(__name__)

_SAMPLE = 64


def check_dataset(dataset: Any) -> None:
    """Refuse what is not a table of rows, or changes under our hands.

    Raises:
        SAFTInputError: a `DatasetDict`, a stream, an empty dataset, or one with a transform.
    """
    if isinstance(dataset, Mapping):
        raise SAFTInputError(f"one split is needed, not a dict of splits: choose one of {list(dataset)}.")
    if isinstance(dataset, IterableDataset):
        raise SAFTInputError(
            "a stream has no row numbers: use `stream.map(scorer, batched=True)`; `fit` takes a stream with "
            "`fit_rows=`."
        )
    if not isinstance(dataset, Dataset):
        raise SAFTInputError(f"a `datasets.Dataset` is needed, not {type(dataset).__name__}.")
    if len(dataset) == 0:
        raise SAFTInputError("the dataset is empty: there is no row to score.")
    if dataset.format["type"] == "custom":
        raise SAFTInputError(
            "the dataset has a transform (`with_transform`), which may give other rows each time it is read. Write its "
            "output with `map`, or take it off with `with_format(None)`."
        )


def as_pool(pool: Any, fit_rows: int | None) -> Dataset:
    """The rows to fit on: the first `fit_rows` of them, or all.

    Raises:
        SAFTInputError: as `check_dataset`; or a stream without `fit_rows`.
    """
    if fit_rows is not None and fit_rows < 2:
        raise SAFTInputError(f"`fit_rows` must be at least 2, not {fit_rows}.")
    if isinstance(pool, IterableDataset) and fit_rows is not None:
        pool = Dataset.from_list(list(islice(pool, fit_rows)), features=pool.features)
    check_dataset(pool)
    return pool if fit_rows is None or len(pool) <= fit_rows else pool.select(range(fit_rows))


def labels_by_row(dataset: Dataset, column: str, harmful_value: str | int | bool | None) -> dict[int, bool]:
    """Row index -> harmful, for the rows of a partly labelled dataset that have a label.

    Raises:
        SAFTInputError: the column is missing, or holds no label or unknown ones.
    """
    values = dataset.with_format(None)[resolve_label_column(dataset.column_names, column)][:]
    rows = [row for row, value in enumerate(values) if value is not None]
    harmful = read_labels([values[row] for row in rows], column, harmful_value)
    return dict(zip(rows, harmful.tolist(), strict=True))


def check_batched(batch: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a single row where a batch is needed.

    Raises:
        SAFTInputError: `map` was called without `batched=True`.
    """
    for name, row_type in (
        ("text", str),
        ("prompt", str),
        ("messages", dict),
        ("prompt", dict),
        ("input_ids", int),
    ):
        if name not in batch:
            continue
        values = batch[name]
        if isinstance(values, str) or (len(values) and isinstance(values[0], row_type) and row_type is not str):
            raise SAFTInputError(
                f"column `{name}` holds one row, not a batch of them: call `map(scorer, batched=True)`; for a single "
                "row pass `{column: [value]}`."
            )


def pick_readouts(renderer: Renderer, pool: Dataset) -> tuple[Readout, Readout]:
    """Where rows are read by default: `response_start`, as published, and `response_mean`.

    Where the rows are plain text without a boundary: `response_mean` and `response_end`.
    """
    sample = [row for row in renderer(pool[: min(_SAMPLE, len(pool))]) if row.status is RowStatus.OK]
    if sample and not any(row.boundary for row in sample):
        logger.warning(
            "The rows are plain text: where the response starts is not known, so `response_mean` over the whole "
            "text is read in place of `response_start`."
        )
        return Readout.MEAN, Readout.END
    return Readout.START, Readout.MEAN


def method_of(scorer: ScorerBase, has_labels: bool, aim: str | None) -> str:
    """The method of a fit: `auto` with labels and `reference` without, unless one is named.

    Options that no fit can follow are refused, before anything is loaded.

    Raises:
        SAFTInputError: an option has an unknown value, or options do not go together.
    """
    if scorer.method not in (None, *METHODS):
        raise SAFTInputError(f"`method` must be one of {list(METHODS)}, or None, not {scorer.method!r}.")
    if scorer.readout not in (None, *Readout):
        raise SAFTInputError(f"`readout` must be one of {[r.value for r in Readout]}, not {scorer.readout!r}.")
    if scorer.threshold is not None and not np.isfinite(scorer.threshold):
        raise SAFTInputError(f"`threshold` must be a finite number, not {scorer.threshold}.")
    if scorer.contamination is not None and not 0 < scorer.contamination < 1:
        raise SAFTInputError(f"`contamination` must be between 0 and 1, not {scorer.contamination}.")
    method = scorer.method or ("auto" if has_labels else "reference")
    if method in ("directed", "auto") and not has_labels:
        raise SAFTInputError(
            f"`method={method!r}` learns from labels: give `labelled`, about 100 rows that people labelled."
        )
    if scorer.k is not None and method in ("directed", "reference"):
        raise SAFTInputError(
            f"`k`={scorer.k} belongs to the published score, which `method={method!r}` does not use. Leave it out, or "
            "say `method='saft'`."
        )
    if aim is not None and not has_labels:
        raise SAFTInputError(
            f"`aim={aim!r}` chooses a threshold on labels: give `labelled`. Without labels, `contamination` or "
            "`threshold` choose it."
        )
    if aim is not None and scorer.threshold is not None:
        raise SAFTInputError(
            f"`threshold`={scorer.threshold} decides alone, so `aim={aim!r}` has no use: leave one out."
        )
    if scorer.reference is not None and method != "reference":
        raise SAFTInputError(
            f"`reference` is not used by `method={method!r}`: leave it out, or say `method='reference'`."
        )
    if aim is not None and method == "reference":
        raise SAFTInputError(
            f"`aim={aim!r}` chooses a threshold on labels; that of `method='reference'` comes from the reference set. "
            "Leave one of them out."
        )
    return method
