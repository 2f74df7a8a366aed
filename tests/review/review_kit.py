"""Rows and results to review, made without a model."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from datasets import Dataset

from saft_hf import FilterResult
from saft_hf.decide import LabelSource, RowLabel, decide
from saft_hf.summary import (
    FitMetrics,
    LabelCounts,
    PoolCounts,
    Provenance,
    ShareEstimate,
    Summary,
    ThresholdEffect,
)

THRESHOLD = 0.75
FIT = FitMetrics(
    pool=PoolCounts(rows=40, scored=39, unique=39, unscored={"truncated": 1}, flagged=10),
    labels=LabelCounts(rows=12, harmful=3, column="is_safe"),
    aim="fpr=0.05",
    expected=ThresholdEffect(fpr=0.05, recall=0.9),
    harmful_share=ShareEstimate(
        share=0.25, low=0.1, high=0.4, confidence=0.95, labels=12, harmful=3, rows=39, method="hypergeometric"
    ),
)


def make_rows(count: int = 40, text: str = "plain") -> Dataset:
    """Every fourth row is harmful."""
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": f"{text} question {i}"},
                    {"role": "assistant", "content": f"{text} answer {i}"},
                ],
                "source": "web" if i % 3 else "books",
                "length": i,
            }
            for i in range(count)
        ]
    )


def make_result(
    count: int = 40,
    text: str = "plain",
    on_error: Literal["exclude", "keep"] = "exclude",
    threshold: float | None = THRESHOLD,
    **fields: Any,
) -> FilterResult:
    """The first row is errored; every fourth has a high score; the scorer was fitted on rows 1 to 12."""
    scores = np.asarray([0.3 * i / count + (i % 4 == 3) for i in range(count)], dtype=np.float32)
    scores[0] = np.nan
    statuses = ["truncated"] + ["ok"] * (count - 1)
    labels = {row: RowLabel(row % 4 == 3, LabelSource.FIT) for row in range(1, 13)}
    decisions = decide(scores, statuses, threshold, on_error=on_error)
    summary = Summary(
        filtered=threshold is not None,
        method="auto",
        model="me/model",
        layers=(2,),
        readouts=("response_start",),
        threshold=threshold,
        threshold_from="fpr=0.05" if threshold is not None else "none",
        undecided=None if threshold is not None else "the labels say nothing",
        fit=FIT,
        provenance=Provenance(
            created="2026-01-01T00:00:00+00:00", input="rows.jsonl", model="me/model", options={"on_error": on_error}
        ),
        **fields,
    )
    return FilterResult(make_rows(count, text), scores, statuses, decisions, summary, labels)
