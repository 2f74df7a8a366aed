"""One forward up to the last layer needed: of a padded batch, or of rows after a kept prefix."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from saft_hf.embed.added import mean_for_added
from saft_hf.embed.architecture import forward_options, text_config


def moved(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device; nothing waits for it on a CUDA device."""
    tensor, on_cuda = torch.from_numpy(array), device.type == "cuda"
    # Only from pinned memory is a copy made while the host goes on.
    return (tensor.pin_memory() if on_cuda else tensor).to(device, non_blocking=on_cuda)


class _StopForwardError(Exception):
    """Raised by the last hook that is needed, and caught where the forward was started."""


class Forward:
    """Hidden states of a batch: layer -> `[B, T, d]` on the device of the embeddings, in the model's dtype.

    Args:
        model: the causal language model.
        text: its text part, without the head.
        blocks: the blocks of the text part.
    """

    def __init__(self, model: nn.Module, text: nn.Module, blocks: nn.ModuleList) -> None:
        self._model = model
        self._text = text
        self._blocks = blocks
        self._config = text_config(model.config)
        self._options = forward_options(text)
        self._past: tuple[tuple[bytes, int], DynamicCache] | None = None

    @property
    def _embeddings(self) -> Any:
        return cast(PreTrainedModel, self._model).get_input_embeddings()

    @property
    def device(self) -> torch.device:
        """Where token ids are embedded."""
        embeddings = self._embeddings
        if embeddings.weight.is_meta:  # offloaded by accelerate, which says where it will run
            return torch.device(embeddings._hf_hook.execution_device)
        return torch.device(embeddings.weight.device)

    def __call__(self, input_ids: Tensor, layers: Sequence[int], **options: Any) -> dict[int, Tensor]:
        """States of rows that are padded on the right, `int64 [B, T]`; `options` go to the model."""
        states: dict[int, Tensor] = {}
        last, top, device = max(layers), int(self._config.num_hidden_layers), self.device
        handles = [self._watch(layer, states, last) for layer in set(layers) - {top}]
        try:
            with mean_for_added(self._embeddings, input_ids, device) as ids:
                output = self._text(ids.to(device, non_blocking=True), **self._options | options)
            states[top] = output[0]
        except _StopForwardError:
            pass  # all that is asked for is there: later blocks, the final norm and the head are not run
        finally:
            for handle in handles:
                handle.remove()
        return {layer: self._stream(states[layer]).detach().to(device) for layer in layers}

    def after(self, prefix: NDArray[np.int32], input_ids: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """States of rows that stand after a prefix (`int32 [P]`), whose keys and values are kept until `forget`."""
        key = (prefix.tobytes(), max(layers))
        if self._past is None or self._past[0] != key:
            past = DynamicCache(config=self._text.config)
            ids = torch.from_numpy(prefix.astype(np.int64))[None]
            # Layer 0 is what block 0 is given, and only blocks keep keys: one must run.
            self(ids, [max(1, *layers)], use_cache=True, past_key_values=past)
            self._past = key, past
        past = copy.deepcopy(self._past[1])  # the rows' own keys and values are written into it
        past.batch_repeat_interleave(len(input_ids))
        return self(input_ids, layers, use_cache=True, past_key_values=past)

    def forget(self) -> None:
        """Let go of a kept prefix."""
        self._past = None

    def _watch(self, layer: int, states: dict[int, Tensor], last: int) -> Any:
        """Hook that keeps one layer's states, and stops the forward where it is the last one."""

        def keep(output: Tensor) -> None:
            states[layer] = output
            if layer == last:
                raise _StopForwardError

        if layer == 0:  # not the output of the embedding table: a model may scale it, or add positions
            return self._blocks[0].register_forward_pre_hook(
                lambda _, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        return self._blocks[layer - 1].register_forward_hook(
            lambda _, args, output: keep(output if isinstance(output, Tensor) else output[0])
        )

    def _stream(self, states: Tensor) -> Tensor:
        """Gemma 3n's blocks carry several streams side by side; the active one is the hidden state."""
        return states[self._config.altup_active_idx] if states.ndim == 4 else states
