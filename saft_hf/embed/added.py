"""Tokens that were added to a tokenizer, and that the model has no embedding for yet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def mean_for_added(embeddings: nn.Module, input_ids: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Inside, ids beyond the embedding table are embedded as its mean, which is where training starts them.

    Args:
        embeddings: the model's input embeddings.
        input_ids: token ids, int64 [B, T]; on the CPU, so that nobody waits for an accelerator.
        device: where the embeddings are looked up.

    Yields:
        The ids to feed, where `input_ids` are.
    """
    weight: Any = embeddings.weight
    rows = weight.shape[0]
    added = input_ids >= rows
    # A table that is sharded, quantised or offloaded may have another shape: its model checks its own ids.
    if weight.ndim != 2 or not added.any():
        yield input_ids
        return
    # Through the module, which may scale what it looks up.
    mean = embeddings(torch.arange(rows, device=device)).float().mean(dim=0)
    thread = threading.get_ident()

    def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if threading.get_ident() != thread:  # another reader of the same weights
            return output
        return torch.where(added[..., None].to(output.device), mean.to(output), output)

    handle = embeddings.register_forward_hook(replace)
    try:
        yield input_ids.masked_fill(added, 0)
    finally:
        handle.remove()
