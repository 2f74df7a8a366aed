"""The largest eigenpairs of a large symmetric matrix, without solving for the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

_DENSE = 512
"""Up to this size the whole problem is solved: it takes milliseconds."""

_PART, _RESTARTS = 5, 500


def top_eigenpairs(matrix: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest eigenvalues and their vectors, to rounding.

    ARPACK's, where a dense solver would take `d^3` steps. It starts, and starts again among equal eigenvalues, from the
    same random numbers in every call: the same matrix gives the same bits.

    Args:
        matrix: symmetric and positive semi-definite, float64 [d, d].
        count: how many pairs, 1 to d.

    Returns:
        Eigenvalues, descending, float64 [count], and orthonormal vectors, float64 [d, count].

    Examples:
        >>> values, vectors = top_eigenpairs(np.diag([1.0, 3.0, 2.0]), 2)
        >>> values.tolist(), np.abs(vectors).argmax(axis=0).tolist()
        ([3.0, 2.0], [1, 2])
    """
    d = len(matrix)
    if d <= max(_DENSE, _PART * count):
        return dense_eigenpairs(matrix, count)
    if not matrix.any():  # which ARPACK refuses
        return np.zeros(count), np.eye(d, count)
    rng = np.random.default_rng(0)
    try:
        values, vectors = eigsh(matrix, count, which="LA", v0=rng.standard_normal(d), rng=rng, maxiter=_RESTARTS)
    except ArpackNoConvergence:
        # A spectrum without any gap: what follows costs minutes at d = 8,192, and always ends.
        return dense_eigenpairs(matrix, count)
    order = np.argsort(-values)
    return values[order], vectors[:, order]


def dense_eigenpairs(matrix: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same by LAPACK, which reads one triangle only."""
    d = len(matrix)
    values, vectors = eigh(matrix, subset_by_index=[d - count, d - 1])
    return values[::-1], vectors[:, ::-1]
