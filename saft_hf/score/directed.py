"""The directed score: labels give a direction, in few dimensions that the whole pool has chosen.

Each feature (one layer at one readout, or the difference of two readouts) is cut down to its top principal components.
There, side by side, the direction is the difference of the class means, turned by the pool's own covariance: linear
discriminant analysis whose covariance comes from thousands of unlabelled rows and only whose means come from the
labels. Whatever was learned, the score is one linear function of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve

from saft_hf.errors import SAFTInputError
from saft_hf.records import from_plain, to_plain
from saft_hf.score.moments import Moments
from saft_hf.score.subspace import Subspace, projections

COMPONENTS = 16
"""Principal components of a feature in which directions are sought: with about 100 labels, few beat many."""
SHRINKAGE = 0.6
"""How far the pool's covariance is drawn to the identity: 0 whitens in full, 1 is the plain difference of means.
From 0.5 to 0.7 little changes, with 50 to 200 labels."""

_LARGEST = float(np.finfo(np.float32).max)


def difference_features(stored: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The features that are derived from stored ones: what the response adds to what the prompt has said.

    Args:
        stored: names of stored features.

    Returns:
        Name -> minuend and subtrahend, for each layer that has both `response_mean` and `response_start`.

    Examples:
        >>> difference_features(["6.response_start", "6.response_mean", "8.response_mean"])
        {'6.response_mean-response_start': ('6.response_mean', '6.response_start')}
    """
    pairs = ((name, name.replace("response_mean", "response_start")) for name in stored if "response_mean" in name)
    return {f"{mean}-response_start": (mean, start) for mean, start in pairs if start in stored}


def with_differences(vectors: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    """Vectors at the stored features and at those derived from them, float64.

    Args:
        vectors: for each stored feature, rows [n, d], any float type.
    """
    rows = {feature: np.asarray(own, dtype=np.float64) for feature, own in vectors.items()}
    return rows | {name: rows[one] - rows[other] for name, (one, other) in difference_features(tuple(rows)).items()}


@dataclass(frozen=True)
class _Figures:
    """The part of a `LinearScore` that is JSON."""

    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class LinearScore:
    """A score that is linear in a row's vectors: the sum over features of <x_c - centre_c, weight_c>.

    The unit is the standard deviation of the score over the pool it was learned on; higher is more harmful.

    Attributes:
        features: names of the features that are read, in order.
        centres: the pool's mean at each feature, float64 [features, d].
        weights: the direction at each feature, float64 [features, d].

    Raises:
        SAFTInputError: the arrays do not fit the features or each other, or hold NaN or infinity.

    Examples:
        >>> score = LinearScore(("8.start",), np.array([[1.0, 1.0]]), np.array([[2.0, 0.0]]))
        >>> score({"8.start": [[1.0, 5.0], [2.0, 1.0]]}).tolist()
        [0.0, 2.0]
    """

    features: tuple[str, ...]
    centres: NDArray[np.float64]
    weights: NDArray[np.float64]

    def __post_init__(self) -> None:
        for name in ("centres", "weights"):
            array = getattr(self, name)
            if array.ndim != 2 or len(array) != len(self.features) or array.shape != self.centres.shape:
                raise SAFTInputError(
                    f"{name} has shape {list(array.shape)}; expected one row for each of {len(self.features)} "
                    f"features, and the shape of centres, {list(self.centres.shape)}"
                )
            if array.dtype != np.float64 or not np.isfinite(array).all():
                raise SAFTInputError(f"{name} must be finite float64; found {array.dtype}, or NaN or infinity")

    @property
    def width(self) -> int:
        """Length of a vector, d."""
        return int(self.weights.shape[1])

    def __call__(self, vectors: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        """Score rows.

        Args:
            vectors: for each feature, rows [n, d], any float type, finite. Other features may stand beside them.

        Returns:
            float32 [n]; beyond the range of float32, its largest number. A row has the same bits whatever rows
            stand beside it.

        Raises:
            SAFTInputError: a feature is missing, or its rows do not have d dimensions.
        """
        # One dot product a row: a matrix product sums in an order that depends on how many rows there are.
        parts = [
            np.vecdot(np.ascontiguousarray(_rows(vectors, feature, centre.size) - centre), weight)
            for feature, centre, weight in zip(self.features, self.centres, self.weights, strict=True)
        ]
        total: NDArray[np.float64] = sum(parts)
        return np.clip(total, -_LARGEST, _LARGEST).astype(np.float32)

    def plus(self, other: LinearScore, factor: float) -> LinearScore:
        """This score, and `factor` times another with the same centres."""
        centres = dict(zip(other.features, other.centres, strict=True))
        centres |= dict(zip(self.features, self.centres, strict=True))
        weights = dict(zip(self.features, self.weights, strict=True))
        for feature, weight in zip(other.features, other.weights, strict=True):
            weights[feature] = weights.get(feature, 0.0) + factor * weight
        return LinearScore(tuple(weights), np.stack([centres[name] for name in weights]), np.stack([*weights.values()]))

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
        """Split into a JSON-ready dict and arrays."""
        return to_plain(_Figures(self.features)), {"centres": self.centres, "weights": self.weights}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Put together again what `to_parts` took apart.

        Raises:
            ValueError: a value is missing, unknown, or not what a score can have.
        """
        if tensors.keys() != {"centres", "weights"}:
            raise ValueError(f"tensors: found {sorted(tensors)}, not centres and weights")
        return cls(from_plain(_Figures, config, "score").features, tensors["centres"], tensors["weights"])


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The principal components of several features side by side: the few coordinates in which directions are learned.

    Every feature is scaled to the same total variance, so that none drowns the others: hidden states grow with depth.

    Attributes:
        subspaces: for each feature, stored or derived (see `difference_features`), its principal subspace, in order.
        scales: for each feature the square root of the variance its components hold.
    """

    subspaces: Mapping[str, Subspace]
    scales: Mapping[str, float]

    @classmethod
    def of(cls, subspaces: Mapping[str, Subspace]) -> Self:
        """Make a frame.

        Args:
            subspaces: for each feature the pool's `principal_subspace` of about `COMPONENTS` directions.

        Raises:
            SAFTInputError: there is no feature.
        """
        if not subspaces:
            raise SAFTInputError("a direction needs at least one feature: a layer and a readout")
        return cls(dict(subspaces), {feature: float(np.sqrt(s.energies.sum())) for feature, s in subspaces.items()})

    @property
    def size(self) -> int:
        """Number of coordinates, q."""
        return sum(len(subspace.directions) for subspace in self.subspaces.values())

    @property
    def columns(self) -> dict[str, slice]:
        """Which of the coordinates belong to each feature."""
        sizes = [len(subspace.directions) for subspace in self.subspaces.values()]
        ends = np.cumsum(sizes).tolist()
        return {feature: slice(end - size, end) for feature, size, end in zip(self.subspaces, sizes, ends, strict=True)}

    def coordinates(self, vectors: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Coordinates of rows.

        Args:
            vectors: for each stored feature, rows [n, d], any float type, finite.

        Returns:
            float64 [n, q]. A row has the same bits whatever rows stand beside it.

        Raises:
            SAFTInputError: a feature is missing, or its rows do not have d dimensions.
        """
        rows = with_differences(vectors)
        parts = [
            projections(_rows(rows, feature, subspace.mean.size), subspace) / self.scales[feature]
            for feature, subspace in self.subspaces.items()
        ]
        return np.concatenate(parts, axis=1)

    def block_coordinates(self, vectors: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """`coordinates` by matrix products, several times as fast; last bits depend on the rows that stand together."""
        derived, columns = difference_features(tuple(self.subspaces)), self.columns
        rows = {name: np.asarray(vectors[name], dtype=np.float64) for name in self.subspaces if name not in derived}
        parts = np.empty((len(next(iter(rows.values()))), self.size))
        for feature, subspace in self.subspaces.items():
            directions = subspace.directions.T / self.scales[feature]
            one, *other = derived.get(feature, (feature,))
            part = rows[one] @ directions - subspace.mean @ directions
            parts[:, columns[feature]] = part - rows[other[0]] @ directions if other else part
        return parts

    def score(self, weights: NDArray[np.float64]) -> LinearScore:
        """A direction in coordinates, [q], as a score of the stored vectors, measured from the pool's mean."""
        columns = self.columns
        directions = {
            feature: weights[columns[feature]] @ subspace.directions / self.scales[feature]
            for feature, subspace in self.subspaces.items()
        }
        # <a - b, w> = <a, w> + <b, -w>
        for name, (one, other) in difference_features(tuple(self.subspaces)).items():
            if name in directions:
                weight = directions.pop(name)
                directions |= {one: directions[one] + weight, other: directions[other] - weight}
        centres = np.stack([self.subspaces[feature].mean for feature in directions])
        return LinearScore(tuple(directions), centres, np.stack(list(directions.values())))


def metric(covariance: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """What turns a difference of class means into a direction: the inverse of the pool's shrunk covariance.

    The covariance is (1 - shrinkage) S + shrinkage * (trace S / size) I. That S also holds the spread between the
    classes changes the length of the direction where there is no shrinkage, not where it points (Sherman and Morrison
    1950).

    Args:
        covariance: the pool's, S, float64 [q, q].
        shrinkage: above 0, full whitening, up to 1, none.

    Returns:
        float64 [q, q], symmetric.

    Raises:
        SAFTInputError: `shrinkage` is out of range, or the pool has no variance there.
    """
    if not 0 < shrinkage <= 1:
        raise SAFTInputError(f"shrinkage must be above 0 and at most 1; found {shrinkage}")
    level = float(np.trace(covariance)) / len(covariance)
    if not level > 0:
        raise SAFTInputError("the pool has no variance in these features: all its rows have the same vector")
    eye = np.eye(len(covariance))
    inverse = solve((1 - shrinkage) * covariance + shrinkage * level * eye, eye, assume_a="pos")
    return np.asarray((inverse + inverse.T) / 2)


def combine(difference: NDArray[np.float64], pool: Moments) -> NDArray[np.float64]:
    """Directions over all features at once, from differences of class means.

    A feature without signal gets what little its noise says, and of two that say the same each gets a part: nothing is
    picked.

    Args:
        difference: mean of harmful less mean of benign rows, in a frame's coordinates, [..., q].
        pool: moments of the whole pool's coordinates, [q].

    Returns:
        float64 [..., q]: scores along it have a standard deviation of 1 over the pool; all zero where the difference
        is zero.
    """
    directions = difference @ metric(pool.covariance, SHRINKAGE)
    spread = np.sqrt(np.sum((directions @ pool.covariance) * directions, axis=-1, keepdims=True))
    return np.asarray(directions / np.where(spread > 0, spread, 1.0))


def _rows(vectors: Mapping[str, ArrayLike], feature: str, d: int) -> NDArray[np.float64]:
    if feature not in vectors:
        raise SAFTInputError(f"vectors of feature {feature!r} are missing; found {sorted(vectors)}")
    rows = np.asarray(vectors[feature], dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != d:
        raise SAFTInputError(f"vectors of feature {feature!r} must have shape [n, {d}]; found {list(rows.shape)}")
    return rows
