"""`kill -9` while rows are embedded, at random moments, and resume: same scores, same audit, no whole shard redone.

    python examples/benchmarks/kill_and_resume.py              # 20 kills: a few minutes
    python examples/benchmarks/kill_and_resume.py --kills 2

A run fits, scores and filters the demo's rows. A round is killed some times, each time after a random number of shards
and milliseconds, and goes on with another number of processes half of the time; then it may end. What it says is
compared with a run that nobody killed.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import load_dataset
from launch import finish, kill, start

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder, demo_rows_path
from saft_hf.distributed import World

KILLS_IN_A_ROUND = 5


def work(store: str, out: str, rows: int) -> None:
    """One process of a run."""
    cache = Path(store) / f"datasets{os.environ.get('RANK', '0')}"
    pool = load_dataset("json", data_files=str(demo_rows_path()), split="train", cache_dir=str(cache))
    pool = pool.select(range(min(rows, len(pool))))
    scorer = SAFTScorer(str(demo_folder()), method="saft", layer=2, readout="response_mean", cache_dir=f"{store}/saft")
    scorer.fit(pool, pool.shuffle(seed=0).select(range(100)), on_undecided="keep")
    result = scorer.filter(pool, on_undecided="keep")
    if World().is_main:
        Path(out).mkdir(parents=True)
        result.save_audit(f"{out}/audit.parquet")
        np.save(f"{out}/scores.npy", result.scores)
    with World().sync_errors("ending"):
        pass
    sys.stdout.flush()
    os._exit(0)  # all is written; torch's idle threads need no farewell


def shards(store: Path) -> dict[Path, int]:
    """Every shard that stands under its name, with the time at which it was written."""
    found = {}
    # Only where vectors are: `datasets` renames folders beside them while this looks.
    for path in (store / "saft").rglob("[0-9]*.safetensors"):
        found[path] = path.stat().st_mtime_ns
    return found


def run(store: Path, out: Path, rows: int, size: int, die_at: int | None, draw: random.Random) -> bool:
    """Start a run; kill it when it has written so many more shards.

    Returns:
        Whether it was killed before its end.
    """
    words = [Path(__file__).resolve(), "--work", store, out, "--rows", rows]
    processes = start([words] * size, log=store.with_suffix(".log"))
    if die_at is None:
        finish(processes, timeout=300)
        return False
    before = len(shards(store))
    while len(shards(store)) - before < die_at and any(process.poll() is None for process in processes):
        time.sleep(0.002)
    time.sleep(draw.random() * 0.05)
    alive = any(process.poll() is None for process in processes)
    kill(processes)
    return alive


def same(one: Path, other: Path) -> bool:
    """Whether two runs gave the same scores and the same audit, to the bit."""
    scores = [np.load(out / "scores.npy") for out in (one, other)]
    audits = [pq.read_table(out / "audit.parquet") for out in (one, other)]
    return scores[0].tobytes() == scores[1].tobytes() and audits[0].equals(audits[1])


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2, metavar=("STORE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work, options.rows)
    draw = random.Random(options.seed)
    redone = wrong = killed = 0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        run(base / "whole", base / "whole-out", options.rows, 1, None, draw)
        total = len(shards(base / "whole"))
        while killed < options.kills:
            store, out, size = base / f"round{killed}", base / f"out{killed}", draw.choice([1, 2])
            for _ in range(min(KILLS_IN_A_ROUND, options.kills - killed)):
                whole = shards(store)
                killed += run(store, base / "never", options.rows, size, draw.randrange(total // 3), draw)
                after = shards(store)
                redone += sum(after.get(path) != stamp for path, stamp in whole.items())
                print(f"kill {killed}: {size} process(es), {len(whole)} -> {len(after)} of {total} shards", flush=True)
                size = draw.choice([size, 3 - size])
            whole = shards(store)
            run(store, out, options.rows, size, None, draw)
            after = shards(store)
            redone += sum(after[path] != stamp for path, stamp in whole.items())
            wrong += not same(base / "whole-out", out)
            print(f"ended with {size} process(es): {len(whole)} shards were there, {redone} redone, {wrong} wrong")
    print(f"{killed} kills; whole shards embedded twice: {redone}; runs with other scores or audit: {wrong}")
    if redone or wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
