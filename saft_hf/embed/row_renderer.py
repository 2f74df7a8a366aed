"""Rows of a dataset -> renderings, on several processes where there are cores and rows enough."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from saft_hf.render import Renderer, Rendering, Rows

RENDER_ROWS = 512
"""Rows that are rendered together: enough to keep all threads of a tokenizer busy, and few enough that Python's garbage
collector does not take what they leave behind for something to keep, and look through the whole process for more."""
_WORKER_ROWS = 256
"""Rows that a worker is given at a time: small, so that all end about together."""
_WINDOW_BYTES = 32 * 2**20
"""Bytes of rows that are rendered together at most, on average: as Python values they take several times as many."""
_MOST_WORKERS = 8
"""A template runs at 3,000 rows a second and core or faster: eight are ahead of any model on one device."""
_ROWS_PER_WORKER = 512
"""Rows that are worth the start of a worker, some 10 ms."""
_AHEAD = 4
"""Windows for each worker that may be rendered and not yet taken: bounds the memory."""

Window = range | list[int]

T = TypeVar("T")


@contextmanager
def row_renderer(
    rows: Rows, renderer: Renderer, expected: int, then: Callable[[list[Rendering]], T]
) -> Iterator[Callable[[Iterable[int]], Iterator[tuple[Window, T]]]]:
    """Renders rows by number. What a row becomes does not depend on how many processes there are, or on its window.

    Args:
        rows: the rows.
        renderer: rows -> tokens.
        expected: how many will be asked for, about.
        then: what is made of the renderings of a window, where they are rendered.

    Yields:
        Numbers of rows -> windows of them, in order, each with what was made of it.
    """

    def work(window: Window) -> T:
        return then(renderer(rows[window]))

    most = max(1, int(_WINDOW_BYTES / max(1.0, rows.mean_bytes)))
    workers = min(_cores(), _MOST_WORKERS, expected // _ROWS_PER_WORKER)
    if workers < 4:  # the threads of a fast tokenizer fill two or three cores
        yield lambda numbers: ((window, work(window)) for window in _windows(numbers, min(RENDER_ROWS, most)))
        return

    # Forked: a spawned worker would need all that rows are rendered with pickled, a `formatting_func` too.
    fork = multiprocessing.get_context("fork")
    executor = ProcessPoolExecutor(workers, fork, initializer=_start, initargs=(work,))

    def side_by_side(numbers: Iterable[int]) -> Iterator[tuple[Window, T]]:
        ahead: deque[tuple[Window, Future[T]]] = deque()
        for window in _windows(numbers, min(_WORKER_ROWS, most)):
            ahead.append((window, executor.submit(_work, window)))
            if len(ahead) > _AHEAD * workers:
                done, result = ahead.popleft()
                yield done, result.result()
        while ahead:
            done, result = ahead.popleft()
            yield done, result.result()

    try:
        with _tokenizer_threads_off():
            executor.submit(int).result()  # the first task starts every worker
        yield side_by_side
    finally:
        executor.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores for this process; 1 where it cannot fork safely."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _windows(numbers: Iterable[int], size: int) -> Iterator[Window]:
    if isinstance(numbers, range):  # a stretch of neighbours is cut out of a table at once
        yield from (numbers[first : first + size] for first in range(0, len(numbers), size))
        return
    rest = iter(numbers)
    while window := list(islice(rest, size)):
        yield window


@contextmanager
def _tokenizer_threads_off() -> Iterator[None]:
    """Workers have a core each; said before they start, since tokenizers warns of a fork that nobody prepared."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


_job: Callable[[Window], Any]
"""What a worker does with a window."""


def _start(job: Callable[[Window], Any]) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - for the type checker

    def end_with_parent() -> None:
        parent.join()  # a killed parent ends no worker
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(window: Window) -> Any:
    return _job(window)
