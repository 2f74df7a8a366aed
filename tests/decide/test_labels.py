"""Polarity of labels: known names, `harmful_value`, and everything that must not pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.decide import read_labels, resolve_label_column
from saft_hf.errors import SAFTInputError

SAFE, HARMFUL = ("is_safe", "safe"), ("is_harmful", "harmful", "unsafe")


@pytest.mark.smoke
@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1), st.sampled_from([bool, int, np.bool_, np.int64, np.int8]))
def test_polarity_by_name(truth: list[bool], kind: type) -> None:
    values = [kind(value) for value in truth]
    for name in SAFE:
        assert read_labels(values, name).tolist() == [not value for value in truth]
    for name in HARMFUL:
        assert read_labels(values, name).tolist() == truth
        assert read_labels(np.array(values), name).dtype == np.bool_


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1))
def test_harmful_value_names_the_polarity_and_overrides_the_name(truth: list[bool]) -> None:
    opposite = [not value for value in truth]
    for value in (True, 1, "1", "true", "True"):
        assert read_labels(truth, "is_safe", harmful_value=value).tolist() == truth
        assert read_labels([int(v) for v in truth], "label", harmful_value=value).tolist() == truth
    for value in (False, 0, "0", "false"):
        assert read_labels(truth, "label", harmful_value=value).tolist() == opposite
    assert read_labels(["bad", *("bad" if v else "good" for v in truth)], "x", "bad").tolist() == [True, *truth]
    assert read_labels([7, *(7 if v else 3 for v in truth)], "x", "7").tolist() == [True, *truth]


@pytest.mark.parametrize(
    ("values", "column", "harmful_value", "message"),
    [
        ([], "is_safe", None, "no row"),
        ([True, None], "is_safe", None, r"'is_safe' has 1 null label\(s\) in 2 rows"),
        ([1.0, float("nan")], "is_safe", None, "1 null"),
        ([None, None], "x", "bad", "2 null"),
        ([1.0, 0.0], "is_safe", None, r"found \{'float': 2\}"),
        ([[True]], "is_safe", None, r"found \{'list': 1\}"),
        ([0, 1, 2, 2], "harmful", None, r"booleans or 0 and 1; found 2 x 2, 0 x 1, 1 x 1"),
        (["true", "false"], "is_safe", None, "found 'true' x 1, 'false' x 1"),
        ([True, False], "label", None, r"'label' does not tell .* found True x 1, False x 1"),
        ([True, False], "IS_SAFE", None, "does not tell"),
        ([True, False], "is_safe", "bad", r"harmful_value='bad' does not fit .* True x 1"),
        ([0, 1], "label", 2, "harmful_value=2 does not fit"),
        (["a", "b", "c"], "x", "a", "and one other value; found 'a' x 1, 'b' x 1, 'c' x 1"),
        (["good", "fine"], "x", "bad", "harmful_value='bad' and one other value"),
        (["Bad", "Bad"], "x", "bad", "found 'Bad' x 2"),
    ],
)
def test_what_cannot_be_read_is_named(values: list[Any], column: str, harmful_value: Any, message: str) -> None:
    with pytest.raises(SAFTInputError, match=message):
        read_labels(values, column, harmful_value)


def test_a_text_column_taken_for_labels_does_not_leak() -> None:
    texts = [f"a private sentence, number {i}" for i in range(9)]
    with pytest.raises(SAFTInputError) as caught:
        read_labels(texts, "prompt", "harmful")
    assert "private" not in str(caught.value)
    assert "and 4 other values" in str(caught.value)


def test_the_label_column_is_found_by_name() -> None:
    for name in SAFE + HARMFUL:
        assert resolve_label_column(["prompt", name]) == name
    assert resolve_label_column(["is_safe", "verdict"], "verdict") == "verdict"
    assert resolve_label_column(["is_safe", "unsafe"], "unsafe") == "unsafe"


@pytest.mark.parametrize(
    ("columns", "named", "message"),
    [
        (["prompt", "label"], None, r"none in \['prompt', 'label'\].*label_column"),
        (["is_safe", "unsafe"], None, r"several: \['is_safe', 'unsafe'\]"),
        (["prompt"], "is_safe", r"label_column='is_safe' is not in .*\['prompt'\]"),
    ],
)
def test_a_missing_or_doubtful_label_column_is_named(columns: list[str], named: str | None, message: str) -> None:
    with pytest.raises(SAFTInputError, match=message):
        resolve_label_column(columns, named)
