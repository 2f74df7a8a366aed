"""Missing shards of a plan -> shards: tokens are prepared while the model reads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saft_hf.distributed import World, progress_bar
from saft_hf.embed.backbone import Backbone
from saft_hf.embed.features import Features, as_arrays, joined, read_batch
from saft_hf.embed.plan import Plan
from saft_hf.embed.row_renderer import row_renderer
from saft_hf.embed.store import Store
from saft_hf.embed.survey import Kept
from saft_hf.errors import SAFTInputError
from saft_hf.render import Renderer, Rendering, Rows

RenderRows = Callable[[Iterable[int]], Iterable[tuple[range | list[int], list[Rendering]]]]

_SHARDS_AHEAD = 2
"""Shards that are rendered while the model is busy: enough to keep it so, few enough to hold in memory."""
_LOOK_S = 1.0
_RENDERED_AGAIN = 64
"""Rows of the first shard that are rendered again though they were kept, to see whether they come out alike."""


@dataclass(frozen=True)
class Filler:
    """Embeds shards of a plan with one model.

    Attributes:
        renderer: rows -> tokens.
        features: which hidden states.
        world: the processes that work together.
        kept: renderings that are there already.
        called: what the progress bar calls the rows.
    """

    renderer: Renderer
    features: Features
    world: World
    kept: Kept
    called: str = "rows"

    def fill(
        self,
        shards: Iterable[int],
        expected: int,
        dataset: Rows,
        plan: Plan,
        store: Store,
        backbone: Backbone,
        *,
        stored: int = 0,
    ) -> None:
        """Embed shards and write them.

        Args:
            shards: which; the next one is taken when there is room for it.
            expected: how many unique renderings that will be, about.
            dataset: the rows.
            plan: the plan.
            store: where the shards go.
            backbone: the model, open for reading.
            stored: how many unique renderings were in the store before, for the progress bar.
        """
        ahead: deque[tuple[int, Reading]] = deque()
        with (
            row_renderer(dataset, self.renderer, expected - len(self.kept), list) as render,
            _Progress(self, plan, store, stored) as progress,
            shard_reader(backbone, self.features, plan.prefix) as read,
        ):

            def finish(shard: int, reading: Reading) -> None:
                keys = plan.shard_keys(shard)
                store.write(shard, keys, reading.result())
                progress.wrote(len(keys))

            try:
                for number, shard in enumerate(shards):
                    where = plan.shard_slice(shard)
                    renderings = self._tokens(render, plan, where, again=number == 0)
                    parts = [
                        renderings[b.start - where.start : b.stop - where.start] for b in plan.shard_batches(shard)
                    ]
                    ahead.append((shard, read(parts)))
                    if len(ahead) > _SHARDS_AHEAD:
                        finish(*ahead.popleft())
                while ahead:
                    finish(*ahead.popleft())
            except KeyboardInterrupt:
                for shard, reading in ahead:  # what is read need not be read again
                    if reading.done():
                        finish(shard, reading)
                raise

    def _tokens(self, render: RenderRows, plan: Plan, where: slice, *, again: bool) -> list[Rendering]:
        """Tokens of a shard: those kept, and those of other rows rendered a second time.

        What does not fit into `Kept` is rendered twice: to hold the tokens of any pool would take any memory.

        Args:
            render: numbers of rows -> their renderings.
            plan: the plan.
            where: the shard's unique renderings.
            again: render some that were kept, too, to find rows that come out differently each time.
        """
        rows = plan.first_row[where].tolist()
        trusted = rows[_RENDERED_AGAIN:] if again else rows
        tokens = {row: rendering for row in trusted if (rendering := self.kept.get(row)) is not None}
        second: dict[int, Rendering] = {}
        for window, renderings in render([row for row in rows if row not in tokens]):
            second |= zip(window, renderings, strict=True)
        for row, key in zip(rows, plan.keys[where], strict=True):
            if row in second and second[row].key(self.features.readouts) != key.tobytes():
                raise SAFTInputError(
                    f"row {row} was rendered to other tokens the second time: a `formatting_func`, a transform or "
                    "a chat template that draws at random or reads the clock cannot be scored. Make it "
                    "deterministic, or write its output into the dataset first."
                )
        tokens |= second
        return [tokens[row] for row in rows]


class _Progress:
    """A progress bar over the rows that all processes embed, as far as this one sees what the others write."""

    def __init__(self, filler: Filler, plan: Plan, store: Store, stored: int) -> None:
        what = f"Embedding {filler.called}" + (f" ({stored:,} in the store)" if stored else "")
        self._bar = progress_bar(plan.num_unique, filler.world, what, "rows", initial=stored)
        self._plan, self._store = plan, store
        self._done, self._alone, self._looked = stored, filler.world.size == 1 or self._bar.disable, 0.0

    def wrote(self, rows: int) -> None:
        """Count what this process wrote, and once a second what the others did."""
        self._done += rows
        if not self._alone and time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            there = (shard for shard in self._store.shards() if shard < self._plan.num_shards)
            self._done = max(self._done, sum(len(self._plan.shard_keys(shard)) for shard in there))
        self._bar.update(self._done - self._bar.n)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class Reading(Protocol):
    """Vectors of a shard that are being read."""

    def done(self) -> bool:
        """Whether they are there, and no batch failed."""

    def result(self) -> Mapping[str, NDArray[np.floating]]:
        """For each feature `[n, d]`; waits for them."""


@dataclass(frozen=True)
class _InThreads:
    batches: Sequence[Future[dict[str, Tensor]]]

    def done(self) -> bool:
        return all(batch.done() and batch.exception() is None for batch in self.batches)

    def result(self) -> dict[str, NDArray[np.floating]]:
        return as_arrays(joined([batch.result() for batch in self.batches]))


class _OnItsWay:
    """Vectors that were read in this thread, or whose reading was launched; on a GPU their copy to the host is, too.

    The copy stands in the device's queue before the next shard's work: to fetch it later would wait for that as well,
    and leave the device without work in the meantime.
    """

    def __init__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        vectors = joined(batches)
        device = next(iter(vectors.values())).device
        self._copied: Any = None
        if device.type == "cuda":
            vectors = {name: on_device.to("cpu", non_blocking=True) for name, on_device in vectors.items()}
            self._copied = torch.cuda.current_stream(device).record_event()
        self._vectors = vectors

    def done(self) -> bool:
        return self._copied is None or bool(self._copied.query())

    def result(self) -> dict[str, NDArray[np.floating]]:
        if self._copied is not None:
            self._copied.synchronize()
        return as_arrays(self._vectors)


@contextmanager
def shard_reader(
    backbone: Backbone, features: Features, prefix: NDArray[np.int32]
) -> Iterator[Callable[[Sequence[Sequence[Rendering]]], Reading]]:
    """Reads shards in the background, in the order in which they are given.

    On a CPU each of torch's threads takes whole batches by itself: nobody waits for the others after every operation,
    and a vector has the same bits for any number of threads. A GPU works in the background by itself: a second thread
    that launches would only wait for the interpreter, which this one holds while it renders.

    Args:
        backbone: the model, open for reading.
        features: what to read.
        prefix: tokens with which all rows start.

    Yields:
        Renderings of a shard, batch by batch -> its reading.
    """
    threads = torch.get_num_threads()
    on_cpu = backbone.device.type == "cpu"
    replicas = [backbone.replica() for _ in range(threads)] if on_cpu and threads > 1 else [None]
    if None in replicas:
        yield lambda parts: _OnItsWay([read_batch(backbone, part, features, prefix) for part in parts])
        return
    free: deque[Any] = deque(replicas)
    reader = threading.local()

    def start() -> None:
        reader.backbone = free.popleft()
        torch.set_num_threads(1)

    def read(part: Sequence[Rendering]) -> dict[str, Tensor]:
        return read_batch(reader.backbone, part, features, prefix)

    executor = ThreadPoolExecutor(len(free), thread_name_prefix="saft-reader", initializer=start)
    try:
        yield lambda parts: _InThreads([executor.submit(read, part) for part in parts])
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # torch gives what was set last to threads that start later
