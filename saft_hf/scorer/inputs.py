"""Checks of what users hand in, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset

from saft_hf.errors import SAFTInputError
from saft_hf.render import Renderer
from saft_hf.status import RowStatus

logger = logging.getLogger(__name__)

SCORE, STATUS = "saft_score", "saft_status"

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


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse a value that an option does not know.

    Raises:
        SAFTInputError: it is none of the choices.
    """
    if value not in choices:
        raise SAFTInputError(f"`{name}` must be one of {list(choices)}, not {value!r}.")


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


def without_scores(dataset: Any) -> Any:
    """Score columns that came with the data, or with a stream, are neither used nor handed on."""
    found = [name for name in (SCORE, STATUS) if name in (dataset.column_names or ())]
    return dataset.remove_columns(found) if found else dataset


def check_batched(batch: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a single row where a batch is needed.

    Raises:
        SAFTInputError: `map` was called without `batched=True`.
    """
    kinds = (("text", str), ("prompt", str), ("messages", dict), ("prompt", dict), ("input_ids", int))
    for name, row_type in kinds:
        if name not in batch:
            continue
        values = batch[name]
        if isinstance(values, str) or (len(values) and isinstance(values[0], row_type) and row_type is not str):
            raise SAFTInputError(
                f"column `{name}` holds one row, not a batch of them: call `map(scorer, batched=True)`; for a single "
                "row pass `{column: [value]}`."
            )


def has_boundary(renderer: Renderer, pool: Dataset) -> bool:
    """Whether rows tell where a response starts; plain text does not.

    Dialogues, and prompts with completions, do. Of other rows a few are rendered: tokens may bring a mask.
    """
    if renderer.formatting_func is None and {"messages", "conversations", "prompt"} & set(pool.column_names):
        return True
    sample = [row for row in renderer(pool[: min(_SAMPLE, len(pool))]) if row.status is RowStatus.OK]
    if sample and not any(row.boundary for row in sample):
        logger.warning(
            "The rows are plain text: where the response starts is not known, so `response_mean` over the whole "
            "text is read in place of `response_start`."
        )
        return False
    return True
