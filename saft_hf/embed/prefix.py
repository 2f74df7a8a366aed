"""Tokens that every row starts with, such as a system prompt: read once, not once for each row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.render import Rendering

MIN_TOKENS, MIN_SHARE, MIN_SAVED = 16, 1 / 8, 2**14
"""A shorter prefix, a smaller part of what is fed, or fewer tokens saved in all are not worth other last bits."""

_FAMILIES = frozenset(
    [
        "falcon",
        "gemma",
        "gpt2",
        "gpt_neox",
        "llama",
        "mistral",
        "mixtral",
        "olmoe",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
    ]
)
"""Where the hidden states after a kept prefix are known to be those of the whole row."""


def can_share(text: Any) -> bool:
    """Whether a model of this (text) config may keep the keys and values of a prefix.

    Not where layers forget (a window, a state), nor where rotary frequencies depend on the length of the row.
    """
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    return (
        text.model_type in _FAMILIES
        and not getattr(text, "sliding_window", None)
        and not getattr(text, "alibi", False)
        and set(getattr(text, "layer_types", None) or ()) <= {"full_attention"}
        and rope.get("rope_type", "default") in ("default", "linear", "llama3")
    )


def common_prefix(renderings: Sequence[Rendering]) -> NDArray[np.int32] | None:
    """The tokens with which all of these usable rows start, short of the last one before a response; None of no row."""
    # At least the token before a response is fed for every row: it is read there.
    heads = [rendering.input_ids[: max(0, rendering.spans[0][0] - 1)] for rendering in renderings]
    return reduce(shared_start, heads) if heads else None


def shared_start(one: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.int32]:
    """The tokens at the start of both."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return one[: differs[0] if len(differs) else length]


def is_worth_it(prefix: int, lengths: NDArray[np.int32]) -> bool:
    """Whether different rows of these lengths are read faster after a kept prefix of so many of their tokens."""
    saved = prefix * (len(lengths) - 1)
    return prefix >= MIN_TOKENS and saved >= max(MIN_SAVED, MIN_SHARE * int(lengths.sum(dtype=np.int64)))
