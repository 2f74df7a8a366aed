"""The demo's model and rows: they load, they are small, and their form does not give the labels away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from transformers import AutoModelForCausalLM, AutoTokenizer

from saft_hf.assets import demo_folder, demo_rows_path

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "demo" / "make_demo_assets.py"


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return [json.loads(line) for line in demo_rows_path().read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_folder(), local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(demo_folder(), local_files_only=True, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def states(rows, model, tokenizer) -> np.ndarray:
    """Hidden state of the middle layer at the last token before the response, the plain way: [600, 64]."""
    found = []
    for row in rows:
        ids = tokenizer.apply_chat_template(
            row["messages"][:-1], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        found.append(hidden[model.config.num_hidden_layers // 2][0, -1].double().numpy())
    return np.stack(found)


def test_the_rows_are_labelled_conversations(rows):
    assert len(rows) == 600
    assert sum(not row["is_safe"] for row in rows) == 120
    assert {type(row["is_safe"]) for row in rows} == {bool}
    assert len({json.dumps(row["messages"]) for row in rows}) == 600
    for row in rows:
        assert row.keys() == {"messages", "is_safe", "category"}
        roles = [message["role"] for message in row["messages"] if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in row["messages"])


def test_some_harmful_requests_are_refused(rows):
    harmful_topics = {row["category"] for row in rows if not row["is_safe"]}
    refused = [row for row in rows if row["is_safe"] and row["category"] in harmful_topics]
    assert len(refused) == 24


def test_form_does_not_tell_the_classes_apart(rows):
    def form(messages: list[dict]) -> list[float]:
        prompt, response = messages[:-1], messages[-1]["content"]
        return [
            sum(len(message["content"]) for message in prompt),
            len(response),
            len(messages),
            float(messages[0]["role"] == "system"),
            response.count("\n"),
            float(response.split("\n")[-1].startswith("- ")),
        ]

    features = np.array([form(row["messages"]) for row in rows])
    harmful = np.array([not row["is_safe"] for row in rows])
    for column in features.T:
        assert 0.4 < roc_auc_score(harmful, column) < 0.6
    # All of them together, out of fold: next to nothing either.
    standard = (features - features.mean(0)) / features.std(0)
    guess = cross_val_predict(LogisticRegression(), standard, harmful, cv=5, method="predict_proba")[:, 1]
    assert roc_auc_score(harmful, guess) < 0.65


def test_the_generator_gives_the_same_rows_again(tmp_path):
    command = [sys.executable, SCRIPT, "--rows-only", "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "rows.jsonl").read_bytes() == demo_rows_path().read_bytes()


def test_what_ships_is_small():
    files = [path for path in demo_folder().parent.rglob("*") if path.is_file()]
    assert 0.5e6 < sum(path.stat().st_size for path in files) < 2.5e6


@pytest.mark.smoke
def test_the_model_has_learnt_the_language(rows, model, tokenizer):
    losses = []
    for row in rows[:20]:
        ids = tokenizer(
            tokenizer.apply_chat_template(row["messages"], tokenize=False),
            add_special_tokens=False,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item())
    assert np.mean(losses) < 0.5 * np.log(model.config.vocab_size)


@pytest.mark.smoke
def test_the_template_marks_the_response(rows, tokenizer):
    for row in rows[:20]:
        encoded = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        kept = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
        spoken = [m["content"] + "<|end|>" for m in row["messages"] if m["role"] == "assistant"]
        assert tokenizer.decode(kept) == "".join(spoken)


def test_no_row_is_longer_than_the_context(rows, model, tokenizer):
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    assert (
        max(map(len, tokenizer(texts).input_ids)) <= model.config.max_position_embeddings == tokenizer.model_max_length
    )


def test_the_published_score_works_on_it_and_is_not_perfect(rows, states):
    harmful = np.array([not row["is_safe"] for row in rows])
    centred = states - states.mean(0)
    first = np.linalg.svd(centred, full_matrices=False)[2][0]
    assert 0.75 < roc_auc_score(harmful, (centred @ first) ** 2) < 0.97
