"""What processes answer that were given different things; run by `test_processes.py` with OUT STORE WHAT."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder, demo_rows_path


def main(out: str, store: str, what: str) -> None:
    state = PartialState(cpu=True)
    rank = state.process_index
    lines = Path(demo_rows_path()).read_text(encoding="utf-8").splitlines()
    pool = Dataset.from_list([json.loads(line) for line in lines[:120]])
    labelled, options = pool.select(range(60)), {"k": 1}
    given = pool
    if what == "pool":
        given = pool.shuffle(seed=rank)
    elif what == "labelled":
        labelled = pool.shuffle(seed=rank).select(range(60))
    elif what == "an option":
        options = {"k": 1 + rank}
    scorer = SAFTScorer(str(demo_folder()), method="saft", layer=2, cache_dir=store, **options)
    try:
        scorer.fit(given, labelled, on_undecided="keep")
        answer = scorer.filter(pool.select(range(60 + rank)) if what == "dataset" else pool)
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    Path(out, f"rank{rank}.txt").write_text(str(answer), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(*sys.argv[1:])
