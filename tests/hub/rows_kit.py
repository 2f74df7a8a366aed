"""Rows, and results of a filter, without a model: made in the processes of the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from saft_hf import FilterResult
from saft_hf.decide import decide
from saft_hf.errors import SAFTError
from saft_hf.summary import FitMetrics, LabelCounts, PoolCounts, Provenance, Summary

FEATURES = Features(
    {
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "topic": ClassLabel(names=["tea", "rain"]),
        "weight": Value("float32"),
    }
)
SUMMARY = Summary(
    filtered=True,
    method="saft",
    model="me/model",
    layers=(2,),
    readouts=("response_start",),
    k=1,
    threshold=0.75,
    threshold_from="f1",
    fit=FitMetrics(
        pool=PoolCounts(rows=40, scored=39, unique=39, unscored={"truncated": 1}, flagged=10),
        labels=LabelCounts(rows=10, harmful=3, column="is_safe"),
    ),
    provenance=Provenance(
        created="2026-01-01T00:00:00+00:00", input="/home/alice/rows.jsonl", model="/home/alice/model"
    ),
)


def make_rows(word: str = "plain", count: int = 40) -> Dataset:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{word} question {i}"},
                {"role": "assistant", "content": f"{word} answer {i}, REMOVEDTEXT" if i % 4 == 3 else f"answer {i}"},
            ],
            "topic": i % 2,
            "weight": i / 8,
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows, features=FEATURES)


def make_result(word: str = "plain", count: int = 40) -> FilterResult:
    """Every fourth row is removed; the first is errored."""
    scores = np.asarray([0.01 * i + (i % 4 == 3) for i in range(count)], dtype=np.float32)
    scores[0] = np.nan
    statuses = ["truncated"] + ["ok"] * (count - 1)
    return FilterResult(make_rows(word, count), scores, statuses, decide(scores, statuses, 0.75), SUMMARY)


def push(result: FilterResult, repo_id: str, **options: Any) -> dict[str, Any]:
    try:
        return {"oid": result.push_to_hub(repo_id, **options).oid}
    except (SAFTError, OSError) as error:
        return {"error": type(error).__name__, "message": str(error)}
