"""Where in a model harm shows: AUROC at each layer and readout, and the pool on its first two directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.utils.extmath import randomized_svd

from saft_hf.evaluate.config import ExperimentConfig
from saft_hf.evaluate.generate import evaluating
from saft_hf.evaluate.pools import Pool
from saft_hf.evaluate.tuning import Tuned
from saft_hf.render import END, MEAN, READOUTS, START, RenderConfig, Renderer

_LAYERS_AT_MOST = 12


def probe(model: Tuned, pool: Pool, config: ExperimentConfig) -> dict[str, Any]:
    """Read a pool at several layers and every readout. The whole model runs, with nothing of the scorer.

    Args:
        model: as it is before tuning.
        pool: the rows. The directions are found on all of them; AUROC is taken on those without a label.
        config: batch size, and the layer that the arm `saft` reads.

    Returns:
        JSON-ready: `layers`; `auroc`: name of a score -> readout -> one figure a layer, for `energy` (the published
        score with k = 1) and `difference` (projection on the difference of class means of the labelled rows);
        `projection`: places on the first two directions at the published readout, `[N, 2]`, and `truth`; `layer` of
        the projection; `explained`: share of variance along each.
    """
    blocks = model.model.config.get_text_config().num_hidden_layers
    half = config.layer or blocks // 2
    layers = sorted({half, *np.linspace(1, blocks, min(blocks, _LAYERS_AT_MOST)).round().astype(int).tolist()})
    states, usable = read_states(model, pool, layers, config.eval_batch_size, config.max_length)
    fresh = usable.copy()
    fresh[pool.labelled] = False
    labelled = np.zeros_like(usable)
    labelled[pool.labelled] = True
    labelled &= usable
    auroc: dict[str, dict[str, list[float | None]]] = {"energy": {}, "difference": {}}
    projected: dict[str, Any] = {}
    for readout, by_layer in states.items():
        for name in auroc:
            auroc[name][readout] = []
        for layer, vectors in zip(layers, by_layer, strict=True):
            centred = vectors - vectors[usable].mean(axis=0)
            _, sizes, directions = randomized_svd(centred[usable], 2, random_state=0)
            along = centred @ directions.T
            auroc["energy"][readout].append(_auroc(pool.harmful, along[:, 0] ** 2, fresh))
            difference = _difference(centred, pool.harmful, labelled)
            auroc["difference"][readout].append(_auroc(pool.harmful, centred @ difference, fresh))
            if readout == START and layer == half:
                projected = {
                    "projection": along[usable].round(4).tolist(),
                    "truth": pool.harmful[usable].astype(int).tolist(),
                    "explained": (sizes**2 / (centred[usable] ** 2).sum()).round(4).tolist(),
                }
    return {"layers": layers, "layer": half, "auroc": auroc, **projected}


def read_states(
    model: Tuned, pool: Pool, layers: list[int], batch_size: int, max_length: int
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Hidden states of every row.

    Returns:
        Readout -> `float32 [layers, N, d]`, and which rows could be read, `bool [N]`.
    """
    rendered = Renderer(model.tokenizer, RenderConfig(max_length=max_length))(
        {"messages": [row.messages for row in pool.rows]}
    )
    usable = np.array([row.status_for(START) == "ok" for row in rendered])
    width = model.model.config.get_text_config().hidden_size
    states = {readout: np.zeros((len(layers), len(rendered), width), dtype=np.float32) for readout in READOUTS}
    order = sorted(np.flatnonzero(usable).tolist(), key=lambda i: len(rendered[i].input_ids))
    with evaluating(model.model):
        for first in range(0, len(order), batch_size):
            places = order[first : first + batch_size]
            longest = max(len(rendered[i].input_ids) for i in places)
            ids = torch.zeros(len(places), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for line, place in enumerate(places):
                tokens = torch.from_numpy(rendered[place].input_ids.astype(np.int64))
                ids[line, : len(tokens)], mask[line, : len(tokens)] = tokens, 1
            device = model.model.device
            # Without the head: logits of a long batch would take more memory than all else.
            output = model.model.base_model(
                input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True
            )
            for number, layer in enumerate(layers):
                hidden = output.hidden_states[layer].float().cpu().numpy()
                for line, place in enumerate(places):
                    start, end = rendered[place].spans[-1]
                    states[START][number, place] = hidden[line, start - 1]
                    states[MEAN][number, place] = hidden[line, start:end].mean(axis=0)
                    states[END][number, place] = hidden[line, end - 1]
    return states, usable


def _difference(
    vectors: NDArray[np.float32], harmful: NDArray[np.bool_], labelled: NDArray[np.bool_]
) -> NDArray[np.float32]:
    if len(set(harmful[labelled].tolist())) < 2:
        return np.zeros(vectors.shape[1], dtype=np.float32)
    found: NDArray[np.float32] = vectors[labelled & harmful].mean(axis=0) - vectors[labelled & ~harmful].mean(axis=0)
    return found


def _auroc(harmful: NDArray[np.bool_], scores: NDArray[np.float32], rows: NDArray[np.bool_]) -> float | None:
    if len(set(harmful[rows].tolist())) < 2:
        return None
    return round(float(roc_auc_score(harmful[rows], scores[rows])), 4)
