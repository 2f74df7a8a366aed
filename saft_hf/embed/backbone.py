"""A causal language model as a reader of hidden states: the forward stops after the last layer needed."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from saft_hf.embed.architecture import (
    adapters_off,
    check_adapters,
    check_layers,
    describe_model,
    find_blocks,
    find_text,
    is_moved,
    needs_reload,
    path_of,
    read_config,
    text_config,
    unwrap,
)
from saft_hf.embed.fingerprint import layer_digests
from saft_hf.embed.forward import Forward
from saft_hf.embed.loading import load_cut, rng_untouched
from saft_hf.errors import SAFTInputError

_PLAIN = {nn.Parameter, Tensor}
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Backbone:
    """Hidden states of a causal language model, read layer by layer.

    Layers are numbered as in transformers' `hidden_states`: 0 is the embeddings (what the first block is
    given), l the output of the l-th block, and L (`num_layers`) the state after the final norm. Made by
    `Backbone.load` or `Backbone.wrap`.

    Attributes:
        num_layers: number of blocks of the whole model, L.
        hidden_size: width of the hidden states.
        layers: the layers that can be read, ascending.

    Examples:
        ```python
        backbone = Backbone.load("Qwen/Qwen3-0.6B", layers=[14])
        with backbone.reading():
            hidden = backbone.read(input_ids, [14])[14]   # [batch, tokens, hidden_size]
        backbone.close()
        ```
    """

    def __init__(self, model: nn.Module, text: nn.Module, blocks: nn.ModuleList, layers: Sequence[int]) -> None:
        config = text_config(unwrap(model).config)
        self.num_layers = int(config.num_hidden_layers)
        self.hidden_size = int(config.hidden_size)
        self.layers = tuple(layers)
        self._model: nn.Module | None = model
        self._text = text
        self._blocks = blocks
        self._is_reading = False
        self._is_loaded = False
        # What a forward leaves in somebody else's modules must be fit for training: in our own, launches may cost less.
        self._no_gradients: type[torch.no_grad | torch.inference_mode] = torch.no_grad

    @classmethod
    def load(
        cls,
        name: str,
        *,
        layers: Sequence[int],
        device: torch.device | str | None = None,
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
        **options: Any,
    ) -> Self:
        """Load blocks 0 to `max(layers)` of a model, without its language-model head.

        Every process that calls this gets the real weights, under FSDP and DeepSpeed ZeRO-3 too.

        Args:
            name: Hub id or local folder.
            layers: the layers to be read, 0 to L.
            device: where the weights go; by default the current CUDA device, else the CPU.
            dtype: "auto" (the checkpoint's, float32 on CPU), a torch dtype or its name.
            trust_remote_code: run the repository's own code.
            options: further arguments of `from_pretrained`, such as `revision` and `token`; a `device_map` overrules
                `device`, and `use_safetensors=True` refuses pickled weights, for names that somebody else chose.

        Returns:
            The backbone.

        Raises:
            SAFTInputError: there is no such model or layer, it does not fit, or weights are missing.
        """
        access = {key: options.get(key) for key in ("revision", "token")}
        config = read_config(name, trust_remote_code=trust_remote_code, **access)
        wanted = check_layers(layers, int(text_config(config).num_hidden_layers))
        if device is None:
            device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        model, cut = load_cut(
            name,
            config,
            # Layer 0 is what block 0 is given: it needs that block, though not its output.
            num_blocks=max(1, *wanted),
            device=torch.device(device),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            **options,
        )
        blocks = cast(nn.ModuleList, model.get_submodule(cut.blocks_path))
        backbone = cls(model, model.get_submodule(cut.text_path), blocks, wanted)
        backbone._is_loaded = True
        backbone._no_gradients = _gradients_off(model)
        return backbone

    @classmethod
    def wrap(cls, model: nn.Module, *, layers: Sequence[int]) -> Self:
        """Read a model object in place: adapters are off meanwhile, and everything is put back afterwards.

        An object whose weights are sharded or empty (FSDP, ZeRO-3, meta) is loaded again by its
        `config._name_or_path`: the weights that are there, not those it may have been trained to since.

        Args:
            model: a `PreTrainedModel` or `PeftModel`, also inside DDP or `torch.compile`.
            layers: the layers to be read, 0 to L.

        Returns:
            The backbone.

        Raises:
            SAFTInputError: the object is no such model, an adapter is merged, there is no such layer, or the
                weights are sharded or empty and cannot be loaded again.
        """
        inner = unwrap(model)
        wanted = check_layers(layers, describe_model(inner).num_layers)
        if reason := needs_reload(model):
            return cls._reload(inner, reason, wanted)
        check_adapters(model)
        text = find_text(inner)
        return cls(model, text, find_blocks(text, describe_model(inner).num_layers), wanted)

    @classmethod
    def _reload(cls, model: PreTrainedModel, reason: str, layers: Sequence[int]) -> Self:
        name = getattr(model.config, "_name_or_path", "")
        try:
            if not name:
                raise SAFTInputError("model: its config has no `_name_or_path`.")
            return cls.load(
                name,
                layers=layers,
                revision=getattr(model.config, "_commit_hash", None),
                dtype=model.dtype,
                attn_implementation=model.config._attn_implementation,
                quantization_config=getattr(model.config, "quantization_config", None),
                # Its code has run already, so the user has trusted it.
                trust_remote_code=type(model).__module__.startswith("transformers_modules"),
            )
        except SAFTInputError as error:
            raise SAFTInputError(
                f"model: {reason}, so it cannot be read in place, and it could not be loaded again from "
                f"`config._name_or_path`={name!r}: {error} Give the model by name, or take two steps: score "
                "and filter offline first (`saft-hf filter`), then train on the kept rows."
            ) from error

    @property
    def device(self) -> torch.device:
        """Where token ids must be, and where hidden states come out."""
        return self._forward.device

    @cached_property
    def fingerprints(self) -> Mapping[int, str]:
        """For each layer that can be read, a SHA-256 (hex) of the weights its hidden states come from.

        That is everything outside the blocks, and the blocks up to that layer. Equal in every process, for a
        name, a local copy and an object, with adapters or without, in every dtype that holds the checkpoint's
        values exactly, and whatever else was loaded. A quantised model has its own.
        """
        return layer_digests(self._text, self._blocks, self.layers)

    @property
    def _open(self) -> nn.Module:
        if self._model is None:
            raise SAFTInputError("this backbone is closed; load it again.")
        return self._model

    @contextlib.contextmanager
    def reading(self) -> Iterator[Self]:
        """Eval mode, no gradients, adapters off; afterwards model and random generators are as they were."""
        model, forward = self._open, self._forward
        training = [(module, module.training) for module in model.modules()]
        # cuDNN's attention plans anew for every shape of a batch, which takes as long as the batch.
        attention = sdpa_kernel(_ATTENTION) if self.device.type == "cuda" else contextlib.nullcontext()
        with rng_untouched(self.device), adapters_off(model), torch.no_grad(), attention:
            try:
                # Not `model.eval()`: a model may override it and do more than can be put back.
                for module, _ in training:
                    module.training = False
                self._is_reading = True
                yield self
            finally:
                self._is_reading = False
                for module, flag in training:
                    module.training = flag
                forward.forget()

    def replica(self) -> Self | None:
        """Another reader of the same weights, for another thread: what a forward writes into a model is its own.

        To be used while this one is `reading`.

        Returns:
            The reader, or `None` where accelerate moves the weights about, or the model holds what cannot be copied.
        """
        model = unwrap(self._open)
        if is_moved(model):
            return None
        shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        try:
            copied = copy.deepcopy(model, cast(Any, shared))
        except TypeError:  # it holds what cannot be copied, such as a lock: there is one reader
            return None
        text, blocks = (copied.get_submodule(path_of(model, part)) for part in (self._text, self._blocks))
        replica = type(self)(copied, text, cast(nn.ModuleList, blocks), self.layers)
        replica._is_reading = self._is_reading
        replica._no_gradients = _gradients_off(copied)
        return replica

    def read(
        self, input_ids: Tensor, layers: Sequence[int], prefix: NDArray[np.int32] | None = None
    ) -> dict[int, Tensor]:
        """Hidden states of a batch; the forward stops after the last layer that is asked for.

        Rows may be padded on the right with any token: no attention mask is given, and a causal model's
        states do not depend on what follows. States at padding positions mean nothing.

        Args:
            input_ids: token ids, int64 [B, T], best on the CPU (pinned where the model is on a GPU: nothing here waits
                for it). An id that the model has no embedding for takes their mean.
            layers: some of `self.layers`.
            prefix: int32 [P], tokens that stand before every row: read once while this is `reading`. For models that
                `can_share` one.

        Returns:
            Layer -> hidden states [B, T, d] on `device`, in the model's dtype; tensors that no gradient flows through.

        Raises:
            SAFTInputError: a layer is none of `self.layers`, or the model has been closed.
        """
        if unread := sorted(set(layers) - set(self.layers)):
            raise SAFTInputError(f"layer={unread[0]}: this backbone reads layers {list(self.layers)} only.")
        # Gradients are off for a thread, not for a model: `reading` may have been entered in another one.
        with contextlib.nullcontext() if self._is_reading else self.reading(), self._no_gradients():
            if prefix is not None and len(prefix):
                return self._forward.after(prefix, input_ids, layers)
            return self._forward(input_ids, layers)

    @cached_property
    def _forward(self) -> Forward:
        return Forward(unwrap(self._open), self._text, self._blocks)

    def close(self) -> None:
        """Let go of the model; memory of one that `load` made is given back."""
        self._model = None
        self.__dict__.pop("_forward", None)
        self._text = nn.Module()
        self._blocks = nn.ModuleList()
        if self._is_loaded:  # else there is nothing to give back, and a collection takes up to a second
            gc.collect()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()


def _gradients_off(model: nn.Module) -> type[torch.no_grad | torch.inference_mode]:
    """The cheapest way to read modules that nobody will train. Packed or moved weights may be written meanwhile."""
    tensors = chain(model.parameters(), model.buffers())
    is_packed = getattr(model, "hf_quantizer", None) is not None or not {*map(type, tensors)} <= _PLAIN
    return torch.no_grad if is_packed or is_moved(model) else torch.inference_mode
