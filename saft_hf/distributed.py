"""What crosses processes: small objects, in the same order on every rank, and errors, which reach all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import are_progress_bars_disabled
from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled

from saft_hf.errors import SAFTError, SAFTInputError

T = TypeVar("T")

_bars: ContextVar[bool] = ContextVar("_bars", default=True)


class World:
    """The processes that Accelerate (or torchrun) started; a world of one where it started none.

    Only `fit`, `score_dataset` and `filter` may build one: a worker of `Dataset.map(num_proc=...)` inherits
    the launcher's environment and would wait forever for its siblings.
    """

    @cached_property
    def _state(self) -> PartialState:
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        # Without this, Accelerate takes the processes that torchrun starts on a CPU for strangers.
        state = PartialState(cpu=True) if launched > 1 and not torch.accelerator.is_available() else PartialState()
        if launched != state.num_processes:
            raise SAFTError(
                f"the launcher started {launched} processes, but Accelerate joined {state.num_processes}: each would "
                "do all of the work. On a CPU set ACCELERATE_USE_CPU=true and launch with `accelerate launch "
                "--multi_gpu --num_processes N`, or with torchrun."
            )
        return state

    @property
    def rank(self) -> int:
        """Index of this process."""
        return int(self._state.process_index)

    @property
    def size(self) -> int:
        """How many processes work together."""
        return int(self._state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process reports progress and writes the files that are written once."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device that Accelerate gave to this process."""
        return torch.device(self._state.device)

    def broadcast(self, value: T, rank: int = 0) -> T:
        """Give every rank the value of one of them, of rank 0 unless told otherwise."""
        if self.size == 1:
            return value
        box: list[T] = [value]
        broadcast_object_list(box, from_process=rank)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Give every rank the values of all ranks, in rank order."""
        if self.size == 1:
            return [value]
        return list(gather_object([value]))

    @contextmanager
    def sync_errors(self, doing: str) -> Iterator[None]:
        """Run the body on every rank; where it fails on one, every rank raises, and none waits forever."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # re-raised below, after the others know
            failure = error
        reports: list[str | None] = self.gather(None if failure is None else describe(failure))
        if failure is not None:
            raise failure
        failed = {rank: report for rank, report in enumerate(reports) if report is not None}
        if failed:
            rank, report = next(iter(failed.items()))
            raise SAFTError(f"{doing} failed on process {rank} of {self.size}: {report}")

    def on_main(self, doing: str, function: Callable[[], T]) -> T:
        """Call a function on the main process, and give every rank what it returns, or its error."""
        results: list[T] = []
        with self.sync_errors(doing):
            if self.is_main:
                results.append(function())
        return self.broadcast(results[0] if results else cast(T, None))

    def same_on_all_ranks(self, given: Callable[[], Mapping[str, object]]) -> None:
        """Refuse to go on where the processes were given different things. Collective; before any work.

        Args:
            given: tells what this process was given, argument -> what `repr` of tells it from another; not called in a
                world of one.

        Raises:
            SAFTInputError: on every rank, where one of them differs.
        """
        if self.size == 1:
            return
        with self.sync_errors("looking at the arguments"):
            own = {name: repr(value) for name, value in given().items()}
        for rank, others in enumerate(told := self.gather(own)):
            for name in {**told[0], **others}:
                if others.get(name) != told[0].get(name):
                    raise SAFTInputError(
                        f"`{name}` differs between the {self.size} processes (process {rank} has another than process "
                        "0): every process must be given the same. Seed what is drawn or shuffled, and sort lists of "
                        "files."
                    )


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Inside, there are progress bars, or none."""
    before = _bars.set(shown)
    try:
        yield
    finally:
        _bars.reset(before)


def progress_bar(total: int, world: World, what: str, unit: str, *, initial: int = 0) -> tqdm:
    """A progress bar on the main process only, and none where those of datasets or transformers are turned off."""
    shown = world.is_main and _bars.get() and not are_progress_bars_disabled() and is_progress_bar_enabled()
    return tqdm(total=total, desc=what, unit=unit, disable=not shown, leave=False, initial=initial)


def describe(error: BaseException) -> str:
    """One line that names an error's type and text."""
    return f"{type(error).__name__}: {error}"
