"""The embedded pool and its labelled rows: what every method learns from."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from operator import itemgetter
from typing import TypeVar

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
    find_keys,
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
    principal_subspace,
    subspace_of_rows,
    with_differences,
)
from saft_hf.scorer.device_moments import DeviceMoments
from saft_hf.scorer.labels import LabelledRows, LabelSet, identities_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

SAMPLED_ROWS = 1024
"""Rows that principal components are sought in: on 1,000 rows of a real model, 200 gave the AUROC of all to 0.001."""

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

    @property
    def num_unique(self) -> int:
        """How many different renderings there are."""
        return self.embedded.plan.num_unique

    @property
    def reader(self) -> Extractor:
        """What reads rows of a reference as the pool was read."""
        return replace(self._extractor.unformatted(), called="reference rows")

    def compute(self, features: Sequence[str], function: RowFunction, columns: int) -> NDArray[np.float32]:
        """Apply a function of vectors to every row, `float32 [N, columns]`; NaN where a row has none."""
        return self.embedded.rows(self.embedded.compute(features, function, columns))

    def scores(self, score: Score) -> NDArray[np.float32]:
        """Scores of every row, `float32 [N]`; NaN where a row has none."""
        return self.compute(score.features, lambda vectors: score(vectors)[:, None], 1)[:, 0]

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
        device = self.world.device
        # Sums of stretches travel to the main process, which alone keeps the whole; the few directions travel back.
        if device.type == "cuda":
            on_device = self._sum(
                (feature,),
                lambda vectors, times: DeviceMoments.of(torch.from_numpy(vectors[feature]).to(device).double(), times),
                DeviceMoments.merge,
            )
            total = None if on_device is None else on_device.to_host()
        else:  # numpy is as fast elsewhere, or there is no float64
            total = self._total((feature,), itemgetter(feature))
        return self.world.on_main("principal directions", lambda: principal_subspace(_checked(total, (feature,)), k))

    @cached_property
    def components(self) -> dict[str, Subspace]:
        """The principal components of every feature, stored or derived, in which directions are sought.

        Those of `SAMPLED_ROWS` rows: learned directions do not gain from more, and what is computed stays the same for
        any number of rows. The mean is that of the whole pool.

        Raises:
            SAFTInputError: no row can be used, or all rows are equal.
        """
        stored = self.features.names
        known = self.embedded.plan.row_to_unique
        known = known[known >= 0]
        drawn = known
        if len(known) > SAMPLED_ROWS:
            drawn = known[np.sort(np.random.default_rng(0).choice(len(known), SAMPLED_ROWS, replace=False))]
        width = self.embedded.width
        states = {name: self.embedded.compute((name,), itemgetter(name), width, only=drawn) for name in stored}
        means = self.means

        def solve() -> dict[str, Subspace]:
            finite = finite_rows(states)
            rows = with_differences({name: own[finite] for name, own in states.items()})
            return {name: replace(subspace_of_rows(own, COMPONENTS), mean=means[name]) for name, own in rows.items()}

        return self.world.on_main("principal components", solve)

    @cached_property
    def means(self) -> dict[str, NDArray[np.float64]]:
        """The mean of every feature over the pool, `float64 [d]`.

        Raises:
            SAFTInputError: no row can be used.
        """
        stored, columns = self.features.names, self.embedded.width

        def sums(vectors: Vectors, times: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.concatenate([[times.sum()], *(times @ vectors[name].astype(np.float64) for name in stored)])

        total = self._sum(stored, sums, np.add)

        def divide() -> dict[str, NDArray[np.float64]]:
            if total is None or total[0] == 0:
                raise _none_finite(stored)
            return dict(zip(stored, (total[1:] / total[0]).reshape(len(stored), columns), strict=True))

        return with_differences(self.world.on_main("means", divide))

    def centred(self, score: LinearScore) -> LinearScore:
        """A linear score measured from the pool's mean: its mean over the pool is 0."""
        return LinearScore(score.features, np.stack([self.means[name] for name in score.features]), score.weights)

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


def _checked(total: Moments | None, features: Sequence[str]) -> Moments:
    if total is None or total.count == 0:
        raise _none_finite(features)
    return total


def _none_finite(features: Sequence[str]) -> SAFTInputError:
    return SAFTInputError(
        f"every hidden state that was read at {', '.join(features)} holds NaN or infinity: the model is broken, or "
        "its dtype overflows. Try `dtype='float32'` and `vector_dtype='float32'`."
    )


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
            dataset,
            extractor.renderer,
            extractor.features.readouts,
            extractor.world,
            prompts=True,
            called="labelled rows",
        )
        assert self._survey.prompts is not None  # noqa: S101 - asked for
        self.prompts = np.unique(self._survey.prompts, axis=0, return_inverse=True)[1].ravel()
        self._positions = find_keys(pool.embedded.plan.keys, self._survey.keys)
        self._positions[~self._survey.usable] = -1
        self._foreign = np.flatnonzero(self._survey.usable & (self._positions < 0))
        self._embedded: Embedded | None = None
        self._told = False
        if len(self._foreign):
            logger.info("%d of %d labelled rows are not in the pool.", len(self._foreign), len(dataset))
            others = replace(extractor, called="labelled rows")
            self._embedded = others.embed(dataset.select(self._foreign))

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

    def scores(self, score: Score) -> NDArray[np.float32]:
        """Scores of the labelled rows, `float32 [m]`; NaN where a row has none."""
        return self.compute(score.features, lambda vectors: score(vectors)[:, None], 1)[:, 0]

    def rows(self) -> LabelledRows:
        """The rows in digests, with a score or without."""
        return LabelledRows.of(identities_of(self._dataset, self._survey, self._renderer), self.harmful)
