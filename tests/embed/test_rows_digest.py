"""Equal rows have one digest, however they are stored; any other rows have another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value, concatenate_datasets

from saft_hf.embed.rows_digest import rows_digest

N = 2500  # more than two batches


def columns() -> dict[str, list[Any]]:
    draw = np.random.default_rng(0)
    sizes = draw.integers(0, 9, N).tolist()
    return {
        "text": [None if n == 3 else "né " * n for n in sizes],
        "number": [None if n == 4 else n for n in sizes],
        "flag": [None if n == 5 else n % 2 == 0 for n in sizes],
        "messages": [None if n == 6 else [{"role": "user", "content": "x" * n}] * (n % 3) for n in sizes],
    }


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return Dataset.from_dict(columns())


def test_storage_does_not_matter(rows: Dataset, tmp_path: Any) -> None:
    shuffled = rows.add_column("order", list(range(N))).shuffle(seed=1)
    parts = [rows.select(range(7)), rows.select(np.arange(7, 1100)), rows.select(range(1100, N))]
    rows.to_parquet(tmp_path / "rows.parquet")
    same = {
        "sorted again": shuffled.sort("order").remove_columns("order"),
        "parts": concatenate_datasets(parts),
        "columns in another order": rows.select_columns(rows.column_names[::-1]),
        "another format": rows.with_format("numpy"),
        "file": Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path)),
    }
    for how, dataset in same.items():
        assert rows_digest(dataset) == rows_digest(rows), how


def test_other_rows_have_another_digest(rows: Dataset) -> None:
    digests = {
        rows_digest(rows),
        rows_digest(rows.select(range(N - 1))),
        rows_digest(rows.select([1, 0, *range(2, N)])),
    }
    digests.add(rows_digest(rows.rename_column("text", "other")))
    cells = {"text": "other", "number": 99, "flag": None, "messages": [{"role": "user", "content": ""}]}
    for row in (0, 1500, N - 1):
        for name, value in cells.items():
            changed = columns()
            assert changed[name][row] != value
            changed[name][row] = value
            digests.add(rows_digest(Dataset.from_dict(changed, features=rows.features)))
    assert len(digests) == 4 + 3 * len(cells)


def test_only_the_columns_that_count_do(rows: Dataset) -> None:
    more = rows.add_column("score", np.arange(N))
    assert rows_digest(more, rows.column_names) == rows_digest(rows) != rows_digest(more)


def test_images_are_not_decoded() -> None:
    broken = Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": None}], "text": ["one"]},
        features=Features({"image": Image(), "text": Value("string")}),
    )
    assert rows_digest(broken) != rows_digest(broken, ["text"])
    assert rows_digest(broken.select([])) != rows_digest(broken)
