"""Fit, score and filter on as many processes as the launcher started; rank 0 writes what came out.

Run by `test_map.py`: `[python -m torch.distributed.run ...] fit_and_score.py OUT STORE MODEL LAYER DATA ROWS [...]`,
with the last four once for each task.
"""

from __future__ import annotations

import os
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import load_dataset

from saft_hf import SAFTScorer


def main(out: str, store: str, *tasks: str) -> None:
    assert torch.get_num_threads() == 1
    state = PartialState(cpu=True)
    for number, (model, layer, data, rows) in enumerate(
        zip(*(islice(tasks, i, None, 4) for i in range(4)), strict=True)
    ):
        with state.main_process_first():
            pool = load_dataset("json", data_files=data, split="train", cache_dir=f"{store}/datasets")
        pool = pool.select(range(int(rows)))
        scorer = SAFTScorer(model, method="saft", layer=int(layer), cache_dir=f"{store}/saft")
        scorer.fit(pool, pool.shuffle(seed=0).select(range(100)))
        scored, result = scorer.score_dataset(pool), scorer.filter(pool)
        scorer.save_pretrained(f"{out}/rank{state.process_index}-{number}")
        np.savez(
            f"{out}/rank{state.process_index}-{number}.npz",
            world=state.num_processes,
            scores=np.asarray(scored["saft_score"], np.float32),
            statuses=np.asarray(scored["saft_status"]),
            codes=result.decisions.codes,
            threshold=scorer.threshold_,
            k=scorer.k_,
        )
    state.wait_for_everyone()
    PartialState().destroy_process_group()
    # All is written: leave before torch's idle gloo threads are torn down, which can abort on a busy machine.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(*sys.argv[1:])
