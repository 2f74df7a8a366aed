"""A batch in any format of `datasets` -> columns of Python values, each read only when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features
from datasets.formatting import PythonFormatter
from datasets.formatting.formatting import LazyBatch


class Columns(Mapping[str, Sequence[Any]]):
    """The columns of a batch. To read one may mean to decode it: no other is touched.

    Args:
        batch: column -> values, one for each row, as `map(batched=True)` gives it: a mapping of lists, arrays or
            tensors, an Arrow table, or a pandas or polars data frame.
    """

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        names = batch if isinstance(batch, Mapping) else getattr(batch, "column_names", None)
        self._names: list[str] = list(batch.columns if names is None else names)
        self._read: dict[str, Sequence[Any]] = {}

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self._read:
            self._read[name] = self._values(name)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def num_rows(self) -> int:
        """How many rows there are; no column is decoded for it where that can be."""
        table = getattr(self._batch, "pa_table", self._batch)
        if isinstance(table, Mapping):
            return len(next(iter(table.values()), ()))
        return len(table)

    def _values(self, name: str) -> Sequence[Any]:
        batch, features = self._batch, None
        if isinstance(batch, LazyBatch) and name in batch.keys_to_format:
            # From what the format was made of: tensors have fewer digits.
            batch, features = batch.pa_table, batch.formatter.features
        if isinstance(batch, pa.Table):
            features = features or Features.from_arrow_schema(batch.schema)
            column: list[Any] = PythonFormatter(features).format_column(batch.select([name]))
            return column
        values = plain(batch[name])
        # A data frame has NaN for null.
        return [None if isinstance(value, float) and value != value else value for value in values]


def plain(value: Any) -> Any:
    """Arrays, tensors and series, also within lists and dicts, as Python values."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        # Token ids are many, and the first tells of what kind they are.
        return value if value and type(value[0]) in (int, str) else [plain(item) for item in value]
    for name in ("to_pylist", "as_py", "tolist", "to_list"):
        if hasattr(value, name):
            items = getattr(value, name)()
            return items if type(items) is type(value) else plain(items)
    return value


class Rows:
    """The rows of a dataset, a batch at a time; only the columns that are read are loaded and decoded."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def mean_bytes(self) -> float:
        """Bytes of a row on average, in the columns that are read."""
        table = self._dataset.data
        return float(table.nbytes / max(1, table.num_rows))

    def __getitem__(self, rows: slice | range | list[int]) -> Columns:
        return Columns(self._dataset[rows])


class LazyRow(Mapping[str, Any]):
    """One row of a batch; a value is read when it is asked for."""

    def __init__(self, columns: Columns, number: int) -> None:
        self._columns = columns
        self._number = number

    def __getitem__(self, name: str) -> Any:
        return self._columns[name][self._number]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)
