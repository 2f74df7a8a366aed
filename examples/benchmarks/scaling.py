"""Extraction alone on one and on two processes of one thread each: two should be 1.8 times as fast on two cores.

    python examples/benchmarks/scaling.py

Two processes are started once and take short turns, so that a machine whose speed drifts is as fast for all: one of
them embeds all rows while the other waits; both embed them together; and each embeds all of them by itself, knowing
nothing of the other, which shows the most that this machine gives. All stores are empty at first. Medians count.
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

from saft_hf.distributed import World
from saft_hf.embed.extract import Extractor
from saft_hf.embed.features import Features
from saft_hf.render import Renderer

WANTED = 1.8


class Alone(World):
    """This process by itself, whatever started it."""

    rank, size = 0, 1  # type: ignore[assignment]


def work(task: Task, readout: str, turns: int, folder: Path) -> None:
    """One of the processes; the first one writes what it found, turn by turn."""
    world, source = World(), task.source()
    features, device = Features((task.layer,), (readout,)), torch.device(task.device)
    data = task.read_rows()

    def embed(store: str, among: World, rows: int = len(data)) -> tuple[float, float]:
        """Wall and processor seconds."""
        renderer, place = Renderer(source.tokenizer), folder / store
        extractor: Extractor = source.extractor(renderer, features, folder=place, world=among, device=device)
        begin = time.perf_counter(), time.process_time()
        extractor.embed(data.select(range(rows)))
        return time.perf_counter() - begin[0], time.process_time() - begin[1]

    embed("warm", world, 64)
    found = []
    for turn in range(turns):
        world.gather(None)
        one = world.gather(embed(f"one-{turn}", Alone()) if world.is_main else (0.0, 0.0))
        two = world.gather(embed(f"two-{turn}", world))
        apart = world.gather(embed(f"apart-{turn}-{world.rank}", Alone()))
        seconds = {name: max(wall for wall, _ in each) for name, each in (("one", one), ("two", two), ("apart", apart))}
        ratios = {
            "ratio": seconds["one"] / seconds["two"],
            "ceiling": 2 * seconds["one"] / seconds["apart"],
            "processor": 2 * sum(own for _, own in two) / sum(own for _, own in apart),
        }
        found.append({**seconds, **ratios})
    if world.is_main:
        kind = {"threads": torch.get_num_threads(), "processes": world.size}
        (folder / "found.json").write_text(json.dumps({**kind, "turns": found}))
    world.gather(None)
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Measure in turns, print the ratio and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Task.add_options(parser, rows=600)
    parser.add_argument("--readout", default="response_mean")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "scaling.json")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Task.of(options), options.readout, options.turns, options.work)
    options.layer = Task.of(options).layer
    names = ("model_name_or_path", "dataset_name", "layer", "device", "dtype", "rows", "readout", "turns")
    words = [word for name in names for word in (f"--{name}", getattr(options, name))]
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(__file__).resolve(), *words, "--work", folder]
        finish(start([command] * 2, log=Path(folder) / "log"), timeout=120 * options.turns)
        found = json.loads((Path(folder) / "found.json").read_text())
    for turn in found["turns"]:
        print("one: {one:.1f} s; two: {two:.1f} s, {ratio:.2f}x; apart: {ceiling:.2f}x".format(**turn))
    medians = {name: statistics.median(turn[name] for turn in found["turns"]) for name in found["turns"][0]}
    print(
        f"{options.rows} rows, {options.readout}: two processes are {medians['ratio']:.2f} times as fast as one, "
        f"wanted {WANTED}; two that know nothing of one another do {medians['ceiling']:.2f} times the work of one on "
        f"this machine. Together, two spend {medians['processor']:.2f} times the processor seconds of one apart."
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({**found, "medians": medians, "rows": options.rows}, indent=2))


if __name__ == "__main__":
    main()
