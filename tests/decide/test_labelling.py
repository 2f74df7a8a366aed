"""Which rows to label: what is drawn for what, and that the uniform part is uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from saft_hf.decide.labelling import Purpose, Suggestion, suggest_rows
from saft_hf.errors import SAFTInputError


def drawn_for(purpose: Purpose, found: Suggestion) -> np.ndarray:
    return found.rows[[each.purpose is purpose for each in found.drawn]]


@given(st.data())
def test_the_parts_are_disjoint_of_the_size_asked_for_scored_and_new(data: st.DataObject) -> None:
    total = data.draw(st.integers(4, 60))
    scores = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.5, np.nan]), min_size=total, max_size=total)))
    labelled = data.draw(st.lists(st.integers(0, total - 1), max_size=5))
    groups = data.draw(st.none() | st.lists(st.integers(0, 5), min_size=total, max_size=total))
    free = set(np.flatnonzero(~np.isnan(scores)).tolist()) - set(labelled)
    uniform, informative = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 20))
    unexplained = data.draw(st.lists(st.integers(0, total - 1), max_size=12, unique=True))
    options = {
        "unexplained": unexplained,
        "uniform": uniform,
        "informative": informative,
        "threshold": data.draw(st.sampled_from([None, -1.0, 1.0, 9.0])),
        "labelled": labelled,
        "groups": groups,
        "seed": data.draw(st.integers(0, 9)),
    }
    if not 0 < uniform + informative <= len(free):
        with pytest.raises(SAFTInputError, match="uniform"):
            suggest_rows(scores, **options)
        return
    found = suggest_rows(scores, **options)
    assert set(found.rows.tolist()) <= free
    assert len(set(found.rows.tolist())) == len(found.rows) == uniform + informative
    assert len(drawn_for(Purpose.UNIFORM, found)) == uniform
    strange = drawn_for(Purpose.UNEXPLAINED, found)
    assert set(strange.tolist()) <= free & set(unexplained)
    assert len(strange) == min((informative + 1) // 2, len(free & set(unexplained)))
    assert len(drawn_for(Purpose.INFORMATIVE, found)) == informative - len(strange)
    again = suggest_rows(scores, **options)
    assert found.rows.tolist() == again.rows.tolist()
    assert found.drawn == again.drawn
    if groups is not None and informative:
        different = len({groups[row] for row in free - set(strange.tolist())})
        near = drawn_for(Purpose.INFORMATIVE, found)
        assert len({groups[row] for row in near}) == min(different, len(near))
        there = len({groups[row] for row in free & set(unexplained)})
        assert len({groups[row] for row in strange}) == min(there, len(strange))


def test_the_uniform_part_is_a_uniform_sample_of_all_rows_that_are_neither_labelled_nor_informative() -> None:
    scores = np.sort(np.random.default_rng(0).normal(size=40))
    counts = np.zeros(40)
    for seed in range(4000):
        options = {"threshold": -9.0, "labelled": [15, 19], "unexplained": [38, 39], "seed": seed}
        found = suggest_rows(scores, uniform=6, informative=4, **options)
        assert sorted(drawn_for(Purpose.UNEXPLAINED, found).tolist()) == [38, 39]
        assert drawn_for(Purpose.INFORMATIVE, found).max() < 8
        counts[drawn_for(Purpose.UNIFORM, found)] += 1
    assert counts[[15, 19]].sum() == 0
    assert chisquare(np.delete(counts, [*range(8), 15, 19, 38, 39])).pvalue > 1e-3


def test_which_uniform_rows_are_drawn_says_nothing_about_the_informative_ones() -> None:
    # Drawn the other way round, the rows next to the threshold that are not informative would all be uniform ones.
    scores = np.arange(12.0)
    open_near, drawn_near = 0, 0
    for seed in range(4000):
        found = suggest_rows(scores, uniform=4, informative=1, threshold=5.5, seed=seed)
        near = set(range(4, 8)) - set(drawn_for(Purpose.INFORMATIVE, found).tolist())
        open_near += len(near)
        drawn_near += len(near & set(drawn_for(Purpose.UNIFORM, found).tolist()))
    assert drawn_near / open_near == pytest.approx(4 / 11, abs=0.02)


def test_the_informative_part_lies_next_to_the_threshold_and_on_both_sides() -> None:
    scores = np.random.default_rng(1).permutation(1000) / 10
    found = drawn_for(Purpose.INFORMATIVE, suggest_rows(scores, uniform=50, informative=20, threshold=70.0))
    ranks = np.abs(scores[found] - 70.0) * 10
    assert ranks.max() <= 41
    assert 8 <= (scores[found] > 70.0).sum() <= 12


def test_without_a_threshold_the_informative_part_spreads_over_all_scores() -> None:
    scores = np.random.default_rng(1).permutation(1000).astype(float)
    found = suggest_rows(scores, uniform=0, informative=10, threshold=None)
    assert sorted(scores[found.rows] // 100) == list(range(10))


def test_the_first_rows_are_as_uniform_as_all_of_them() -> None:
    counts = np.zeros(20)
    for seed in range(3000):
        found = suggest_rows(np.arange(20.0), uniform=8, seed=seed)
        counts[found.rows[:2]] += 1
    assert chisquare(counts).pvalue > 1e-3
