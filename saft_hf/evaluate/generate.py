"""Answers of a chat model to prompts, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

Messages = list[dict[str, str]]


def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 16,
) -> list[str]:
    """Answer prompts greedily, so that the same model always says the same.

    Args:
        model: a causal language model of transformers, or of PEFT around one. Its training mode is put back.
        tokenizer: with a chat template. Never changed.
        prompts: the turns before the answer, [n].
        max_new_tokens: tokens of an answer, at most.
        batch_size: prompts at a time; those of similar length go together.

    Returns:
        The answers, [n], without special tokens and without white space around them.

    Examples:
        >>> generate_answers(model, tokenizer, [[{"role": "user", "content": "Hi!"}]])  # doctest: +SKIP
        ['Hello! How can I help?']
    """
    encoded = _encode(tokenizer, prompts)
    end = tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    # The model's own end tokens stay: a chat model may stop at another token than the tokenizer's.
    ends = model.generation_config.eos_token_id
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=end if ends is None else ends
    )
    answers = [""] * len(encoded)
    with evaluating(model):
        for batch in by_length([len(ids) for ids in encoded], batch_size):
            ids, mask = _pad_left([encoded[i] for i in batch], pad or 0, model.device)
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text.strip()
    return answers


def yes_odds(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], *, batch_size: int = 16
) -> NDArray[np.float64]:
    """Log-odds of Yes against No as the first word of an answer, whatever else the model would rather say.

    Args:
        model: as above.
        tokenizer: as above.
        prompts: the turns before the answer, [n].
        batch_size: prompts at a time.

    Returns:
        `float64 [n]`: above 0, Yes is likelier. Of each word its first token is looked at.
    """
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    encoded = _encode(tokenizer, prompts)
    odds = np.empty(len(encoded))
    config = GenerationConfig(
        do_sample=False, max_new_tokens=1, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    with evaluating(model):
        for batch in by_length([len(ids) for ids in encoded], batch_size):
            ids, mask = _pad_left([encoded[i] for i in batch], 0, model.device)
            (logits,) = model.generate(input_ids=ids, attention_mask=mask, generation_config=config).logits
            odds[batch] = (logits[:, yes].double() - logits[:, no].double()).cpu().numpy()
    return odds


def _encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[list[int]]:
    return [
        tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True, return_dict=True)["input_ids"]
        for prompt in prompts
    ]


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Positions in batches of rows of similar length, the shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return (order[first : first + size] for first in range(0, len(order), size))


def _pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, `int64 [n, longest]`, with the padding on the left."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients while the block runs; each module's training mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
