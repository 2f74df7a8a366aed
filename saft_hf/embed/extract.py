"""Rows -> vectors in the store -> what is computed from them, on any number of processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.distributed import World
from saft_hf.embed.backbone import Backbone
from saft_hf.embed.cache import limit_from_environment, note, shrink, touch
from saft_hf.embed.features import Features, as_arrays, joined, read_batch
from saft_hf.embed.fill import Filler
from saft_hf.embed.plan import Plan, make_plan
from saft_hf.embed.stealing import steal_shards
from saft_hf.embed.store import Store, Vectors
from saft_hf.embed.survey import Kept, Survey, survey_dataset, survey_renderings
from saft_hf.errors import SAFTInputError
from saft_hf.render import Renderer, Rendering

RowFunction = Callable[[Vectors], NDArray[np.floating]]
"""Vectors of n rows, `[n, d]` at each feature -> values, `[n, ...]`."""


def finite_rows(vectors: Vectors) -> NDArray[np.bool_]:
    """Rows whose vectors hold neither NaN nor infinity, at any feature, `bool [n]`."""
    return np.asarray(np.logical_and.reduce([np.isfinite(states).all(axis=1) for states in vectors.values()]))


def where_finite(function: RowFunction, vectors: Vectors) -> NDArray[np.float32]:
    """Apply a function to the rows that `finite_rows` names; NaN for the others."""
    finite = finite_rows(vectors)
    computed = function({feature: states[finite] for feature, states in vectors.items()})
    values = np.full((len(finite), *computed.shape[1:]), np.nan, dtype=np.float32)
    values[finite] = computed
    return values


@dataclass(frozen=True)
class Embedded:
    """The vectors of a dataset, on disk, and what every process may ask of them.

    All methods are collective: every process calls them in the same order and gets the same answer.
    """

    survey: Survey
    plan: Plan
    store: Store
    world: World
    width: int

    def vectors(self, shard: int, features: Sequence[str]) -> Vectors:
        """The vectors of one of this process's shards."""
        return {feature: self.store.read(shard, feature) for feature in features}

    def compute(
        self, features: Sequence[str], function: RowFunction, columns: int, *, only: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Apply a function to unique renderings.

        Args:
            features: the vectors that it needs.
            function: vectors of n renderings -> `[n, columns]`.
            columns: how many values there are for each.
            only: which renderings, `int64 [m]`; by default every one.

        Returns:
            `float32 [U, columns]` in plan order, or `[m, columns]` in that of `only`; NaN where a vector holds NaN or
            infinity.
        """
        parts = [np.zeros((0, columns), dtype=np.float32)]
        wanted = None if only is None else np.unique(only)
        with self.world.sync_errors("scoring"):
            for shard in self.plan.shards_of(self.world.rank, self.world.size):
                vectors, where = None, self.plan.shard_slice(shard)
                if wanted is None:
                    vectors = self.vectors(shard, features)
                elif len(rows := wanted[(wanted >= where.start) & (wanted < where.stop)] - where.start):
                    vectors = {feature: states[rows] for feature, states in self.vectors(shard, features).items()}
                if vectors is not None:
                    parts.append(where_finite(function, vectors))
        # Each process has neighbouring shards, so the parts in rank order are in plan order.
        values = np.concatenate(self.world.gather(np.concatenate(parts)))
        return values if wanted is None or only is None else values[np.searchsorted(wanted, only)]

    def states(self, feature: str) -> NDArray[np.float32]:
        """The vectors of every row at one feature, `float32 [N, d]`, in memory; NaN where there is none."""
        return self.rows(self.compute((feature,), itemgetter(feature), self.width))

    def rows(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Spread values of unique renderings (`[U, ...]`) over the rows (`[N, ...]`); NaN where there is none."""
        spread = np.full((len(self.plan.row_to_unique), *values.shape[1:]), np.nan, dtype=np.float32)
        known = self.plan.row_to_unique >= 0
        spread[known] = values[self.plan.row_to_unique[known]]
        return spread


@dataclass(kw_only=True)
class Extractor:
    """Embeds datasets with one model, read in one way.

    Attributes:
        renderer: rows -> tokens.
        features: which hidden states.
        open_backbone: opens the model; called only where something is missing from the store.
        width: hidden size, to judge how large a file becomes.
        token_budget: tokens in one batch.
        max_positions: longest row that the model can be fed, or None.
        shares_prefix: whether the model can read tokens that all rows start with once.
        folder: where the vectors of this model, read in this way, are kept.
        world: the processes that work together.
        called: what progress bars call the rows.
        model: name of the model, for people.
    """

    renderer: Renderer
    features: Features
    open_backbone: Callable[[], AbstractContextManager[Backbone]]
    width: int
    token_budget: int
    max_positions: int | None
    shares_prefix: bool
    folder: Path
    world: World
    called: str = "rows"
    model: str | None = None

    def unformatted(self) -> Extractor:
        """What reads rows of other sources: a `formatting_func` is for the columns of the pool."""
        return replace(self, renderer=Renderer(self.renderer.tokenizer, self.renderer.config))

    def embed(self, dataset: Dataset, *, sample: bool = False, prompts: bool = False) -> Embedded:
        """Bring every row's vectors into the store, and answer with them.

        A shard that is already there, whole, is not embedded again. The plan is made over all rows, so a run that was
        interrupted goes on with the same batches, with any number of processes.

        Args:
            dataset: the rows.
            sample: keep the renderings of a random sample of rows in the survey.
            prompts: tell in the survey which rows have the same prompt.
        """
        limit = limit_from_environment()
        kept = Kept()
        survey = survey_dataset(
            dataset,
            self.renderer,
            self.features.readouts,
            self.world,
            kept,
            sample=sample,
            prompts=prompts,
            called=self.called,
        )
        plan = self.plan(survey)
        store = self.store(plan.digest)

        def missing() -> list[int]:
            with self.world.sync_errors("looking at the store"):
                there = store.shards()
                return [
                    shard
                    for shard in plan.shards_of(self.world.rank, self.world.size)
                    if shard not in there or not store.has(shard, plan.shard_keys(shard))
                ]

        filler = Filler(self.renderer, self.features, self.world, kept, self.called)

        def fill(shards: Iterator[int], expected: list[int]) -> None:
            counts = self.world.gather(sum(len(plan.shard_keys(shard)) for shard in expected))
            with self.world.sync_errors("embedding"):
                try:
                    if (first := next(shards, None)) is not None:  # else the model is not even loaded
                        with self.open_backbone() as backbone:
                            filler.fill(
                                chain([first], shards),
                                counts[self.world.rank],
                                self.renderer.reads(dataset),
                                plan,
                                store,
                                backbone,
                                stored=plan.num_unique - sum(counts),
                            )
                except Exception:
                    deque(shards, maxlen=0)  # takes what is left, so that the others end soon and hear of it
                    raise

        expected = missing()
        with steal_shards(expected, store, self.world) as shards:
            fill(shards, expected)
        # Nothing, unless another process's files cannot be seen here after all.
        left = missing()
        fill(iter(left), left)
        touch(store.folder)
        if self.world.is_main:
            named = dataset.info.dataset_name if self.called == "rows" else self.called
            note(store.folder, self.model, named, len(dataset))
        if limit is not None:
            shrink(self.folder.parent, limit, keep=[store.folder])
        return Embedded(survey, plan, store, self.world, self.width)

    def embed_renderings(self, renderings: Sequence[Rendering]) -> dict[str, NDArray[np.float32]]:
        """Embed a handful of rows on this process, without the store.

        Args:
            renderings: rows with a rendering, in any order, equal ones allowed.

        Returns:
            For each feature `float32 [n, d]`, in the order of `renderings`.
        """
        plan = self.plan(survey_renderings(renderings, self.features.readouts))
        with self.open_backbone() as backbone:
            batches = [
                read_batch(backbone, [renderings[row] for row in plan.first_row[batch]], self.features, plan.prefix)
                for shard in range(plan.num_shards)
                for batch in plan.shard_batches(shard)
            ]
            vectors = as_arrays(joined(batches))
        return {name: vectors[name][plan.row_to_unique].astype(np.float32) for name in self.features.names}

    def plan(self, survey: Survey) -> Plan:
        """The batches for a survey.

        Raises:
            SAFTInputError: a row is longer than the model can be fed.
        """
        longest = int(survey.lengths.max(initial=0))
        if self.max_positions is not None and longest > self.max_positions:
            raise SAFTInputError(
                f"a row has {longest} tokens, but the model knows {self.max_positions} positions. Give "
                f"`max_length={self.max_positions}` or less: longer rows are then cut, as SFTTrainer would."
            )
        return make_plan(
            survey.keys,
            survey.lengths,
            survey.usable,
            prefix=survey.prefix if self.shares_prefix else None,
            token_budget=self.token_budget,
            bytes_per_row=np.dtype(self.features.dtype).itemsize * self.width * len(self.features.names),
        )

    def store(self, plan_digest: str) -> Store:
        """The shards of a plan."""
        return Store(self.folder / plan_digest[:32], self.features.names, self.features.dtype)
