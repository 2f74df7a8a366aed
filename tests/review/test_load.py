"""A saved result is loaded as it was, beside the rows that were filtered and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from review_kit import make_result, make_rows

from saft_hf import FilterResult
from saft_hf.errors import SAFTInputError
from saft_hf.result import SUMMARY_FILE


@pytest.mark.parametrize("on_error", ["exclude", "keep"])
def test_a_result_is_loaded_as_it_was_saved(tmp_path: Path, on_error: Any) -> None:
    saved = make_result(on_error=on_error)
    saved.save(tmp_path / "out")
    loaded = FilterResult.load(tmp_path / "out", make_rows())
    assert loaded.summary == saved.summary
    assert (loaded.statuses, loaded.labels) == (saved.statuses, saved.labels)
    assert np.array_equal(loaded.scores, saved.scores, equal_nan=True)
    assert loaded.train_rows().to_list() == saved.train_rows().to_list()
    loaded.save(tmp_path / "again")
    for path in (tmp_path / "out").rglob("*.parquet"):
        assert (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (lambda rows: rows.select(range(39)), "the dataset has 39 rows"),
        (lambda rows: rows.select([0, 2, 1, *range(3, 40)]), r"another row 1 \(of 40 rows\)"),
        (lambda rows: rows.remove_columns("source"), "another row 0"),
    ],
)
def test_other_rows_are_refused(tmp_path: Path, other: Any, found: str) -> None:
    make_result().save(tmp_path / "out")
    rows: Dataset = other(make_rows())
    with pytest.raises(SAFTInputError, match=f"is about 40 rows, and .*{found}.* give the rows that were filtered"):
        FilterResult.load(tmp_path / "out", rows)


def test_a_damaged_summary_is_refused(tmp_path: Path) -> None:
    make_result().save(tmp_path / "out")
    path = tmp_path / "out" / SUMMARY_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": "many"}))
    with pytest.raises(SAFTInputError, match=r"saft_summary\.json is damaged \(rows: a str"):
        FilterResult.load(tmp_path / "out", make_rows())
