"""What a dataset's rows hold, in one digest: whether two datasets have the very same rows, however they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Number
from pathlib import PurePath
from typing import Any

import pyarrow as pa
from datasets import Dataset

_BATCH = 1024


def rows_digest(dataset: Dataset, columns: Sequence[str] | None = None) -> str:
    """SHA-256 (hex) of the rows, in order.

    Chunks and index mappings do not matter, nor does the order of the columns. Images and audio are not decoded.

    Args:
        dataset: the rows.
        columns: those that count, by default all.

    Examples:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"text": ["one", "two"]})
        >>> rows_digest(rows) == rows_digest(rows.select([1, 0]).select([1, 0]))
        True
    """
    names = sorted(dataset.column_names if columns is None else columns)
    # Raw Arrow: the features that decode a column are not asked.
    rows = dataset.select_columns(names).with_format("arrow")
    parts = [_digest(rows[first : first + _BATCH]) for first in range(0, len(rows), _BATCH)]
    types = [f"{name}: {rows.features[name]}" for name in names]
    return hashlib.sha256("\n".join([str(len(rows)), *types, *parts]).encode()).hexdigest()


def content_of(value: Any) -> object:
    """What tells in every process whether it was given the same: the rows of datasets, plain values, else the type."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Dataset):
        return rows_digest(value)
    if isinstance(value, Mapping):
        return {name: content_of(each) for name, each in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [content_of(each) for each in value]
    return value if value is None or isinstance(value, str | Number | PurePath) else type(value)


def _digest(table: pa.Table) -> str:
    # `take` writes new buffers: a slice's hold other rows, offsets, and anything at all where a value is null.
    arrays = [pa.concat_arrays(column.chunks).take(pa.array(range(len(table)))) for column in table.columns]
    batch = pa.record_batch(arrays, names=table.column_names)
    return hashlib.sha256(batch.serialize()).hexdigest()
