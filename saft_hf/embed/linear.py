"""Float32 matrix products on a CPU with oneDNN, which uses wider instructions than torch's default on some CPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class _OneDnnLinear(TorchFunctionMode):
    """Sends linear layers of plain float32 tensors to oneDNN; everything else goes where it went."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.linear and not kwargs and all(tensor is None or _is_plain(tensor) for tensor in args):
            states, weight, *bias = args
            return torch.ops.mkldnn._linear_pointwise(states, weight, bias[0] if bias else None, "none", [], "")
        return func(*args, **(kwargs or {}))


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is an ordinary dense float32 tensor on the CPU, and no subclass that has its own linear."""
    known = type(tensor) in (Tensor, torch.nn.Parameter)
    return known and tensor.dtype is torch.float32 and tensor.device.type == "cpu" and tensor.layout is torch.strided


def faster_linear(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Context in which linear layers on a CPU are as fast as oneDNN makes them; does nothing elsewhere.

    On AMD CPUs torch's default library stays with 256-bit instructions, at half the speed. Results differ from
    the default's in the last bits only, and are the same for the same shapes.
    """
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return _OneDnnLinear()
    return contextlib.nullcontext()
