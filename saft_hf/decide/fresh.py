"""Fresh labels: rows that people labelled, drawn uniformly from the population and used for no choice before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.errors import SAFTInputError

_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Rows at or below each of J thresholds, in each of G strata (G = 1 where there are none).

    Attributes:
        sizes: Rows of the population, int64 [J, G].
        labels: Freshly labelled ones among them, [J, G].
        harmful: Harmful ones among those, [J, G].
    """

    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    harmful: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class FreshLabels:
    """The population and its fresh labels, checked.

    Attributes:
        scores: The population's scores, sorted, float64 [N].
        groups: The same, one sorted array a stratum.
        fresh: Scores of the labelled rows, one array a stratum, sorted.
        harmful: Their labels, in the same order, bool.
        unscored: Labelled rows that have no score: they are not of the population and left out.
    """

    scores: NDArray[np.float64]
    groups: tuple[NDArray[np.float64], ...]
    fresh: tuple[NDArray[np.float64], ...]
    harmful: tuple[NDArray[np.bool_], ...]
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
            scores: Scores of all rows, [D]; NaN where there is none.
            fresh_rows: Labelled rows, indices into `scores`, int [m], drawn uniformly without replacement.
            harmful: Their labels, bool [m], True where harmful.
            excluded: Rows whose labels were used for fitting, indices into `scores`.
            strata: A value for each row, [D]; rows with equal values form a stratum, sampled on its own.

        Returns:
            The checked labels.

        Raises:
            SAFTInputError: An argument has another shape or type, rows are out of range or labelled twice, or
                were used for fitting too, or no row is left.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.ndim != 1:
            raise SAFTInputError(f"scores must be one number a row; found an array of shape {values.shape}")
        rows = _rows("fresh_rows", fresh_rows, values.size)
        labels = _labels(harmful, rows.size)
        population = ~np.isnan(values)
        if excluded is not None:
            used = np.unique(_rows("excluded", excluded, values.size, repeats=True))
            population[used] = False
            if (both := np.intersect1d(rows, used)).size:
                raise SAFTInputError(
                    f"{both.size} of {rows.size} fresh labels were used for fitting too (rows {_show(both)}): a "
                    "certificate needs labels that chose nothing. Draw and label other rows"
                )
        if not population.any():
            raise SAFTInputError("no row is left to make a statement about: every row lacks a score or is excluded")
        stratum = _strata(strata, values.size)
        fresh = population[rows]
        rows, labels = rows[fresh], labels[fresh]
        order = np.lexsort((rows, values[rows]))  # rows too, so that the order given, perhaps by label, is forgotten
        rows, labels = rows[order], labels[order]
        groups, drawn, bad = [], [], []
        for one in np.unique(stratum[population]):
            inside = stratum[rows] == one
            groups.append(np.sort(values[population & (stratum == one)]))
            drawn.append(values[rows[inside]])
            bad.append(labels[inside])
        return cls(
            scores=groups[0] if len(groups) == 1 else np.sort(values[population]),
            groups=tuple(groups),
            fresh=tuple(drawn),
            harmful=tuple(bad),
            unscored=int(fresh.size - fresh.sum()),
        )

    def at(self, thresholds: ArrayLike) -> Counts:
        """Count the rows that are kept, score <= threshold, for each threshold, [J]."""
        at = np.atleast_1d(np.asarray(thresholds, dtype=np.float64))
        bad = [scores[labels] for scores, labels in zip(self.fresh, self.harmful, strict=True)]
        sizes, labels, harmful = (
            np.stack([np.searchsorted(one, at, side="right") for one in of], axis=1).astype(np.int64)
            for of in (self.groups, self.fresh, bad)
        )
        return Counts(sizes=sizes, labels=labels, harmful=harmful)


def check_chance(name: str, value: float) -> None:
    """Refuse a share or a chance that is not strictly between 0 and 1."""
    if not 0 < value < 1:
        raise SAFTInputError(f"{name} must be between 0 and 1, such as 0.1; found {value!r}")


def _rows(name: str, given: ArrayLike, total: int, *, repeats: bool = False) -> NDArray[np.int64]:
    rows = np.asarray(given)
    if rows.size == 0:
        return np.zeros(0, dtype=np.int64)
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise SAFTInputError(f"{name} must be a list of row numbers; found {rows.dtype} of shape {rows.shape}")
    if (wrong := rows[(rows < 0) | (rows >= total)]).size:
        raise SAFTInputError(f"{name} must lie between 0 and {total - 1}, one less than the rows; found {_show(wrong)}")
    found, times = np.unique(rows, return_counts=True)
    if not repeats and found.size < rows.size:
        raise SAFTInputError(
            f"{name} names {int((times > 1).sum())} rows more than once ({_show(found[times > 1])}): labels must be "
            "drawn without replacement. Give each row once"
        )
    return rows.astype(np.int64)


def _labels(given: ArrayLike, total: int) -> NDArray[np.bool_]:
    labels = np.asarray(given)
    if labels.shape != (total,):
        raise SAFTInputError(f"harmful must hold one label for each of {total} fresh rows; found shape {labels.shape}")
    if labels.dtype != np.bool_ and not np.isin(labels, (0, 1)).all():
        raise SAFTInputError(f"harmful must be True or False for each fresh row; found values of {labels.dtype}")
    return labels.astype(np.bool_)


def _strata(given: Sequence[Any] | NDArray[Any] | None, total: int) -> NDArray[np.int64]:
    if given is None:
        return np.zeros(total, dtype=np.int64)
    # As text, so that a column with nulls can be sorted too.
    values = np.asarray(given).astype(str)
    if values.shape != (total,):
        raise SAFTInputError(f"strata must hold one value for each of {total} rows; found shape {values.shape}")
    return np.asarray(np.unique(values, return_inverse=True)[1], dtype=np.int64)


def _show(rows: NDArray[Any]) -> str:
    return ", ".join(str(row) for row in rows[:_SHOWN]) + (", ..." if rows.size > _SHOWN else "")
