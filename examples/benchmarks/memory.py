"""Peak memory of `fit` and `score_dataset` at 5,000 and at 50,000 rows: it must not grow with the number of rows.

    python examples/benchmarks/memory.py

Rows are synthetic, all different, and stand in a parquet file, memory-mapped by `datasets`; the model is tiny and
random. Each size runs in a fresh process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from datasets import Dataset, load_dataset

from saft_hf import SAFTScorer
from saft_hf.demo import demo_folder

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


def peak_of_scoring(path: str, readout: str) -> tuple[float, float]:
    """Peak resident memory in MiB, and seconds."""
    rows = load_dataset("parquet", data_files=path, split="train", keep_in_memory=False, cache_dir=f"{path}.cache")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scorer = SAFTScorer(
            str(demo_folder()), method="saft", layer=2, readout=readout, expected_share=0.1, cache_dir=folder
        )
        scorer.fit(rows)
        scorer.score_dataset(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10), time.perf_counter() - begin


def main() -> None:
    """Print both peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=(5_000, 50_000))
    parser.add_argument("--readout", default="response_start")
    options = parser.parse_args()
    peaks = []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.rows:
            path = str(Path(folder) / f"{count}.parquet")
            for work, arguments in ((write_rows, (count, path)), (peak_of_scoring, (path, options.readout))):
                with ProcessPoolExecutor(1, mp_context=spawn) as alone:
                    answer = alone.submit(work, *arguments).result()
            peak, seconds = answer
            peaks.append(peak)
            print(f"{count:>7,} rows: peak {peak:,.0f} MiB, {seconds:.1f} s", flush=True)
    ratio = peaks[1] / peaks[0]
    print(f"ratio {ratio:.3f}")
    if ratio > MOST:
        sys.exit(f"Peak memory grows by {ratio - 1:.0%} from {options.rows[0]:,} to {options.rows[1]:,} rows.")


if __name__ == "__main__":
    main()
