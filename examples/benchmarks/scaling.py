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
from bench import ROOT, SHARED, Task, read_rows
from launch import finish, start

from saft_hf.demo import demo_folder, demo_rows_path
from saft_hf.embed.cells import Cells
from saft_hf.embed.extract import Extractor
from saft_hf.embed.source import ModelSource
from saft_hf.embed.world import World
from saft_hf.render import Readout, Renderer

WANTED = 1.8


def work(model: str, dataset: str, rows: int, readout: str, folder: str, out: str) -> None:
    """One process of a run; the first one writes the seconds."""
    world, source = World(), ModelSource(model, options={"dtype": "float32"})
    task = Task(model, dataset, source.shape.num_layers // 2, "cpu", "float32", None, rows, ())
    cells, device = Cells((task.layer,), (Readout(readout),)), torch.device("cpu")
    data = read_rows(task)

    def extractor(store: str) -> Extractor:
        return Extractor(
            Renderer(source.tokenizer),
            cells,
            lambda: source.opened(cells.layers, device),
            width=source.shape.hidden_size,
            max_positions=source.shape.max_positions,
            token_budget=source.token_budget(device),
            folder=Path(folder) / store,
            world=world,
        )

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
    here = SHARED.is_dir()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(SHARED / "lab-lm" if here else demo_folder()))
    data = SHARED / "data" / "beavertails_pairs.jsonl.gz" if here else demo_rows_path()
    parser.add_argument("--dataset_name", default=str(data))
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--readout", default="response_mean")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "scaling.json")
    parser.add_argument("--work", nargs=2, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = (options.model_name_or_path, options.dataset_name, options.rows, options.readout)
    if options.work:
        work(*chosen, *options.work)
    names = ("model_name_or_path", "dataset_name", "rows", "readout")
    words = [word for name, value in zip(names, chosen, strict=True) for word in (f"--{name}", value)]
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
