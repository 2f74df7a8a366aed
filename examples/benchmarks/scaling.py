"""Extraction alone on one and on two processes of one thread each: two should be 1.8 times as fast on two cores.

    python examples/benchmarks/scaling.py

The processes of one run start together, load the model, wait for one another, and are timed from there until the last
one ends. Runs of one and of two take turns, so that other work on the machine slows both; the median counts.
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
    Task.add_options(parser, rows=3000)
    parser.add_argument("--readout", default="response_mean")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "scaling.json")
    parser.add_argument("--work", nargs=2, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Task.of(options), options.readout, *options.work)
    names = ("model_name_or_path", "dataset_name", "dtype", "rows", "readout")
    words = [word for name in names for word in (f"--{name}", getattr(options, name))]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.turns):
            for size in seconds:
                place = Path(folder) / f"{size}-{turn}"
                command = [Path(__file__).resolve(), *words, "--work", place, place.with_suffix(".json")]
                finish(start([command] * size, log=place.with_suffix(".log")), timeout=300)
                found = json.loads(place.with_suffix(".json").read_text())
                seconds[found["size"]].append(found["seconds"])
                print(
                    f"{found['size']} process(es), {found['threads']} thread each: {found['seconds']:.1f} s", flush=True
                )
    medians = {size: statistics.median(values) for size, values in seconds.items()}
    ratio = medians[1] / medians[2]
    print(
        f"{options.rows} rows, {options.readout}: two processes are {ratio:.2f} times as fast as one (wanted {WANTED})"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"seconds": seconds, "ratio": ratio, "rows": options.rows}, indent=2))


if __name__ == "__main__":
    main()
