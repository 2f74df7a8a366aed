"""Which rows people should label next: some drawn uniformly, some where a label tells most."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.errors import SAFTInputError

ROW, PURPOSE, LABEL = "saft_row", "saft_purpose", "is_harmful"
"""Columns of rows that are laid out to be labelled; only the last is for people to fill in."""

_UP_TO = " up to "
_WINDOW = 4  # times their number: the rows next to the threshold that the informative ones are spread over


class Purpose(StrEnum):
    """What a label is for: a uniform one may certify and estimate shares, the others are for fitting alone."""

    UNIFORM = "uniform"
    INFORMATIVE = "informative"
    """It lies near the threshold."""
    UNEXPLAINED = "unexplained"
    """It scores above nearly all benign rows of a reference, and is counted as benign all the same."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """How a row came to be labelled, as the labels file says it: `uniform`, `informative`, or `uniform up to 0.25`.

    Attributes:
        purpose: what it was drawn for.
        up_to: the threshold whose kept rows it was drawn from; None where it was drawn from all.

    Examples:
        >>> str(Drawn(Purpose.UNIFORM, 0.25)), Drawn.parse("uniform up to 0.25").up_to
        ('uniform up to 0.25', 0.25)
    """

    purpose: Purpose
    up_to: float | None = None

    def __str__(self) -> str:
        # `repr` gives the very same number back. With words around it, no reader of CSV or JSON takes it for its own.
        return self.purpose.value if self.up_to is None else f"{self.purpose.value}{_UP_TO}{float(self.up_to)!r}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote.

        Raises:
            ValueError: it is something else.
        """
        word, _, number = text.partition(_UP_TO)
        up_to = float(number) if number else None
        drawn = cls(Purpose(word), up_to)
        if str(drawn) != text or (up_to is not None and (word != Purpose.UNIFORM or not np.isfinite(up_to))):
            raise ValueError(text)
        return drawn


@dataclass(frozen=True, slots=True, eq=False)
class Suggestion:
    """Rows to label, in random order: who stops half way has labelled a uniform sample all the same.

    Attributes:
        rows: their indices, int64 [m].
        drawn: how each was drawn, [m].
    """

    rows: NDArray[np.int64]
    drawn: tuple[Drawn, ...]


def suggest_rows(
    scores: ArrayLike,
    *,
    uniform: int,
    informative: int = 0,
    threshold: float | None = None,
    unexplained: ArrayLike = (),
    labelled: ArrayLike = (),
    groups: Sequence[Hashable] | None = None,
    kept_only: bool = False,
    seed: int = 0,
) -> Suggestion:
    """Choose rows to label.

    The informative rows are chosen first: half of them from the unexplained ones, as far as there are so many; the
    others are the scores next to the threshold, as many on either side as there are. Either are cut into strata of
    score, and one row is taken from each. Then the uniform ones are drawn: a uniform sample of all scored rows
    less the labelled and the informative ones, which a certificate must leave out. In the other order they would be a
    uniform sample of nothing.

    Args:
        scores: scores of all rows, [N]; rows without one (NaN) are not suggested.
        uniform: how many rows to draw uniformly without replacement.
        informative: how many to draw near the threshold, and from the unexplained rows.
        threshold: rows with a score above it are removed; None spreads the informative rows over all scores.
        unexplained: rows that score like harm and are counted as benign, indices into `scores`.
        labelled: rows that have a label, indices into `scores`: not suggested again.
        groups: a value for each row, [N], such as its prompt or rendering: no two informative rows share one while
            there are others.
        kept_only: draw the uniform rows from those kept at the threshold: a certificate of these rows alone then takes
            far fewer labels. The threshold must be fixed before.
        seed: of the draw; the same arguments give the same rows.

    Raises:
        SAFTInputError: a number is negative, none is asked for, or more rows than there are; or there is no threshold
            to draw below.

    Examples:
        >>> suggestion = suggest_rows(np.arange(100.0), uniform=3, informative=2, threshold=50.0)
        >>> len(suggestion.rows), suggestion.drawn.count(Drawn(Purpose.INFORMATIVE))
        (5, 2)
    """
    values = np.asarray(scores, dtype=np.float64)
    if min(uniform, informative) < 0 or uniform + informative == 0:
        both = f"{uniform} and {informative}"
        raise SAFTInputError(f"uniform and informative must be 0 or more, one of them at least 1; found {both}")
    if kept_only and (threshold is None or not uniform):
        raise SAFTInputError(
            "`kept_only` draws `uniform` rows below a threshold: fit one, or give `threshold`, and ask for uniform rows"
        )
    open_rows = ~np.isnan(values)
    open_rows[np.asarray(labelled, dtype=np.int64)] = False
    rest = np.flatnonzero(open_rows)
    rng = np.random.default_rng(seed)
    odd = np.intersect1d(rest, np.asarray(unexplained, dtype=np.int64))
    odd = _informative(values, odd, min(-(-informative // 2), odd.size), None, groups, rng)
    others = np.setdiff1d(rest, odd)
    near = _informative(values, others, min(informative - odd.size, others.size), threshold, groups, rng)
    drawable = np.setdiff1d(others, near)
    if kept_only and threshold is not None:
        drawable = drawable[values[drawable] <= threshold]
    if informative > odd.size + near.size or uniform > drawable.size:
        kept, free = " and are kept at the threshold" if kept_only else "", odd.size + near.size + drawable.size
        raise SAFTInputError(
            f"{uniform} uniform and {informative} informative rows were asked for; {free} of "
            f"{values.size} rows have a score and no label{kept}: ask for fewer"
        )
    rows = np.concatenate([rng.choice(drawable, size=uniform, replace=False), odd, near])
    drawn = [Drawn(Purpose.UNIFORM, threshold if kept_only else None)] * uniform
    drawn += [Drawn(Purpose.UNEXPLAINED)] * odd.size + [Drawn(Purpose.INFORMATIVE)] * near.size
    order = rng.permutation(rows.size)
    return Suggestion(rows=rows[order], drawn=tuple(drawn[at] for at in order))


def _informative(
    scores: NDArray[np.float64],
    rest: NDArray[np.int64],
    count: int,
    threshold: float | None,
    groups: Sequence[Hashable] | None,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    shuffled = rng.permutation(rest)
    if groups is not None:
        first = {groups[row]: row for row in reversed(shuffled.tolist())}
        apart = np.fromiter(first.values(), dtype=np.int64)
        shuffled = np.concatenate([apart, np.setdiff1d(rest, apart)])[: max(count, apart.size)]
    ordered = shuffled[np.argsort(scores[shuffled], kind="stable")]
    if threshold is not None:
        width = min(_WINDOW * count, ordered.size)
        middle = int(np.searchsorted(scores[ordered], threshold, side="right"))
        start = min(max(middle - width // 2, 0), ordered.size - width)
        ordered = ordered[start : start + width]
    return np.array([rng.choice(stratum) for stratum in np.array_split(ordered, count)], dtype=np.int64)
