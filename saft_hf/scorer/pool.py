"""The embedded pool and its labelled rows: what every method learns from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.distributed import World
from saft_hf.embed.extract import Embedded, Extractor, Work
from saft_hf.embed.features import readouts_of
from saft_hf.embed.reduce import gram_on, tree_reduce
from saft_hf.embed.survey import survey_dataset
from saft_hf.errors import SAFTInputError
from saft_hf.render import Readout
from saft_hf.score import Frame, Moments, Subspace, principal_subspace
from saft_hf.scorer.fitted import LabelledRows, Score

logger = logging.getLogger(__name__)

_RENDER_ROWS = 1024


def pool_moments(embedded: Embedded, features: Sequence[str], work: Work, world: World) -> Moments | None:
    """Moments of a pool's vectors, as `work` gives them; on the main process, None on the others.

    Rows that share a rendering count each; a row with NaN or infinity at any of the features counts not at all.
    """
    plan, gram = embedded.plan, gram_on(world.device)

    def shard_moments(shard: int) -> Moments:
        vectors = embedded.vectors(shard, features)
        finite = np.logical_and.reduce([np.isfinite(states).all(axis=1) for states in vectors.values()])
        rows = work({feature: states[finite] for feature, states in vectors.items()})
        return Moments.of(rows, weights=plan.counts[plan.shard_slice(shard)][finite], gram=gram)

    return tree_reduce(world, plan.num_shards, shard_moments, Moments.merge)


def pool_subspace(embedded: Embedded, feature: str, k: int, world: World) -> Subspace:
    """Principal directions of the pool's vectors at one feature, up to `k` or the rank.

    Raises:
        SAFTInputError: no row can be used, or all rows are equal.
    """
    total = pool_moments(embedded, (feature,), lambda vectors: vectors[feature], world)
    found: Subspace | None = None
    with world.sync_errors("principal directions"):
        if world.is_main:
            if total is None or total.count == 0:
                raise SAFTInputError(
                    f"every hidden state that was read at {feature} holds NaN or infinity: the model is broken, or its "
                    "dtype overflows. Try `dtype='float32'` and `vector_dtype='float32'`."
                )
            found = principal_subspace(total, k, clip=True)
    shared = world.broadcast(found)
    assert shared is not None  # noqa: S101 - `sync_errors` has raised otherwise
    return shared


def frame_moments(embedded: Embedded, frame: Frame, world: World) -> Moments:
    """Moments of the whole pool's coordinates in a frame, the same on every process."""
    total = pool_moments(embedded, tuple(frame.subspaces), frame.coordinates, world)
    shared = world.broadcast(total)
    assert shared is not None  # noqa: S101 - the frame's features have rows
    return shared


def pool_scores(embedded: Embedded, score: Score) -> NDArray[np.float32]:
    """Scores of every row of a dataset, `float32 [N]`; NaN where a row has none."""
    return embedded.rows(embedded.compute(score.features, lambda vectors: score(vectors)[:, None], 1))[:, 0]


class Labelled:
    """Labelled rows, whose vectors come from the pool where they stand in it, else from a pass of their own.

    Collective, as `Embedded` is.

    Args:
        extractor: embeds rows.
        pool: the embedded pool.
        dataset: the labelled rows.
        harmful: their labels, `bool [m]`.
    """

    def __init__(self, extractor: Extractor, pool: Embedded, dataset: Dataset, harmful: NDArray[np.bool_]) -> None:
        self.harmful = harmful
        self._pool = pool
        self._renderer, self._dataset = extractor.renderer, dataset.with_format(None)
        self._survey = survey_dataset(dataset, extractor.renderer, extractor.features.readouts, extractor.world)
        self._places = pool.plan.find(self._survey.keys)
        self._places[~self._survey.usable] = -1
        self._foreign = np.flatnonzero(self._survey.usable & (self._places < 0))
        self._embedded: Embedded | None = None
        if len(self._foreign):
            logger.info("%d of %d labelled rows are not in the pool.", len(self._foreign), len(harmful))
            self._embedded = extractor.embed(dataset.select(self._foreign))

    def compute(self, features: Sequence[str], work: Work, columns: int) -> NDArray[np.float32]:
        """Apply `work` to the labelled rows, `float32 [m, columns]`; NaN where a row lacks a vector."""
        values = np.full((len(self.harmful), columns), np.nan, dtype=np.float32)
        known = self._places >= 0
        values[known] = self._pool.compute(features, work, columns, only=self._places[known])
        if self._embedded is not None:
            values[self._foreign] = self._embedded.rows(self._embedded.compute(features, work, columns))
        unscored = np.asarray(np.isnan(values).any(axis=1))
        if unscored.any():
            statuses = self._survey.statuses(readouts_of(features))
            names = Counter(str(status) for status, bad in zip(statuses, unscored, strict=True) if bad)
            logger.warning(
                "%d of %d labelled rows have no score and are left out: %s.", unscored.sum(), len(values), dict(names)
            )
        return values

    def rows(self) -> LabelledRows:
        """The rows in digests."""
        usable = self._survey.usable
        return LabelledRows.of(self._survey.identities[usable], self.harmful[usable])

    def prompts(self) -> NDArray[np.intp]:
        """A number for each row, `[m]`, by first appearance: rows of the same prompt have the same.

        Plain text is a prompt of its own.
        """
        numbers: dict[bytes, int] = {}
        found = []
        for first in range(0, len(self._dataset), _RENDER_ROWS):
            for rendering in self._renderer(self._dataset[first : first + _RENDER_ROWS]):
                key = rendering.key((Readout.START,) if rendering.boundary else tuple(Readout))
                found.append(numbers.setdefault(key, len(numbers)))
        return np.asarray(found, dtype=np.intp)
