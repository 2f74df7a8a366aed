"""Peak memory and time of `fit` and `score_dataset` at 5,000 and at 50,000 rows: flat memory, linear time.

    python examples/benchmarks/memory.py
    python examples/benchmarks/memory.py --rows 10000 100000 1000000 --most 2

Rows are synthetic, all different, and memory-mapped by `datasets`; the model is tiny and random. Each size runs in a
fresh process. Its own memory is told apart from pages of files on disk (rows, vectors, libraries), which the system
takes back whenever it needs them; only the former must be flat. Where the system does not tell them apart both count.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset, load_dataset
from shapes import peak_mib

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder

WORDS = (
    "amber",
    "basket",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "garden",
    "harbour",
    "island",
    "juniper",
    "kettle",
    "lantern",
)
MOST = 1.15
_EVERY_S = 0.02


def write_rows(count: int, path: str) -> None:
    """Short questions and answers, all different."""
    draw = random.Random(0)

    def rows() -> list[dict[str, str]]:
        return [
            {
                "prompt": f"Question {number}: what is {' '.join(draw.choices(WORDS, k=3))}?",
                "completion": f" {' '.join(draw.choices(WORDS, k=5))}.",
            }
            for number in range(count)
        ]

    Dataset.from_list(rows()).to_parquet(path)
    open_rows(path)  # converts them, once


def open_rows(path: str) -> Dataset:
    """The rows, memory-mapped."""
    return load_dataset("parquet", data_files=path, split="train", keep_in_memory=False, cache_dir=f"{path}.cache")


@contextmanager
def watched() -> Iterator[list[float]]:
    """Yields a list whose only number is, in the end, this process's own peak in MiB: no pages of files on disk."""
    status, ended, peak = Path("/proc/self/status"), threading.Event(), [0.0]

    def own_mib() -> float:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 2**10

    def watch() -> None:
        while not ended.wait(_EVERY_S):
            peak[0] = max(peak[0], own_mib())

    if not status.exists() or "RssAnon" not in status.read_text():
        yield peak
        peak[0] = peak_mib()
        return
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def peak_of_scoring(path: str, readout: str) -> tuple[float, float, float]:
    """Own peak memory and that with mapped files, in MiB, and seconds."""
    rows = open_rows(path)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, watched() as own:
        scorer = SAFTScorer(
            str(demo_folder()), method="saft", layer=2, readout=readout, contamination=0.1, cache_dir=folder
        )
        scorer.fit(rows)
        scorer.score_dataset(rows)
    return own[0], peak_mib(), time.perf_counter() - begin


def main() -> None:
    """Print peaks and seconds, and how they grow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=(5_000, 50_000), help="numbers of rows, growing")
    parser.add_argument("--readout", default="response_start")
    parser.add_argument("--most", type=float, default=MOST, help="how many times the memory is still flat")
    options = parser.parse_args()
    peaks, times = [], []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.rows:
            path = str(Path(folder) / f"{count}.parquet")
            for work, arguments in ((write_rows, (count, path)), (peak_of_scoring, (path, options.readout))):
                with ProcessPoolExecutor(1, mp_context=spawn) as alone:
                    answer = alone.submit(work, *arguments).result()
            own, resident, seconds = answer
            peaks.append(own)
            times.append(seconds)
            said = f"{own:,.0f} MiB of its own, {resident:,.0f} with mapped files"
            print(f"{count:>9,} rows: peak {said}, {seconds:.1f} s, {count / seconds:,.0f} rows/s", flush=True)
    ratio = peaks[-1] / peaks[0]
    rows = options.rows[-1] / options.rows[0]
    print(
        f"{rows:.0f} times the rows: {ratio:.2f} times its own memory, {times[-1] / times[0]:.1f} times the time, "
        f"{(peaks[-1] - peaks[0]) * 2**20 / (options.rows[-1] - options.rows[0]):,.0f} bytes for each row more"
    )
    if ratio > options.most:
        sys.exit(f"Its own memory grows by {ratio - 1:.0%} from {options.rows[0]:,} to {options.rows[-1]:,} rows.")


if __name__ == "__main__":
    main()
