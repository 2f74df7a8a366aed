"""The directed score: finds the direction, and does not care how the pool is turned, scaled or batched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import special_ortho_group
from sklearn.covariance import shrunk_covariance

from saft_hf.errors import SAFTInputError
from saft_hf.score import Moments, principal_subspace
from saft_hf.score.directed import Frame, LinearScore, combine, difference_features, metric, with_differences

seeds = st.integers(0, 2**32 - 1)
Vectors = dict[str, NDArray[np.float64]]


def pool(seed: int, n: int = 400, d: int = 20, shift: float = 3.0) -> tuple[Vectors, NDArray[np.bool_]]:
    """Two features; the classes differ along axis 2 of feature `a`, and in `b` not at all."""
    rng = np.random.default_rng(seed)
    harmful = rng.random(n) < 0.25
    # Falling spread, but the shift lies in a direction that is not the widest.
    x = {feature: rng.standard_normal((n, d)) * np.linspace(3, 0.5, d) + 5 for feature in ("a", "b")}
    x["a"][:, 2] += shift * 2.7 * harmful
    return x, harmful


def framed(x: Vectors, r: int = 8) -> tuple[Frame, NDArray[np.float64], Moments]:
    frame = Frame.of({feature: principal_subspace(Moments.of(rows), r) for feature, rows in x.items()})
    at = frame.coordinates(x)
    return frame, at, Moments.of(at)


def difference(at: NDArray[np.float64], harmful: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(at[harmful].mean(axis=0) - at[~harmful].mean(axis=0))


def learned(x: Vectors, harmful: NDArray[np.bool_], labels: int = 120) -> LinearScore:
    frame, at, moments = framed(x)
    return frame.score(combine(difference(at[:labels], harmful[:labels]), moments))


def auroc(scores: NDArray[np.float32], harmful: NDArray[np.bool_]) -> float:
    return float((scores[harmful][:, None] > scores[~harmful]).mean())


@pytest.mark.smoke
def test_the_planted_direction_is_found() -> None:
    x, harmful = pool(0, shift=3.5)
    score = learned(x, harmful)
    weights = score.weights[score.features.index("a")]
    assert weights[2] > 0.9 * np.linalg.norm(score.weights)
    assert auroc(score(x)[120:], harmful[120:]) > 0.95
    # Turning the labels round turns the score round.
    assert auroc(learned(x, ~harmful)(x)[120:], harmful[120:]) < 0.05


def test_a_feature_without_signal_counts_for_little() -> None:
    x, harmful = pool(1)
    score = learned(x, harmful)
    a, b = (np.linalg.norm(score.weights[score.features.index(feature)]) for feature in ("a", "b"))
    assert b < 0.25 * a


@given(seeds)
@settings(max_examples=15)
def test_rotating_scaling_and_shifting_a_feature_changes_no_score(seed: int) -> None:
    x, harmful = pool(seed % 1000)
    rng = np.random.default_rng(seed)
    turn = special_ortho_group.rvs(20, random_state=seed)
    moved = {"a": 7.5 * (x["a"] @ turn) + rng.standard_normal(20) * 10, "b": x["b"] / 30}
    np.testing.assert_allclose(learned(moved, harmful)(moved), learned(x, harmful)(x), rtol=0, atol=1e-4)


def test_scores_have_unit_spread_and_zero_mean_over_the_pool() -> None:
    x, harmful = pool(2)
    scores = learned(x, harmful)(x).astype(np.float64)
    assert abs(scores.mean()) < 1e-6
    assert abs(scores.std() - 1) < 1e-6


def test_many_directions_at_once_are_the_same_as_one_by_one() -> None:
    x, harmful = pool(3)
    _, at, moments = framed(x)
    one = difference(at[:90], harmful[:90])
    weights = combine(one, moments)
    many = combine(np.stack([one, -one, 2 * one, 0 * one]), moments)
    np.testing.assert_allclose(many, [weights, -weights, weights, 0 * weights], atol=1e-12)


def test_without_shrinkage_it_is_fishers_discriminant(monkeypatch: pytest.MonkeyPatch) -> None:
    x, harmful = pool(4)
    _, at, moments = framed(x)
    monkeypatch.setattr("saft_hf.score.directed.SHRINKAGE", 1e-9)
    weights = combine(difference(at, harmful), moments)
    within = sum(np.cov(at[harmful == v].T, bias=True) * (harmful == v).mean() for v in (True, False))
    fisher = np.linalg.solve(within, difference(at, harmful))
    assert np.corrcoef(at @ weights, at @ fisher)[0, 1] > 1 - 1e-6


def layers(seed: int) -> Vectors:
    """Two layers at two readouts, and one at a single readout; float32 as they are stored."""
    rng = np.random.default_rng(seed)
    names = ("4.response_start", "4.response_mean", "6.response_mean", "6.response_start", "8.response_mean")
    x = {name: rng.standard_normal((200, 16)) * np.linspace(3, 0.5, 16) + rng.standard_normal(16) for name in names}
    return {name: rows.astype(np.float32) for name, rows in x.items()}


def test_differences_are_made_where_both_readouts_are_there() -> None:
    x = layers(0)
    pairs = difference_features(tuple(x))
    assert pairs == {
        f"{layer}.response_mean-response_start": (f"{layer}.response_mean", f"{layer}.response_start")
        for layer in (4, 6)
    }
    every = with_differences(x)
    assert [*every] == [*x, *pairs]
    assert all(rows.dtype == np.float64 for rows in every.values())
    for name, (mean, start) in pairs.items():
        assert np.array_equal(every[name], x[mean].astype(np.float64) - x[start].astype(np.float64))
    # No difference is made of a difference.
    assert difference_features(tuple(every)) == pairs


@given(seeds)
@settings(max_examples=20)
def test_the_score_of_stored_vectors_is_the_direction_in_coordinates(seed: int) -> None:
    """Weights of differences are folded into those of the stored features, which alone are read."""
    x = layers(seed)
    frame, at, _ = framed(with_differences(x))
    assert np.array_equal(frame.coordinates(x), at)
    weights = np.random.default_rng(seed).standard_normal(frame.size)
    score = frame.score(weights)
    assert score.features == tuple(x)
    np.testing.assert_allclose(score(x), at @ weights, rtol=0, atol=1e-5 * np.abs(at @ weights).max())


def test_a_sum_of_scores_scores_the_sum() -> None:
    x = layers(1)
    frame, at, _ = framed({name: x[name] for name in ("4.response_start", "4.response_mean")})
    other, there, _ = framed({name: x[name] for name in ("8.response_mean", "4.response_mean")})
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal(frame.size), rng.standard_normal(other.size)
    both = frame.score(one).plus(other.score(two), 0.3)
    assert both.features == ("4.response_start", "4.response_mean", "8.response_mean")
    np.testing.assert_allclose(both(x), at @ one + 0.3 * (there @ two), atol=1e-5)


@given(seeds, st.floats(0.01, 1.0))
@settings(max_examples=20)
def test_the_metric_inverts_the_shrunk_covariance(seed: int, shrinkage: float) -> None:
    rows = np.random.default_rng(seed).standard_normal((30, 6)) * np.arange(1, 7)
    covariance = Moments.of(rows).covariance
    np.testing.assert_allclose(
        metric(covariance, shrinkage) @ shrunk_covariance(covariance, shrinkage), np.eye(6), atol=1e-9
    )


@given(seeds, st.lists(st.integers(0, 399), min_size=1, max_size=9))
@settings(max_examples=20)
def test_a_row_has_the_same_bits_in_every_batch(seed: int, some: list[int]) -> None:
    x, harmful = pool(5)
    x32 = {feature: rows.astype(np.float32) for feature, rows in x.items()}
    score = learned(x, harmful)
    frame = framed(x)[0]
    whole, alone = score(x32), np.concatenate([score({c: x32[c][i : i + 1] for c in x32}) for i in some])
    assert np.array_equal(whole[some], alone)
    assert np.array_equal(score({feature: x32[feature][some] for feature in x32}), alone)
    assert np.array_equal(
        frame.coordinates({feature: x32[feature][some] for feature in x32}), frame.coordinates(x32)[some]
    )


def test_the_same_input_gives_the_same_bits_and_survives_saving() -> None:
    x, harmful = pool(6)
    score, again = learned(x, harmful), learned(x, harmful)
    assert np.array_equal(score.weights, again.weights)
    back = LinearScore.from_parts(*score.to_parts())
    assert back.features == score.features
    assert np.array_equal(back(x), score(x))


def test_a_giant_row_keeps_its_place_and_stays_finite() -> None:
    score = LinearScore(("a",), np.zeros((1, 2)), np.array([[1e300, 0.0]]))
    assert score({"a": [[1e5, 0], [-1e5, 0], [0, 1]]}).tolist() == [
        np.finfo(np.float32).max,
        np.finfo(np.float32).min,
        0.0,
    ]


def test_what_does_not_fit_is_named() -> None:
    x, harmful = pool(7)
    score = learned(x, harmful)
    with pytest.raises(SAFTInputError, match="feature 'b' are missing"):
        score({"a": x["a"]})
    with pytest.raises(SAFTInputError, match=r"feature 'a' must have shape \[n, 20\]; found \[400, 3\]"):
        score({**x, "a": x["a"][:, :3]})
    with pytest.raises(SAFTInputError, match="at least one feature"):
        Frame.of({})
    for shrinkage in (0.0, 1.1):
        with pytest.raises(SAFTInputError, match="shrinkage must be above 0"):
            metric(np.eye(2), shrinkage)
    with pytest.raises(SAFTInputError, match="no variance"):
        metric(np.zeros((2, 2)), 0.5)
    with pytest.raises(SAFTInputError, match="weights must be finite"):
        LinearScore(("a",), np.zeros((1, 2)), np.array([[np.nan, 0.0]]))
    with pytest.raises(SAFTInputError, match="one row for each of 2 features"):
        LinearScore(("a", "b"), np.zeros((1, 2)), np.zeros((1, 2)))


@given(seeds)
@settings(max_examples=10)
def test_coordinates_by_products_are_those_of_single_rows(seed: int) -> None:
    x, _ = pool(seed, n=60)
    stored = {"4.response_mean": x["a"], "4.response_start": x["b"], "6.response_mean": x["a"] - x["b"] ** 2}
    features = with_differences(stored)
    frame = Frame.of({name: principal_subspace(Moments.of(rows), 5) for name, rows in features.items()})
    np.testing.assert_allclose(frame.block_coordinates(stored), frame.coordinates(stored), atol=1e-9)
