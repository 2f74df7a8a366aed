"""The largest eigenpairs of a large symmetric matrix, without solving for the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

_DENSE = 512
"""Up to this size the whole problem is solved: it takes milliseconds."""

_SPARE, _BLOCKS, _ROUNDS = 4, 12, 500


def top_eigenpairs(matrix: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest eigenvalues and their vectors, to rounding.

    Block Lanczos with thick restarts and full reorthogonalisation (Golub and Van Loan, Matrix Computations, 10.3.6):
    some dozen products of the matrix with a few columns, where a dense solver takes `d^3` steps. A block finds equal
    eigenvalues all, and a matrix of low rank ends it early; ARPACK restarts at random there. The start is the same in
    every call, so the same matrix gives the same bits.

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
    width = count + _SPARE
    if d <= max(_DENSE, _BLOCKS * width):
        return dense_eigenpairs(matrix, count)
    tolerance = 4 * np.finfo(np.float64).eps * np.sqrt(d)
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((d, width)))
    images = matrix @ basis
    for _ in range(_ROUNDS):
        values, rotation = dense_eigenpairs(basis.T @ images, basis.shape[1])
        ritz = basis @ rotation[:, :width]
        residuals = images @ rotation[:, :width] - ritz * values[:width]
        if np.linalg.norm(residuals[:, :count], axis=0).max() <= tolerance * values[0]:
            return values[:count], ritz[:, :count]
        if basis.shape[1] == _BLOCKS * width:
            kept = rotation[:, : 2 * width]
            basis, images = basis @ kept, images @ kept
        for _ in range(3):  # the first leaves rounding, which is all there is of a pair that has converged
            residuals -= basis @ (basis.T @ residuals)
            residuals, _ = np.linalg.qr(residuals)
        basis, images = np.hstack([basis, residuals]), np.hstack([images, matrix @ residuals])
    # A spectrum without any gap: what follows costs minutes at d = 8,192, and always ends.
    return dense_eigenpairs(matrix, count)


def dense_eigenpairs(matrix: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same by LAPACK, which reads one triangle only."""
    d = len(matrix)
    values, vectors = eigh(matrix, subset_by_index=[d - count, d - 1])
    return values[::-1], vectors[:, ::-1]
