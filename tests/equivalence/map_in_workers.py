"""Fit with two torch threads, then `map(num_proc=2)`, on rows of the fit and on new ones. Run by `test_map.py`.

In a process of its own: where a forked worker waits forever, the test's time limit ends it all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder, demo_rows_path


def main(out: str) -> None:
    torch.set_num_threads(2)
    rows = load_dataset("json", data_files=str(demo_rows_path()), split="train", cache_dir=f"{out}/datasets")
    pool, new = rows.select(range(300)), rows.select(range(300, 400))
    scorer = SAFTScorer(str(demo_folder()), method="saft", layer=2, cache_dir=f"{out}/saft")
    scorer.fit(pool, pool.select(range(100)))

    def scores(rows: Dataset) -> np.ndarray:
        return np.asarray(rows["saft_score"], np.float32)

    options = {"batched": True, "batch_size": 32, "load_from_cache_file": False}
    found = {
        "pool": scores(scorer.score_dataset(pool)),
        "pool_forked": scores(pool.map(scorer, num_proc=2, **options)),
        "pool_ranked": scores(pool.map(scorer, num_proc=2, with_rank=True, **options)),
        "new_forked": scores(new.map(scorer, num_proc=2, **options)),
        "new": scores(scorer.score_dataset(new)),
    }
    np.savez(Path(out) / "scores.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1])
