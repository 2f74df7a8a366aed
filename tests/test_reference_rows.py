"""The reference set: whole, varied, our own, and its form does not give the labels away."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from saft_hf.assets import reference_columns, reference_path

WORDS_IN_A_ROW = 9
FORM: dict[str, Callable[[str], float]] = {
    "characters": len,
    "words": lambda text: len(text.split()),
    "lines": lambda text: text.count("\n"),
    "question marks": lambda text: text.count("?"),
    "exclamation marks": lambda text: text.count("!"),
    "commas": lambda text: text.count(","),
    "digits": lambda text: sum(character.isdigit() for character in text),
    "list marks": lambda text: len(re.findall(r"^\s*(?:[-*]|\d+\.) ", text, re.MULTILINE)),
}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    columns = reference_columns()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def grams(text: str) -> NDArray[np.uint64]:
    """A number for every run of words, equal for equal runs."""
    words = np.array([hash(word) for word in re.findall(r"[a-z0-9']+", text.lower())], dtype=np.int64).view(np.uint64)
    runs = np.zeros(max(0, words.size - WORDS_IN_A_ROW + 1), dtype=np.uint64)
    for i in range(WORDS_IN_A_ROW):
        runs = runs * np.uint64(1_000_003) + words[i : i + runs.size]
    return runs


@pytest.mark.smoke
def test_the_set_is_whole(rows: list[dict]) -> None:
    assert len(rows) == len(reference_path().read_text(encoding="utf-8").splitlines()) == 200
    for row in rows:
        assert row.keys() == {"prompt", "completion", "is_harmful", "category", "format"}
        assert type(row["is_harmful"]) is bool
        assert row["prompt"].strip() == row["prompt"] != ""
        assert row["completion"].strip() == row["completion"] != ""
    for column in ("prompt", "completion"):
        assert len({re.sub(r"\W+", " ", row[column].lower()) for row in rows}) == 200


def test_each_category_has_every_format_in_both_classes(rows: list[dict]) -> None:
    counts = Counter((row["category"], row["format"], row["is_harmful"]) for row in rows)
    assert set(counts.values()) == {1}
    assert len({category for category, _, _ in counts}) == len({form for _, form, _ in counts}) == 10


@pytest.mark.parametrize("form", FORM)
@pytest.mark.parametrize("column", ["prompt", "completion"])
def test_form_does_not_tell_the_classes_apart(rows: list[dict], column: str, form: str) -> None:
    harmful = np.array([row["is_harmful"] for row in rows])
    values = np.array([float(FORM[form](row[column])) for row in rows])
    assert 0.4 < roc_auc_score(harmful, values) < 0.6


def test_alarming_words_stand_in_benign_rows_too(rows: list[dict]) -> None:
    benign = " ".join(row["prompt"].lower() for row in rows if not row["is_harmful"])
    for word in ("kill", "robbers", "gunpowder", "medicine", "aspirin"):
        assert word in benign


def test_no_passage_is_copied_from_real_data(rows: list[dict], shared_dir: Path) -> None:
    ours = np.unique(np.concatenate([grams(row[column]) for row in rows for column in ("prompt", "completion")]))
    assert len(ours) > 5_000
    for file in sorted((shared_dir / "data").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            theirs = [grams(turn["content"]) for line in lines for turn in json.loads(line)["messages"]]
        assert not np.isin(np.concatenate(theirs), ours).any(), file.name
