"""Decisions: nothing vanishes, every row has its reason."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.decide import Decisions, check_outcome, decide
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.status import RowStatus

NAN = float("nan")
statuses = st.sampled_from([RowStatus.OK] * 6 + list(RowStatus))


@st.composite
def scored_rows(draw: st.DrawFn) -> tuple[list[float], list[str]]:
    status = draw(st.lists(statuses, max_size=40))
    scores = [draw(st.integers(0, 8)) / 4 if word == RowStatus.OK else NAN for word in status]
    return scores, [word.value for word in status]


@pytest.mark.smoke
@settings(deadline=None)
@given(scored_rows(), st.one_of(st.none(), st.integers(0, 8).map(lambda v: v / 4)), st.booleans(), st.data())
def test_every_row_is_decided_once_and_as_the_rule_says(
    rows: tuple[list[float], list[str]], threshold: float | None, keep: bool, data: st.DataObject
) -> None:
    scores, status = rows
    indices = st.integers(0, max(0, len(scores) - 1))
    labels = data.draw(st.dictionaries(indices, st.booleans(), max_size=5)) if scores else {}
    found = decide(
        np.asarray(scores, np.float32), status, threshold, on_error="keep" if keep else "exclude", labels=labels
    )
    assert sorted([*found.kept, *found.removed, *found.errored]) == list(range(len(scores)))
    expected = []
    for row, (score, word) in enumerate(zip(scores, status, strict=True)):
        if row in labels:
            expected.append(("removed" if labels[row] else "kept", "label"))
        elif word != "ok":  # where nothing is filtered the input stays as it is
            expected.append(("errored" if threshold is not None or labels else "kept", word))
        elif threshold is None:
            expected.append(("kept", "no_decision"))
        else:
            expected.append(("removed" if score > threshold else "kept", "score"))
    assert list(zip(found.words(), found.reasons, strict=True)) == expected
    flat = {(word, why): n for word, part in found.reason_counts().items() for why, n in part.items()}
    assert flat == Counter(expected)
    assert found.counts() == {word: sum(e[0] == word for e in expected) for word in ("kept", "removed", "errored")}
    trained = {"kept", "errored"} if keep else {"kept"}
    assert threshold is not None or labels or found.kept.tolist() == list(range(len(scores)))
    assert found.train_rows().tolist() == [row for row, e in enumerate(expected) if e[0] in trained]


def test_on_error_raise_counts_the_statuses() -> None:
    with pytest.raises(SAFTInputError, match=r"2 of 3 rows .*'truncated': 2.*exclude"):
        decide([NAN, 1.0, NAN], ["truncated", "ok", "truncated"], 0.5, on_error="raise")
    assert decide([1.0], ["ok"], 0.5, on_error="raise").counts()["removed"] == 1


@pytest.mark.parametrize(
    ("scores", "status", "threshold", "options", "message"),
    [
        ([NAN, 1.0], ["ok", "ok"], 0.5, {}, "1 rows are `ok` without a finite score, 0"),
        ([math.inf], ["ok"], 0.5, {}, "1 rows are `ok` without a finite score"),
        ([1.0], ["truncated"], 0.5, {}, "0 rows are `ok` without a finite score, 1 are not"),
        ([0.0], ["fine"], 0.5, {}, "unknown status"),
        ([1.0], ["ok", "ok"], 0.5, {}, r"scores have shape \[1\], statuses 2 rows"),
        ([[1.0]], ["ok"], 0.5, {}, r"shape \[1, 1\]"),
        ([1.0], ["ok"], NAN, {}, "threshold must be a finite number; found nan"),
        ([1.0], ["ok"], 0.5, {"labels": {1: True}}, "labels name row 1; the data has rows 0 to 0"),
        ([1.0], ["ok"], 0.5, {"labels": {-1: True}}, "labels name row -1"),
        ([1.0], ["ok"], 0.5, {"on_error": "drop"}, "on_error must be .* found 'drop'"),
    ],
)
def test_contradictions_are_named(
    scores: list, status: list[str], threshold: float, options: dict, message: str
) -> None:
    with pytest.raises(SAFTInputError, match=message):
        decide(scores, status, threshold, **options)


def test_an_unknown_status_is_not_shown() -> None:
    with pytest.raises(SAFTInputError) as caught:
        decide([1.0], ["text of a row"], 0.5)
    assert "text of a row" not in str(caught.value)


@pytest.mark.parametrize(("codes", "reasons"), [([0, 3], ["score"] * 2), ([0, -1], ["score"] * 2), ([0, 1], ["score"])])
def test_lost_rows_are_a_defect(codes: list[int], reasons: list[str]) -> None:
    with pytest.raises(AssertionError, match="lost or doubled"):
        Decisions(np.array(codes, np.int8), reasons)


def test_keeping_nothing_is_refused() -> None:
    for found in (decide([1.0, 2.0], ["ok", "ok"], 0.0), decide([NAN], ["bad_row"], 0.0, on_error="keep")):
        with pytest.raises(SAFTUndecidedError, match=r"nothing is kept of .*on_undecided='keep'"):
            check_outcome(found)
