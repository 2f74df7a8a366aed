"""Missing shards of a plan -> shards: tokens are prepared while the model reads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saft_hf.distributed import World, progress_bar
from saft_hf.embed.backbone import Backbone
from saft_hf.embed.features import Features, as_arrays, joined, read_batch
from saft_hf.embed.plan import Plan
from saft_hf.embed.store import Store
from saft_hf.embed.survey import RENDER_ROWS, Kept
from saft_hf.errors import SAFTInputError
from saft_hf.render import Renderer, Rendering, Rows

_SHARDS_AHEAD = 2
"""Shards that are rendered while the model is busy: enough to keep it so, few enough to hold in memory."""
_RENDERED_AGAIN = 64
"""Rows of the first shard that are rendered again though they were kept, to see whether they come out alike."""

Submit = Callable[[Sequence[Rendering]], "Future[dict[str, Tensor]]"]


@dataclass(frozen=True)
class Filler:
    """Embeds shards of a plan with one model.

    Attributes:
        renderer: rows -> tokens.
        features: which hidden states.
        world: the processes that work together.
        kept: renderings that are there already.
    """

    renderer: Renderer
    features: Features
    world: World
    kept: Kept

    def fill(
        self, shards: Iterable[int], expected: int, dataset: Rows, plan: Plan, store: Store, backbone: Backbone
    ) -> None:
        """Embed shards and write them.

        Args:
            shards: which; the next one is taken when there is room for it.
            expected: how many unique renderings that will be, about.
            dataset: the rows.
            plan: the plan.
            store: where the shards go.
            backbone: the model, open for reading.
        """
        ahead: deque[tuple[int, list[Future[dict[str, Tensor]]]]] = deque()
        with (
            progress_bar(expected, self.world, "Embedding", "rows") as bar,
            side_by_side(backbone, self.features, plan.prefix) as submit,
        ):

            def finish(shard: int, batches: list[Future[dict[str, Tensor]]]) -> None:
                keys = plan.shard_keys(shard)
                store.write(shard, keys, as_arrays(joined([batch.result() for batch in batches])))
                bar.update(len(keys))

            try:
                for number, shard in enumerate(shards):
                    where = plan.shard_slice(shard)
                    renderings = self._tokens(dataset, plan, where, again=number == 0)
                    parts = [
                        renderings[b.start - where.start : b.stop - where.start] for b in plan.shard_batches(shard)
                    ]
                    ahead.append((shard, [submit(part) for part in parts]))
                    if len(ahead) > _SHARDS_AHEAD:
                        finish(*ahead.popleft())
                while ahead:
                    finish(*ahead.popleft())
            except KeyboardInterrupt:
                for shard, batches in ahead:  # what is read need not be read again
                    if all(batch.done() and batch.exception() is None for batch in batches):
                        finish(shard, batches)
                raise

    def _tokens(self, dataset: Rows, plan: Plan, where: slice, *, again: bool) -> list[Rendering]:
        """Tokens of a shard: those kept, and those of other rows rendered a second time.

        What does not fit into `Kept` is rendered twice: to hold the tokens of any pool would take any memory.

        Args:
            dataset: the rows.
            plan: the plan.
            where: the shard's unique renderings.
            again: render some that were kept, too, to find rows that come out differently each time.
        """
        rows = plan.first_row[where].tolist()
        trusted = rows[_RENDERED_AGAIN:] if again else rows
        tokens = {row: rendering for row in trusted if (rendering := self.kept.get(row)) is not None}
        missing = [row for row in rows if row not in tokens]
        for first in range(0, len(missing), RENDER_ROWS):
            some = missing[first : first + RENDER_ROWS]
            tokens |= zip(some, self.renderer(dataset[some]), strict=True)
        for row, key in zip(rows, plan.keys[where], strict=True):
            if tokens[row].key(self.features.readouts) != key.tobytes():
                raise SAFTInputError(
                    f"row {row} was rendered to other tokens the second time: a `formatting_func`, a transform or "
                    "a chat template that draws at random or reads the clock cannot be scored. Make it "
                    "deterministic, or write its output into the dataset first."
                )
        return [tokens[row] for row in rows]


@contextmanager
def side_by_side(backbone: Backbone, features: Features, prefix: NDArray[np.int32]) -> Iterator[Submit]:
    """Reads batches in the background, in the order in which they are submitted.

    On a CPU each of torch's threads takes whole batches by itself: nobody waits for the others after every operation,
    and a vector has the same bits for any number of threads. On a GPU one thread launches, and the caller's renders.

    Args:
        backbone: the model, open for reading.
        features: what to read.
        prefix: tokens with which all rows start.

    Yields:
        Renderings of a batch -> the future of its vectors.
    """
    threads = torch.get_num_threads()
    on_cpu = backbone.device.type == "cpu"
    replicas = [backbone.replica() for _ in range(threads)] if on_cpu and threads > 1 else []
    if None in replicas or (on_cpu and threads == 1):
        with _Inline() as inline:
            yield lambda part: inline.submit(read_batch, backbone, part, features, prefix)
        return
    free: deque[Any] = deque(replicas or [backbone])
    reader = threading.local()

    def start() -> None:
        reader.backbone = free.popleft()
        if on_cpu:
            torch.set_num_threads(1)
        elif reader.backbone.device.type == "cuda":
            torch.cuda.set_device(reader.backbone.device)

    executor = ThreadPoolExecutor(len(free), thread_name_prefix="saft-reader", initializer=start)
    try:
        yield lambda part: executor.submit(lambda: read_batch(reader.backbone, part, features, prefix))
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # torch gives what was set last to threads that start later


class _Inline(Executor):
    """Runs what is submitted at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
