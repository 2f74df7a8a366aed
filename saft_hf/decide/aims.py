"""Where to cut the scores for a chosen aim, from cross-validated scores of the labelled rows.

The published rule takes the maximum of a jagged curve: on 100 labels it keeps anything from 0.1 to 90 % of a pool. A
quantile of one class, or the maximum of a smoothed curve, moves little from one draw of labels to the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, ndtr

from saft_hf.decide.threshold import threshold_for_contamination
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.summary import CurvePoint, ThresholdEffect

_GRID = 512
_CURVE = 41  # thresholds that a report may ask about


class Goal(StrEnum):
    """What a threshold may be chosen for."""

    FPR = "fpr"
    """Lose this share of the benign rows on average over draws of the labels; with a confidence, no more than it."""
    RECALL = "recall"
    """Remove this share of the harmful rows, on average over draws of the labels."""
    SHARE = "share"
    """Remove at most this share of all rows: the contamination."""
    F1 = "f1"
    """The best F1 of the flag."""


@dataclass(frozen=True, slots=True)
class ThresholdAim:
    """A goal with its share: above 0 and below 1; None for F1.

    Attributes:
        goal: what is wanted.
        value: its share.
        confidence: for `fpr`, the share of draws of the labels in which no more is lost; None holds it on average.

    Raises:
        SAFTInputError: the share is missing, not needed, or out of range, or a confidence has no use.

    Examples:
        >>> ThresholdAim.parse("recall=0.9")
        ThresholdAim(goal=<Goal.RECALL: 'recall'>, value=0.9, confidence=None)
        >>> str(ThresholdAim.parse("fpr=0.05@0.9"))
        'fpr=0.05@0.9'
    """

    goal: Goal = Goal.FPR
    value: float | None = 0.05
    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.goal is Goal.F1:
            if self.value is not None:
                raise SAFTInputError(f"aim 'f1' takes no share; found {self.value}")
        elif self.value is None or not 0 < self.value < 1:
            raise SAFTInputError(
                f"aim '{self.goal}' needs a share above 0 and below 1, such as '{self.goal}=0.05'; found {self.value}"
            )
        if self.confidence is not None and (self.goal is not Goal.FPR or not 0 < self.confidence < 1):
            raise SAFTInputError(
                "aim 'fpr' alone takes a confidence, above 0 and below 1, such as 'fpr=0.05@0.9'; found "
                f"'{self.goal}' with {self.confidence}"
            )

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read `fpr=0.05`, `fpr=0.05@0.9`, `recall=0.9`, `share=0.1` or `f1`; None is the default, `fpr=0.05`.

        Raises:
            SAFTInputError: it is none of these.
        """
        if text is None:
            return cls()
        name, _, share = text.partition("=")
        share, at, sure = share.partition("@")
        try:
            goal, value = Goal(name.strip()), float(share) if share.strip() else None
            confidence = float(sure) if at else None
        except ValueError as error:
            raise SAFTInputError(
                "aim must be 'fpr=0.05', 'fpr=0.05@0.9' (with confidence 0.9), 'recall=0.9', 'share=0.1' (with your "
                f"numbers) or 'f1'; found {text!r}"
            ) from error
        return cls(goal, value, confidence)

    def __str__(self) -> str:
        share = "" if self.value is None else f"={self.value:g}"
        return f"{self.goal}{share}" if self.confidence is None else f"{self.goal}{share}@{self.confidence:g}"


@dataclass(frozen=True)
class ChosenThreshold:
    """A threshold, and what chose it. Rows with a score above it are flagged.

    Attributes:
        threshold: tau.
        threshold_from: the aim, or another word for what chose it.
        expected: what cross-validation says it does; None without labels. Where that is not attainable, the threshold
            is the score of the outermost labelled row.
    """

    threshold: float
    threshold_from: str
    expected: ThresholdEffect | None = None


def threshold_for_aim(
    aim: ThresholdAim,
    labelled_scores: ArrayLike,
    harmful: ArrayLike,
    pool_scores: ArrayLike,
    *,
    contamination: float | None = None,
) -> ChosenThreshold:
    """Choose the threshold for an aim.

    A share of one class is held on average over draws of the labels: with n scores of that class in order, a new one
    falls above the j-th with probability 1 - j / (n + 1), and between two of them the threshold is interpolated. In
    single draws the share above the j-th follows the Beta law of order statistics, B(n + 1 - j, j): with a confidence
    the threshold is the lowest one whose share is small enough in so many draws.

    Args:
        aim: what is wanted.
        labelled_scores: scores of the labelled rows by models that have not seen them, [m], or one line for each
            repeat of cross-validation, [repeats, m], on the scale of `pool_scores`.
        harmful: the labels, bool [m], True where harmful.
        pool_scores: the pool's scores, [N]; rows without one (NaN) are left out. Read for `share` only.
        contamination: harmful share of the pool, for F1; by default that of the labels, which must then have been
            drawn uniformly.

    Raises:
        SAFTInputError: shapes differ, or a share is out of range.
        SAFTUndecidedError: the labels are of one class only, or too few for the confidence.

    Examples:
        >>> scores, harmful = np.arange(40.0), np.arange(40) >= 39
        >>> threshold_for_aim(ThresholdAim.parse("fpr=0.1"), scores, harmful, scores).threshold
        35.0
    """
    repeats = np.atleast_2d(np.asarray(labelled_scores, dtype=np.float64))
    labels = np.asarray(harmful, dtype=np.bool_)
    if repeats.ndim != 2 or repeats.shape[1:] != labels.shape or not np.isfinite(repeats).all():
        raise SAFTInputError(
            f"labelled_scores must be finite, [{labels.size}] or [repeats, {labels.size}], one for each label; found "
            f"shape {list(np.shape(labelled_scores))}"
        )
    if labels.all() or not labels.any():
        raise SAFTUndecidedError(
            f"{int(labels.sum())} of {labels.size} labelled rows are harmful: a threshold needs rows of both classes. "
            "Label more rows, or give threshold or contamination"
        )
    benign, bad = np.sort(repeats[:, ~labels], axis=1), np.sort(repeats[:, labels], axis=1)
    attainable = True
    if aim.value is None:  # F1
        share = float(labels.mean()) if contamination is None else contamination
        if not 0 < share < 1:
            raise SAFTInputError(f"contamination must be between 0 and 1, such as 0.25; found {share}")
        threshold = _best_f1(benign, bad, share)
    elif aim.goal is Goal.SHARE:
        threshold = threshold_for_contamination(pool_scores, aim.value)
    else:
        ordered = benign if aim.goal is Goal.FPR else bad
        n = ordered.shape[1]
        rank = (1 - aim.value) * (n + 1) if aim.confidence is None else _sure_rank(n, aim.value, aim.confidence)
        attainable = bool(1 <= rank <= n)
        threshold = float(np.mean([np.interp(rank, np.arange(1, n + 1), line) for line in ordered]))
    curve = tuple(
        CurvePoint(threshold=at, fpr=_share_above(benign, at), recall=_share_above(bad, at))
        for at in np.unique(np.quantile(repeats, np.linspace(0, 1, _CURVE))).tolist()
    )
    fpr, recall = _share_above(benign, threshold), _share_above(bad, threshold)
    effect = ThresholdEffect(fpr=fpr, recall=recall, attainable=attainable, curve=curve)
    return ChosenThreshold(threshold, str(aim), effect)


def _sure_rank(n: int, value: float, confidence: float) -> int:
    """The lowest rank among n above which a share of at most `value` lies, with that confidence over their draws."""
    ranks = np.arange(1, n + 1)
    sure = np.flatnonzero(betainc(n + 1 - ranks, ranks, value) >= confidence)
    if not sure.size:
        needed = math.ceil(math.log1p(-confidence) / math.log1p(-value))
        raise SAFTUndecidedError(
            f"{n} benign labelled rows have a score, and aim 'fpr={value:g}@{confidence:g}' needs {needed}: label "
            f"about {needed - n} more benign rows, or ask for a lower confidence or a larger share"
        )
    return int(ranks[sure[0]])


def _share_above(ordered: NDArray[np.float64], threshold: float) -> float:
    """Probability that a new row of the class lies above, mean over repeats; between two rows interpolated."""
    n = ordered.shape[1]
    ranks = [np.interp(threshold, line, np.arange(1, n + 1), left=0.0, right=n + 1) for line in ordered]
    return float(1 - np.mean(ranks) / (n + 1))


def _best_f1(benign: NDArray[np.float64], bad: NDArray[np.float64], share: float) -> float:
    """The threshold of the best F1 when each class is spread by a normal kernel; the largest one of equals."""
    grid = np.linspace(min(benign.min(), bad.min()), max(benign.max(), bad.max()), _GRID)
    hits, false = (_smooth_above(scores, grid) for scores in (bad, benign))
    f1 = 2 * share * hits / (share + share * hits + (1 - share) * false)
    return float(grid[_GRID - 1 - int(np.argmax(f1[::-1]))])


def _smooth_above(scores: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    values, n = scores.ravel(), scores.shape[1]
    low, high = np.quantile(values, (0.25, 0.75))
    spread = min(float(values.std()), (high - low) / 1.349) or float(values.std())
    # Silverman's rule, a third wider: for the position of a maximum, steadiness counts more than detail. Repeats are no
    # more rows.
    width = 1.2 * spread * n**-0.2
    if width == 0:
        return np.asarray((values[:, None] > grid).mean(axis=0))
    return np.asarray(ndtr((values[:, None] - grid) / width).mean(axis=0))
