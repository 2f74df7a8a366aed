"""The built-in pairs: whole, varied, our own, and their style does not give the labels away."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from saft_hf.assets import Pair, pairs, pairs_path

WORDS_IN_A_ROW = 9
TEXTS = ("request", "complies", "declines", "twin", "twin_answer")
WORD = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+")  # a Chinese character counts as a word
# Marks, each with its forms in other languages.
MARKS = ("?？", "!！", ",，、", ".。", ";；", ":：", '"“”„«»「」', "'’", "()（）", "-–—", "…")  # noqa: RUF001
# Of each comparison: the rows of class 1 and of class 0, each a request or nothing and an answer.
COMPARISONS: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "harmful against twins": ([("request", "complies")], [("twin", "twin_answer")]),
    "complies against declines": ([("", "complies")], [("", "declines")]),
    "harmful against harmless": ([("request", "complies")], [("request", "declines"), ("twin", "twin_answer")]),
}


def grams(text: str) -> NDArray[np.uint64]:
    """A number for every run of words, equal for equal runs."""
    words = np.array([hash(word) for word in WORD.findall(text.lower())], dtype=np.int64).view(np.uint64)
    runs = np.zeros(max(0, words.size - WORDS_IN_A_ROW + 1), dtype=np.uint64)
    for i in range(WORDS_IN_A_ROW):
        runs = runs * np.uint64(1_000_003) + words[i : i + runs.size]
    return runs


def style(text: str) -> dict[str, float]:
    """What a text looks like, without what it says: sizes, marks, and how it begins."""
    words = WORD.findall(text) or [""]
    letters = [character for character in text if character.isalpha()]
    return {
        "characters": np.log1p(len(text)),
        "words": np.log1p(len(words)),
        "characters a word": len(text) / len(words),
        "lines": np.log1p(text.count("\n")),
        "paragraphs": np.log1p(text.count("\n\n")),
        "list marks": np.log1p(len(re.findall(r"^\s*(?:[-*•]|\d+[.)、]) ?", text, re.MULTILINE))),
        "code fences": float(text.count("```")),
        "digits": np.log1p(sum(character.isdigit() for character in text)),
        "capitals": sum(character.isupper() for character in letters) / max(1, len(letters)),
        "sentences": np.log1p(len(re.findall(r"[.!?。！？]", text))),  # noqa: RUF001
        **{f"count {mark}": np.log1p(sum(text.count(form) for form in mark)) for mark in MARKS},
        f"first word {words[0].lower()}": 1.0,
        f"first character {text[0]}": 1.0,
        f"last character {text[-1]}": 1.0,
    }


LINEAR = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2_000)
FOREST = RandomForestClassifier(100, min_samples_leaf=3, class_weight="balanced", random_state=0)


def style_auroc(records: list[Pair], comparison: str, model: ClassifierMixin = LINEAR) -> float:
    """How well style alone tells the classes of a comparison apart, in records that the model has not seen."""
    rows, labels, groups = [], [], []
    for group, record in enumerate(records):
        for label, sides in zip((1, 0), COMPARISONS[comparison], strict=True):
            for question, answer in sides:
                row = {f"answer {name}": value for name, value in style(getattr(record, answer)).items()}
                if question:
                    row |= {f"request {name}": value for name, value in style(getattr(record, question)).items()}
                rows.append(row | {f"language {record.language}": 1.0, f"format {record.format}": 1.0})
                labels.append(label)
                groups.append(group)
    classifier = make_pipeline(DictVectorizer(), MaxAbsScaler(), model)
    probabilities = cross_val_predict(classifier, rows, labels, groups=groups, cv=GroupKFold(5), method="predict_proba")
    return float(roc_auc_score(labels, probabilities[:, 1]))


@pytest.fixture(scope="module")
def records() -> list[Pair]:
    return pairs()


@pytest.mark.smoke
def test_the_set_is_whole(records: list[Pair]) -> None:
    lines = pairs_path().read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(records) >= 320
    for line, record in zip(lines, records, strict=True):
        assert list(json.loads(line)) == [field.name for field in fields(Pair)]
        assert all(type(value) is str and value.strip() == value != "" for value in astuple(record))
    for column in TEXTS:
        assert len({" ".join(WORD.findall(getattr(record, column).lower())) for record in records}) == len(records)


def test_languages_formats_and_kinds_of_harm_are_spread(records: list[Pair]) -> None:
    languages = Counter(record.language for record in records)
    assert languages.keys() == {"en", "de", "fr", "es", "zh"}
    assert languages["en"] >= 180
    assert min(languages.values()) >= 35
    formats = Counter(record.format for record in records)
    assert len(formats) == 10
    assert min(formats.values()) >= 20
    categories = {record.category for record in records}
    assert len(categories) >= 12
    for category in categories:
        own = [record for record in records if record.category == category]
        assert len({record.format for record in own}) == 10
        assert len({record.language for record in own}) >= 4
    assert len({record.topic for record in records}) >= 12


def test_lengths_go_from_a_few_words_to_a_long_context(records: list[Pair]) -> None:
    for column in ("request", "twin"):
        words = [len(WORD.findall(getattr(record, column))) for record in records]
        assert min(words) <= 4
        assert max(words) >= 100
    assert {"```" in record.twin_answer for record in records if record.format == "code"} == {True}


def test_a_twin_is_of_the_length_of_its_request(records: list[Pair]) -> None:
    for pair in records:
        for ours, theirs in (("request", "twin"), ("complies", "twin_answer"), ("complies", "declines")):
            ratio = len(getattr(pair, ours)) / len(getattr(pair, theirs))
            assert 0.5 < ratio < 2, getattr(pair, ours)


def test_alarming_words_stand_in_twins_too(records: list[Pair]) -> None:
    twins = " ".join(record.twin.lower() for record in records)
    for word in ("kill", "shoot", "break", "beat", "vaccines", "dictadura", "pillen"):
        assert word in twins


@pytest.mark.parametrize("model", [LINEAR, FOREST], ids=["linear", "forest"])
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_style_does_not_tell_the_classes_apart(records: list[Pair], comparison: str, model: ClassifierMixin) -> None:
    assert style_auroc(records, comparison, model) < 0.6


def test_the_style_classifier_finds_a_style_that_differs(records: list[Pair]) -> None:
    sorry = [replace(record, declines=f"Sorry, {record.declines}") for record in records]
    assert style_auroc(sorry, "complies against declines") > 0.8
    assert style_auroc(sorry, "harmful against harmless") > 0.6
    short = [replace(record, twin_answer=record.twin_answer.split("\n")[0][:60]) for record in records]
    assert style_auroc(short, "harmful against twins") > 0.8


def test_no_passage_is_copied_from_real_data(records: list[Pair], shared_dir: Path) -> None:
    ours = np.unique(np.concatenate([grams(getattr(record, column)) for record in records for column in TEXTS]))
    assert len(ours) > 10_000
    for file in sorted((shared_dir / "data").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            theirs = [grams(turn["content"]) for line in lines for turn in json.loads(line)["messages"]]
        assert not np.isin(np.concatenate(theirs), ours).any(), file.name
