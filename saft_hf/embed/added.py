"""Tokens that were added to a tokenizer, and that the model has no embedding for yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def mean_for_added(embeddings: nn.Module, input_ids: Tensor) -> Iterator[Tensor]:
    """Inside, ids beyond the embedding table are embedded as its mean, which is where training starts them.

    Args:
        embeddings: the model's input embeddings.
        input_ids: token ids, int64 [B, T].

    Yields:
        The ids to feed.
    """
    weight: Any = embeddings.weight
    rows = weight.shape[0]
    added = input_ids >= rows
    # A table that is sharded, quantised or offloaded may have another shape: its model checks its own ids.
    if weight.ndim != 2 or not added.any():
        yield input_ids
        return
    # Through the module, which may scale what it looks up.
    mean = embeddings(torch.arange(rows, device=input_ids.device)).float().mean(dim=0)
    handle = embeddings.register_forward_hook(
        lambda module, args, output: torch.where(added[..., None].to(output.device), mean.to(output), output)
    )
    try:
        yield input_ids.masked_fill(added, 0)
    finally:
        handle.remove()
