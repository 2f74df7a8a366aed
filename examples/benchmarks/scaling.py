"""Extraction alone on one and on two processes of one thread each: two should be 1.8 times as fast on two cores.

    python examples/benchmarks/scaling.py

The processes of one run start together, load the model, wait for one another, and are timed from there until the last
one ends. Runs of one and of two take turns, so that other work on the machine slows both, and so do two runs of one
process side by side, each on all rows: what they reach is the most that this machine gives. Medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from launch import finish, start
from task import ROOT, Task

from saft_hf.embed.cells import Cells
from saft_hf.embed.extract import Extractor
from saft_hf.embed.world import World
from saft_hf.render import Readout, Renderer

WANTED = 1.8


def work(task: Task, readout: str, folder: str, out: str) -> None:
    """One process of a run; the first one writes the seconds."""
    world, source = World(), task.source()
    cells, device = Cells((task.layer,), (Readout(readout),)), torch.device(task.device)
    data = task.read_rows()

    def extractor(store: str) -> Extractor:
        renderer, place = Renderer(source.tokenizer), Path(folder) / store
        return source.extractor(renderer, cells, folder=place, world=world, device=device)

    extractor("warm").embed(data.select(range(64)))
    world.gather(None)
    begin = time.perf_counter()
    extractor("cold").embed(data)
    seconds = max(world.gather(time.perf_counter() - begin))
    if world.is_main:
        Path(out).write_text(json.dumps({"seconds": seconds, "threads": torch.get_num_threads(), "size": world.size}))
    world.gather(None)
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Measure in turns, print the ratio and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Task.add_options(parser, rows=2000)
    parser.add_argument("--readout", default="response_mean")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "scaling.json")
    parser.add_argument("--work", nargs=2, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Task.of(options), options.readout, *options.work)
    options.layer = Task.of(options).layer
    names = ("model_name_or_path", "dataset_name", "layer", "device", "dtype", "rows", "readout")
    words = [word for name in names for word in (f"--{name}", getattr(options, name))]
    turns: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, size: int, runs: int = 1) -> float:
            """Seconds of the slowest of some runs, side by side, of so many processes each."""
            places = [Path(folder) / f"{name}-{len(turns)}-{number}" for number in range(runs)]
            command = [Path(__file__).resolve(), *words, "--work"]
            started = [start([[*command, p, p.with_suffix(".json")]] * size, log=p.with_suffix(".log")) for p in places]
            for processes in started:
                finish(processes, timeout=300)
            found = [json.loads(place.with_suffix(".json").read_text()) for place in places]
            assert {one["size"] for one in found} == {size}
            return max(one["seconds"] for one in found)

        for _ in range(options.turns):
            one, two, apart = run("one", 1), run("two", 2), run("apart", 1, runs=2)
            turns.append({"one": one, "two": two, "apart": apart, "ratio": one / two, "ceiling": 2 * one / apart})
            said = "one: {one:.1f} s; two: {two:.1f} s, {ratio:.2f}x; apart: {ceiling:.2f}x"
            print(said.format(**turns[-1]), flush=True)
    ratio, ceiling = (statistics.median(turn[name] for turn in turns) for name in ("ratio", "ceiling"))
    print(
        f"{options.rows} rows, {options.readout}: two processes are {ratio:.2f} times as fast as one, wanted {WANTED}; "
        f"two runs that know nothing of one another do {ceiling:.2f} times the work of one on this machine."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"turns": turns, "ratio": ratio, "ceiling": ceiling, "rows": options.rows}
    options.output.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
