"""Moments: equal however the rows are cut, weighted or shifted."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.errors import SAFTInputError
from saft_hf.score import Moments

seeds = st.integers(0, 2**32 - 1)


def assert_same(a: Moments, b: Moments, rtol: float = 1e-11) -> None:
    assert a.count == b.count
    scale = max(np.abs(b.scatter).max(), np.abs(b.mean).max(), 1.0)
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=rtol * scale)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=rtol, atol=rtol * scale)


@pytest.mark.smoke
@settings(deadline=None)
@given(seeds, st.integers(1, 40), st.integers(1, 6), st.lists(st.integers(0, 40), max_size=4))
def test_any_cut_gives_the_moments_of_all_rows(seed: int, n: int, d: int, cuts: list[int]) -> None:
    x = np.random.default_rng(seed).standard_normal((n, d)) * 10 + 3
    edges = [0, *sorted(min(cut, n) for cut in cuts), n]
    parts = [Moments.of(x[a:b]) for a, b in pairwise(edges)]
    merged = reduce(Moments.merge, parts)
    direct = x - x.mean(axis=0)
    assert_same(merged, Moments(n, x.mean(axis=0), direct.T @ direct))
    assert_same(reduce(Moments.merge, parts[::-1]), merged)
    assert np.array_equal(merged.scatter, merged.scatter.T)


@settings(deadline=None)
@given(seeds, st.integers(1, 20), st.integers(1, 5))
def test_multiplicity_is_repetition(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    x, times = rng.standard_normal((n, d)), rng.integers(1, 6, n)
    assert_same(Moments.of(x, times), Moments.of(np.repeat(x, times, axis=0)))


@settings(deadline=None)
@given(seeds, st.integers(1, 8), st.integers(1, 5))
def test_no_rows_change_no_bit(seed: int, n: int, d: int) -> None:
    some = Moments.of(np.random.default_rng(seed).standard_normal((n, d)))
    for merged in (
        some.merge(Moments.zeros(d)),
        Moments.zeros(d).merge(some),
        some.merge(Moments.of(np.empty((0, d)))),
    ):
        assert merged.count == some.count
        assert np.array_equal(merged.mean, some.mean)
        assert np.array_equal(merged.scatter, some.scatter)
    assert Moments.zeros(d).merge(Moments.zeros(d)).count == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sums_are_float64_whatever_comes_in(dtype: type) -> None:
    found = Moments.of(np.full((3, 2), 0.1, dtype=dtype))
    assert found.mean.dtype == found.scatter.dtype == np.float64
    assert np.array_equal(found.mean, np.full(2, 0.1, dtype=dtype).astype(np.float64))


def test_a_mean_far_from_zero_costs_no_accuracy() -> None:
    x = np.random.default_rng(0).integers(-9, 10, (60, 4)).astype(np.float64)
    offset = 2.0**40
    # Whole numbers: adding the offset is exact, so the scatter must not change.
    assert_same(
        Moments(60, np.zeros(4), Moments.of(x + offset).scatter), Moments(60, np.zeros(4), Moments.of(x).scatter), 1e-12
    )
    near, far = (
        Moments.of(x[:25]).merge(Moments.of(x[25:])),
        Moments.of(x[:25] + 2**30).merge(Moments.of(x[25:] + 2**30)),
    )
    np.testing.assert_allclose(far.scatter, near.scatter, atol=1e-6 * near.scatter.max())


@pytest.mark.parametrize("value", [0.1, 1e10 / 3, -7e-20])
def test_equal_rows_scatter_by_exactly_zero(value: float) -> None:
    rows = np.full((7, 3), value)
    assert not Moments.of(rows, np.arange(1, 8)).merge(Moments.of(rows)).scatter.any()


def test_covariance_is_numpys() -> None:
    x = np.random.default_rng(1).standard_normal((30, 4))
    np.testing.assert_allclose(Moments.of(x).covariance, np.cov(x.T, bias=True), rtol=1e-12, atol=1e-14)
    with pytest.raises(SAFTInputError, match="no row"):
        _ = Moments.zeros(4).covariance


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        ([1.0, 2.0], None, r"\[n, d\].*\[2\]"),
        ([[np.nan]], None, "NaN or infinity"),
        ([[1.0], [np.inf]], None, "NaN or infinity"),
        ([[1.0]], [0], "whole numbers >= 1"),
        ([[1.0]], [1.5], "whole numbers >= 1"),
        ([[1.0]], [1, 1], "1 whole numbers"),
    ],
)
def test_bad_input_is_named(x: list, weights: list | None, message: str) -> None:
    with pytest.raises(SAFTInputError, match=message):
        Moments.of(x, weights)


def test_other_dimensions_do_not_merge() -> None:
    with pytest.raises(SAFTInputError, match="of 2 and of 3"):
        Moments.zeros(2).merge(Moments.zeros(3))
