"""The embedded pool and its labelled rows: what every method learns from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.embed import (
    Embedded,
    Extractor,
    Features,
    RowFunction,
    Vectors,
    finite_rows,
    readouts_of,
    survey_dataset,
    tree_reduce,
)
from saft_hf.errors import SAFTInputError
from saft_hf.render import Renderer
from saft_hf.score import (
    COMPONENTS,
    LinearScore,
    Moments,
    PublishedScore,
    Subspace,
    difference_features,
    principal_subspace,
)
from saft_hf.scorer.device_moments import DeviceMoments
from saft_hf.scorer.labels import LabelledRows, LabelSet, identities_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

Score = PublishedScore | LinearScore


class Pool:
    """The rows that a scorer is fitted on, embedded. All methods are collective, as those of `Embedded` are.

    Args:
        extractor: embeds rows at all features that the method reads.
        dataset: the rows.
    """

    def __init__(self, extractor: Extractor, dataset: Dataset) -> None:
        self.dataset = dataset
        self.features: Features = extractor.features
        self.renderer: Renderer = extractor.renderer
        self.world = extractor.world
        self.embedded: Embedded = extractor.embed(dataset, sample=True)
        self._extractor = extractor
        self._subspaces: dict[tuple[str, int], Subspace] = {}

    @property
    def num_unique(self) -> int:
        """How many different renderings there are."""
        return self.embedded.plan.num_unique

    @cached_property
    def all_features(self) -> tuple[str, ...]:
        """The stored features, and the differences that are made of them."""
        return (*self.features.names, *difference_features(self.features.names))

    def embed_others(self, dataset: Dataset, renderer: Renderer) -> Embedded:
        """Other rows, read as the pool was read."""
        return replace(self._extractor, renderer=renderer).embed(dataset)

    def compute(self, features: Sequence[str], function: RowFunction, columns: int) -> NDArray[np.float32]:
        """Apply a function of vectors to every row, `float32 [N, columns]`; NaN where a row has none."""
        return self.embedded.rows(self.embedded.compute(features, function, columns))

    def scores(self, score: Score) -> NDArray[np.float32]:
        """Scores of every row, `float32 [N]`; NaN where a row has none."""
        return scores_of(self.embedded, score)

    def moments(self, features: Sequence[str], function: RowFunction) -> Moments:
        """Moments of what a function makes of the vectors, the same on every process: for a few columns.

        Rows that share a rendering count each; a row with NaN or infinity at any of the features counts not at all.

        Raises:
            SAFTInputError: no row can be used.
        """
        total = self._total(features, function)
        return self.world.on_main("summing moments", lambda: _checked(total, features))

    def subspace(self, feature: str, k: int) -> Subspace:
        """Principal directions of the pool's vectors at one feature, up to `k` or the rank.

        Raises:
            SAFTInputError: no row can be used, or all rows are equal.
        """
        if (feature, k) not in self._subspaces:
            needed = difference_features(self.features.names).get(feature, (feature,))
            # The d x d sums stay on the main process; only the few directions travel.
            total = self._vector_moments(needed)
            self._subspaces[feature, k] = self.world.on_main(
                "principal directions", lambda: principal_subspace(_checked(total, needed), k, clip=True)
            )
        return self._subspaces[feature, k]

    def centred(self, score: LinearScore) -> LinearScore:
        """A linear score measured from the pool's mean: its mean over the pool is 0."""
        means = [self.subspace(feature, COMPONENTS).mean for feature in score.features]
        return LinearScore(score.features, np.stack(means), score.weights)

    def _vector_moments(self, needed: tuple[str, ...]) -> Moments | None:
        """Moments of one feature, or of the difference of two, on the main process; None on the others."""
        device = self.world.device
        if device.type != "cuda":  # numpy is as fast elsewhere, or there is no float64
            return self._total(needed, lambda vectors: _difference([vectors[name].astype(float) for name in needed]))

        def on_device(rows: list[NDArray[np.float32]], times: NDArray[np.int64]) -> DeviceMoments:
            return DeviceMoments.of(_difference([torch.from_numpy(part).to(device).double() for part in rows]), times)

        total = self._sum(needed, lambda vectors, times: on_device([*vectors.values()], times), DeviceMoments.merge)
        return None if total is None else total.to_host()

    def _total(self, features: Sequence[str], function: RowFunction) -> Moments | None:
        """Moments on the main process, None on the others."""
        return self._sum(features, lambda vectors, times: Moments.of(function(vectors), times), Moments.merge)

    def _sum(
        self,
        features: Sequence[str],
        of: Callable[[Vectors, NDArray[np.int64]], T],
        merge: Callable[[T, T], T],
    ) -> T | None:
        """Add up what `of` makes of each shard's finite vectors and their multiplicities."""
        plan = self.embedded.plan

        def shard_value(shard: int) -> T:
            vectors = self.embedded.vectors(shard, features)
            finite = finite_rows(vectors)
            times = plan.counts[plan.shard_slice(shard)][finite]
            return of({feature: states[finite] for feature, states in vectors.items()}, times)

        return tree_reduce(self.world, plan.num_shards, shard_value, merge)


def _difference(parts: Sequence[Any]) -> Any:
    """The only array, or the first less the second."""
    return parts[0] if len(parts) == 1 else parts[0] - parts[1]


def _checked(total: Moments | None, features: Sequence[str]) -> Moments:
    if total is None or total.count == 0:
        raise SAFTInputError(
            f"every hidden state that was read at {', '.join(features)} holds NaN or infinity: the model is broken, or "
            "its dtype overflows. Try `dtype='float32'` and `vector_dtype='float32'`."
        )
    return total


def scores_of(embedded: Embedded, score: Score) -> NDArray[np.float32]:
    """Scores of every row of an embedded dataset, `float32 [N]`; NaN where a row has none."""
    return embedded.rows(embedded.compute(score.features, lambda vectors: score(vectors)[:, None], 1))[:, 0]


class Labelled:
    """Labelled rows, whose vectors come from the pool where they stand in it, else from a pass of their own.

    Collective, as `Pool` is.

    Args:
        extractor: embeds rows.
        pool: the embedded pool.
        labels: the labelled rows.

    Attributes:
        harmful: the labels.
        prompts: a number for each row, `[m]`: rows of the same prompt have the same. Plain text is a prompt of its own.
    """

    def __init__(self, extractor: Extractor, pool: Pool, labels: LabelSet) -> None:
        dataset, self.harmful = labels.rows, labels.harmful
        self._dataset, self._renderer = dataset, extractor.renderer
        self._pool = pool.embedded
        self._survey = survey_dataset(
            dataset, extractor.renderer, extractor.features.readouts, extractor.world, prompts=True
        )
        assert self._survey.prompts is not None  # noqa: S101 - asked for
        self.prompts = np.unique(self._survey.prompts, axis=0, return_inverse=True)[1].ravel()
        self._positions = pool.embedded.plan.find(self._survey.keys)
        self._positions[~self._survey.usable] = -1
        self._foreign = np.flatnonzero(self._survey.usable & (self._positions < 0))
        self._embedded: Embedded | None = None
        self._told = False
        if len(self._foreign):
            logger.info("%d of %d labelled rows are not in the pool.", len(self._foreign), len(dataset))
            self._embedded = extractor.embed(dataset.select(self._foreign))

    def compute(self, features: Sequence[str], function: RowFunction, columns: int) -> NDArray[np.float32]:
        """Apply a function of vectors to the labelled rows, `float32 [m, columns]`; NaN where a row lacks a vector."""
        values = np.full((len(self.harmful), columns), np.nan, dtype=np.float32)
        known = self._positions >= 0
        values[known] = self._pool.compute(features, function, columns, only=self._positions[known])
        if self._embedded is not None:
            values[self._foreign] = self._embedded.rows(self._embedded.compute(features, function, columns))
        unscored = np.asarray(np.isnan(values).any(axis=1))
        if unscored.any() and not self._told:
            self._told = True
            statuses = self._survey.statuses(readouts_of(features))
            names = Counter(str(status) for status, bad in zip(statuses, unscored, strict=True) if bad)
            logger.warning(
                "%d of %d labelled rows have no score, so nothing is learned from them: %s.",
                unscored.sum(),
                len(values),
                dict(names),
            )
        return values

    def rows(self) -> LabelledRows:
        """The rows in digests, with a score or without."""
        return LabelledRows.of(identities_of(self._dataset, self._survey, self._renderer), self.harmful)
