"""Vectors of a few rows at a time, for `Dataset.map`, streams and single rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from saft_hf.embed.extract import Extractor
from saft_hf.embed.features import readouts_of
from saft_hf.embed.store import Store, Vectors
from saft_hf.embed.survey import survey_renderings
from saft_hf.errors import SAFTError
from saft_hf.status import RowStatus

# A forked worker inherits this; a spawned one imports the module again.
_IMPORTED_BY = os.getpid()


class RowReader:
    """Reads batches of rows: from the store where the fit left their vectors, else with a forward.

    No process waits for another here, so any number of workers may do this side by side.

    Args:
        extractor: renders rows and opens the model.
        store: the shards of the pool that the scorer was fitted on.
    """

    def __init__(self, extractor: Extractor, store: Store) -> None:
        self._extractor = extractor
        self._store = store
        self._lock = threading.Lock()

    def __call__(self, batch: Mapping[str, Sequence[Any]], features: Sequence[str]) -> tuple[Vectors, list[RowStatus]]:
        """Vectors of a batch, for each feature `float32 [n, d]` (NaN where there is none), and each row's status."""
        renderings, width = self._extractor.renderer(batch), self._extractor.width
        survey = survey_renderings(renderings, self._extractor.features.readouts)
        vectors = {feature: np.full((len(renderings), width), np.nan, dtype=np.float32) for feature in features}
        rows = np.flatnonzero(survey.usable)
        with self._lock:  # a model is read by one thread at a time
            # A shard holds every feature, so what is there at one is there at all; `&` guards against a lost file.
            stored = np.ones(len(rows), dtype=np.bool_)
            for feature, states in vectors.items():
                states[rows], here = self._store.lookup(survey.keys[rows], feature, width)
                stored &= here
            missing = rows[~stored]
            if len(missing):
                _make_forward_safe()
                new = self._extractor.embed_renderings([renderings[row] for row in missing])
                for feature, states in vectors.items():
                    states[missing] = new[feature]
        return vectors, survey.statuses(readouts_of(features))


def _make_forward_safe() -> None:
    """Let a forked worker run a forward, or say how to start workers that can.

    A forked child inherits the parent's idle thread pools without their threads: a forward that asks for them
    waits forever. One thread needs no pool.
    """
    if os.getpid() == _IMPORTED_BY:
        return
    if torch.cuda._is_in_bad_fork():
        raise SAFTError(
            "rows must be embedded on a GPU, but this worker was forked from a process that uses CUDA already. Call "
            '`multiprocess.set_start_method("spawn")` before `map(num_proc=...)`, or use `score_dataset`.'
        )
    torch.set_num_threads(1)
