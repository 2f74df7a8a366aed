"""The scorer's card: complete, valid for the Hub, and honest in every branch."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateNotFound, UndefinedError

from saft_hf.hub import ScorerCard, render_card

EXAMPLE = Path(__file__).resolve().parents[2] / "model_cards" / "examples" / "scorer.md"

CARD: ScorerCard = {
    "title": "SAFT scorer for Llama-2-7b-chat-hf",
    "repo_id": "me/llama-2-saft",
    "model": "meta-llama/Llama-2-7b-chat-hf",
    "revision": "2" * 40,
    "model_fingerprint": "0" * 64,
    "template_digest": "1" * 64,
    "layers": [15],
    "num_layers": 32,
    "readouts": ["response_start"],
    "method": "saft",
    "k": 2,
    "threshold": 41.25,
    "threshold_from": "f1",
    "contamination": None,
    "undecided": None,
    "labels": {"rows": 100, "harmful": 25, "column": "is_safe"},
    "pool": {"rows": 3000, "scored": 2997, "unscored": {"truncated": 2, "bad_row": 1}, "flagged": 600},
    "variance_share": 0.125,
    "spectral_gap": 0.25,
    "f1": 0.5,
    "separating_points": 60,
    "selection": None,
    "expected": None,
    "versions": {"transformers": "5.23.0", "saft-hf": "0.1.0", "torch": "2.13.0"},
}


NO_LABELS = {"labels": None}
LEARNED = {
    "layers": [16, 24, 32],
    "readouts": ["response_start", "response_mean"],
    "method": "auto",
    "k": None,
    "variance_share": None,
    "spectral_gap": None,
    "f1": None,
    "separating_points": None,
    "threshold_from": "fpr=0.05",
    "expected": {"recall": 0.9, "fpr": 0.05},
    "selection": {
        "winner": "weighted",
        "p_value": 0.002,
        "permutations": 499,
        "candidates": [{"name": "weighted", "auroc": 0.96, "difference": 0.0, "standard_error": 0.0}],
    },
}


def test_the_example_is_current():
    assert EXAMPLE.read_text(encoding="utf-8") == render_card("scorer", CARD), (
        "the template or the example's values have changed: run `python tests/publish/test_cards.py`"
    )


@pytest.mark.smoke
def test_the_hub_reads_the_front_matter():
    data = ModelCard(render_card("scorer", CARD)).data.to_dict()
    assert data == {
        "base_model": "meta-llama/Llama-2-7b-chat-hf",
        "library_name": "saft_hf",
        "tags": ["saft", "data-filtering"],
    }


def test_the_card_says_how_many_labels_are_harmful():
    assert "25 of 100 labelled rows are harmful" in render_card("scorer", CARD)


@pytest.mark.parametrize("key", sorted(CARD))
def test_a_missing_value_is_an_error(key):
    source = "contamination" if key == "contamination" else "f1"  # each is asked for where it is used
    values = {**CARD, "threshold_from": source}
    del values[key]
    with pytest.raises(UndefinedError, match=key):
        render_card("scorer", values)


def test_an_unknown_card_is_an_error():
    with pytest.raises(TemplateNotFound, match=r"nothing\.md\.jinja"):
        render_card("nothing", CARD)


@pytest.mark.parametrize(
    ("changes", "says", "never"),
    [
        ({"readouts": ["response_mean"]}, "It is not transferable", "only the prompt"),
        ({"method": "other"}, "It is not transferable", "has no sign"),
        ({"model": None}, "not named on the Hub", "Scoring loads"),
        ({"repo_id": None}, 'from_pretrained("path/to/this/folder")', "None"),
        ({**NO_LABELS, "threshold_from": "given"}, "given by hand", "labelled rows"),
        ({**NO_LABELS, "threshold_from": "contamination", "contamination": 0.2}, "20.0 %", "labelled rows"),
        ({**NO_LABELS, "threshold_from": "none", "threshold": None}, "removes none", "scorer.filter"),
        ({"threshold": None, "undecided": "a reason"}, "**No decision is taken**: a reason.", "scorer.filter"),
        ({"pool": {**CARD["pool"], "flagged": None}}, "2997 of them have a score.", "which are above"),
        (
            {
                **LEARNED,
                **NO_LABELS,
                "method": "reference",
                "selection": None,
                "expected": None,
                "threshold_from": "reference",
            },
            "not from labels of the\npool",
            "labelled rows",
        ),
        (LEARNED, "remove 90.0 % of the\nharmful and 5.0 % of the benign rows", "spectral gap"),
        (LEARNED, "does at least as well with probability\n0.002 (499 permutations", "has no sign"),
        ({**LEARNED, "threshold": None, "threshold_from": "none", "expected": None}, "removes none", "the aim"),
        ({"spectral_gap": 1.0, "k": 1}, "1 principal direction,", "directions,"),
    ],
)
def test_what_the_card_says(changes, says, never):
    before, after = render_card("scorer", CARD), render_card("scorer", {**CARD, **changes})
    assert says in after
    assert never not in after
    assert before != after


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_names_from_outside_stay_inside_their_code(name):
    labels = {**CARD["labels"], "column": name}
    text = render_card("scorer", {**CARD, "model": name, "revision": name, "labels": labels})
    body = text.split("\n---\n", 1)[1]
    plain = render_card("scorer", CARD).split("\n---\n", 1)[1]
    assert body.count("`") == plain.count("`")
    assert len(body.splitlines()) == len(plain.splitlines())


if __name__ == "__main__":
    EXAMPLE.write_text(render_card("scorer", CARD), encoding="utf-8")
