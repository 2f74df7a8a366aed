"""The pool's principal directions, and the published score: the energy of a row along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.errors import SAFTInputError
from saft_hf.score.eigen import dense_eigenpairs, top_eigenpairs
from saft_hf.score.moments import Moments

_EPS = float(np.finfo(np.float64).eps)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Subspace:
    """The directions in which the pool varies most, widest first.

    Attributes:
        mean: mean row of the pool, float64 [d].
        directions: orthonormal rows, float64 [k, d]; in each the entry of largest magnitude is positive.
        energies: variance of the pool along each direction, float64 [k], descending.
        spectral_gaps: (energy_j - energy_{j+1}) / energy_j, float64 [k], between 0 and 1. Near 0, direction j
            is arbitrary within the plane it shares with the next one, and so is a score that stops at j.
        total_variance: variance of the pool over all d dimensions.
        count: number of rows behind it, with multiplicity.
        rank: numerical rank of the pool, counted up to one more than the directions that were asked for.
    """

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]
    energies: NDArray[np.float64]
    spectral_gaps: NDArray[np.float64]
    total_variance: float
    count: float
    rank: int


def principal_subspace(moments: Moments, k: int) -> Subspace:
    """The top `k` principal directions: singular vectors of the pool's centred rows (arXiv 2410.10014).

    There are fewer where the rank is lower. Only `k` + 1 eigenpairs are solved; the one more tells the spectral gap.

    Args:
        moments: moments of the pool.
        k: how many directions, >= 1.

    Returns:
        The subspace. The same moments give the same bits.

    Raises:
        SAFTInputError: `k` < 1, fewer than two rows, or all rows equal.

    Examples:
        >>> subspace = principal_subspace(Moments.of([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), k=1)
        >>> subspace.directions.tolist(), subspace.energies.tolist(), subspace.total_variance
        ([[1.0, 0.0]], [4.5], 5.0)
    """
    if k < 1:
        raise SAFTInputError(f"k must be at least 1; found {k}")
    if moments.count < 2:
        raise SAFTInputError(f"the pool has {moments.count:.0f} scored row(s): at least 2 that differ are needed")
    d = moments.mean.size
    values, vectors = top_eigenpairs(moments.scatter, min(k + 1, d))
    total = float(np.trace(moments.scatter))
    return _subspace(moments.mean, moments.count, values, vectors.T, total, k)


def subspace_of_rows(x: ArrayLike, k: int) -> Subspace:
    """Up to `k` principal directions of a few rows in any number of dimensions, as `principal_subspace` finds them.

    Fewer rows than dimensions are solved by the products of the rows among themselves: what it costs depends on how
    many rows there are.

    Args:
        x: rows, [n, d], any float type, finite.
        k: how many directions at most, >= 1.

    Raises:
        SAFTInputError: fewer than two rows, or all rows equal.
    """
    rows = np.asarray(x, dtype=np.float64)
    n, d = rows.shape
    if n >= d or n < 2:
        return principal_subspace(Moments.of(rows), k)
    # Measured from the first row, as in `Moments.of`: equal rows scatter by exactly 0.
    centred = rows - rows[0]
    shift = centred.mean(axis=0)
    centred -= shift
    gram = centred @ centred.T
    # A spectrum without gaps takes the iteration long, and these are few rows.
    values, sides = dense_eigenpairs(gram, min(k + 1, n))
    vectors = sides.T @ centred
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return _subspace(rows[0] + shift, float(n), values, vectors, float(np.trace(gram)), k)


def _subspace(
    mean: NDArray[np.float64],
    count: float,
    values: NDArray[np.float64],
    vectors: NDArray[np.float64],
    total: float,
    k: int,
) -> Subspace:
    """From the largest eigenvalues of a scatter, their vectors in rows, and its trace."""
    energies = values / count
    # Below this, variance is rounding: of the eigenvalue solver, or of sums around a mean far from zero.
    noise = max(mean.size * _EPS * energies[0], (8 * _EPS * float(np.linalg.norm(mean))) ** 2)
    rank = min(int(np.count_nonzero(energies > noise)), int(count) - 1)
    if rank == 0:
        raise SAFTInputError(
            f"all {count:.0f} rows of the pool have the same vector, so no direction stands out: "
            "check that the readout sees what differs between rows (`response_start` sees only the prompt)"
        )
    kept = min(k, rank)
    directions = np.ascontiguousarray(vectors[:kept])
    peaks = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    directions *= np.where(peaks < 0, -1.0, 1.0)
    following = np.append(np.maximum(energies, 0.0), 0.0)[1 : kept + 1]
    return Subspace(
        mean=mean,
        directions=directions,
        energies=energies[:kept].copy(),
        spectral_gaps=(energies[:kept] - following) / energies[:kept],
        total_variance=total / count,
        count=count,
        rank=rank,
    )


def projections(x: ArrayLike, subspace: Subspace) -> NDArray[np.float64]:
    """Coordinates of rows along the directions, measured from the pool's mean.

    Args:
        x: rows, [n, d], any float type, finite.
        subspace: the subspace.

    Returns:
        float64 [n, k]. A row has the same bits whatever rows stand beside it.

    Raises:
        SAFTInputError: `x` does not have the subspace's number of dimensions.
    """
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != subspace.mean.size:
        raise SAFTInputError(f"x must have shape [n, {subspace.mean.size}]; found {list(rows.shape)}")
    centred = np.ascontiguousarray(rows - subspace.mean)
    # One dot product a row: a matrix product sums in an order that depends on how many rows there are.
    columns = [np.vecdot(centred, direction) for direction in subspace.directions]
    return np.stack(columns, axis=1)


def saft_scores(x: ArrayLike, subspace: Subspace, ks: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """The published score, s = (1/k) * sum over j <= k of <x - mean, v_j>^2 (arXiv 2410.10014), for several k at once.

    Args:
        x: rows, [n, d], any float type, finite.
        subspace: the subspace.
        ks: numbers of directions, each from 1 to the number that the subspace has.

    Returns:
        For each k, the scores, float32 [n], >= 0: the same bits whatever rows, and larger k, stand beside them.

    Raises:
        SAFTInputError: a k is out of range, or `x` does not have the subspace's number of dimensions.

    Examples:
        >>> rows = [[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
        >>> saft_scores(rows, principal_subspace(Moments.of(rows), k=1), (1,))[1].tolist()
        [9.0, 9.0, 0.0, 0.0]
    """
    held = len(subspace.directions)
    if bad := [k for k in ks if not 1 <= k <= held]:
        raise SAFTInputError(f"k must be between 1 and {held}, the directions of the subspace; found {bad}")
    energy = np.square(projections(x, subspace))
    # Added one direction at a time: the sum for k has the same bits whatever larger k is asked for beside it.
    running = np.add.accumulate(energy, axis=1)
    # A row beyond float32 keeps its place at the top instead of becoming infinite.
    return {k: np.minimum(running[:, k - 1] / k, _LARGEST).astype(np.float32) for k in ks}
