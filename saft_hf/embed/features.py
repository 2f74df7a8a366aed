"""Which hidden states are read, and how a sequence of them becomes one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saft_hf.embed.backbone import Backbone
from saft_hf.embed.forward import moved
from saft_hf.errors import SAFTInputError
from saft_hf.render import READOUTS, Rendering
from saft_hf.render.readouts import MeanOf, OneToken

_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Features:
    """Every named layer at every named readout, captured in one pass.

    Attributes:
        layers: indices into transformers' `hidden_states`.
        readouts: names of entries of `READOUTS`.
        dtype: what vectors are rounded to as soon as they are read: float32, or float16 for half of the bytes.
    """

    layers: tuple[int, ...]
    readouts: tuple[str, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise SAFTInputError(f"vector_dtype={self.dtype!r}: vectors are kept as 'float32' or 'float16'.")
        if unknown := [readout for readout in self.readouts if readout not in READOUTS]:
            raise SAFTInputError(f"`readout` must be one of {list(READOUTS)}, not {unknown[0]!r}.")

    @property
    def names(self) -> tuple[str, ...]:
        """One name a feature, `layer.readout`."""
        return tuple(feature_name(layer, readout) for layer in self.layers for readout in self.readouts)


def feature_name(layer: int, readout: str) -> str:
    """Name of one feature in the store."""
    return f"{layer}.{readout}"


def readouts_of(features: Sequence[str]) -> tuple[str, ...]:
    """The readouts of named features, each once."""
    return tuple(dict.fromkeys(feature.partition(".")[2] for feature in features))


def layers_of(features: Sequence[str]) -> tuple[int, ...]:
    """The layers of named features, each once."""
    return tuple(dict.fromkeys(int(feature.partition(".")[0]) for feature in features))


def read_batch(
    backbone: Backbone, renderings: Sequence[Rendering], features: Features, prefix: NDArray[np.int32] | None = None
) -> dict[str, Tensor]:
    """Feed one batch and pool its hidden states.

    Rows are padded on the right, and no attention mask is built: in a causal model nothing before the padding can see
    it. A batch that does not fit in memory is halved, and halved again: always at the same rows. On a GPU the vectors
    stay there, and nothing waits for them.

    Args:
        backbone: the model, open for reading.
        renderings: rows with a response.
        features: what to read.
        prefix: tokens with which all rows start, short of the last one before a response: read once for all batches.

    Returns:
        For each feature `[n, d]` in the dtype of `features`, where the model is; NaN where a readout is not defined.
    """
    try:
        return _forward(backbone, renderings, features, prefix)
    except torch.OutOfMemoryError:
        if len(renderings) == 1:
            raise
        middle = len(renderings) // 2
    # Outside the handler: inside it the traceback would still hold the failed batch's tensors.
    torch.cuda.empty_cache()
    halves = [read_batch(backbone, part, features, prefix) for part in (renderings[:middle], renderings[middle:])]
    return joined(halves)


def joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The vectors of several batches, one after the other."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def as_arrays(vectors: Mapping[str, Tensor]) -> dict[str, NDArray[np.floating]]:
    """Vectors as numpy arrays; waits for them where they are on a GPU."""
    return {name: tensor.cpu().numpy() for name, tensor in vectors.items()}


def _forward(
    backbone: Backbone, renderings: Sequence[Rendering], features: Features, prefix: NDArray[np.int32] | None
) -> dict[str, Tensor]:
    device, skipped = backbone.device, 0 if prefix is None else len(prefix)
    # Pinned and filled on the host, so that the copy to the device overlaps with the forward before it.
    needed = np.array([rendering.needed(features.readouts) - skipped for rendering in renderings])
    ids = torch.zeros((len(renderings), int(needed.max())), dtype=torch.int64, pin_memory=device.type == "cuda")
    filled = ids.numpy()
    for row, (rendering, length) in enumerate(zip(renderings, needed, strict=True)):
        filled[row, :length] = rendering.input_ids[skipped : skipped + length]
    hidden = backbone.read(ids, features.layers, prefix)
    pooled = {}
    for readout in features.readouts:
        read = _pooler(renderings, readout, filled.shape, skipped, device)
        for layer in features.layers:
            pooled[feature_name(layer, readout)] = read(hidden[layer]).to(getattr(torch, features.dtype))
    return pooled


def _pooler(
    renderings: Sequence[Rendering], readout: str, shape: tuple[int, ...], skipped: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """How a layer's states `[n, T, d]`, read after `skipped` tokens, become `float32 [n, d]`; NaN where undefined."""
    defined = np.array([rendering.status_for(readout) == "ok" for rendering in renderings])
    undefined = moved(~defined, device)[:, None]
    match READOUTS[readout].pooling:
        case OneToken(position):
            positions = np.array([position(rendering.spans) - skipped for rendering in renderings]) * defined
            at, rows = moved(positions, device), torch.arange(len(renderings), device=device)
            return lambda states: states[rows, at].float().masked_fill(undefined, float("nan"))
        case MeanOf(ranges):
            weights = np.zeros(shape, dtype=np.float32)
            for row in np.flatnonzero(defined).tolist():
                spans = ranges(renderings[row].spans)
                for start, end in spans:
                    weights[row, start - skipped : end - skipped] = 1 / sum(end - start for start, end in spans)
            # A product, not a loop over rows: its bits depend on the batch alone, which the plan fixes.
            on = moved(weights, device)[:, None]
            return lambda states: torch.bmm(on, states.float())[:, 0].masked_fill(undefined, float("nan"))
        case other:
            assert_never(other)
