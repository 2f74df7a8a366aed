"""A tiny model with its tokenizer, a pool of two topics, and training runs to compare."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTTrainer

from saft_hf import SAFTSFTConfig, SAFTSFTTrainer

# The trainer collects garbage often: let it not walk through all that was imported, every time.
gc.freeze()

BIRDS = ["heron", "egret", "plover", "osprey", "curlew", "avocet", "bittern", "dunlin"]
TOOLS = ["hammer", "chisel", "mallet", "spanner", "gimlet", "plane", "rasp", "vice"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<eos>", "<pad>", "<|user|>", "<|assistant|>"]


def make_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level, 300 tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([" ".join(BIRDS), " ".join(TOOLS)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", chat_template=template)


def make_model(seed: int = 0, vocab_size: int = 320) -> LlamaForCausalLM:
    """Two layers of width 16, the same for the same seed."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    torch.set_rng_state(state)
    return model


def save_model(folder: Path) -> str:
    """Save model and tokenizer, and give the folder's name."""
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def _say(rng: random.Random, words: list[str]) -> str:
    return " ".join(rng.choices(words, k=rng.randint(2, 6)))


def pool_rows(kind: str = "prompt_completion", rows: int = 40, seed: int = 0) -> Dataset:
    """Three of four rows are about birds, the others about tools; `is_harmful` says which."""
    rng = random.Random(seed)
    made: list[dict[str, Any]] = []
    for number in range(rows):
        words = TOOLS if number % 4 == 3 else BIRDS
        asked, said = _say(rng, words), _say(rng, words)
        chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        shapes: dict[str, dict[str, Any]] = {
            "prompt_completion": {"prompt": asked, "completion": said},
            "chat_prompt_completion": {"prompt": chat[:1], "completion": chat[1:]},
            "messages": {"messages": chat},
            "text": {"text": f"{asked}: {said}"},
            "other_text": {"content": f"{asked}: {said}"},
            "pair": {"asked": asked, "said": said},
        }
        made.append({**shapes[kind], "is_harmful": words is TOOLS})
    return Dataset.from_list(made)


def options_for(folder: Path) -> dict[str, Any]:
    """A few steps of two rows on the CPU, logged each; a quarter of the rows is filtered."""
    return {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "saft_method": "saft",
        "saft_contamination": 0.25,
        "saft_cache_dir": str(folder / "cache"),
    }


def make_args(folder: Path, **options: Any) -> SAFTSFTConfig:
    """`options_for`, and what a test changes."""
    return SAFTSFTConfig(**{**options_for(folder), **options})


def losses(trainer: SFTTrainer) -> list[float]:
    """The loss of every logged step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def prepared(trainer: SFTTrainer) -> list[dict[str, Any]]:
    """What the model is fed: tokens and labels of each row, in training order."""
    names = [name for name in ("input_ids", "labels", "seq_lengths") if name in trainer.train_dataset.column_names]
    return list(trainer.train_dataset.select_columns(names).with_format(None))


def assert_same_training(
    saft: SAFTSFTTrainer, folder: Path, rows: Any, model: Any, call: dict[str, Any], **options: Any
) -> SFTTrainer:
    """Train both, and compare: SFTTrainer gets the rows that were kept."""
    plain = SFTTrainer(model, make_args(folder / "plain", **options), train_dataset=rows, **call)
    if hasattr(saft.train_dataset, "__len__"):
        assert prepared(saft) == prepared(plain)
    plain.train()
    saft.train()
    assert saft.state.global_step == plain.state.global_step > 0
    torch.testing.assert_close(torch.tensor(losses(saft)), torch.tensor(losses(plain)), atol=1e-6, rtol=0)
    assert len(losses(plain)) == plain.state.global_step
    for name, weight in plain.model.state_dict().items():
        torch.testing.assert_close(saft.model.state_dict()[name], weight, atol=1e-6, rtol=0)
    return plain
