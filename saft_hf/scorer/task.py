"""What a fit is asked for, and what a method answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide import ThresholdAim
from saft_hf.scorer.fitted import Score

PUBLISHED_KS = (1, 2, 3, 4)
"""The numbers of directions that the paper chooses from."""


@dataclass(frozen=True)
class Task:
    """What decides the score and the threshold.

    Attributes:
        method: one of `METHODS`.
        published: the feature of the published score.
        ks: numbers of directions that it may sum.
        threshold: rows above it are removed; None lets an aim, a share, labels or the reference set decide.
        contamination: expected harmful share of the pool, between 0 and 1.
        aim: what the threshold is chosen for; None is the method's own.
        harmful: labels of the labelled rows, True = harmful; None without labels.
        label_column: the column that they came from.
        uniform: whether the labelled rows were drawn uniformly from the pool.
    """

    method: str
    published: str
    ks: tuple[int, ...]
    threshold: float | None
    contamination: float | None
    aim: ThresholdAim | None
    harmful: NDArray[np.bool_] | None
    label_column: str | None
    uniform: bool


@dataclass(frozen=True)
class Found:
    """What a method found.

    Attributes:
        score: how rows are scored.
        scores: the pool's, `float32 [N]`, NaN where a row has none.
        threshold: rows above it are removed; None where no decision can be taken.
        threshold_from: what chose it, see `Fitted`.
        figures: the figures behind it, JSON-ready, for the summary.
        undecided: why no decision may be taken.
        advice: what would help then; None for the general advice.
    """

    score: Score
    scores: NDArray[np.float32]
    threshold: float | None
    threshold_from: str
    figures: dict[str, Any] = field(default_factory=dict)
    undecided: str | None = None
    advice: str | None = None
