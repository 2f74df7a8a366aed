"""Fit, score and filter the demo's rows, in as many processes as are launched. Run by `test_gpu.py`.

Several processes on one card talk through the host (gloo): NCCL wants a card for each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import load_dataset

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder, demo_rows_path


def main(out: str, vector_dtype: str, workers: int) -> None:
    on_cpu = not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, backend="gloo") if "RANK" in os.environ else PartialState()
    folder = Path(out)
    rows = load_dataset("json", data_files=str(demo_rows_path()), split="train", cache_dir=str(folder / "datasets"))
    pool, new = rows.select(range(500)), rows.select(range(500, 600))
    scorer = SAFTScorer(str(demo_folder()), dtype="float32", vector_dtype=vector_dtype, cache_dir=folder / "store")
    scorer.fit(pool, pool.select(range(100)))
    result = scorer.filter(pool)
    found = {
        "scores": np.asarray(scorer.score_dataset(pool)["saft_score"], np.float32),
        "new": np.asarray(scorer.score_dataset(new)["saft_score"], np.float32),
        "kept": np.asarray(result.kept_indices),
        "threshold": np.asarray(scorer.threshold_),
    }
    if workers:
        import multiprocess

        multiprocess.set_start_method("spawn")  # a forked worker cannot use a card that its parent uses
        mapped = new.map(scorer, batched=True, num_proc=workers, with_rank=True, load_from_cache_file=False)
        found["mapped"] = np.asarray(mapped["saft_score"], np.float32)
    np.savez(folder / f"rank{state.process_index}.npz", device=str(state.device), size=state.num_processes, **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
