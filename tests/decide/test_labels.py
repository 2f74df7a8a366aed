"""Polarity of labels: known names, `harmful_value`, and everything that must not pass."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf.decide import read_labels, resolve_label_column
from saft_hf.errors import SAFTInputError
from saft_hf.scorer.labels import labels_by_row, read_column

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
def test_harmful_value_names_the_polarity(truth: list[bool]) -> None:
    opposite = [not value for value in truth]
    for value in (True, 1, "1", "true", "True"):
        assert read_labels(truth, "unsafe", harmful_value=value).tolist() == truth
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
        ([1.0, 0.5, 0.25], "is_safe", None, r"found \{'float': 2\}"),
        ([[True]], "is_safe", None, r"found \{'list': 1\}"),
        ([0, 1, 2, 2], "harmful", None, r"booleans or 0 and 1; found 2 x 2, 0 x 1, 1 x 1"),
        (["true", "maybe"], "is_safe", None, "found 'true' x 1, 'maybe' x 1"),
        (["yes", "maybe"], "is_safe", "yes", "contradicts label column 'is_safe'.*'yes' is harmless"),
        (["safe", "bad"], "verdict", "safe", "contradicts label column 'verdict'.*'safe' is harmless"),
        (["ok", "unsafe"], "verdict", "ok", "contradicts label column 'verdict'.*'unsafe' is harmful"),
        (["", "yes"], "is_safe", None, "1 null"),
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


TRUTHS = {
    "bool": (True, False),
    "int": (1, 0),
    "float": (1.0, 0.0),
    "numpy": (np.float32(1), np.float32(0)),
    "word": ("true", "false"),
    "title": ("True", "False"),
    "yes": ("yes", "no"),
    "shout": (" YES", "No "),
    "digit": ("1", "0"),
}
WORDS = [("unsafe", "safe"), ("harmful", "harmless"), ("Harmful", "Benign"), ("toxic", "safe")]


@given(st.lists(st.booleans(), min_size=1), st.sampled_from(sorted(TRUTHS)), st.sampled_from(SAFE + HARMFUL))
def test_every_way_to_write_a_truth_is_read_by_the_name(harmful: list[bool], kind: str, name: str) -> None:
    yes, no = TRUTHS[kind]
    values = [yes if each == (name in HARMFUL) else no for each in harmful]
    assert read_labels(values, name).tolist() == harmful
    assert read_labels(values, name, harmful_value=str(yes if name in HARMFUL else no)).tolist() == harmful
    with pytest.raises(SAFTInputError, match=rf"contradicts label column '{name}'.*rename_column\('{name}', '"):
        read_labels(values, name, harmful_value=str(no if name in HARMFUL else yes))


@given(st.lists(st.booleans(), min_size=1), st.sampled_from(WORDS), st.sampled_from(SAFE + HARMFUL), st.booleans())
def test_words_say_themselves_whatever_their_number_and_the_name(
    harmful: list[bool], words: tuple[str, str], name: str, turned: bool
) -> None:
    classes = words[::-1] if turned else words
    values = [classes.index(words[0] if each else words[1]) for each in harmful]
    assert read_labels(values, name, classes=classes).tolist() == harmful
    assert read_labels([classes[value] for value in values], name).tolist() == harmful
    for column in (name, "label"):
        for value in (words[0], classes.index(words[0])):
            assert read_labels(values, column, value, classes).tolist() == harmful
        for value in (words[1], str(classes.index(words[1]))):
            with pytest.raises(SAFTInputError, match=r"contradicts .*leave harmful_value out"):
                read_labels(values, column, value, classes)


@given(st.lists(st.booleans(), min_size=1), st.booleans())
def test_classes_without_a_meaning_need_the_name_of_the_harmful_one(harmful: list[bool], turned: bool) -> None:
    classes = ["fine", "bad"][:: -1 if turned else 1]
    values = [classes.index("bad" if each else "fine") for each in harmful]
    for value in ("bad", classes.index("bad")):
        assert read_labels(values, "verdict", value, classes).tolist() == harmful
    with pytest.raises(SAFTInputError, match="verdict"):
        read_labels(values, "verdict", None, classes)
    with pytest.raises(SAFTInputError, match=r"NUMBER_OF_A_CLASS"):
        read_labels(values, "is_safe", None, classes)


@pytest.mark.parametrize("name", ["is_benign", "Is_Safe", "harmless", "benign"])
def test_a_harmful_value_that_a_telling_name_contradicts_is_refused(name: str) -> None:
    assert read_labels([0, 1], name, harmful_value=0).tolist() == [True, False]
    with pytest.raises(SAFTInputError, match=f"'{name}', whose name or values say that 1 is harmless"):
        read_labels([1, 0], name, harmful_value=1)


@pytest.mark.parametrize(
    ("values", "classes", "column", "harmful_value", "harmful"),
    [
        ([0.1, 0.9, 0.4], None, "is_safe", None, [True, False, True]),
        ([0.1, 0.9, 0.4], None, "harmful", None, [False, True, False]),
        (["a", "b", "c"], None, "verdict", "a", [True, False, False]),
        ([3, 1, 2], None, "is_safe", "3", [True, False, False]),
        ([0, 1, 2], ["spam", "fine", "toxic"], "label", "toxic", [False, False, True]),
    ],
)
def test_the_line_in_the_error_converts_the_labels(
    values: list[Any], classes: list[str] | None, column: str, harmful_value: Any, harmful: list[bool]
) -> None:
    rows = Dataset.from_dict({column: values})
    if classes:
        rows = rows.cast_column(column, ClassLabel(names=classes))
    with pytest.raises(SAFTInputError) as caught:
        read_column(rows, column, harmful_value)
    line = re.search(r"`(rows = .*)`", str(caught.value))
    assert line, caught.value
    scope: dict[str, Any] = {"rows": rows}
    exec(line[1], scope)  # the line that our own message gives
    assert scope["rows"].column_names == ["is_harmful"]
    assert read_column(scope["rows"], "is_harmful").tolist() == harmful


def test_a_class_label_column_is_read_by_its_names_and_minus_one_is_no_label() -> None:
    rows = Dataset.from_dict({"safe": [0, 1, -1]}).cast_column("safe", ClassLabel(names=["safe", "unsafe"]))
    assert labels_by_row(rows, "safe", None) == {0: False, 1: True}
    assert read_column(rows.select([1, 0]).with_format("torch"), "safe").tolist() == [True, False]
    with pytest.raises(SAFTInputError, match="1 null"):
        read_column(rows, "safe")


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
