"""What a trainer was asked to filter, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.result import FilterResult
from saft_hf.scorer import SCORE, STATUS, SAFTScorer
from saft_hf.train.config import setting
from saft_hf.train.stream import StreamFilter

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Request:
    """What a trainer was called with, as far as the filter needs it."""

    model: Any
    args: Any
    dataset: Any
    processing_class: Any
    quantization_config: Any
    formatting_func: Any
    labelled: Dataset | None
    scorer: SAFTScorer | str | Path | None
    fresh_labels: Dataset | None = None
    eval_dataset: Any = None

    def get(self, name: str) -> Any:
        """An option, without its prefix `saft_`."""
        return setting(self.args, f"saft_{name}")

    @property
    def decides(self) -> bool:
        """Whether anything was given to decide rows by."""
        given = (self.labelled, self.fresh_labels, self.scorer, self.get("contamination"), self.get("threshold"))
        return bool(self.get("trust_scores")) or any(value is not None for value in given)

    @property
    def keeps_on_undecided(self) -> bool:
        """Whether every row stays where none can honestly be told harmful: by default where nothing was asked for."""
        asked = self.get("on_undecided")
        return bool(asked == "keep" or (asked is None and not self.decides))


@dataclass
class Filtered:
    """What training starts with.

    Attributes:
        dataset: the rows to train on, of the type that was given.
        summary: counts and figures; `filtered` says whether any decision was taken, and where none was, `why`.
        result: of a dataset that was filtered.
        scorer: that the decisions come from.
        stream: of a stream that is filtered while the model trains.
        eval_dataset: the rows to evaluate on, as they were given unless they were to be filtered.
        eval_results: name of a set -> what its scores say, where it was to be scored.
    """

    dataset: Any
    summary: dict[str, Any]
    result: FilterResult | None = None
    scorer: SAFTScorer | None = None
    stream: StreamFilter | None = None
    eval_dataset: Any = None
    eval_results: dict[str, FilterResult] = field(default_factory=dict)


def without_scores(dataset: Any) -> Any:
    """Score columns that came with the data are neither used nor handed on."""
    found = [name for name in (SCORE, STATUS) if name in (dataset.column_names or ())]
    return dataset.remove_columns(found) if found else dataset


def quantiles(scores: NDArray[np.float32]) -> dict[str, float]:
    """Quantiles of the scores that are there, by name; none where there is none."""
    scored = scores[~np.isnan(scores)]
    figures = np.quantile(scored, _QUANTILES).tolist() if len(scored) else []
    return dict(zip(map(str, _QUANTILES), figures, strict=False))
