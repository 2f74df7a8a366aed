"""Where the time of `fit` and `score_dataset` goes, stage by stage, on any device.

    python examples/benchmarks/profile_stages.py                                       # lab-lm, one thread
    python examples/benchmarks/profile_stages.py --model_name_or_path llama-0          # what a GPU would wait for
    python examples/benchmarks/profile_stages.py --model_name_or_path llama-7b --device cuda --dtype bfloat16

Each stage is timed without those that it calls. `launch` is the time in which batches are handed to the device: on a
CPU that is the forward itself, with one thread, so that nothing goes on beside it. On a GPU torch's profiler adds what
the device did: kernels, copies, and the share of the time that it had nothing to do. `llama-0` has hidden size 8 and
one block: its forward costs next to nothing, and what is left is the work of the host.

On a CPU, the plain call beside it: `apply_chat_template` with tokens, row by row, timed before and after. For the work
of one core run it on one (`taskset -c 0` on Linux).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from shapes import cpu_seconds, settle, whole_model
from task import ROOT, Task, alone

from saft_hf import SAFTScorer
from saft_hf.embed import extract, fill, source, store
from saft_hf.scorer import fitting

LABELS = 100


class Stages:
    """Seconds of named stages by a clock, each without those inside it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; the one around it stands still meanwhile."""
        self._switch()
        self._open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Time every call of a function, wherever it is called from."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(stage):
                return function(*args, **kwargs)

        setattr(owner, name, timed)


def watched(clock: Callable[[], float]) -> Stages:
    """Stages of what the package does from now on."""
    stages = Stages(clock)
    stages.watch(extract, "survey_dataset", "rendering and digests")
    stages.watch(extract, "make_plan", "planning")
    stages.watch(fill.Filler, "_tokens", "tokens of a shard")
    stages.watch(fill, "read_batch", "launch")
    stages.watch(fill._OnItsWay, "__init__", "copy back, launched")
    stages.watch(fill._OnItsWay, "result", "wait for the device")
    stages.watch(store.Store, "write", "writing")
    stages.watch(store.Store, "read", "reading the store")
    stages.watch(store.Store, "has", "checking the store")
    stages.watch(source.ModelSource, "fingerprint", "digest of the weights")
    stages.watch(fitting, "run", "statistics")
    return stages


def device_times(profiler: Any, wall: float) -> dict[str, float]:
    """Seconds of kernels and copies on a CUDA device, their number, and the share of the time that it was idle."""
    kernels = copies = 0.0
    launched, spans = 0, []
    for event in profiler.profiler.kineto_results.events():
        if event.device_type() != torch.autograd.DeviceType.CUDA:
            continue
        begin, seconds = event.start_ns(), event.duration_ns() / 1e9
        if event.name().startswith("Mem"):
            copies += seconds
        else:
            kernels, launched = kernels + seconds, launched + 1
        spans.append((begin, begin + event.duration_ns()))
    busy, until = 0, 0
    for begin, end in sorted(spans):
        busy += max(0, end - max(begin, until))
        until = max(until, end)
    return {"kernels_s": kernels, "copies_s": copies, "kernels": launched, "idle_share": 1 - busy / 1e9 / wall}


def plain_seconds(task: Task, rows: Dataset) -> float:
    """Processor seconds of one plain call a row."""
    tokenizer, columns = task.tokenizer, rows[:]
    begin = time.process_time()
    for messages in columns["messages"]:
        tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
    return time.process_time() - begin


def run(task: Task, way: str) -> dict[str, Any]:
    """Fit and score, with an empty store; everything is warmed up on a few rows first."""
    on_cuda = task.device.startswith("cuda")
    if not on_cuda:
        torch.set_num_threads(1)  # one after the other, so that stages can be told apart
    rows = task.read_rows()
    model = whole_model(task.model, task.device, task.torch_dtype)
    options: dict[str, Any] = {} if way == "auto" else {"readout": way, "method": "saft", "contamination": 0.1}
    labelled = rows.shuffle(seed=0).select(range(LABELS)) if way == "auto" else None
    result: dict[str, Any] = {"way": way, "rows": len(rows)}
    with tempfile.TemporaryDirectory() as folder:

        def work(store: str, pool: Dataset) -> None:
            scorer = SAFTScorer(model, processing_class=task.tokenizer, cache_dir=f"{folder}/{store}", **options)
            scorer.fit(pool, labelled, on_undecided="keep").score_dataset(pool)
            settle(task.device)

        work("warm", rows.select(range(min(256, len(rows)))))
        plain = [] if on_cuda else [plain_seconds(task, rows)]
        stages = watched(time.perf_counter if on_cuda else time.process_time)
        activities = [torch.profiler.ProfilerActivity.CUDA] if on_cuda else []
        profiler = torch.profiler.profile(activities=activities) if on_cuda else None
        with profiler or tempfile.TemporaryDirectory():
            begin, cpu = time.perf_counter(), cpu_seconds()
            with stages.stage("everything else"):
                work("cold", rows)
            wall, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
        if profiler is not None:
            result |= device_times(profiler, wall)
    result |= {
        "wall_s": wall,
        "cpu_s": cpu,
        "stages": {name: {"s": s, "calls": stages.calls[name]} for name, s in stages.seconds.items()},
        "launch_ms_a_batch": stages.seconds["launch"] / max(1, stages.calls["launch"]) * 1e3,
    }
    if not on_cuda:  # there, who launches waits where the device's queue is full
        host = (cpu - stages.seconds["launch"]) / len(rows) * 1e6
        plain.append(plain_seconds(task, rows))
        plain_call = sum(plain) / len(plain) / len(rows) * 1e6
        result |= {"host_us_a_row": host, "plain_us_a_row": plain_call, "times_plain_call": host / plain_call}
    return result


def lines(result: dict[str, Any]) -> Iterable[str]:
    """A table of one way."""
    wall, cpu = result["wall_s"], result["cpu_s"]
    yield f"{result['way']}: {result['rows']:,} rows in {wall:.2f} s ({cpu:.2f} s of processors)"
    total = sum(stage["s"] for stage in result["stages"].values())
    for name, stage in sorted(result["stages"].items(), key=lambda item: -item[1]["s"]):
        yield f"  {name:24} {stage['s']:8.3f} s  {stage['s'] / total:6.1%}  {stage['calls']:6,} calls"
    if "kernels" in result:
        yield (
            f"  on the device: {result['kernels']:,} kernels {result['kernels_s']:.3f} s, copies "
            f"{result['copies_s']:.3f} s, idle {result['idle_share']:.1%} of the time"
        )
    yield f"  a batch is launched in {result['launch_ms_a_batch']:.1f} ms"
    if "host_us_a_row" in result:
        yield (
            f"  host, the forward aside: {result['host_us_a_row']:.0f} us a row, {result['times_plain_call']:.2f} "
            f"times a plain apply_chat_template call ({result['plain_us_a_row']:.0f} us)"
        )


def main() -> None:
    """Profile each way, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Task.add_options(parser, rows=3000)
    parser.add_argument("--ways", nargs="+", default=["response_start", "response_mean", "auto"])
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "profile.json")
    options = parser.parse_args()
    task = Task.of(options)
    results = []
    for way in options.ways:
        results.append(alone(run, task, way))
        print("\n".join(lines(results[-1])), flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
