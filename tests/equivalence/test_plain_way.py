"""Vectors from the planned, cut, deduplicated path equal those that anyone would compute without this package."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saft_hf.distributed import World
from saft_hf.embed.features import Features, feature_name
from saft_hf.embed.source import ModelSource
from saft_hf.render import END, MEAN, START, Renderer

LAYERS = 4
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<a> {% generation %}{{ m.content }} <e>{% endgeneration %}"
    "{% else %}<u> {{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}<a> {% endif %}"
)


def tokenizer(side: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: number for number, word in enumerate(["<pad>", "<e>", "<u>", "<a>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<e>", padding_side=side, chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=LAYERS, initializer_range=0.2, **sizes))
    torch.set_rng_state(state)
    return made.eval()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """One to three turns of any length, every third row a copy of an earlier one, or of its prompt."""
    rng = random.Random(0)

    def say() -> str:
        return " ".join(rng.choices(WORDS, k=rng.choice([1, 2, 5, 20])))

    made: list[list[dict[str, str]]] = []
    for number in range(60):
        turns = [say() for _ in range(2 * rng.randint(1, 3))]
        messages = [
            {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 3, turns, strict=False)
        ]
        if number % 3 == 2:
            earlier = rng.choice(made)
            messages = earlier if number % 2 else [*earlier[:-1], {"role": "assistant", "content": say()}]
        made.append(messages)
    return Dataset.from_dict({"messages": made})


def plain_way(
    model: LlamaForCausalLM, rows: Dataset, tokenizer: PreTrainedTokenizerFast
) -> dict[tuple[int, Readout], np.ndarray]:
    """Batches of 8 in row order, whole sequences, attention mask, every hidden state, the head."""
    found: dict[tuple[int, Readout], list[np.ndarray]] = {}
    for first in range(0, len(rows), 8):
        batch = tokenizer.apply_chat_template(
            rows[first : first + 8]["messages"],
            padding=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
        )
        mask = batch["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            output = model(batch["input_ids"], attention_mask=mask, position_ids=positions, output_hidden_states=True)
        for layer, states in enumerate(output.hidden_states):
            for row, answered in enumerate(torch.as_tensor(batch["assistant_masks"]).numpy().astype(bool)):
                places = np.flatnonzero(answered)
                last_turn = places[np.flatnonzero(np.diff(places, prepend=-9) > 1)[-1]]
                vectors = states[row].numpy()
                found.setdefault((layer, START), []).append(vectors[last_turn - 1])
                found.setdefault((layer, MEAN), []).append(vectors[places].mean(axis=0))
                found.setdefault((layer, END), []).append(vectors[places[-1]])
    return {feature: np.stack(vectors) for feature, vectors in found.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("budget", [64, 1024])
@pytest.mark.parametrize(
    ("layers", "readouts"),
    [
        ((2,), (START,)),
        ((2,), (MEAN,)),
        ((3,), (END,)),
        ((0, 1, LAYERS), (START, MEAN, END)),
    ],
)
def test_vectors_are_those_of_the_plain_way(
    model: LlamaForCausalLM,
    rows: Dataset,
    tmp_path: Path,
    side: str,
    budget: int,
    layers: tuple[int, ...],
    readouts: tuple[Readout, ...],
) -> None:
    words = tokenizer(side)
    source = ModelSource(model, processing_class=words)
    features = Features(layers, readouts)
    extractor = source.extractor(
        Renderer(source.tokenizer), features, folder=tmp_path, world=World(), token_budget=budget
    )
    embedded = extractor.embed(rows)
    assert embedded.plan.num_unique < len(rows)
    expected = plain_way(model, rows, words)
    for layer in layers:
        for readout in readouts:
            feature = feature_name(layer, readout)
            assert np.abs(expected[layer, readout]).max() > 0.05
            np.testing.assert_allclose(embedded.states(feature), expected[layer, readout], rtol=0, atol=1e-4)
