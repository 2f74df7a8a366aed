"""Estimates of the harmful share of a population, and of the part of it that is kept, from labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtri
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression

from saft_hf.decide.exact import upper_limit
from saft_hf.decide.fresh import Counts, FreshLabels, check_chance
from saft_hf.errors import SAFTInputError

_FOLDS = 5
_NO_LABEL = "no fresh label falls on a scored row: label rows that have a score"


@dataclass(frozen=True, slots=True)
class ShareEstimate:
    """A harmful share with its confidence interval.

    Attributes:
        share: The estimate.
        low: Lower end of the interval.
        high: Upper end.
        confidence: Of the interval.
        labels: Labels it rests on.
        harmful: Harmful ones among them.
        rows: Rows it is about; None where their number is not known.
        method: `clopper-pearson`, `hypergeometric`, `stratified` or `prediction-powered`.
    """

    share: float
    low: float
    high: float
    confidence: float
    labels: int
    harmful: int
    rows: int | None
    method: str

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        return asdict(self)

    def says(self) -> str:
        """A phrase for a report, such as "4.0 % (1.1 to 9.9 %)"."""
        return f"{self.share:.1%} ({self.low:.1%} to {self.high:.1%}, confidence {self.confidence:.0%})"


@dataclass(frozen=True, slots=True)
class ShareReport:
    """The harmful share before and after filtering.

    Attributes:
        before: Of the population: scored rows less those labelled for fitting.
        after: Of those of them that are kept; None where no label falls among the kept rows.
        before_predicted: `before`, with the scores helping; None where labels were drawn in strata.
        after_predicted: `after`, with the scores helping; None likewise.
    """

    before: ShareEstimate
    after: ShareEstimate | None
    before_predicted: ShareEstimate | None
    after_predicted: ShareEstimate | None

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        return asdict(self)

    def says(self) -> str:
        """One sentence for a report."""
        helped = [share.says() if share else "unknown" for share in (self.before_predicted, self.after_predicted)]
        plain = f"Estimated harmful share before filtering: {self.before.says()}, after: "
        plain += self.after.says() if self.after else "unknown, no label falls among the kept rows"
        return plain + (f"; with the scores helping {helped[0]} and {helped[1]}." if self.before_predicted else ".")


def clopper_pearson(harmful: int, labels: int, *, confidence: float = 0.95) -> ShareEstimate:
    """A share and its exact binomial interval, from labels drawn uniformly.

    Args:
        harmful: Harmful rows among the labelled ones.
        labels: Labelled rows, at least 1.
        confidence: Of the interval, between 0 and 1.

    Returns:
        The estimate. Its coverage is at least `confidence`, whatever the share.

    Raises:
        SAFTInputError: The counts do not fit, or `confidence` is out of range.

    Source: Clopper and Pearson, *Biometrika* 26 (1934).

    Example:
        >>> found = clopper_pearson(4, 100)
        >>> round(found.low, 4), round(found.high, 4)
        (0.011, 0.0993)
    """
    check_chance("confidence", confidence)
    if not 0 <= harmful <= labels or labels < 1:
        raise SAFTInputError(f"harmful must lie between 0 and labels, labels be 1 or more; found {harmful} of {labels}")
    side = (1 - confidence) / 2
    return ShareEstimate(
        share=harmful / labels,
        low=float(beta.ppf(side, harmful, labels - harmful + 1)) if harmful else 0.0,
        high=float(beta.ppf(1 - side, harmful + 1, labels - harmful)) if harmful < labels else 1.0,
        confidence=confidence,
        labels=int(labels),
        harmful=int(harmful),
        rows=None,
        method="clopper-pearson",
    )


def harmful_shares(
    scores: ArrayLike,
    fresh_rows: ArrayLike,
    harmful: ArrayLike,
    threshold: float,
    *,
    confidence: float = 0.95,
    excluded: ArrayLike | None = None,
    strata: Sequence[Any] | NDArray[Any] | None = None,
) -> ShareReport:
    """Estimate the harmful share before and after filtering, from labels that did not choose the threshold.

    The intervals are exact for a population of known size: Clopper and Pearson's with the hypergeometric
    distribution in place of the binomial, each side at half the error; with `strata`, the same from the combined test
    (module `exact`), and the estimate weighs each stratum by its rows.

    Args:
        scores: Scores of all rows, [D]; NaN where there is none.
        fresh_rows: Labelled rows, indices into `scores`, int [m]: drawn uniformly without replacement, with `strata`
            from each stratum, and used for no choice before.
        harmful: Their labels, bool [m], True where harmful.
        threshold: Rows with a score above it are removed.
        confidence: Of each interval, between 0 and 1.
        excluded: Rows whose labels were used for fitting, indices into `scores`: not counted.
        strata: A value for each row, [D], where each stratum was sampled on its own.

    Returns:
        The shares, each also with the scores helping (`prediction_powered`) where labels allow it.

    Raises:
        SAFTInputError: An argument is not what it must be, or no label falls on a scored row.

    Example:
        >>> scores = np.arange(1000)
        >>> report = harmful_shares(scores, scores[::10], scores[::10] >= 800, threshold=799.0)
        >>> report.before.says(), report.after.says()
        ('20.0% (13.0% to 28.7%, confidence 95%)', '0.0% (0.0% to 4.2%, confidence 95%)')
    """
    check_chance("confidence", confidence)
    sample = FreshLabels.of(scores, fresh_rows, harmful, excluded, strata)
    counts = sample.at([threshold, np.inf])
    if not counts.labels[1].sum():
        raise SAFTInputError(_NO_LABEL)
    before = _exact(counts, 1, confidence)
    after = _exact(counts, 0, confidence) if counts.labels[0].sum() else None
    if len(sample.groups) > 1:
        return ShareReport(before=before, after=after, before_predicted=None, after_predicted=None)
    whole, fresh, labels = sample.groups[0], sample.fresh[0], sample.harmful[0]
    kept, inside = whole[whole <= threshold], fresh <= threshold
    return ShareReport(
        before=before,
        after=after,
        before_predicted=_predicted(whole, fresh, labels, confidence),
        after_predicted=_predicted(kept, fresh[inside], labels[inside], confidence) if after else None,
    )


def prediction_powered(
    scores: ArrayLike,
    fresh_rows: ArrayLike,
    harmful: ArrayLike,
    *,
    confidence: float = 0.95,
    excluded: ArrayLike | None = None,
) -> ShareEstimate:
    """Estimate the harmful share of the population from fresh labels, with the scores of all rows helping.

    The labels' mean is corrected by how far the labelled rows' predictions lie from the population's. Predictions are
    probabilities by a logistic curve over the rank of the score, fitted to the same labels in five folds and used on
    the fold left out. Power tuning weighs the correction from 0, where scores do not help, to 1. All rows have
    predictions, so the only error left is the labelled residuals'. The interval is Clopper and Pearson's at the
    number of plain labels that would give the same variance, to which one unseen wrong prediction is added: the
    normal interval is too short where harmful rows are few. It is approximate: coverage is shown by simulation.

    Args:
        scores: Scores of all rows, [D]; NaN where there is none.
        fresh_rows: Labelled rows, indices into `scores`, int [m], drawn uniformly without replacement and used for no
            choice before.
        harmful: Their labels, bool [m], True where harmful.
        confidence: Of the interval, between 0 and 1.
        excluded: Rows whose labels were used for fitting, indices into `scores`: not counted.

    Returns:
        The estimate.

    Raises:
        SAFTInputError: An argument is not what it must be, or no label falls on a scored row.

    Source: Angelopoulos, Duchi and Zrnic, *PPI++*, arXiv 2311.01453, with cross-fitting (Zrnic and Candes, arXiv
    2309.16598); effective labels: Korn and Graubard, *Survey Methodology* 24 (1998).

    Example:
        >>> scores = np.arange(1000)
        >>> prediction_powered(scores, scores[::10], scores[::10] >= 800).says()
        '20.4% (16.6% to 24.7%, confidence 95%)'
    """
    check_chance("confidence", confidence)
    sample = FreshLabels.of(scores, fresh_rows, harmful, excluded)
    if not sample.fresh[0].size:
        raise SAFTInputError(_NO_LABEL)
    return _predicted(sample.groups[0], sample.fresh[0], sample.harmful[0], confidence)


def _exact(counts: Counts, at: int, confidence: float) -> ShareEstimate:
    sizes, labels, harmful = counts.sizes[at], counts.labels[at], counts.harmful[at]
    rows, side = int(sizes.sum()), (1 - confidence) / 2
    rates = harmful / np.maximum(labels, 1)
    # A stratum without labels is taken at the rate of all others.
    rates[labels == 0] = np.average(rates, weights=sizes * (labels > 0))
    return ShareEstimate(
        share=float(rates @ sizes) / rows,
        low=(rows - upper_limit(side, sizes, labels, labels - harmful)) / rows,
        high=upper_limit(side, sizes, labels, harmful) / rows,
        confidence=confidence,
        labels=int(labels.sum()),
        harmful=int(harmful.sum()),
        rows=rows,
        method="hypergeometric" if sizes.size == 1 else "stratified",
    )


def _predicted(
    ordered: NDArray[np.float64], fresh: NDArray[np.float64], harmful: NDArray[np.bool_], confidence: float
) -> ShareEstimate:
    """PPI++ for a finite population, with predictions fitted across folds; `ordered` and `fresh` are sorted scores."""
    labels, rows = harmful.astype(np.float64), ordered.size
    m = labels.size
    shifts = _shifts(ordered, fresh, harmful)
    spread = shifts @ shifts
    weight = float(np.clip(shifts @ (labels - labels.mean()) / spread, 0, 1)) if spread else 0.0
    parts = labels - weight * shifts
    share = float(np.clip(parts.mean(), 0, 1))
    residual = parts - parts.mean()
    variance = (1 - m / rows) * (residual @ residual / m + weight / m) / m
    plain = m if share in (0, 1) or variance == 0 else max(m, share * (1 - share) / variance)
    side = (1 - confidence) / 2
    hits = share * plain
    return ShareEstimate(
        share=share,
        low=float(beta.ppf(side, hits, plain - hits + 1)) if hits > 0 else 0.0,
        high=float(beta.ppf(1 - side, hits + 1, plain - hits)) if hits < plain else 1.0,
        confidence=confidence,
        labels=m,
        harmful=int(harmful.sum()),
        rows=rows,
        method="prediction-powered",
    )


def _shifts(
    ordered: NDArray[np.float64], fresh: NDArray[np.float64], harmful: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Each labelled row's prediction less the population's mean prediction, from a curve that did not see its label."""
    at = _normal_ranks(ordered, fresh)
    whole = _normal_ranks(ordered, ordered)
    fold = np.arange(fresh.size) % _FOLDS
    shifts = np.zeros(fresh.size)
    for one in range(_FOLDS):
        train, test = fold != one, fold == one
        if not test.any() or harmful[train].all() or not harmful[train].any():
            continue  # nothing to tell rows apart by: no correction
        curve = LogisticRegression().fit(at[train, None], harmful[train])
        slope, offset = curve.coef_[0, 0], curve.intercept_[0]
        shifts[test] = expit(slope * at[test] + offset) - expit(slope * whole + offset).mean()
    return shifts


def _normal_ranks(ordered: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal quantiles of the values' ranks among the ordered ones: one giant score cannot bend the curve."""
    ranks = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return np.asarray(ndtri(ranks / (2 * ordered.size)), dtype=np.float64)
