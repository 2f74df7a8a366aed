"""The probe against plain numpy and scikit-learn, and what it must not hang on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from saft_hf.errors import SAFTInputError
from saft_hf.score.mixture import Densities
from saft_hf.score.probe import Probe, Whitening, candidates, distances, fit_probe, others

FEATURES = ("8.response_start", "8.response_mean")


def reference(seed: int = 0, rows: int = 1200, d: int = 20) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Three sources, of which the first is mixed, the second benign, the third harmful; harm is one direction."""
    rng = np.random.default_rng(seed)
    source = np.repeat([0, 1, 2], rows // 3)
    harmful = np.where(source == 0, np.arange(rows) % 2 == 0, source == 2)
    styles = 2 * rng.standard_normal((3, d))
    vectors = {
        name: (rng.standard_normal((rows, d)) + styles[source] + 3 * harmful[:, None] * np.eye(d)[at]).astype(
            np.float32
        )
        for at, name in enumerate(FEATURES)
    }
    return vectors, {"harmful": harmful, "source": source, "prompts": np.arange(rows) // 2, "sources": ["a", "b", "c"]}


def fitted(vectors: dict[str, NDArray[Any]], about: dict[str, Any]) -> Probe:
    whitening = Whitening.of(vectors)
    return fit_probe(whitening, whitening(vectors), **about)


@pytest.fixture(scope="module")
def probe() -> Probe:
    return fitted(*reference())


def test_whitened_coordinates_are_those_of_numpy() -> None:
    vectors, _ = reference()
    whitening = Whitening.of(vectors)
    found = whitening(vectors)
    assert np.allclose(np.cov(found.T, bias=True)[:20, :20], np.eye(20), atol=1e-6)
    assert np.allclose(found.mean(axis=0), 0, atol=1e-8)
    assert np.allclose(whitening.distance(vectors), np.mean(found**2, axis=1), rtol=1e-6)
    assert np.array_equal(whitening.select(FEATURES[1:])(vectors), found[:, 20:])


def test_the_score_is_that_of_scikit_learn(probe: Probe) -> None:
    vectors, about = reference()
    whitening = Whitening.of(vectors).select(probe.score.features)
    rows, harmful, source = whitening(vectors), about["harmful"], about["source"]
    weights = np.zeros(len(rows))
    for bad in (True, False):
        for at in np.unique(source[harmful == bad]):
            own = (harmful == bad) & (source == at)
            weights[own] = 1 / np.sqrt(own.sum())
        weights[harmful == bad] *= len(rows) / 2 / weights[harmful == bad].sum()
    model = LogisticRegression(C=probe.strength, max_iter=1000).fit(rows, harmful, sample_weight=weights)
    assert np.allclose(probe.score(vectors), rows @ model.coef_[0], atol=1e-3)


def test_it_holds_on_rows_that_it_has_not_seen(probe: Probe) -> None:
    vectors, about = reference(seed=0, rows=2400)
    unseen = {name: rows[1200:] for name, rows in vectors.items()}
    area = roc_auc_score(about["harmful"][1200:], probe.score(unseen))
    assert area > 0.9
    assert probe.auroc > 0.95


def test_the_same_input_gives_the_same_bits(probe: Probe) -> None:
    again = fitted(*reference())
    assert np.array_equal(probe.score.weights, again.score.weights)
    assert np.array_equal(probe.densities.counts, again.densities.counts)


def test_parts_come_back_as_they_went(probe: Probe) -> None:
    config, tensors = probe.to_parts()
    again = Probe.from_parts(config, tensors, probe.score)
    vectors, _ = reference(seed=3)
    posterior = np.linspace(0, 1, probe.densities.edges.size + 1)
    scores = probe.score(vectors)
    assert again.components == probe.components
    assert np.array_equal(
        again.probabilities(posterior, scores, vectors), probe.probabilities(posterior, scores, vectors), equal_nan=True
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("maps", lambda array: array[:1]),
        ("maps", lambda array: array.astype(np.float32)),
        ("centres", lambda array: array[:, 1:]),
        ("edges", lambda array: array[::-1]),
        ("counts", lambda array: -array),
        ("held_out", lambda array: 0 * array),
        ("held_out", lambda array: array[:, 1:]),
    ],
)
def test_hostile_parts_are_refused(probe: Probe, name: str, change: Any) -> None:
    config, tensors = probe.to_parts()
    with pytest.raises(ValueError, match=r"probe|counts|edges|rows"):
        Probe.from_parts(config, {**tensors, name: change(tensors[name])}, probe.score)


def test_a_row_far_from_all_reference_rows_has_no_probability(probe: Probe) -> None:
    vectors, _ = reference()
    far = {name: rows + 100 for name, rows in vectors.items()}
    posterior = np.full(probe.densities.edges.size + 1, 0.7)
    assert np.isnan(probe.probabilities(posterior, probe.score(far), far)).all()
    # Of the reference rows themselves one in a hundred lies beyond the limit.
    assert 0.002 < probe.outside(vectors).mean() < 0.02


def test_no_row_is_scored_by_a_probe_that_saw_its_prompt() -> None:
    # Labels that hang on nothing but the prompt, of which every one stands twice: memory alone would know them.
    rng = np.random.default_rng(0)
    about = {"source": np.zeros(1200, dtype=int), "prompts": np.arange(1200) // 2, "sources": ["a"]}
    half = rng.standard_normal((600, 20))
    vectors = {"8.response_mean": np.repeat(half, 2, axis=0)}
    found = fitted(vectors, {**about, "harmful": np.repeat(rng.random(600) < 0.5, 2)})
    assert abs(found.auroc - 0.5) < 0.06


def test_a_source_is_held_out_with_its_prompts() -> None:
    vectors, about = reference()
    found = fitted(vectors, about)
    counts = found.densities.held_out.sum(axis=1)
    assert counts.sum() == 1200
    assert found.components == ("a: benign", "a: harmful", "b: benign", "c: harmful")
    # Style tells the one-class sources apart until they are held out.
    assert found.held_out_auroc < found.auroc


def test_too_few_rows_are_refused() -> None:
    vectors, about = reference(rows=300)
    with pytest.raises(SAFTInputError, match="reference rows of each class"):
        fitted(vectors, about)


def test_candidates_begin_with_the_mean_of_the_last_layer() -> None:
    stored = [f"{layer}.{readout}" for layer in (15, 23) for readout in ("response_start", "response_mean")]
    assert candidates(stored) == [("23.response_mean",), ("23.response_start", "23.response_mean"), tuple(stored)]
    assert candidates(["9.response_end"]) == [("9.response_end",)]


def test_distances_are_means_of_squares() -> None:
    assert distances(np.array([[3.0, 4.0], [0.0, 2.0]])).tolist() == [12.5, 2.0]


def test_a_threshold_holds_the_mean_over_benign_components() -> None:
    scores = np.concatenate([np.linspace(0, 1, 500), np.linspace(0, 2, 500), np.linspace(1, 3, 500)])
    densities = Densities.of(scores, scores, np.repeat([0, 1, 2], 500), np.array([False, False, True]))
    at = densities.threshold(0.05)
    shares = densities.shares_above(at)
    assert shares[:2].mean() <= 0.05
    assert np.allclose(shares, [np.mean(scores[part * 500 : part * 500 + 500] > at) for part in range(3)], atol=0.01)


def test_a_source_can_be_left_out_where_both_classes_remain_with_other_prompts() -> None:
    harmful, source = np.array([1, 0, 1, 0, 0], dtype=bool), np.array([0, 0, 1, 1, 2])
    apart, shared = np.arange(5), np.array([0, 1, 0, 2, 3])
    assert others(0, harmful, source, apart).tolist() == [False, False, True, True, True]
    assert others(2, harmful, source, apart).tolist() == [True, True, True, True, False]
    assert not others(0, harmful, source, shared).any()  # the other harmful row has the same prompt
    assert not others(0, harmful & (source != 1), source, apart).any()  # it is the one harmful source
    assert others(2, harmful, source, shared).tolist() == [True, True, True, True, False]


def test_few_rows_are_scored_by_a_regression_and_the_plain_difference_together() -> None:
    vectors, told = reference()
    start = next(name for name in FEATURES if name.endswith("start"))
    probe = fitted(vectors, {**told, "few": True})
    assert probe.whitening.features == FEATURES
    harmful, weights = told["harmful"], np.zeros(len(told["harmful"]))
    for bad in (True, False):
        for source in range(3):
            own = (harmful == bad) & (told["source"] == source)
            weights[own] = own.sum() ** -0.5 if own.any() else 0
        weights[harmful == bad] /= weights[harmful == bad].sum()
    at = Whitening.of(vectors)(vectors)
    regression = LogisticRegression(C=0.01, max_iter=1000).fit(at, harmful, weights * len(harmful) / 2).coef_[0]
    plain = weights[harmful] @ vectors[start][harmful] - weights[~harmful] @ vectors[start][~harmful]
    parts = []
    for part in (at @ regression, vectors[start] @ plain):
        within = [np.cov(part[own], aweights=weights[own], ddof=0) for own in (harmful, ~harmful)]
        parts.append(part / np.sqrt(np.mean(within)))
    expected, found = sum(parts), probe.score(vectors).astype(np.float64)
    assert np.allclose(found - found.mean(), expected - np.mean(expected), atol=2e-3 * np.abs(expected).max())
