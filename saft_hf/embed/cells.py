"""Which hidden states are read, and how a sequence of them becomes one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from saft_hf.embed.backbone import Backbone
from saft_hf.render import Readout, Rendering


@dataclass(frozen=True)
class Cells:
    """Every named layer at every named readout, captured in one pass.

    Attributes:
        layers: indices into transformers' `hidden_states`.
        readouts: where a row is read.
    """

    layers: tuple[int, ...]
    readouts: tuple[Readout, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """One name a cell, `layer.readout`."""
        return tuple(cell_name(layer, readout) for layer in self.layers for readout in self.readouts)


def cell_name(layer: int, readout: Readout) -> str:
    """Name of one cell in the store."""
    return f"{layer}.{readout.value}"


def readouts_of(cells: Sequence[str]) -> tuple[Readout, ...]:
    """The readouts of named cells, each once."""
    return tuple(dict.fromkeys(Readout(cell.partition(".")[2]) for cell in cells))


def layers_of(cells: Sequence[str]) -> tuple[int, ...]:
    """The layers of named cells, each once."""
    return tuple(dict.fromkeys(int(cell.partition(".")[0]) for cell in cells))


def read_batch(backbone: Backbone, renderings: Sequence[Rendering], cells: Cells) -> dict[str, NDArray[np.float32]]:
    """Feed one batch and pool its hidden states.

    Rows are padded on the right and no attention mask is built: in a causal model nothing before the padding can
    see it. A batch that does not fit in memory is halved, and halved again: always at the same rows.

    Args:
        backbone: the model, open for reading.
        renderings: rows with a response.
        cells: what to read.

    Returns:
        For each cell `float32 [n, d]`; NaN where a readout is not defined for a row.
    """
    try:
        pooled = _forward(backbone, renderings, cells)
    except torch.OutOfMemoryError:
        if len(renderings) == 1:
            raise
        middle = len(renderings) // 2
        pooled = None
    if pooled is not None:
        return {name: vectors.cpu().numpy() for name, vectors in pooled.items()}
    torch.cuda.empty_cache()
    halves = [read_batch(backbone, part, cells) for part in (renderings[:middle], renderings[middle:])]
    return {name: np.concatenate([half[name] for half in halves]) for name in cells.names}


def _forward(backbone: Backbone, renderings: Sequence[Rendering], cells: Cells) -> dict[str, torch.Tensor]:
    needed = [rendering.needed(cells.readouts) for rendering in renderings]
    ids = np.zeros((len(renderings), max(needed)), dtype=np.int64)
    for row, (rendering, length) in enumerate(zip(renderings, needed, strict=True)):
        ids[row, :length] = rendering.input_ids[:length]
    hidden = backbone.read(torch.from_numpy(ids).to(backbone.device), cells.layers)
    pooled = {}
    for readout in cells.readouts:
        weights = torch.from_numpy(_weights(renderings, readout, ids.shape)).to(backbone.device)
        for layer in cells.layers:
            states = hidden[layer].float()
            if readout is Readout.MEAN:
                vectors = torch.bmm(weights[:, None], states)[:, 0]
            else:
                vectors = states[torch.arange(len(ids), device=states.device), weights.argmax(dim=1)]
            undefined = weights.sum(dim=1) == 0
            pooled[cell_name(layer, readout)] = vectors.masked_fill(undefined[:, None], float("nan"))
    return pooled


def _weights(renderings: Sequence[Rendering], readout: Readout, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """How much each token counts, `float32 [n, T]`; all zero where the readout is not defined."""
    weights = np.zeros(shape, dtype=np.float32)
    for row, rendering in enumerate(renderings):
        if rendering.status_for(readout) != "ok":
            continue
        if readout is Readout.START:
            weights[row, rendering.spans[-1][0] - 1] = 1
        elif readout is Readout.END:
            weights[row, rendering.spans[-1][1] - 1] = 1
        else:
            tokens = sum(end - start for start, end in rendering.spans)
            for start, end in rendering.spans:
                weights[row, start:end] = 1 / tokens
    return weights
