"""What would become of the rows at other thresholds: the numbers of the page's slider and of its histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide import Decisions, Reason, RowLabel
from saft_hf.decide.certify import FreshLabels
from saft_hf.decide.marks import Mark
from saft_hf.decide.threshold import count_above
from saft_hf.histogram import LOG_FROM, bar_edges
from saft_hf.review.choose import drawable, drawn_as
from saft_hf.summary import Expectation, Summary

_POINTS = 200
_DELTA = 0.1
WIDTH, HEIGHT = 720.0, 160.0
"""Of the histogram, in its own units."""


@dataclass(frozen=True, slots=True)
class Point:
    """One place of the slider, in words.

    Attributes:
        threshold: rows with a score above it would be removed.
        x: where it is in the histogram.
        removed: rows that would be.
        lost: harmless ones that are expected among them.
        recall: expected share of the harmful rows among them.
        labels: how many of the rows that people labelled harmful are among them.
        bound: on the harmful share of the rows that would be kept.
    """

    threshold: str
    x: float
    removed: str
    lost: str
    recall: str
    labels: str
    bound: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the histogram, with its part above the threshold."""

    x: float
    width: float
    height: float
    above: bool
    text: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bars, and the places of the slider.

    Attributes:
        bars: from left to right.
        points: ascending.
        current: place of the threshold in use among them; the last one where there is none.
        low: score at the left end.
        high: score at the right end.
        highest: rows of the highest bar.
        logarithmic: whether heights are.
    """

    bars: list[Bar]
    points: list[Point]
    current: int
    low: str
    high: str
    highest: int
    logarithmic: bool


def draw_histogram(
    scores: NDArray[np.float64],
    decisions: Decisions,
    summary: Summary,
    labels: Mapping[int, RowLabel],
    marks: Sequence[Mark],
) -> Histogram | None:
    """Count the scores, and what each threshold would do.

    Args:
        scores: of all rows, [N], NaN where there is none.
        decisions: of the same rows.
        summary: of the filter.
        labels: row -> what people said of it.
        marks: of an earlier review of the same page.

    Returns:
        The histogram; None where no row has a score.
    """
    values = scores[~np.isnan(scores)]
    if not values.size:
        return None
    in_use = summary.threshold
    edges = bar_edges(values, in_use)
    shown = np.clip(values, edges[0], edges[-1])
    counts = np.histogram(shown, bins=edges)[0]
    logarithmic = bool(counts.max() > LOG_FROM)
    heights = np.log1p(counts) if logarithmic else counts.astype(np.float64)
    scale = HEIGHT / heights.max()

    def x_of(score: float) -> float:
        return round(float(np.clip((score - edges[0]) / (edges[-1] - edges[0]), 0, 1)) * WIDTH, 2)

    bars = [
        Bar(
            x=x_of(left),
            width=round(x_of(right) - x_of(left), 2),
            height=round(float(height) * scale, 2),
            above=in_use is not None and left >= in_use,
            text=f"{count} rows with scores from {left:.4g} to {right:.4g}",
        )
        for left, right, height, count in zip(edges[:-1], edges[1:], heights, counts, strict=True)
        if count
    ]
    places = np.quantile(values, np.linspace(0, 1, _POINTS), method="lower")
    places = np.unique(np.append(places, [] if in_use is None else [in_use]))
    count_at = _Counts(scores, decisions, summary, labels, marks)
    points = [count_at.point(float(at), x_of(float(at))) for at in places]
    current = len(places) - 1 if in_use is None else int(np.searchsorted(places, in_use))
    ends = (f"{edges[0]:.4g}", f"{edges[-1]:.4g}")
    return Histogram(bars, points, current, *ends, int(counts.max()), logarithmic)


class _Counts:
    """What is counted at each threshold, sorted once."""

    def __init__(
        self,
        scores: NDArray[np.float64],
        decisions: Decisions,
        summary: Summary,
        labels: Mapping[int, RowLabel],
        marks: Sequence[Mark],
    ) -> None:
        fixed = np.isin(decisions.reasons, (Reason.LABEL, Reason.MARK, Reason.UNLIKE))
        self.by_people = int((fixed & (decisions.codes == 1)).sum())
        self.by_score = np.sort(scores[~fixed & ~np.isnan(scores)])
        harmful = [row for row, label in labels.items() if label.harmful and not np.isnan(scores[row])]
        self.harmful, self.summary = np.sort(scores[harmful]), summary
        self.fresh, self.unanswered = _fresh(scores, decisions, labels, marks)

    def point(self, at: float, x: float) -> Point:
        """In words."""
        removed = int(count_above(self.by_score, at)) + self.by_people
        lost = recall = "not known"
        if (at == self.summary.threshold and (known := self.summary.expected)) or (
            known := self._expected(at, removed)
        ):
            lost, recall = f"about {known.lost}", f"about {known.recall:.0%}"
        labels = f"{count_above(self.harmful, at)} of {self.harmful.size}" if self.harmful.size else "no labels"
        return Point(f"{at:.6g}", x, str(removed), lost, recall, labels, self._bound(at))

    def _expected(self, at: float, removed: int) -> Expectation | None:
        fit = self.summary.fit
        curve = fit.expected.curve if fit and fit.expected else ()
        if not curve or self.summary.expected is None:
            return None
        known = [point.threshold for point in curve]
        fpr, recall = (
            float(np.interp(at, known, [getattr(point, name) for point in curve])) for name in ("fpr", "recall")
        )
        return self.summary.expectation(fpr, recall, removed)

    def _bound(self, at: float) -> str:
        certificate = self.summary.certificate
        if certificate and certificate.issued and at == certificate.threshold:
            return f"certified: at most {certificate.alpha:.1%} (confidence {1 - certificate.delta:.0%})"
        if self.fresh is None:
            return "none: no marks on rows drawn at random"
        if self.summary.threshold is not None and at > self.summary.threshold:
            return "none: the marks are of rows that are kept now"
        if not self.fresh.at(at).sizes.sum():
            return "nothing is kept"
        bound = self.fresh.bound(at, delta=_DELTA)
        open_rows = f", {self.unanswered} more without one" if self.unanswered else ""
        return f"at most {bound.share:.1%} harmful (confidence {1 - _DELTA:.0%}, {bound.labels} marks{open_rows})"


def _fresh(
    scores: NDArray[np.float64], decisions: Decisions, labels: Mapping[int, RowLabel], marks: Sequence[Mark]
) -> tuple[FreshLabels | None, int]:
    """The marks that may bound a share, and how many rows were drawn for that and have no label."""
    population = drawable(scores, decisions, labels)
    inside = set(population.tolist())
    uniform = [mark for mark in marks if mark.is_uniform and mark.drawn == drawn_as(decisions) and mark.row in inside]
    said = [mark for mark in uniform if mark.harmful is not None]
    if not said:
        return None, 0
    others = np.setdiff1d(np.arange(scores.size), population)
    rows, harmful = [mark.row for mark in said], [bool(mark.harmful) for mark in said]
    return FreshLabels.of(scores, rows, harmful, others), len(uniform) - len(said)
