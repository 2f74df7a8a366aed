"""One forward up to the last layer needed: of a padded batch, after a kept prefix, or without padding."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from saft_hf.embed.added import mean_for_added
from saft_hf.embed.architecture import forward_options, text_config
from saft_hf.embed.prefix import as_ids, for_rows

_PROBE_TOKENS = 8
_SAME = 0.02
"""How far a token's state, in 16 bits, may lie from that of its equal in another row, relative to its norm."""


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the CPU, in memory from which nothing waits for a copy to the device."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def moved(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on the device; nothing waits for it on a CUDA device."""
    return pinned(torch.from_numpy(array), device).to(device, non_blocking=device.type == "cuda")


class _StopForwardError(Exception):
    """Raised by the last hook that is needed, and caught where the forward was started."""


class Forward:
    """Hidden states of a batch: layer -> `[B, T, d]` on the device of the embeddings, in the model's dtype.

    Args:
        model: the causal language model.
        text: its text part, without the head.
        blocks: the blocks of the text part.
        deepest: the last layer that is ever read, at least 1.
    """

    def __init__(self, model: nn.Module, text: nn.Module, blocks: nn.ModuleList, deepest: int) -> None:
        self._model = model
        self._text = text
        self._blocks = blocks
        self._deepest = deepest
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
        found: dict[int, Tensor] = {}
        last, top, device = max(layers), int(self._config.num_hidden_layers), self.device
        handles = [self._watch(layer, found, last) for layer in set(layers) - {top}]
        try:
            with mean_for_added(self._embeddings, input_ids, device) as ids:
                output = self._text(ids.to(device, non_blocking=True), **self._options | options)
            found[top] = output[0]
        except _StopForwardError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return {layer: self._stream(found[layer]).detach().to(device) for layer in layers}

    def after(self, prefix: NDArray[np.int32], input_ids: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """States of rows that stand after a prefix (`int32 [P]`), whose keys and values are kept until `forget`."""
        key = (prefix.tobytes(), max(layers))
        if self._past is None or self._past[0] != key:
            past = DynamicCache(config=self._text.config)
            self(as_ids(prefix), [max(1, *layers)], use_cache=True, past_key_values=past)
            self._past = key, past
        past = for_rows(self._past[1], len(input_ids))  # the rows' own are written into it
        return self(input_ids, layers, use_cache=True, past_key_values=past)

    def forget(self) -> None:
        """Let go of a kept prefix."""
        self._past = None

    def packed(self, input_ids: Tensor, layers: Sequence[int], lengths: NDArray[np.int64]) -> dict[int, Tensor]:
        """States of padded rows, of which only the first `lengths` (`int64 [B]`) are fed; 0 where there is padding.

        Args:
            input_ids: `int64 [B, T]`, on the CPU.
            layers: which.
            lengths: at least 1 each.
        """
        rows, width = input_ids.shape
        places = np.flatnonzero(np.arange(width) < lengths[:, None])
        flat, ids = moved(places, self.device), input_ids.flatten()[torch.from_numpy(places)]
        found = self(pinned(ids, self.device)[None], layers, **self._apart(lengths))

        def padded(states: Tensor) -> Tensor:
            whole = states.new_zeros(rows * width, states.shape[-1])
            return whole.index_copy_(0, flat, states[0]).view(rows, width, -1)

        return {layer: padded(states) for layer, states in found.items()}

    @cached_property
    def keeps_rows_apart(self) -> bool:
        """Whether rows may stand one after the other without seeing one another, as flash attention keeps them apart.

        Asked of the model itself: a row after another one must have the same states, to the last bit, whatever that
        one says, and about those of its equal that stands first.
        """
        parameters = inspect.signature(self._text.forward).parameters
        takes_all = "position_ids" in parameters and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if "flash" not in str(self._config._attn_implementation) or not takes_all:
            return False
        row, other = torch.arange(2 * _PROBE_TOKENS).chunk(2)
        options = self._apart(np.array([_PROBE_TOKENS] * 2))
        twice, after = (
            self(torch.cat([before, row])[None], [self._deepest], **options)[self._deepest][0].float()
            for before in (row, other)
        )
        first, second = twice.chunk(2)
        differs = ((first - second).norm(dim=-1) > _SAME * second.norm(dim=-1)).any()
        return torch.equal(second, after.chunk(2)[1]) and not differs

    def _apart(self, lengths: NDArray[np.int64]) -> dict[str, Any]:
        """What tells a model where packed rows begin; bounds too, which it would else wait for in every layer."""
        bounds, longest = np.concatenate([[0], np.cumsum(lengths)]), int(lengths.max())
        positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        starts = moved(bounds.astype(np.int32), self.device)
        return {
            "position_ids": moved(positions, self.device)[None],
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def _watch(self, layer: int, found: dict[int, Tensor], last: int) -> Any:
        """Hook that keeps one layer's states, and stops the forward where it is the last one."""

        def keep(states: Tensor) -> None:
            found[layer] = states
            if layer == last:
                raise _StopForwardError

        if layer == 0:
            return self._blocks[0].register_forward_pre_hook(
                lambda _, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        return self._blocks[layer - 1].register_forward_hook(
            lambda _, args, output: keep(output if isinstance(output, Tensor) else output[0])
        )

    def _stream(self, states: Tensor) -> Tensor:
        """Gemma 3n's blocks carry several streams side by side; the active one is the hidden state."""
        return states[self._config.altup_active_idx] if states.ndim == 4 else states
