"""Mean and scatter of the pool's vectors, in float64, summed part by part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.errors import SAFTInputError

_MERGED_ROWS = 128


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What the principal directions need from any number of rows: how many, their mean, their scatter.

    Parts are made with `of` and put together with `merge`. Merging is exact up to rounding in every order;
    the same order gives the same bits, so whoever merges keeps to one fixed order.

    Attributes:
        count: number of rows, each with its multiplicity.
        mean: mean row, float64 [d].
        scatter: sum of the outer products of the centred rows, float64 [d, d], exactly symmetric.

    Examples:
        >>> a, b = Moments.of([[1.0, 2.0]]), Moments.of([[3.0, 2.0]], weights=[3])
        >>> whole = a.merge(b)
        >>> whole.count, whole.mean.tolist(), whole.scatter.tolist()
        (4.0, [2.5, 2.0], [[3.0, 0.0], [0.0, 0.0]])
    """

    count: float
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def zeros(cls, d: int) -> Moments:
        """The moments of no row in `d` dimensions: merging them changes nothing."""
        return cls(0.0, np.zeros(d), np.zeros((d, d)))

    @classmethod
    def of(cls, x: ArrayLike, weights: ArrayLike | None = None) -> Moments:
        """Moments of one batch of rows.

        Args:
            x: rows, [n, d], any float type, finite; n may be 0.
            weights: how many times each row counts, whole numbers >= 1, [n]. None: once each.

        Returns:
            The moments, with every sum in float64.

        Raises:
            SAFTInputError: `x` is not [n, d], holds NaN or infinity, or `weights` are not what they must be.
        """
        rows = np.asarray(x, dtype=np.float64)
        if rows.ndim != 2:
            raise SAFTInputError(f"x must be rows by dimensions, [n, d]; found shape {list(rows.shape)}")
        n, d = rows.shape
        times = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
        if times.shape != (n,) or np.any(times < 1) or np.any(times != np.floor(times)):
            raise SAFTInputError(f"weights must be {n} whole numbers >= 1: how often each row occurs")
        if not np.isfinite(rows).all():
            raise SAFTInputError("x holds NaN or infinity: leave such rows out (status `non_finite`)")
        if n == 0:
            return cls.zeros(d)
        # Measured from the first row, a mean far from zero costs no digits; equal rows scatter by exactly 0.
        offset = rows[0]
        centred = rows - offset
        count = float(times.sum())
        shift = (times @ centred) / count
        centred -= shift
        # The square root on both sides keeps the product symmetric to the last bit.
        centred *= np.sqrt(times)[:, None]
        return cls(count, offset + shift, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together (Chan, Golub and LeVeque 1983, equation 2.1).

        Args:
            other: moments in the same number of dimensions.

        Returns:
            A new object; neither input changes.

        Raises:
            SAFTInputError: the dimensions differ.
        """
        if self.mean.shape != other.mean.shape:
            raise SAFTInputError(f"cannot merge moments of {self.mean.size} and of {other.mean.size} dimensions")
        count = self.count + other.count
        if count == 0:
            return self.zeros(self.mean.size)
        delta = other.mean - self.mean
        scatter = np.empty_like(self.scatter)
        # A few rows at a time: at d = 8,192 each d x d array in between would take another 512 MiB.
        for first in range(0, len(delta), _MERGED_ROWS):
            rows = slice(first, first + _MERGED_ROWS)
            part = np.outer(delta[rows], delta)
            part *= self.count * other.count / count
            part += self.scatter[rows]
            np.add(part, other.scatter[rows], out=scatter[rows])
        return Moments(count, self.mean + delta * (other.count / count), scatter)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """`scatter / count`, float64 [d, d].

        Raises:
            SAFTInputError: there is no row.
        """
        if self.count == 0:
            raise SAFTInputError("no row has been counted, so there is no covariance")
        return self.scatter / self.count
