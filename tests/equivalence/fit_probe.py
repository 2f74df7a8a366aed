"""Fit a probe and a pool on it, on as many processes as there are; run by `test_processes.py` with OUT STORE ROWS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import load_dataset

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder


def main(out: str, store: str, rows: str) -> None:
    state = PartialState(cpu=True)
    os.chdir(rows)
    with state.main_process_first():
        pool = load_dataset("json", data_files="pool.jsonl", split="train", cache_dir=f"{store}/datasets")
    reference = ["first.jsonl", "second.jsonl", "general.jsonl,harmful=false"]
    scorer = SAFTScorer(str(demo_folder()), reference=reference, cache_dir=f"{store}/saft")
    scorer.fit(pool)
    result, scored = scorer.filter(pool), scorer.score_dataset(pool)
    assert scorer.fit_ is not None
    _, tensors = scorer.fit_.to_parts()
    alone = SAFTScorer(str(demo_folder()), reference=reference, threshold=0.0, cache_dir=f"{store}/saft")
    by_threshold = alone.fit_reference().filter(pool)
    np.savez(
        f"{out}/rank{state.process_index}-0.npz",
        world=state.num_processes,
        scores=np.asarray(scored["saft_score"], np.float32),
        probabilities=np.asarray(scored["saft_probability"], np.float32),
        codes=result.decisions.codes,
        threshold=scorer.threshold_,
        alone=by_threshold.scores,
        alone_codes=by_threshold.decisions.codes,
        alone_unlike=[reason == "unlike" for reason in by_threshold.decisions.reasons],
        **tensors,
    )
    state.wait_for_everyone()
    PartialState().destroy_process_group()
    # All is written: leave before torch's idle gloo threads are torn down, which can abort on a busy machine.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(*sys.argv[1:])
