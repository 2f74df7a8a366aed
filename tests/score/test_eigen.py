"""The largest eigenpairs, against LAPACK's, where an iterative solver may go wrong."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from saft_hf.score import eigen
from saft_hf.score.eigen import top_eigenpairs

D = 600
COUNT = 5


def with_spectrum(values: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))
    matrix = (rotation * values) @ rotation.T
    return (matrix + matrix.T) / 2


SPECTRA = {
    "power law": np.arange(1, D + 1) ** -1.0,
    "giant": np.concatenate([[1e12], np.arange(1, D) ** -1.0]),
    "twins": np.repeat([3.0, 2.0, 1.0], D // 3),
    "noise": 1 + np.linspace(0, 1e-2, D),
    "rank 3": np.concatenate([[3.0, 2.0, 1.0], np.zeros(D - 3)]),
    "zero": np.zeros(D),
}


@pytest.mark.parametrize("case", SPECTRA)
def test_pairs_are_those_of_the_dense_solver(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_spectrum(SPECTRA[case])
    expected = np.linalg.eigvalsh(matrix)[::-1][:COUNT]

    def refuse(*args: object) -> None:
        raise AssertionError("the dense solver was asked for the whole matrix")

    dense = eigen.dense_eigenpairs
    monkeypatch.setattr(eigen, "dense_eigenpairs", lambda m, count: refuse() if len(m) == D else dense(m, count))
    values, vectors = top_eigenpairs(matrix, COUNT)
    scale = max(SPECTRA[case].max(), 1e-300)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(COUNT), atol=1e-12)
    assert np.abs(matrix @ vectors - vectors * values).max() <= 1e-13 * scale
    again = top_eigenpairs(matrix, COUNT)
    assert np.array_equal(again[0], values)
    assert np.array_equal(again[1], vectors)


def test_one_that_does_not_settle_is_solved_densely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigen, "_RESTARTS", 1)
    matrix = with_spectrum(SPECTRA["noise"])
    values, _ = top_eigenpairs(matrix, COUNT)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1][:COUNT], rtol=1e-12)


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()
    top_eigenpairs(with_spectrum(SPECTRA["power law"]), COUNT)
    assert np.array_equal(np.random.get_state()[1], before)
