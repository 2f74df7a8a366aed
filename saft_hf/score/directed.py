"""The directed score: labels give a direction, in few dimensions that the whole pool has chosen.

Each feature (one layer at one readout) is cut down to its top principal components. There, the direction is the
difference of the class means, turned by the pool's own covariance: linear discriminant analysis whose covariance comes
from thousands of unlabelled rows and only whose means come from the labels. Features are added up by how far apart each
puts the classes. Whatever was learned, the score is one linear function of the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve

from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.score.moments import Moments
from saft_hf.score.subspace import Subspace, projections

COMPONENTS = 16
"""Principal components of a feature in which directions are sought: with about 100 labels, few beat many."""
SHRINKAGE = 0.5
"""How far the pool's covariance is drawn to the identity: 0 whitens in full, 1 is the plain difference of means."""

_START, _MEAN = "response_start", "response_mean"
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class LinearScore:
    """A score that is linear in a row's vectors: the sum over features of <x_c - centre_c, weight_c>.

    The unit is the standard deviation of the score over the pool it was learned on; higher is more harmful.

    Attributes:
        features: Names of the features that are read, in order.
        centres: The pool's mean at each feature, float64 [features, d].
        weights: The direction at each feature, float64 [features, d].

    Raises:
        SAFTInputError: The arrays do not fit the features or each other, or hold NaN or infinity.

    Example:
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
            vectors: For each feature, rows [n, d], any float type, finite. Other features may stand beside them.

        Returns:
            float32 [n]; beyond the range of float32, its largest number. A row has the same bits whatever rows
            stand beside it.

        Raises:
            SAFTInputError: A feature is missing, or its rows do not have d dimensions.
        """
        total: NDArray[np.float64] | None = None
        for feature, centre, weight in zip(self.features, self.centres, self.weights, strict=True):
            centred = np.ascontiguousarray(_rows(vectors, feature, centre.size) - centre)
            # One dot product a row: a matrix product sums in an order that depends on how many rows there are.
            part = np.vecdot(centred, weight)
            total = part if total is None else total + part
        assert total is not None  # noqa: S101 - there is no score without a feature
        return np.clip(total, -_LARGEST, _LARGEST).astype(np.float32)

    def plus(self, other: LinearScore, factor: float) -> LinearScore:
        """This score, and `factor` times another with the same centres."""
        centres = dict(zip(self.features, self.centres, strict=True))
        weights = dict(zip(self.features, self.weights, strict=True))
        for feature, centre, weight in zip(other.features, other.centres, other.weights, strict=True):
            centres.setdefault(feature, centre)
            weights[feature] = weights.get(feature, np.zeros_like(weight)) + factor * weight
        return LinearScore(tuple(weights), np.stack(list(centres.values())), np.stack(list(weights.values())))

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
        """Split into a JSON-ready dict and arrays."""
        return {"features": list(self.features)}, {"centres": self.centres, "weights": self.weights}

    @classmethod
    def from_parts(cls, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Self:
        """Put together again what `to_parts` took apart."""
        return cls(tuple(config["features"]), tensors["centres"], tensors["weights"])


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The principal components of several features side by side: the few coordinates in which directions are learned.

    Every feature is scaled to the same total variance, so that none drowns the others: hidden states grow with depth.

    Attributes:
        subspaces: For each feature its principal subspace, in order.
        scales: For each feature the square root of the variance its components hold.
    """

    subspaces: Mapping[str, Subspace]
    scales: Mapping[str, float]

    @classmethod
    def of(cls, subspaces: Mapping[str, Subspace]) -> Self:
        """Make a frame.

        Args:
            subspaces: For each feature the pool's `principal_subspace` of about `COMPONENTS` directions.

        Raises:
            SAFTInputError: There is no feature.
        """
        if not subspaces:
            raise SAFTInputError("a direction needs at least one feature: a layer and a readout")
        return cls(dict(subspaces), {feature: float(np.sqrt(s.energies.sum())) for feature, s in subspaces.items()})

    @property
    def size(self) -> int:
        """Number of coordinates, q."""
        return sum(len(subspace.directions) for subspace in self.subspaces.values())

    def columns(self, features: Sequence[str]) -> NDArray[np.intp]:
        """Which of the coordinates belong to these features."""
        sizes = {feature: len(subspace.directions) for feature, subspace in self.subspaces.items()}
        starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
        return np.concatenate([np.arange(starts[name], starts[name] + sizes[name]) for name in features])

    def coordinates(self, vectors: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Coordinates of rows.

        Args:
            vectors: for each stored feature, rows [n, d], any float type, finite; differences are made of them.

        Returns:
            float64 [n, q]. A row has the same bits whatever rows stand beside it.

        Raises:
            SAFTInputError: a feature is missing, or its rows do not have d dimensions.
        """
        everything = with_differences(vectors)
        parts = [
            projections(_rows(everything, feature, subspace.mean.size), subspace) / self.scales[feature]
            for feature, subspace in self.subspaces.items()
        ]
        return np.concatenate(parts, axis=1)

    def score(self, weights: NDArray[np.float64]) -> LinearScore:
        """A direction in coordinates, [q], as a score of stored vectors, measured from the pool's mean.

        The weight of a difference is added to its first feature and taken from its second.
        """
        differences = difference_features(tuple(self.subspaces))
        total: dict[str, NDArray[np.float64]] = {}
        for feature, subspace in self.subspaces.items():
            own = weights[self.columns([feature])] / self.scales[feature]
            weight = np.sum(own[:, None] * subspace.directions, axis=0)
            for stored, sign in zip(differences.get(feature, (feature,)), (1.0, -1.0), strict=False):
                total[stored] = total.get(stored, np.zeros_like(weight)) + sign * weight
        read = tuple(feature for feature in total if total[feature].any())
        return LinearScore(
            read, np.stack([self.subspaces[name].mean for name in read]), np.stack([total[name] for name in read])
        )


def difference_features(stored: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The differences of two readouts of one layer: what the response adds to what was known at its start.

    Args:
        stored: names of features, `layer.readout`.

    Returns:
        Name -> the two features, for every layer at which both are stored.

    Example:
        >>> difference_features(["4.response_start", "4.response_mean", "6.response_mean"])
        {'4.response_mean-response_start': ('4.response_mean', '4.response_start')}
    """
    names = set(stored)
    pairs = {
        f"{name}-{_START}": (name, f"{name.partition('.')[0]}.{_START}") for name in stored if name.endswith(_MEAN)
    }
    return {difference: pair for difference, pair in pairs.items() if pair[1] in names}


def with_differences(vectors: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
    """The vectors, and in float64 the differences that can be made of them."""
    made: dict[str, ArrayLike] = {
        difference: np.asarray(vectors[first], dtype=np.float64) - np.asarray(vectors[second], dtype=np.float64)
        for difference, (first, second) in difference_features(tuple(vectors)).items()
    }
    return {**vectors, **made}


def metric(covariance: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """What turns a difference of class means into a direction: the inverse of the pool's shrunk covariance.

    The covariance is (1 - shrinkage) S + shrinkage * (trace S / size) I. That S also holds the spread between the
    classes changes the length of the direction where there is no shrinkage, not where it points (Sherman and Morrison
    1950).

    Args:
        covariance: The pool's, S, float64 [q, q].
        shrinkage: Above 0, full whitening, up to 1, none.

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


def combine(
    difference: NDArray[np.float64], frame: Frame, pool: Moments, parts: Sequence[Sequence[str]], shrinkage: float
) -> NDArray[np.float64]:
    """Directions from differences of class means.

    Each part has its own direction, of one standard deviation over the pool. Several are added up, each times the
    square of how far apart it puts the class means: so a part without signal counts for little, and nothing is
    picked.

    Args:
        difference: Mean of harmful less mean of benign rows, in the frame's coordinates, [..., q].
        frame: The features and their components.
        pool: Moments of the whole pool's coordinates, [q].
        parts: Sets of features, each turned by the covariance of its own features.
        shrinkage: See `metric`.

    Returns:
        float64 [..., q]: scores along it have a standard deviation of 1 over the pool; all zero where the difference
        is zero.
    """
    total = np.zeros_like(difference)
    for features in parts:
        columns = frame.columns(features)
        seen = difference[..., columns]
        covariance = pool.covariance[np.ix_(columns, columns)]
        direction = _unit(seen @ metric(covariance, shrinkage), covariance)
        apart = np.sum(direction * seen, axis=-1, keepdims=True)
        total[..., columns] += np.square(apart) * direction
    return _unit(total, pool.covariance)


def learn_direction(
    frame: Frame,
    pool: Moments,
    coordinates: ArrayLike,
    harmful: ArrayLike,
    *,
    parts: Sequence[Sequence[str]] | None = None,
    shrinkage: float = SHRINKAGE,
) -> LinearScore:
    """Learn the directed score from labelled rows.

    Args:
        frame: The features and their components.
        pool: Moments of the whole pool's coordinates in that frame, [q].
        coordinates: The labelled rows' coordinates, [m, q], finite.
        harmful: Their labels, bool [m], True where harmful.
        parts: Sets of features, see `combine`; by default every feature of the frame is a part of its own.
        shrinkage: See `metric`.

    Returns:
        The score, in standard deviations of the pool's scores. The same input gives the same bits.

    Raises:
        SAFTInputError: Shapes differ.
        SAFTUndecidedError: The labels are of one class, or the class means are equal.

    Example:
        >>> from saft_hf.score import principal_subspace
        >>> x = np.random.default_rng(0).standard_normal((200, 3))
        >>> frame = Frame.of({"8.start": principal_subspace(Moments.of(x), 3)})
        >>> at = frame.coordinates({"8.start": x})
        >>> score = learn_direction(frame, Moments.of(at), at, x[:, 1] > 0)
        >>> bool(np.argmax(np.abs(score.weights[0])) == 1)
        True
    """
    rows, labels = np.asarray(coordinates, dtype=np.float64), np.asarray(harmful, dtype=np.bool_)
    if rows.shape != (labels.size, frame.size) or pool.mean.shape != (frame.size,):
        raise SAFTInputError(
            f"coordinates must be [{labels.size}, {frame.size}], one row for each label, and pool moments "
            f"[{frame.size}]; found {list(rows.shape)} and {list(pool.mean.shape)}"
        )
    if labels.all() or not labels.any():
        raise SAFTUndecidedError(
            f"{int(labels.sum())} of {labels.size} labelled rows are harmful: a direction needs rows of both classes. "
            "Label more rows"
        )
    used = [(feature,) for feature in frame.subspaces] if parts is None else [tuple(features) for features in parts]
    weights = combine(rows[labels].mean(axis=0) - rows[~labels].mean(axis=0), frame, pool, used, shrinkage)
    if not weights.any():
        raise SAFTUndecidedError(
            "harmful and benign labelled rows have the same mean vector, so no direction tells them apart. Use another "
            "readout: `response_start` sees only the prompt"
        )
    return frame.score(weights)


def _unit(directions: NDArray[np.float64], covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = np.sqrt(np.sum((directions @ covariance) * directions, axis=-1, keepdims=True))
    return np.asarray(directions / np.where(spread > 0, spread, 1.0))


def _rows(vectors: Mapping[str, ArrayLike], feature: str, d: int) -> NDArray[np.float64]:
    if feature not in vectors:
        raise SAFTInputError(f"vectors of feature {feature!r} are missing; found {sorted(vectors)}")
    rows = np.asarray(vectors[feature], dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != d:
        raise SAFTInputError(f"vectors of feature {feature!r} must have shape [n, {d}]; found {list(rows.shape)}")
    return rows
