"""Principal directions and the published score, against numpy.linalg.svd and against any batching."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saft_hf.errors import SAFTInputError
from saft_hf.score import Moments, Subspace, principal_subspace, projections, saft_scores, subspace_of_rows

seeds = st.integers(0, 2**32 - 1)


def svd_score(x: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """METHOD 1, steps 2 and 3, written down plainly."""
    centred = x - x.mean(axis=0)
    _, _, right = np.linalg.svd(centred, full_matrices=False)
    return ((centred @ right[:k].T) ** 2).sum(axis=1) / k


def pool(n: int = 80, d: int = 12, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((n, d)) * np.logspace(1, -1, d)


def saft_score(x: NDArray[np.floating], space: Subspace, k: int) -> NDArray[np.float32]:
    return saft_scores(x, space, (k,))[k]


def fitted(x: NDArray[np.float64], k: int, block: int = 17) -> Subspace:
    total = Moments.zeros(x.shape[1])
    for start in range(0, len(x), block):
        total = total.merge(Moments.of(x[start : start + block]))
    return principal_subspace(total, k)


@pytest.mark.smoke
@settings(deadline=None)
@given(seeds, st.integers(1, 4), st.integers(6, 90), st.integers(5, 14))
def test_score_is_the_svds(seed: int, k: int, n: int, d: int) -> None:
    x = pool(n, d, seed)
    expected = svd_score(x, k)
    found = saft_score(x, fitted(x, k), k)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-6 * expected.max()  # float32 output; the contract says 1e-5


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("case", ["offset", "giant", "giant first", "both", "more dimensions than rows", "twins"])
def test_score_is_the_svds_in_hard_places(case: str, k: int) -> None:
    x = pool(20, 50) if case == "more dimensions than rows" else pool()
    plain = x.copy()
    if case in ("giant", "both"):
        x[33] *= 1e5
    if case == "giant first":
        x[0] *= 1e5
    if case == "twins":
        x = np.repeat(x, 3, axis=0)
    plain = x.copy()
    if case in ("offset", "both"):
        x += 1e7
    expected = svd_score(plain, k)
    assert np.abs(saft_score(x, fitted(x, k), k) - expected).max() <= 1e-6 * expected.max()


def test_directions_are_the_svds_with_the_sign_fixed() -> None:
    x = pool()
    found = fitted(x, 4)
    centred = x - x.mean(axis=0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * right[:4], axis=1)), 1, atol=1e-12)
    np.testing.assert_allclose(found.energies, singular[:4] ** 2 / len(x), rtol=1e-10)
    np.testing.assert_allclose(found.total_variance, (singular**2).sum() / len(x), rtol=1e-12)
    energy = singular**2
    np.testing.assert_allclose(found.spectral_gaps, 1 - energy[1:5] / energy[:4], rtol=1e-8)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(4), atol=1e-12)
    assert all(row[np.abs(row).argmax()] > 0 for row in found.directions)
    # The pool mirrored has the same directions, sign included.
    np.testing.assert_allclose(fitted(-x, 4).directions, found.directions, atol=1e-10)


def test_the_same_moments_give_the_same_bits() -> None:
    moments = Moments.of(pool(200, 64))
    one, two = principal_subspace(moments, 4), principal_subspace(moments, 4)
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in one.__slots__)


@pytest.mark.smoke
@settings(deadline=None)
@given(
    seed=seeds,
    n=st.integers(1, 24),
    d=st.integers(1, 70),
    k=st.integers(1, 4),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    order=st.sampled_from("CF"),
    data=st.data(),
)
def test_a_row_has_the_same_bits_in_any_batch(
    seed: int, n: int, d: int, k: int, dtype: type, order: str, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    k = min(k, d)
    basis, _ = np.linalg.qr(rng.standard_normal((d, k)))
    ones = np.ones(k)
    space = Subspace(rng.standard_normal(d), np.ascontiguousarray(basis.T), ones, ones, 1.0, 9.0, k)
    x = np.asarray(rng.standard_normal((n, d)), dtype=dtype, order=order)  # type: ignore[call-overload]
    coordinates, whole = projections(x, space), saft_score(x, space, k)
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n))
    assert np.array_equal(projections(x[chosen], space), coordinates[chosen])
    assert np.array_equal(saft_score(x[chosen], space, k), whole[chosen])
    cut = data.draw(st.integers(0, n))
    assert np.array_equal(np.concatenate([projections(x[:cut], space), projections(x[cut:], space)]), coordinates)
    assert np.array_equal(projections(x[::-2], space), coordinates[::-2])
    for each in range(1, k + 1):
        assert np.array_equal(saft_scores(x, space, (each, k))[each], saft_score(x, space, each))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_hold_at_real_sizes(dtype: type) -> None:
    x = np.random.default_rng(3).standard_normal((64, 4097)).astype(dtype)
    space = principal_subspace(Moments.of(x[:, :200]), 4)
    wide = Subspace(x[0], np.pad(space.directions, ((0, 0), (0, 3897))), space.energies, space.spectral_gaps, 1, 64, 5)
    whole = projections(x, wide)
    assert all(np.array_equal(projections(x[i : i + 1], wide)[0], whole[i]) for i in range(64))


def test_rank_bounds_k() -> None:
    rng = np.random.default_rng(5)
    flat = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 9)) + 1e4
    moments = Moments.of(flat)
    clipped = principal_subspace(moments, 4)
    assert clipped.rank == 2
    assert clipped.directions.shape == (2, 9)
    assert clipped.spectral_gaps[1] == pytest.approx(1)
    assert principal_subspace(moments, 2).rank == 2
    assert principal_subspace(Moments.of(rng.standard_normal((3, 9))), 4).rank == 2
    assert principal_subspace(Moments.of(rng.standard_normal((30, 2))), 4).rank == 2
    with pytest.raises(SAFTInputError, match="between 1 and 2"):
        saft_score(flat, clipped, 3)


def test_one_dimension() -> None:
    found = principal_subspace(Moments.of([[1.0], [4.0]]), 1)
    assert found.directions.tolist() == [[1.0]]
    assert found.spectral_gaps.tolist() == [1.0]


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 / 3])
def test_equal_rows_are_refused(value: float) -> None:
    rows = np.full((6, 3), value)
    with pytest.raises(SAFTInputError, match="all 12 rows of the pool have the same vector"):
        principal_subspace(Moments.of(rows).merge(Moments.of(rows)), 1)


def test_rows_that_differ_only_by_rounding_are_equal() -> None:
    rows = np.full((6, 3), 1e8 / 3)
    rows[::2, 1] = np.nextafter(rows[0, 1], np.inf)
    with pytest.raises(SAFTInputError, match="have the same vector"):
        principal_subspace(Moments.of(rows), 1)


@pytest.mark.parametrize("rows", [np.empty((0, 3)), np.ones((1, 3))])
def test_fewer_than_two_rows_are_refused(rows: NDArray[np.float64]) -> None:
    with pytest.raises(SAFTInputError, match=rf"the pool has {len(rows)} scored row\(s\)"):
        principal_subspace(Moments.of(rows), 1)


def test_bad_arguments_are_named() -> None:
    space = fitted(pool(), 2)
    with pytest.raises(SAFTInputError, match="k must be at least 1"):
        principal_subspace(Moments.of(pool()), 0)
    with pytest.raises(SAFTInputError, match=r"\[n, 12\]; found \[4, 11\]"):
        projections(np.zeros((4, 11)), space)
    for k in (0, 3):
        with pytest.raises(SAFTInputError, match=rf"between 1 and 2.*\[{k}\]"):
            saft_score(pool(), space, k)


def test_no_rows_give_no_scores() -> None:
    assert saft_score(np.empty((0, 12)), fitted(pool(), 2), 2).shape == (0,)


def test_a_row_beyond_float32_stays_finite_and_on_top() -> None:
    x = pool()
    space = fitted(x, 2)
    x[7] *= 1e25
    scores = saft_score(x, space, 2)
    assert np.isfinite(scores).all()
    assert scores.argmax() == 7


@given(st.integers(0, 50), st.integers(2, 30), st.integers(1, 4))
def test_fewer_rows_than_dimensions_have_the_same_directions(seed: int, rows: int, k: int) -> None:
    spread = np.arange(1, 41, dtype=np.float64)[::-1] ** 3
    x = np.random.default_rng(seed).normal(5, 1, (rows, 40)) * spread
    few, whole = subspace_of_rows(x, k), principal_subspace(Moments.of(x), k)
    assert few.rank == whole.rank
    np.testing.assert_allclose(few.mean, whole.mean)
    np.testing.assert_allclose(few.energies, whole.energies, rtol=1e-8)
    assert few.total_variance == pytest.approx(whole.total_variance)
    if (whole.spectral_gaps > 1e-3).all():
        np.testing.assert_allclose(few.directions, whole.directions, atol=1e-6)
        np.testing.assert_allclose(few.directions @ few.directions.T, np.eye(len(few.directions)), atol=1e-9)
