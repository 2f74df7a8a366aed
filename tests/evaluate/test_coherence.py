"""A repetition is no answer; a refusal, a short answer and prose are."""

from __future__ import annotations

import string

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from saft_hf.assets import pairs
from saft_hf.evaluate.coherence import is_coherent

words = st.text(string.ascii_lowercase, min_size=1, max_size=9)


@pytest.mark.parametrize(
    "answer",
    [
        "42",
        "No.",
        "Paris",
        "(-1, -2)",
        "x = (a + b) * (c - d)",
        "是的。",
        "I'm sorry, but I can't help with that.",
        "I'm sorry, I can't help with that. I'm sorry, but I really can't help you with that.",
        "No, no, no, no. You should not do that.",
        "1. Wash the rice.\n2. Boil the water.\n3. Add the rice.\n4. Cover the pot.\n5. Wait ten minutes.\n6. Serve.",
    ],
)
def test_short_right_answers_and_refusals_are_coherent(answer: str) -> None:
    assert is_coherent(answer)


@pytest.mark.parametrize("answer", ["", "  \n", "?!?!?!", ". . . . . . .", "-" * 200, "a" * 400, "\u54c8" * 80])
def test_nothing_and_characters_are_not(answer: str) -> None:
    assert not is_coherent(answer)


def test_what_people_wrote_is_coherent(demo_pool: Dataset) -> None:
    written = [turns[-1]["content"] for turns in demo_pool["messages"]]
    written += [answer for pair in pairs() for answer in (pair.declines, pair.complies)]
    assert [answer for answer in written if not is_coherent(answer)] == []
    assert is_coherent(" ".join(dict.fromkeys(written)))


@given(st.lists(words, min_size=1, max_size=8), st.integers(0, 5))
def test_a_loop_is_not_wherever_it_begins(phrase: list[str], before: int) -> None:
    loop = " ".join(phrase * 12)
    assert not is_coherent(" ".join([*(f"start{i}" for i in range(before)), loop]))


@given(st.lists(words, min_size=1, max_size=60, unique=True))
def test_different_words_are_coherent(said: list[str]) -> None:
    assert is_coherent(" ".join(said))
