"""A digest that names a model's weights, whoever loaded them and wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

# Elements that are hashed at a time: bounds the extra memory to 64 MB a thread.
_BLOCK = 1 << 24


def layer_digests(text: nn.Module, blocks: nn.ModuleList, layers: Sequence[int]) -> dict[int, str]:
    """For each layer, a digest of everything outside the blocks and of the blocks up to that layer.

    The digest of layer l is that of layer l - 1 continued with block l, so it does not depend on how many
    blocks were loaded; what is outside the blocks (embeddings, final norm) is always loaded.

    Args:
        text: the text part of a model.
        blocks: its blocks, or at least the first `max(layers)`.
        layers: layer numbers, 0 to L.

    Returns:
        Layer -> SHA-256 (hex).
    """
    chain, digests = _digest(text, leave_out=blocks), {}
    for layer in range(max(layers) + 1):
        if layer > 0:
            chain = hashlib.sha256((chain + _digest(blocks[layer - 1])).encode()).hexdigest()
        if layer in layers:
            digests[layer] = chain
    return digests


def _digest(root: nn.Module, leave_out: nn.Module | None = None) -> str:
    tensors = sorted(base_tensors(root, leave_out), key=lambda item: item[0])
    # hashlib lets go of the interpreter lock on large blocks, so threads do run side by side.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = pool.map(lambda item: digest(*item), tensors)
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def base_tensors(
    root: nn.Module, leave_out: nn.Module | None = None, prefix: str = ""
) -> Iterator[tuple[str, Tensor, nn.Module]]:
    """The saved weights of a module without PEFT's additions, under the names they have without PEFT.

    Args:
        root: the module.
        leave_out: a module inside `root` to pass over.
        prefix: what to put before each name.

    Yields:
        Name, tensor, and the module that holds it.
    """
    if root is leave_out:
        return
    if hasattr(root, "_disable_adapters"):  # a PEFT layer: what it wraps has one of two names
        inner = root._modules.get("base_layer", root._modules.get("original_module"))
        if inner is not None:
            yield from base_tensors(inner, leave_out, prefix)
        return
    kept = {k: v for k, v in root._buffers.items() if k not in root._non_persistent_buffers_set}
    for name, tensor in {**root._parameters, **kept}.items():
        if tensor is not None:
            yield prefix + name, tensor, root
    for name, child in root._modules.items():
        if child is not None:
            yield from base_tensors(child, leave_out, f"{prefix}{name}.")


@torch.no_grad()
def digest(name: str, tensor: Tensor, module: nn.Module) -> str:
    """SHA-256 (hex) of a tensor's name, shape and values, 16-bit floats as the float32 they also load as.

    Args:
        name: the tensor's name in the model.
        tensor: the tensor, on any device.
        module: the module that holds it.
    """
    if tensor.is_meta:  # offloaded by accelerate: fetched for a moment
        with align_module_device(module):
            return digest(name, getattr(module, name.rpartition(".")[2]), module)
    state = hashlib.sha256(f"{name} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), _BLOCK):
        values = flat[start : start + _BLOCK].cpu()
        if values.is_floating_point() and values.itemsize <= 2:
            values = values.float()
        state.update(values.contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()
