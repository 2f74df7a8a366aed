"""The published score as something to keep: which vectors it reads, along which directions, and how many of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.records import Count, Share, from_plain, to_plain
from saft_hf.score.subspace import Subspace, saft_scores

_TENSORS = ("mean", "directions", "energies")


@dataclass(frozen=True, kw_only=True)
class _SubspaceFigures:
    """The part of a `Subspace` that is JSON."""

    spectral_gaps: tuple[Share, ...]
    total_variance: float
    count: float
    rank: Count


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """The part of a `PublishedScore` that is JSON."""

    feature: str
    k: int
    subspace: _SubspaceFigures


@dataclass(frozen=True, slots=True, eq=False)
class PublishedScore:
    """The published score at one feature: s = (1/k) * sum over j <= k of <x - mean, v_j>^2 (arXiv 2410.10014).

    Attributes:
        feature: name of the feature that is read.
        subspace: the pool's mean and principal directions there.
        k: how many of the directions are summed.

    Raises:
        ValueError: `k` is not a number of directions that the subspace has.

    Examples:
        >>> from saft_hf.score import Moments, principal_subspace
        >>> x = [[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
        >>> score = PublishedScore("4.response_start", principal_subspace(Moments.of(x), 1), 1)
        >>> score({"4.response_start": x}).tolist()
        [9.0, 9.0, 0.0, 0.0]
    """

    feature: str
    subspace: Subspace
    k: int

    def __post_init__(self) -> None:
        if not 1 <= self.k <= len(self.subspace.directions):
            raise ValueError(f"k must be 1 to {len(self.subspace.directions)}, not {self.k!r}")

    @property
    def features(self) -> tuple[str, ...]:
        """The one feature that is read."""
        return (self.feature,)

    @property
    def width(self) -> int:
        """Length of a vector, d."""
        return int(self.subspace.mean.size)

    def __call__(self, vectors: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        """Score rows.

        Args:
            vectors: at the feature, rows [n, d], any float type, finite. Other features may stand beside it.

        Returns:
            float32 [n], >= 0. A row has the same bits whatever rows stand beside it.
        """
        return saft_scores(vectors[self.feature], self.subspace, (self.k,))[self.k]

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Split into a JSON-ready dict and arrays."""
        own = self.subspace
        subspace = _SubspaceFigures(
            spectral_gaps=tuple(own.spectral_gaps.tolist()),
            total_variance=own.total_variance,
            count=own.count,
            rank=own.rank,
        )
        figures: dict[str, Any] = to_plain(_Figures(feature=self.feature, k=self.k, subspace=subspace))
        return figures, {name: getattr(own, name) for name in _TENSORS}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Put together again what `to_parts` took apart.

        Raises:
            ValueError: a value is missing, unknown, or not what a score can have.
        """
        figures = from_plain(_Figures, config, "score")
        if tensors.keys() != set(_TENSORS):
            raise ValueError(f"tensors: found {sorted(tensors)}, not {sorted(_TENSORS)}")
        plain = figures.subspace
        if len(plain.spectral_gaps) != len(tensors["energies"]):
            raise ValueError(f"score.subspace.spectral_gaps: {len(plain.spectral_gaps)}, not one for each direction")
        gaps = np.array(plain.spectral_gaps, dtype=np.float64)
        known = {"total_variance": plain.total_variance, "count": plain.count, "rank": plain.rank}
        return cls(figures.feature, Subspace(**tensors, spectral_gaps=gaps, **known), figures.k)  # type: ignore[arg-type]
