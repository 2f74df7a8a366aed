"""Which rows people should label next: some drawn uniformly, some where a label tells most."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.errors import SAFTInputError

_WINDOW = 4  # times their number: the rows next to the threshold that the informative ones are spread over


class Purpose(StrEnum):
    """What a label is for: a uniform one may certify and estimate shares, an informative one is for fitting alone."""

    UNIFORM = "uniform"
    INFORMATIVE = "informative"


@dataclass(frozen=True, slots=True, eq=False)
class Suggestion:
    """Rows to label, in random order: who stops half way has labelled a uniform sample all the same.

    Attributes:
        rows: their indices, int64 [m].
        purposes: what each was drawn for, [m].
    """

    rows: NDArray[np.int64]
    purposes: tuple[Purpose, ...]


def suggest_rows(
    scores: ArrayLike,
    *,
    uniform: int,
    informative: int = 0,
    threshold: float | None = None,
    labelled: ArrayLike = (),
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Suggestion:
    """Choose rows to label.

    The informative rows are chosen first: the scores next to the threshold, as many on either side as there are, cut
    into strata of score, and one row from each. Then the uniform ones are drawn: a uniform sample of all scored rows
    less the labelled and the informative ones, which a certificate must leave out. In the other order they would be a
    uniform sample of nothing.

    Args:
        scores: scores of all rows, [N]; rows without one (NaN) are not suggested.
        uniform: how many rows to draw uniformly without replacement.
        informative: how many to draw near the threshold.
        threshold: rows with a score above it are removed; None spreads the informative rows over all scores.
        labelled: rows that have a label, indices into `scores`: not suggested again.
        groups: a value for each row, [N], such as its prompt or rendering: no two informative rows share one while
            there are others.
        seed: of the draw; the same arguments give the same rows.

    Raises:
        SAFTInputError: a number is negative, none is asked for, or more rows than there are.

    Example:
        >>> suggestion = suggest_rows(np.arange(100.0), uniform=3, informative=2, threshold=50.0)
        >>> len(suggestion.rows), suggestion.purposes.count(Purpose.INFORMATIVE)
        (5, 2)
    """
    values = np.asarray(scores, dtype=np.float64)
    if min(uniform, informative) < 0 or uniform + informative == 0:
        both = f"{uniform} and {informative}"
        raise SAFTInputError(f"uniform and informative must be 0 or more, one of them at least 1; found {both}")
    open_rows = ~np.isnan(values)
    open_rows[np.asarray(labelled, dtype=np.int64)] = False
    rest = np.flatnonzero(open_rows)
    if uniform + informative > rest.size:
        raise SAFTInputError(
            f"{uniform} uniform and {informative} informative rows were asked for; {rest.size} of {values.size} rows "
            "have a score and no label: ask for fewer"
        )
    rng = np.random.default_rng(seed)
    near = _informative(values, rest, informative, threshold, groups, rng)
    drawn = rng.choice(np.setdiff1d(rest, near), size=uniform, replace=False)
    rows = np.concatenate([drawn, near])
    purposes = [Purpose.UNIFORM] * uniform + [Purpose.INFORMATIVE] * informative
    order = rng.permutation(rows.size)
    return Suggestion(rows=rows[order], purposes=tuple(purposes[at] for at in order))


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
