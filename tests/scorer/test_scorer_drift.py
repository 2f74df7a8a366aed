"""`SAFTScorer.drift`: what is already read is not read again, and the numbers are those of plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from scorer_kit import Forwards
from transformers import AutoModelForCausalLM, AutoTokenizer

from saft_hf import SAFTScorer
from saft_hf.assets import Pair
from saft_hf.score.drift import learn_drift

LAYERS = (2, 3)


@pytest.fixture
def some_pairs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    rng = np.random.default_rng(0)
    words = [["river", "stone", "heron"], ["sorry", "no", "rather"]]
    texts = [(f"tell me of {number}", *(" ".join(rng.choice(part, 4)) for part in words)) for number in range(24)]
    made = [Pair("en", "c", "f", "t", request, yes, no, "twin", "answer") for request, yes, no in texts]
    monkeypatch.setattr("saft_hf.scorer.drift.pairs", lambda: made)
    return texts


def differences(model_name: str, dialogues: list[list[dict[str, str]]]) -> dict[int, np.ndarray]:
    """Mean of the responses less the token before the last one, with nothing of this package."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_name), AutoModelForCausalLM.from_pretrained(model_name)
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in LAYERS}
    for messages in dialogues:
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        response = np.flatnonzero(encoded["assistant_masks"])
        last = response[np.flatnonzero(np.diff(response, prepend=-2) > 1)[-1]]
        with torch.no_grad():
            hidden = model.float()(torch.tensor([encoded["input_ids"]]), output_hidden_states=True).hidden_states
        for layer in LAYERS:
            states = hidden[layer][0].double().numpy()
            found[layer].append(states[response].mean(axis=0) - states[last - 1])
    return {layer: np.stack(rows) for layer, rows in found.items()}


def test_drift_is_that_of_plain_transformers(
    demo_model: str, demo_pool: Dataset, some_pairs: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    pool = demo_pool.select(range(40)).add_column("saft_drift", [9.0] * 40)
    rows = SAFTScorer(demo_model, cache_dir=tmp_path).drift(pool)
    words = ("user", "assistant")
    answers = [
        [[{"role": r, "content": c} for r, c in zip(words, (pair[0], pair[which]), strict=True)] for pair in some_pairs]
        for which in (1, 2)
    ]
    drift = learn_drift(*(differences(demo_model, each) for each in answers))
    expected = drift(differences(demo_model, pool["messages"][:])[drift.layer])
    np.testing.assert_allclose(rows["saft_drift"][:], expected, atol=1e-4 * np.abs(expected).max())
    assert rows.remove_columns("saft_drift").to_list() == demo_pool.select(range(40)).to_list()


@pytest.mark.smoke
def test_rows_that_were_read_are_not_read_again(
    demo_model: str,
    demo_pool: Dataset,
    some_pairs: list[tuple[str, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = demo_pool.select(range(120))
    scorer = SAFTScorer(demo_model, cache_dir=tmp_path).fit(pool, demo_pool.select(range(100)), on_undecided="keep")
    forwards = Forwards(monkeypatch)
    first = scorer.drift(pool)["saft_drift"][:]
    of_pairs = forwards.count
    assert scorer.drift(pool)["saft_drift"][:] == first
    assert forwards.count == of_pairs > 0
    assert SAFTScorer(demo_model, cache_dir=tmp_path / "other").drift(pool)["saft_drift"][:] == first
    assert forwards.count > 2 * of_pairs


def test_rows_without_a_prompt_have_none(
    demo_model: str, some_pairs: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    rows = Dataset.from_dict(
        {
            "messages": [
                [{"role": "user", "content": "one"}],
                [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}],
            ]
        }
    )
    drifts = SAFTScorer(demo_model, cache_dir=tmp_path).drift(rows)["saft_drift"][:]
    assert np.isnan(drifts).tolist() == [True, False]
