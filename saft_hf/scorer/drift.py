"""`SAFTScorer.drift`: how far the answers of rows lie from declining towards complying."""

from __future__ import annotations

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.assets import pairs
from saft_hf.embed import Extractor, Vectors, feature_name
from saft_hf.render.readouts import MEAN, START
from saft_hf.score.drift import Drift, learn_drift
from saft_hf.scorer.methods.reference import laid_out_like


def learn(extractor: Extractor, pool: Dataset) -> Drift:
    """The direction in which the built-in pairs' answers differ, read as a pool is read. Collective.

    Args:
        extractor: reads `response_start` and `response_mean` of its layers.
        pool: rows in whose form the pairs are laid out.

    Raises:
        SAFTInputError: too few of the pairs can be read.
    """
    reader = extractor.unformatted()
    known, layers = pairs(), extractor.features.layers

    def read(answers: list[str]) -> dict[int, NDArray[np.float32]]:
        rows = Dataset.from_dict({"prompt": [pair.request for pair in known], "completion": answers})
        own = reader.embed(laid_out_like(pool, rows, extractor.renderer))
        return {
            layer: own.states(feature_name(layer, MEAN)) - own.states(feature_name(layer, START)) for layer in layers
        }

    return learn_drift(read([pair.complies for pair in known]), read([pair.declines for pair in known]))


def drift_of(extractor: Extractor, dataset: Dataset) -> NDArray[np.float32]:
    """The drift of every row, `float32 [N]`; NaN where a row has no answer behind a prompt. Collective."""
    drift = learn(extractor, dataset)
    start, mean = feature_name(drift.layer, START), feature_name(drift.layer, MEAN)
    embedded = extractor.embed(dataset)

    def project(vectors: Vectors) -> NDArray[np.float32]:
        return drift(vectors[mean] - vectors[start])[:, None]

    return embedded.rows(embedded.compute((start, mean), project, 1))[:, 0]
