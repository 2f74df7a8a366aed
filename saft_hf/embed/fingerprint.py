"""A digest that names a model's weights, whoever loaded them and wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

_BLOCK = 1 << 16
"""Words of one sum: they stay in a core's cache for all four."""
_BLOCKS_ON_GPU = 1 << 10
"""Sums that are taken at a time there, with half a gigabyte beside the weights."""


def layer_digests(text: nn.Module, blocks: nn.ModuleList, layers: Sequence[int]) -> dict[int, str]:
    """For each layer, a digest of everything outside the blocks and of the blocks up to that layer.

    The digest of layer l is that of layer l - 1 continued with block l, so it does not depend on how many
    blocks were loaded; what is outside the blocks (embeddings, final norm) is always loaded.

    Args:
        text: the text part of a model.
        blocks: its blocks, or at least the first `max(layers)`.
        layers: layer numbers, 0 to L.

    Returns:
        Layer -> digest (hex).
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
    return hashlib.sha256("".join(digest(*item) for item in tensors).encode()).hexdigest()


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
    """Digest (hex) of a tensor's name, shape and values, 16-bit floats as the float32 they also load as.

    SHA-256 of sums that are taken where the weights lie: a CPU needs seconds for the bytes of a large model, and as
    long to fetch them from a GPU. Each block of 32-bit words gives four inner products with fixed random odd numbers
    modulo 2^32, which are the same in every order of adding (multilinear hashing, Carter and Wegman 1979). A changed
    word changes all four. It tells models apart; it is no proof against somebody who makes one to collide.

    Args:
        name: the tensor's name in the model.
        tensor: the tensor, on any device.
        module: the module that holds it.
    """
    if tensor.is_meta:  # offloaded by accelerate: fetched for a moment
        with align_module_device(module):
            return digest(name, getattr(module, name.rpartition(".")[2]), module)
    flat, sums = tensor.detach().reshape(-1), []
    step = _BLOCK * (_BLOCKS_ON_GPU if flat.is_cuda else 1)
    for start in range(0, flat.numel(), step):
        words = _words(flat[start : start + step])
        whole = len(words) // _BLOCK * _BLOCK
        for part in (words[:whole].view(-1, _BLOCK), words[whole:].view(1, -1)):
            for factors in _factors(flat.device):
                sums.append((part * factors[: part.shape[1]]).sum(dim=1, dtype=torch.int32))
    values = torch.cat(sums).cpu().numpy() if sums else np.zeros(0)
    return hashlib.sha256(f"{name} {tuple(tensor.shape)}".encode() + values.astype("<i4").tobytes()).hexdigest()


def _words(values: Tensor) -> Tensor:
    """The bits of values, as int32 [n]."""
    if values.is_floating_point():
        return (values.float() if values.itemsize <= 2 else values).contiguous().view(torch.int32)
    return values.contiguous().view(torch.uint8).int()


@cache
def _factors(device: torch.device) -> Tensor:
    """Four rows of fixed random odd numbers, int32 [4, _BLOCK]."""
    stream = hashlib.shake_256(b"saft_hf").digest(4 * 4 * _BLOCK)
    odd = np.frombuffer(stream, dtype="<i4").astype(np.int32) | 1
    return torch.from_numpy(odd.reshape(4, _BLOCK)).to(device)
