"""Fresh labels: rows that people labelled, drawn uniformly from the population and used for no choice before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.decide.certify.certificate import Certificate
from saft_hf.decide.certify.exact import Counts, upper_limit
from saft_hf.decide.certify.shares import check_chance, exact_share
from saft_hf.decide.certify.statements import Bound, ShareReport
from saft_hf.decide.certify.walk import kept_sets, walk
from saft_hf.errors import SAFTInputError, few


@dataclass(frozen=True, slots=True, eq=False)
class FreshLabels:
    """The population and its fresh labels, checked. Scores are sorted, so no order of rows is known here.

    Attributes:
        scores: the population's scores, float64 [N].
        strata: the same, one array a stratum.
        labelled: scores of the labelled rows, likewise.
        harmful: scores of the harmful ones among them, likewise.
        unscored: labelled rows that have no score: they are not of the population and left out.

    Examples:
        >>> scores = np.arange(1000)
        >>> fresh = FreshLabels.of(scores, fresh_rows=scores[::10], harmful=scores[::10] > 800)
        >>> fresh.certify(alpha=0.1).kept
        850
        >>> fresh.bound(threshold=499.0).most_harmful
        21
        >>> print(fresh.shares(threshold=799.0).after)
        0.0% (0.0% to 4.2%, confidence 95%)
    """

    scores: NDArray[np.float64]
    strata: tuple[NDArray[np.float64], ...]
    labelled: tuple[NDArray[np.float64], ...]
    harmful: tuple[NDArray[np.float64], ...]
    unscored: int

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        fresh_rows: ArrayLike,
        harmful: ArrayLike,
        excluded: ArrayLike | None = None,
        strata: Sequence[Any] | NDArray[Any] | None = None,
    ) -> Self:
        """Check the labels and take the population: rows with a score, less the excluded ones.

        Args:
            scores: scores of all rows, [D]; NaN where there is none, -inf for a row that every threshold keeps.
            fresh_rows: rows labelled for this, indices into `scores`, int [m]: drawn uniformly without replacement
                from the population (or all rows), with `strata` from each stratum, and used for no choice before.
            harmful: their labels, bool [m], True where harmful.
            excluded: rows whose labels were used for fitting, indices into `scores`: no part of any statement.
            strata: a value for each row, [D], where each stratum was sampled on its own, at whatever rate. The price
                is a larger p-value (module `exact`), so it pays where one was sampled far more than the others.

        Raises:
            SAFTInputError: an argument has another shape or type, rows are out of range or labelled twice, or were
                used for fitting too, or no row is left.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.ndim != 1:
            raise SAFTInputError(f"scores must be one number a row; found an array of shape {values.shape}")
        rows = _rows("fresh_rows", fresh_rows, values.size)
        labels = _labels(harmful, rows.size)
        used = _rows("excluded", () if excluded is None else excluded, values.size, repeats=True)
        if (both := np.intersect1d(rows, used)).size:
            raise SAFTInputError(
                f"{both.size} of {rows.size} fresh labels were used for fitting too (rows {few(both)}): a "
                "certificate needs labels that chose nothing. Draw and label other rows"
            )
        population = ~np.isnan(values)
        population[used] = False
        if not population.any():
            raise SAFTInputError("no row is left to make a statement about: every row lacks a score or is excluded")
        stratum = _strata(strata, values.size)
        scored = population[rows]
        members = [population & (stratum == one) for one in np.unique(stratum[population])]
        return cls(
            scores=np.sort(values[population]),
            strata=tuple(np.sort(values[inside]) for inside in members),
            labelled=tuple(np.sort(values[rows[inside[rows]]]) for inside in members),
            harmful=tuple(np.sort(values[rows[inside[rows] & labels]]) for inside in members),
            unscored=int(scored.size - scored.sum()),
        )

    def certify(
        self,
        *,
        alpha: float,
        delta: float = 0.1,
        errored_kept: int = 0,
        threshold: float | None = None,
        looks: int = 1,
    ) -> Certificate:
        """Certify the largest kept set whose harmful share is at most alpha, with confidence 1 - delta (module `walk`).

        The sets keep the lowest scores; rows with equal scores go together. Their sizes are multiples of 1/100 of the
        population, from 1/4 up. They start where labels with one harmful among them would pass (in 95 % of draws), or,
        where that takes more than half of the rows, labels with none: the scores, the number of labels, alpha and delta
        fix them.

        Args:
            alpha: largest harmful share, between 0 and 1.
            delta: chance that a certificate is issued and false, between 0 and 1.
            errored_kept: rows without a score that are trained on all the same; each counts as harmful.
            threshold: certify the rows kept at it and no other set: one test, no walk. These labels must not have
                chosen it, and may have been drawn from these rows alone.
            looks: how often, announced before the first label, labels will be added and certified again: each look
                has delta / looks.

        Returns:
            The certificate, or that there is none and about how many labels it would take.

        Raises:
            SAFTInputError: an argument is out of range.
        """
        check_chance("alpha", alpha)
        _check(delta, errored_kept)
        if isinstance(looks, bool) or not isinstance(looks, int) or looks < 1:
            raise SAFTInputError(f"looks must be a whole number, 1 or more; found {looks!r}")
        thresholds = kept_sets(self.scores) if threshold is None else np.array([threshold], dtype=np.float64)
        counts = self.at(thresholds)
        if not counts.sizes.sum():
            raise SAFTInputError(f"no scored row is kept at threshold {threshold}: there is nothing to certify")
        steps, needed = walk(thresholds, counts, alpha, delta / looks, errored_kept)
        return Certificate(
            alpha=float(alpha),
            delta=float(delta),
            population=self.scores.size,
            labels=int(counts.labels[-1].sum()),
            harmful_labels=int(counts.harmful[-1].sum()),
            unscored_labels=self.unscored,
            strata=len(self.strata),
            errored_kept=int(errored_kept),
            unlike=int(np.isneginf(self.scores).sum()),
            steps=steps,
            labels_needed=needed,
            looks=looks,
        )

    def bound(self, threshold: float, *, delta: float = 0.1, errored_kept: int = 0) -> Bound:
        """Bound the harmful share of the rows kept at a threshold, with confidence 1 - delta.

        Args:
            threshold: rows with a score above it are removed. It must not depend on these labels.
            delta: chance that the bound is false, between 0 and 1.
            errored_kept: rows without a score that are trained on all the same; each counts as harmful.

        Raises:
            SAFTInputError: an argument is out of range, or no row is kept at the threshold.
        """
        _check(delta, errored_kept)
        sizes, labels, harmful = self.at(threshold).of(0)
        if not sizes.sum():
            raise SAFTInputError(f"no scored row is kept at threshold {threshold}: there is nothing to bound")
        return Bound(
            threshold=float(threshold),
            delta=float(delta),
            kept=int(sizes.sum()),
            errored_kept=int(errored_kept),
            labels=int(labels.sum()),
            harmful_labels=int(harmful.sum()),
            most_harmful=upper_limit(delta, sizes, labels, harmful) + int(errored_kept),
        )

    def shares(self, threshold: float, *, confidence: float = 0.95) -> ShareReport:
        """Estimate the harmful share before and after filtering.

        The intervals are exact for a population of known size: Clopper and Pearson's with the hypergeometric
        distribution, or the combined test of the strata (module `exact`); each stratum weighs by its rows.

        Args:
            threshold: rows with a score above it are removed. It must not depend on these labels.
            confidence: of each interval, between 0 and 1.

        Raises:
            SAFTInputError: `confidence` is out of range, or no label falls on a scored row.
        """
        check_chance("confidence", confidence)
        counts = self.at([threshold, np.inf])
        after, before = counts.labels.sum(axis=1)
        if not before:
            raise SAFTInputError("no fresh label falls on a scored row: label rows that have a score")
        return ShareReport(exact_share(counts, 1, confidence), exact_share(counts, 0, confidence) if after else None)

    def at(self, thresholds: ArrayLike) -> Counts:
        """Count the rows that are kept, score <= threshold, for each threshold, [J]."""
        at = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
        groups = (self.strata, self.labelled, self.harmful)
        return Counts(
            *(np.stack([np.searchsorted(one, at, side="right") for one in group], axis=1) for group in groups)
        )


def _check(delta: float, errored: int) -> None:
    check_chance("delta", delta)
    if errored < 0:
        raise SAFTInputError(f"errored_kept must be a number of rows, 0 or more; found {errored!r}")


def _rows(name: str, indices: ArrayLike, total: int, *, repeats: bool = False) -> NDArray[np.int64]:
    rows = np.asarray(indices)
    if rows.size == 0:  # of whatever type
        return np.zeros(0, dtype=np.int64)
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise SAFTInputError(f"{name} must be a list of row numbers; found {rows.dtype} of shape {rows.shape}")
    if (wrong := rows[(rows < 0) | (rows >= total)]).size:
        raise SAFTInputError(f"{name} must lie between 0 and {total - 1}, one less than the rows; found {few(wrong)}")
    unique, times = np.unique(rows, return_counts=True)
    if not repeats and unique.size < rows.size:
        raise SAFTInputError(
            f"{name} names {int((times > 1).sum())} rows more than once ({few(unique[times > 1])}): labels must be "
            "drawn without replacement. Give each row once"
        )
    return rows.astype(np.int64)


def _labels(harmful: ArrayLike, total: int) -> NDArray[np.bool_]:
    labels = np.asarray(harmful)
    if labels.shape != (total,):
        raise SAFTInputError(f"harmful must hold one label for each of {total} fresh rows; found shape {labels.shape}")
    if labels.dtype != np.bool_ and not np.isin(labels, (0, 1)).all():
        raise SAFTInputError(f"harmful must be True or False for each fresh row; found values of {labels.dtype}")
    return labels.astype(np.bool_)


def _strata(strata: Sequence[Any] | NDArray[Any] | None, total: int) -> NDArray[np.int64]:
    if strata is None:
        return np.zeros(total, dtype=np.int64)
    # As text, so that a column with nulls can be sorted too.
    values = np.asarray(strata).astype(str)
    if values.shape != (total,):
        raise SAFTInputError(f"strata must hold one value for each of {total} rows; found shape {values.shape}")
    return np.asarray(np.unique(values, return_inverse=True)[1], dtype=np.int64)
