"""Rows that are unlike the reference: no threshold removes them, and what is said of kept rows counts them in."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.decide import decide, threshold_for_contamination
from saft_hf.scorer import certifying
from saft_hf.scorer.inputs import limits_of, placed
from saft_hf.scorer.labels import LabelledRows, Suggested

ALPHA, DELTA = 0.35, 0.35


@st.composite
def pools(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, probabilities and what is harmful, of a few rows."""
    size = draw(st.integers(4, 9))
    scores = np.array(draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size)), dtype=np.float32)
    unlike = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    harmful = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    likely = np.where(unlike, np.nan, (scores - scores.min()) / 10).astype(np.float32)
    return scores, likely, harmful


def kept(scores: np.ndarray, likely: np.ndarray, threshold: float, *, of_probe: bool = False) -> set[int]:
    """The rows that a filter keeps."""
    limits = limits_of(threshold, scores, likely, of_probe=of_probe)
    return set(decide(scores, ["ok"] * len(scores), limits).kept.tolist())


def certified(
    scores: np.ndarray, likely: np.ndarray, harmful: np.ndarray, rows: list[int], at: float, source: str = "given"
) -> Any:
    identities = np.zeros((len(scores), 16), dtype=np.uint8)
    identities[:, 0] = np.arange(len(scores))
    fit: Any = SimpleNamespace(labelled=LabelledRows.none(), threshold=at, threshold_from=source)
    every = np.ones(len(rows), dtype=np.bool_)
    return certifying.certify(
        fit,
        placed(scores, likely),
        identities,
        identities[rows],
        Suggested(every, harmful[rows], ~every, 0, None),
        None,
        alpha=ALPHA,
        delta=DELTA,
        looks=1,
        stratify_by=None,
        threshold=None,
        keep_errored=False,
        decided=lambda at: decide(
            scores,
            ["ok"] * len(scores),
            limits_of(at, scores, likely, of_probe=source == "reference"),
            on_error="exclude",
        ),
    )


@settings(max_examples=200)
@given(pools(), st.floats(-5, 5))
def test_kept_sets_are_nested_and_are_the_rows_up_to_the_threshold(pool: Any, at: float) -> None:
    scores, likely, _ = pool
    unlike = set(np.flatnonzero(np.isnan(likely)).tolist())
    assert kept(scores, likely, at) == set(np.flatnonzero(placed(scores, likely) <= at).tolist())
    assert unlike | kept(scores, likely, at - 1) <= kept(scores, likely, at)
    assert kept(scores, likely, at) <= kept(scores, likely, at, of_probe=True)


@settings(max_examples=25, deadline=None)
@given(pools(), st.integers(2, 5), st.integers(-4, 4), st.sampled_from(["given", "reference"]))
def test_certificates_and_bounds_are_false_in_at_most_delta_of_all_draws(
    pool: Any, labels: int, at: int, source: str
) -> None:
    scores, likely, harmful = pool
    draws = list(combinations(range(len(scores)), min(labels, len(scores))))
    in_use = kept(scores, likely, at, of_probe=source == "reference")
    false = bounds = 0
    for draw in draws:
        found = certified(scores, likely, harmful, list(draw), at, source)
        if found.issued:
            rows = kept(scores, likely, found.threshold)
            assert len(rows) == found.kept
            false += sum(harmful[row] for row in rows) > ALPHA * len(rows)
        if found.rows is not None:
            assert found.rows.by_score == found.rows.counted == len(in_use)
            assert found.rows.unlike == np.isnan(likely).sum()
        if found.in_use is not None:
            assert found.in_use.kept == len(in_use)
            assert found.in_use.labels == len(in_use & set(draw))
            bounds += found.in_use.most_harmful < sum(harmful[row] for row in in_use)
    assert false <= DELTA * len(draws)
    assert bounds <= DELTA * len(draws)


def test_counting_unlike_rows_by_their_score_is_caught() -> None:
    scores, likely = np.arange(8, dtype=np.float32), np.full(8, 0.1, dtype=np.float32)
    harmful = scores >= 4
    likely[harmful] = np.nan
    draws = list(combinations(range(8), 5))
    false = sum(
        certified(scores, np.zeros(8), harmful, list(draw), 3.0).issued for draw in draws
    )  # of rows that a filter keeps, half are harmful
    assert false > DELTA * len(draws)
    assert not any(certified(scores, likely, harmful, list(draw), 3.0).issued for draw in draws)


def test_the_words_say_that_such_rows_are_in_the_set() -> None:
    scores, likely = np.arange(60, dtype=np.float32), np.linspace(0, 0.4, 60).astype(np.float32)
    likely[50:] = np.nan
    says = certified(scores, likely, scores < 0, list(range(0, 60, 2)), 20.0).says().split("\n")
    assert says[0] == "Set in use: 31 rows kept at threshold 20, 29 removed and 0 errored, of 60."
    assert says[1].startswith(
        "Kept by score: 31 rows, 10 of them unlike the reference, whatever their score. With conf"
    )
    assert "60 rows with a score up to 49 or unlike the reference (10 of them, kept whatever their score)" in says[4]


def test_a_stratum_of_which_nothing_is_certified_keeps_none_of_them() -> None:
    limits = limits_of(
        np.array([1.0, 1.0, -np.inf, -np.inf]), np.full(4, 2, np.float32), np.array([0.2, np.nan, 0.2, np.nan])
    )
    assert decide(np.full(4, 2.0), ["ok"] * 4, limits).words() == ["removed", "kept", "removed", "removed"]


@pytest.mark.parametrize("of_probe", [True, False])
def test_the_reason_is_that_they_are_unlike(of_probe: bool) -> None:
    scores = np.array([2, 2, 2, np.nan], np.float32)
    limits = limits_of(1.0, scores, np.array([0.2, np.nan, 0.7, np.nan]), of_probe=of_probe)
    reasons = decide(scores, ["ok"] * 3 + ["truncated"], limits).reasons
    assert list(reasons) == ["score", "unlike", "score", "truncated"]


def test_rows_are_held_to_numbers_that_a_table_can_show_and_to_one_where_that_serves() -> None:
    scores = np.array([0, 2, 3, 4], np.float32)
    assert limits_of(1.0, scores, np.array([0.1, 0.6, 0.7, 0.8]), of_probe=True) == 1.0
    lifted = limits_of(1.0, scores, np.array([0.1, 0.5, 0.5, 0.8]), of_probe=True)
    assert np.array_equal(lifted, [1, 2, 3, 1])


def test_a_share_is_taken_of_the_rows_that_can_go() -> None:
    scores, likely = np.arange(10, dtype=np.float32), np.full(10, 0.3)
    likely[7:] = np.nan
    for share, gone in ((0.2, 2), (0.5, 5), (0.9, 6)):  # at least one of those that can go stays
        at = threshold_for_contamination(placed(scores, likely), share)
        words = decide(scores, ["ok"] * 10, limits_of(at, scores, likely)).words()
        assert words.count("removed") == gone
