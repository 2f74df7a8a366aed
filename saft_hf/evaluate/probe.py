"""Where in a model harm shows: AUROC at each layer and readout, and the pool on its first two directions."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.utils.extmath import randomized_svd

from saft_hf.distributed import World
from saft_hf.embed import Features, ModelSource, feature_name
from saft_hf.evaluate.config import ExperimentConfig
from saft_hf.evaluate.pools import DrawnPool
from saft_hf.evaluate.records import Condition, Probe
from saft_hf.render import END, MEAN, START, RenderConfig, Renderer

READOUTS = (START, MEAN, END)
_LAYERS_AT_MOST = 12


def probe(condition: Condition, pool: DrawnPool, config: ExperimentConfig) -> Probe:
    """Read a pool at several layers and readouts, in the model as it is before tuning.

    Args:
        condition: of the pool.
        pool: the rows. The directions are found on all of them; AUROC is taken on those without a label.
        config: the model, and the layer that the arm `saft` reads.
    """
    model = ModelSource(config.model_name_or_path, options={"revision": config.model_revision, "dtype": config.dtype})
    blocks = model.shape.num_layers
    half = config.layer or blocks // 2
    layers = sorted({half, *np.linspace(1, blocks, min(blocks, _LAYERS_AT_MOST)).round().astype(int).tolist()})
    auroc: dict[str, dict[str, list[float | None]]] = {
        score: {readout: [] for readout in READOUTS} for score in ("energy", "difference")
    }
    labelled = np.isin(np.arange(len(pool.rows)), pool.labelled)
    with TemporaryDirectory() as folder:
        renderer = Renderer(model.tokenizer, RenderConfig(max_length=config.max_length))
        features = Features(tuple(layers), READOUTS)
        # A folder within: the store may delete what lies beside its own.
        extractor = model.extractor(renderer, features, folder=Path(folder) / "vectors", world=World())
        embedded = extractor.embed(pool.dataset)
        model.release()
        for readout in READOUTS:
            for layer in layers:
                vectors = embedded.states(feature_name(layer, readout))
                usable = np.isfinite(vectors).all(axis=1)
                centred, harmful, shown = vectors[usable], pool.harmful[usable], labelled[usable]
                centred -= centred.mean(axis=0)
                _, sizes, directions = randomized_svd(centred, 2, random_state=0)
                along = centred @ directions.T
                fresh = ~shown
                difference = centred @ _difference(centred[shown], harmful[shown])
                auroc["energy"][readout].append(_auroc(harmful[fresh], along[fresh, 0] ** 2))
                auroc["difference"][readout].append(_auroc(harmful[fresh], difference[fresh]))
                if readout == START and layer == half:
                    projection, truth = along.round(4).tolist(), harmful.astype(int).tolist()
                    explained = (sizes**2 / (centred**2).sum()).round(4).tolist()
    return Probe(
        **vars(condition),
        layers=layers,
        layer=half,
        auroc=auroc,
        projection=projection,
        truth=truth,
        explained=explained,
    )


def _difference(vectors: NDArray[np.float32], harmful: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Difference of class means; zero where one class is missing."""
    if len(set(harmful.tolist())) < 2:
        return np.zeros(vectors.shape[1], dtype=np.float32)
    difference: NDArray[np.float32] = vectors[harmful].mean(axis=0) - vectors[~harmful].mean(axis=0)
    return difference


def _auroc(harmful: NDArray[np.bool_], scores: NDArray[np.float32]) -> float | None:
    if len(set(harmful.tolist())) < 2:
        return None
    return round(float(roc_auc_score(harmful, scores)), 4)
