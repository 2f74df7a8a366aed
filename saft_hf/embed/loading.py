"""Load the first blocks of a model, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
import transformers.integrations.deepspeed as hf_deepspeed
from torch import nn
from transformers import AutoModel, PreTrainedModel

from saft_hf.embed.architecture import find_blocks, find_text, path_of, text_config
from saft_hf.errors import SAFTInputError

_FSDP_SWITCH = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@dataclass(frozen=True)
class Cut:
    """What to leave out of a model: the modules beside the text part, and the blocks that are not read.

    Args:
        text_path: dotted name of the text part in the model; "" for the model itself.
        blocks_path: dotted name of the list of blocks.
        num_blocks: how many blocks to keep.
    """

    text_path: str
    blocks_path: str
    num_blocks: int

    def apply(self, model: nn.Module) -> None:
        """Drop everything else from `model`."""
        parent, path = model, self.text_path.split(".") if self.text_path else []
        for name in path:
            for other, _ in list(parent.named_children()):
                if other != name:
                    setattr(parent, other, None)
            parent = parent.get_submodule(name)
        blocks = cast(nn.ModuleList, model.get_submodule(self.blocks_path))
        del blocks[self.num_blocks :]


def load_cut(
    name: str,
    config: Any,
    *,
    num_blocks: int,
    device: torch.device,
    dtype: str | torch.dtype,
    trust_remote_code: bool,
    **load_options: Any,
) -> tuple[PreTrainedModel, Cut]:
    """A model by name with only its first blocks, and no weights of the others ever in memory.

    The whole model is laid out on the meta device with its full config, so whatever a block takes from the
    config (its attention type, a scale that depends on the depth) is what it is in the whole model; then
    blocks are dropped, and weights are read for what is left.

    Args:
        name: Hub id or local folder.
        config: its config.
        num_blocks: how many blocks to keep.
        device: where the weights go; not used where `load_options` has a `device_map`.
        dtype: dtype of the weights; "auto" is the checkpoint's, float32 on CPU.
        trust_remote_code: run the repository's own code.
        load_options: further arguments of `from_pretrained`; `None` values are left out.

    Returns:
        The model in eval mode, and what was cut.

    Raises:
        SAFTInputError: the weights do not fit the device, or the checkpoint lacks some of them.
    """
    options = {key: value for key, value in load_options.items() if value is not None}
    if dtype == "auto" and device.type == "cpu" and "device_map" not in options:
        dtype = torch.float32
    with all_weights_on_every_rank(), rng_untouched(device):
        with torch.device("meta"):
            skeleton = AutoModel.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
        text = find_text(skeleton)
        blocks = find_blocks(text, int(text_config(config).num_hidden_layers))
        cut = Cut(path_of(skeleton, text), path_of(skeleton, blocks), num_blocks)
        cut.apply(skeleton)
        quantized = "quantization_config" in options or getattr(config, "quantization_config", None)
        if "device_map" not in options:
            _check_room(name, skeleton, device, None if quantized else _resolve(dtype, config))
            if device.type != "cpu":
                options["device_map"] = {"": device}
        model, report = _cut_class(type(skeleton), cut).from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, **options
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise SAFTInputError(
            f"model={name!r}: the checkpoint has no weights for {missing[:3]} ({len(missing)} in all), so "
            "hidden states would come from random weights. Give a complete checkpoint."
        )
    return model.eval(), cut


def _cut_class(model_class: type[PreTrainedModel], cut: Cut) -> Any:
    """A subclass that drops modules when it is laid out, so `from_pretrained` never reads their weights."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        model_class.__init__(self, *args, **kwargs)
        cut.apply(self)

    # transformers looks some things up by the class's name and module.
    names = ("__module__", "__qualname__")
    body = {key: getattr(model_class, key) for key in names}
    # What the checkpoint has besides is left out on purpose: no warning. Missing weights are still reported.
    body |= {"__init__": __init__, "_keys_to_ignore_on_load_unexpected": ["."]}
    if not cut.text_path and not model_class.base_model_prefix:
        # Without one, weights saved with a head are not found (Gemma 3 text models on transformers 4.56).
        body["base_model_prefix"] = "model"
    return type(model_class.__name__, (model_class,), body)


@contextlib.contextmanager
def all_weights_on_every_rank() -> Iterator[None]:
    """Inside, `from_pretrained` gives real weights to each rank, under FSDP and DeepSpeed ZeRO-3 too.

    FSDP's `cpu_ram_efficient_loading` leaves other ranks' weights empty, ZeRO-3's `zero.Init` splits them.
    """
    switch = os.environ.get(_FSDP_SWITCH)
    # transformers has a setter for its weak reference, but no getter.
    reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    deepspeed_config = reference() if reference is not None else None
    try:
        if switch is not None:
            os.environ[_FSDP_SWITCH] = "false"
        hf_deepspeed.unset_hf_deepspeed_config()
        yield
    finally:
        if switch is not None:
            os.environ[_FSDP_SWITCH] = switch
        if deepspeed_config is not None:
            hf_deepspeed.set_hf_deepspeed_config(deepspeed_config)


@contextlib.contextmanager
def rng_untouched(device: torch.device) -> Iterator[None]:
    """The python, numpy, torch and CUDA generators are afterwards as they were.

    Args:
        device: where the model runs; CUDA's generators are saved where that is CUDA, or CUDA is in use.
    """
    cuda = device.type == "cuda" or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if cuda and not torch.cuda._is_in_bad_fork() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)


def free_bytes(device: torch.device) -> int | None:
    """Memory in bytes that new tensors on `device` could take, or `None` where that cannot be asked."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return None


def _resolve(dtype: str | torch.dtype, config: Any) -> torch.dtype:
    if dtype == "auto":
        dtype = config.dtype or text_config(config).dtype or torch.float16
    resolved = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(resolved, torch.dtype):
        raise SAFTInputError(f"dtype={dtype!r}: give 'auto', or the name of a torch dtype such as 'bfloat16'.")
    return resolved


def _check_room(name: str, skeleton: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Refuse before loading what surely does not fit; `None` is quantised, half a byte a weight or more."""
    weights = sum(parameter.numel() for parameter in skeleton.parameters())
    needed = weights * (0.5 if dtype is None else dtype.itemsize)
    free = free_bytes(device)
    if free is not None and needed > free:
        kind = "quantised" if dtype is None else str(dtype).removeprefix("torch.")
        raise SAFTInputError(
            f"model={name!r}: the blocks to be read have {weights / 1e9:.2f} billion weights, "
            f"{needed / 1e9:.1f} GB as {kind}, but {device} has {free / 1e9:.1f} GB free. Read an earlier "
            'layer, use a smaller dtype or a quantization_config, or spread it with device_map="auto".'
        )
