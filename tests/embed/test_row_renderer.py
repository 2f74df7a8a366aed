"""Rows are rendered alike by one process and by several, and a killed parent leaves none behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from saft_hf.distributed import World
from saft_hf.embed import row_renderer, survey_dataset
from saft_hf.embed.survey import Kept
from saft_hf.render import MEAN, START, Renderer

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")

KILLED = """
import sys
from datasets import Dataset
from saft_hf.embed import row_renderer as module
from saft_hf.render import Renderer
from transformers import AutoTokenizer
module._cores, module._ROWS_PER_WORKER = (lambda: 4), 1
renderer = Renderer(AutoTokenizer.from_pretrained(sys.argv[1]))
rows = renderer.reads(Dataset.from_dict({"text": ["some text"] * 64}))
with module.row_renderer(rows, renderer, 64, len) as render:
    assert sum(count for _, count in render(range(64))) == 64
    print("started", flush=True)
    sys.stdin.read()
"""


@needs_fork
@pytest.mark.parametrize("window", [7, 64])
def test_several_processes_render_what_one_does(
    monkeypatch: pytest.MonkeyPatch, demo_model: str, demo_pool: Dataset, window: int
) -> None:
    renderer = Renderer(AutoTokenizer.from_pretrained(demo_model), formatting_func=None)
    here, kept_here = None, Kept()
    for cores in (1, 4):
        monkeypatch.setattr(row_renderer, "_cores", lambda cores=cores: cores)
        monkeypatch.setattr(row_renderer, "_ROWS_PER_WORKER", 1)
        monkeypatch.setattr(row_renderer, "_WORKER_ROWS", window)
        kept = Kept()
        survey = survey_dataset(demo_pool, renderer, (START, MEAN), World(), kept, sample=True, prompts=True)
        if here is None:
            here, kept_here = survey, kept
    for name in ("keys", "identities", "lengths", "prompts", "prefix"):
        assert getattr(survey, name).tobytes() == getattr(here, name).tobytes(), name
    assert survey.statuses((START,)) == here.statuses((START,))
    assert survey.sample.keys() == here.sample.keys()
    assert len(kept) == len(kept_here) == len(demo_pool)
    for row in range(len(demo_pool)):
        one, other = kept.get(row), kept_here.get(row)
        assert one.input_ids.tobytes() == other.input_ids.tobytes()
        assert (one.spans, one.boundary, one.status) == (other.spans, other.boundary, other.status)


@needs_fork
def test_an_error_in_a_worker_reaches_the_caller(monkeypatch: pytest.MonkeyPatch, demo_model: str) -> None:
    monkeypatch.setattr(row_renderer, "_cores", lambda: 4)
    monkeypatch.setattr(row_renderer, "_ROWS_PER_WORKER", 1)
    renderer = Renderer(AutoTokenizer.from_pretrained(demo_model))
    rows = renderer.reads(Dataset.from_dict({"text": ["some text"] * 64}))
    before = set(psutil.Process().children())

    def fail(_: list) -> None:
        raise RuntimeError(f"not in process {os.getpid()}")

    with (
        pytest.raises(RuntimeError, match="not in process") as raised,
        row_renderer.row_renderer(rows, renderer, 64, fail) as render,
    ):
        list(render(range(64)))
    assert str(os.getpid()) not in str(raised.value)
    assert set(psutil.Process().children()) <= before


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@needs_fork
def test_workers_end_with_a_killed_parent(tmp_path: Path, demo_model: str) -> None:
    words = [sys.executable, "-c", KILLED, demo_model]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline().strip() == b"started"
        workers = psutil.Process(parent.pid).children()
        assert len(workers) == 4
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 20
    while any(_is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def test_rows_of_many_bytes_are_rendered_few_at_a_time(monkeypatch: pytest.MonkeyPatch, demo_model: str) -> None:
    monkeypatch.setattr(row_renderer, "_WINDOW_BYTES", 10_000)
    renderer = Renderer(AutoTokenizer.from_pretrained(demo_model))
    rows = renderer.reads(Dataset.from_dict({"text": ["word " * 200] * 30, "unread": ["x" * 10**6] * 30}))
    with row_renderer.row_renderer(rows, renderer, 30, len) as render:
        sizes = [count for _, count in render(range(30))]
    assert sum(sizes) == 30
    assert max(sizes) == 9
