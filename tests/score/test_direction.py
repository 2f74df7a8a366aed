"""Learning from labels: the rules, the folds, and one test of the whole procedure that keeps its level."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from saft_hf.errors import SAFTInputError
from saft_hf.score import Direction, Frame, Moments, fit_direction, principal_subspace
from saft_hf.score.directed import combine
from saft_hf.score.direction import (
    FOLDS,
    MIN_OF_A_CLASS,
    SIGNIFICANCE,
    _chance,
    auroc,
    make_folds,
    out_of_fold,
    permuted_orders,
)

seeds = st.integers(0, 2**32 - 1)
FEATURES = ("2.s", "2.m", "4.s", "4.m")


class Pool:
    """Gaussian features of which `strong` ones part the classes by `shift` standard deviations."""

    def __init__(self, seed: int, shift: float = 0.0, strong: tuple[str, ...] = (), share: float = 0.3) -> None:
        rng = np.random.default_rng(seed)
        self.harmful = rng.random(500) < share
        x = {feature: rng.standard_normal((500, 12)) * np.linspace(2, 0.5, 12) for feature in FEATURES}
        for feature in strong:
            x[feature][:, 3] += shift * 1.6 * self.harmful
        self.frame = Frame.of({feature: principal_subspace(Moments.of(rows), 8) for feature, rows in x.items()})
        self.at = self.frame.coordinates(x)
        self.moments = Moments.of(self.at)
        # A score from elsewhere, with its own unit, that knows something of the classes.
        self.fixed = 7 * (rng.standard_normal(500) + 1.5 * self.harmful)

    def some(self, harmful: int, benign: int) -> NDArray[np.intp]:
        return np.concatenate([np.flatnonzero(self.harmful)[:harmful], np.flatnonzero(~self.harmful)[:benign]])

    def fit(
        self,
        rows: NDArray[np.intp] | None = None,
        harmful: NDArray[np.bool_] | None = None,
        groups: NDArray[np.intp] | None = None,
        fixed: NDArray[np.float64] | None = None,
        permutations: int = 199,
    ) -> Direction:
        rows = np.arange(80) if rows is None else rows
        return fit_direction(
            self.frame,
            self.moments,
            self.at[rows],
            self.harmful[rows] if harmful is None else harmful,
            np.arange(rows.size) if groups is None else groups,
            None if fixed is None else fixed[rows],
            1.0 if fixed is None else float(fixed.std()),
            permutations=permutations,
        )


@pytest.mark.smoke
def test_a_clear_signal_decides() -> None:
    pool = Pool(0, 3.0, FEATURES)
    direction = pool.fit()
    assert direction.undecided is None
    assert direction.p_value == pytest.approx(1 / 200)
    assert direction.permutations == 199
    rest = pool.at[80:] @ direction.weights
    # What is expected of it comes true on rows that it has not seen.
    assert direction.auroc == pytest.approx(roc_auc_score(pool.harmful[80:], rest), abs=0.05)
    assert direction.auroc == pytest.approx(
        np.mean([roc_auc_score(pool.harmful[:80], line) for line in direction.out_of_fold])
    )
    assert direction.fixed_weight == 0
    assert set(direction.feature_weights) == set(FEATURES)
    assert sum(direction.feature_weights.values()) == pytest.approx(1)


def test_weights_are_those_of_a_plain_discriminant() -> None:
    """By the textbook: shrunk covariance of all rows, means of the labelled ones, one standard deviation."""
    pool = Pool(1, 2.0, ("4.m",))
    rows, labels = pool.at[:80], pool.harmful[:80]
    covariance = np.cov(pool.at.T, bias=True)
    size = len(covariance)
    shrunk = 0.4 * covariance + 0.6 * np.trace(covariance) / size * np.eye(size)
    plain = np.linalg.solve(shrunk, rows[labels].mean(axis=0) - rows[~labels].mean(axis=0))
    weights = pool.fit().weights
    np.testing.assert_allclose(weights, plain / (pool.at @ plain).std(), atol=1e-9)
    shares = pool.fit().feature_weights
    spreads = [(pool.at[:, at : at + 8] @ weights[at : at + 8]).std() for at in range(0, size, 8)]
    np.testing.assert_allclose([*shares.values()], np.array(spreads) / sum(spreads), atol=1e-9)
    assert max(shares, key=lambda feature: shares[feature]) == "4.m"


def test_all_permutations_at_once_equal_the_plain_loop() -> None:
    pool = Pool(6, 1.0, ("4.s",))
    rows, labels, rng = pool.at[:50], pool.harmful[:50], np.random.default_rng(0)
    prompts = np.repeat(np.arange(25), 2)
    folds = make_folds(labels, prompts, rng)
    assert folds is not None
    orders = np.concatenate([np.arange(50)[None], permuted_orders(prompts, 6, rng)])
    scores = out_of_fold(rows, labels, folds, orders, pool.moments)
    for repeat, fold in enumerate(folds):
        for number, order in enumerate(orders):
            moved, plain = rows[order], np.empty(50)
            for held in np.unique(fold):
                train, test = fold != held, fold == held
                difference = moved[train & labels].mean(axis=0) - moved[train & ~labels].mean(axis=0)
                plain[test] = moved[test] @ combine(difference, pool.moments)
            np.testing.assert_allclose(scores[repeat, number], plain, atol=1e-10)


def test_the_whole_test_is_repeated_for_every_permutation() -> None:
    """The fixed score's weight included: the p-value equals that of fits on labels that were permuted beforehand."""
    pool, m = Pool(3, 1.0, ("2.s",)), 40
    labels, rng = pool.harmful[:m], np.random.default_rng(0)
    folds = make_folds(labels, np.arange(m), rng)
    assert folds is not None
    orders = np.concatenate([np.arange(m)[None], permuted_orders(np.arange(m), 49, rng)])
    areas, weights = [], []
    for order in orders:
        scores = out_of_fold(pool.at[:m][order], labels, folds, np.arange(m)[None], pool.moments)[:, 0]
        fixed = pool.fixed[:m][order] / pool.fixed.std()
        own = np.clip(roc_auc_score(labels, fixed), 0.5, 0.99)
        other = np.clip(np.mean([roc_auc_score(labels, line) for line in scores]), 0.5, 0.99)
        known, learned = norm.ppf(own) ** 2, norm.ppf(other) ** 2
        weights.append(known / (known + learned) if known else 0.0)
        combined = (1 - weights[-1]) * scores + weights[-1] * fixed
        areas.append(np.mean([roc_auc_score(labels, line) for line in combined]))
    direction = pool.fit(np.arange(m), fixed=pool.fixed, permutations=49)
    assert direction.auroc == pytest.approx(areas[0])
    assert direction.fixed_weight == pytest.approx(weights[0])
    assert direction.p_value == pytest.approx(np.mean(np.array(areas) >= areas[0] - 1e-12))


@pytest.mark.parametrize("harmful", [12, 3])
def test_p_values_are_uniform_and_noise_is_undecided(harmful: int) -> None:
    """However few harmful labels there are, with a fixed score and without."""
    values, rng = [], np.random.default_rng(harmful)
    for seed in range(120):
        pool, labels = Pool(seed), rng.permutation(np.arange(60) < harmful)
        values.append(pool.fit(np.arange(60), labels, fixed=pool.fixed if seed % 2 else None).p_value)
    ordered = np.sort(values)
    # Kolmogorov's distance at level 0.001, and a grid of 1/200.
    assert np.abs(ordered - np.arange(1, 121) / 120).max() < 1.95 / np.sqrt(120) + 1 / 200
    assert np.mean(ordered > SIGNIFICANCE) >= 0.94


@pytest.mark.parametrize(("harmful", "beside"), [(25, False), (25, True), (2, True), (3, False), (4, True)])
def test_labels_shuffled_over_a_strong_pool_are_undecided(harmful: int, beside: bool) -> None:
    pool = Pool(3, 3.0, FEATURES)
    rng, undecided = np.random.default_rng(harmful), 0
    for _ in range(200):
        rows = rng.permutation(500)[: rng.integers(60, 101)]
        labels = rng.permutation(np.arange(rows.size) < harmful)
        undecided += pool.fit(rows, labels, fixed=pool.fixed if beside else None).undecided is not None
    assert undecided >= 190


@pytest.mark.parametrize("harmful", [2, 3, 4])
def test_two_to_four_harmful_labels_decide_where_the_signal_is_strong(harmful: int) -> None:
    strong = Pool(1, 8.0, FEATURES, share=0.05)
    assert strong.fit(strong.some(harmful, 90)).undecided is None
    weak = Pool(1)
    assert weak.fit(weak.some(harmful, 90)).undecided is not None


def test_a_fixed_score_decides_where_the_features_say_nothing() -> None:
    pool = Pool(4)
    assert pool.fit().undecided is not None
    direction = pool.fit(fixed=pool.fixed)
    assert direction.undecided is None
    own = direction.fixed_weight
    assert own > 0.7
    assert direction.feature_weights["reference"] == pytest.approx(own)
    assert sum(direction.feature_weights.values()) == pytest.approx(1)
    # What stands in `weights` is the rest: the score that is kept is the score that was tested.
    assert (pool.at @ direction.weights).std() == pytest.approx(1 - own)
    score = pool.at @ direction.weights + direction.fixed_weight * pool.fixed / pool.fixed.std()
    assert roc_auc_score(pool.harmful[80:], score[80:]) > 0.75


def test_a_fixed_score_that_is_wrong_has_no_say() -> None:
    pool = Pool(5, 2.0, ("2.s",))
    direction, without = pool.fit(fixed=-pool.fixed), pool.fit()
    assert direction.fixed_weight == 0
    assert "reference" not in direction.feature_weights
    assert np.array_equal(direction.weights, without.weights)
    assert np.array_equal(direction.out_of_fold, without.out_of_fold)


def test_the_unit_of_a_fixed_score_changes_nothing() -> None:
    pool = Pool(6, 1.0, ("2.s",))
    one, other = pool.fit(fixed=pool.fixed), pool.fit(fixed=1024 * pool.fixed)
    np.testing.assert_allclose(one.out_of_fold, other.out_of_fold, atol=1e-9)
    assert one.p_value == other.p_value


@pytest.mark.parametrize("harmful", range(MIN_OF_A_CLASS))
def test_too_few_of_a_class_are_undecided_with_a_number(harmful: int) -> None:
    labels = np.arange(80) < harmful
    for own, name in ((labels, "harmful"), (~labels, "benign")):
        direction = Pool(4, 4.0, FEATURES).fit(harmful=own)
        assert direction.undecided is not None
        assert f"{harmful} of 80 labelled rows are {name}" in direction.undecided.reason
        assert (direction.undecided.more_labels is None) == (harmful == 0)
        assert direction.permutations == 0
        # A direction needs both classes; a fixed score needs none, and is then the only one.
        assert direction.weights.any() == (harmful > 0)
        pool = Pool(4, 4.0, FEATURES)
        beside = pool.fit(harmful=own, fixed=pool.fixed)
        assert beside.undecided == direction.undecided
        assert beside.fixed_weight == beside.feature_weights["reference"] == 1
        assert not beside.weights.any()


def test_rows_of_one_prompt_are_one_piece_of_evidence() -> None:
    pool = Pool(4, 8.0, FEATURES)
    rows = pool.some(4, 60)
    groups = np.concatenate([np.zeros(4, int), np.arange(1, 61)])
    undecided = pool.fit(rows, groups=groups).undecided
    assert undecided is not None
    assert "4 of 64 labelled rows are harmful, of one prompt" in undecided.reason
    assert undecided.more_labels == 64 * 3


def test_a_weak_signal_is_undecided_with_about_how_many_labels_would_do() -> None:
    for seed in range(30):
        undecided = Pool(seed, 0.7, ("2.s",)).fit(np.arange(50)).undecided
        if undecided and undecided.more_labels:
            assert "out-of-fold AUROC of 0." in undecided.reason
            assert 0 < undecided.more_labels < 2000
            return
    pytest.fail("no draw was undecided with a number")


@given(seeds)
@settings(max_examples=40)
def test_folds_keep_prompts_together_and_classes_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompts = np.unique(rng.integers(0, 25, 60), return_inverse=True)[1]
    labels = rng.random(60) < rng.choice([0.06, 0.3])
    folds = make_folds(labels, prompts, rng)
    scarce = min(np.unique(prompts[labels == value]).size for value in (True, False))
    if folds is None:
        assert scarce < 2 or np.unique(prompts).size < 50  # prompts with both labels may leave nothing to hold out
        return
    assert scarce >= 2
    for fold in folds:
        assert np.unique(fold).size == min(FOLDS, scarce)
        assert all(np.unique(fold[prompts == group]).size == 1 for group in np.unique(prompts))
        for held in np.unique(fold):
            assert set(labels[fold != held]) == {True, False}
        if scarce <= FOLDS and labels.sum() == scarce and np.unique(prompts[labels]).size == scarce:
            assert np.unique(fold[labels]).size == scarce  # each scarce prompt is held out alone


@given(st.integers(2, 5), seeds)
def test_folds_are_stratified(harmful: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.arange(83) < harmful * 5)
    folds = make_folds(labels, np.arange(83), np.random.default_rng(seed))
    assert folds is not None
    for fold in folds:
        assert np.bincount(fold[labels]).tolist() == [harmful] * 5
        assert np.ptp(np.bincount(fold)) <= 1
    assert not np.array_equal(folds[0], folds[1])


def test_twins_of_one_prompt_do_not_leak() -> None:
    """Pure noise, every row twice with the same label: without groups the twin gives the answer away."""
    pool = Pool(5)
    twice = np.repeat(np.arange(40), 2)
    labels = np.repeat(np.random.default_rng(1).random(40) < 0.4, 2)
    leaking, honest = pool.fit(twice, labels), pool.fit(twice, labels, groups=twice)
    assert leaking.auroc > honest.auroc + 0.05
    assert honest.undecided is not None


@given(seeds)
@settings(max_examples=25)
def test_a_permutation_moves_groups_as_a_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompts = np.unique(rng.integers(0, 20, 40), return_inverse=True)[1]
    sizes = np.bincount(prompts)
    for order in permuted_orders(prompts, 5, rng):
        assert np.array_equal(np.sort(order), np.arange(40))
        for group in range(sizes.size):
            came = prompts[order[prompts == group]]
            assert np.unique(came).size == 1
            assert sizes[came[0]] == sizes[group]


@given(seeds)
def test_auroc_is_sklearns_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(20) < 1 + rng.integers(18)
    scores = rng.integers(0, 5, (3, 20)).astype(np.float64)
    np.testing.assert_allclose(auroc(scores, labels), [roc_auc_score(labels, line) for line in scores])


def test_the_same_input_gives_the_same_bits_and_any_order_the_same_direction() -> None:
    pool = Pool(7, 1.0, ("2.s",))
    one, again = pool.fit(fixed=pool.fixed), pool.fit(fixed=pool.fixed)
    for name in ("weights", "out_of_fold", "auroc", "p_value", "fixed_weight", "feature_weights"):
        assert np.array_equal(getattr(one, name), getattr(again, name)), name
    turned = pool.fit(np.random.default_rng(0).permutation(80))
    np.testing.assert_allclose(turned.weights, pool.fit().weights, atol=1e-12)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Pool(7, 1.0, ("2.s",)).fit()
    monkeypatch.setattr("saft_hf.score.direction._CHUNK", 20_000)
    parts = Pool(7, 1.0, ("2.s",)).fit()
    assert parts.p_value == whole.p_value
    np.testing.assert_allclose(parts.out_of_fold, whole.out_of_fold, atol=1e-12)


def test_what_does_not_fit_is_named() -> None:
    pool = Pool(8)
    with pytest.raises(SAFTInputError, match="permutations must be at least 49"):
        pool.fit(permutations=20)
    with pytest.raises(SAFTInputError, match=r"\[80, 32\]"):
        pool.fit(groups=np.arange(79))
    with pytest.raises(SAFTInputError, match="finite"):
        pool.fit(fixed=np.full(500, np.nan))
    pool.at[0, 0] = np.nan
    with pytest.raises(SAFTInputError, match="finite"):
        pool.fit()


def test_undecided_is_stricter_than_the_usual_level() -> None:
    # At 0.05 exactly, half of all series of 200 shuffled draws would have more than 5 % accepted.
    assert SIGNIFICANCE < 0.035


def test_a_constant_fixed_score_changes_nothing() -> None:
    pool = Pool(9, 2.0, ("2.s",))
    args = (pool.frame, pool.moments, pool.at[:60], pool.harmful[:60], np.arange(60))
    one = fit_direction(*args, np.full(60, 3.0), 0.0, permutations=99)
    assert one.fixed_weight == 0
    assert np.array_equal(one.weights, fit_direction(*args, permutations=99).weights)


@given(st.integers(49, 5000), st.data())
def test_a_probability_that_is_too_high_is_shown_as_higher_than_what_is_needed(of: int, data: st.DataObject) -> None:
    p_value = data.draw(st.integers(int(SIGNIFICANCE * of) + 1, of)) / of
    told = _chance(np.array([0.6, 0.5, 0.55]), p_value, 100)
    assert told is not None
    shown = re.search(r"probability ([\d.]+) \(at most ([\d.]+) is needed", told.reason)
    assert shown is not None
    assert float(shown[1]) > float(shown[2]) == SIGNIFICANCE
    assert abs(float(shown[1]) - p_value) < 1.01e-3
