"""Fit, and map file-backed rows twice, as a user would do in one process after the other. Run by `test_map.py`."""

from __future__ import annotations

import hashlib
import json
import sys

from datasets import load_dataset

from saft_hf import SAFTScorer
from saft_hf.assets import demo_folder
from saft_hf.embed.rows import RowReader


def main(rows: str, cache: str, store: str) -> None:
    calls = []
    read = RowReader.__call__
    RowReader.__call__ = lambda *args: calls.append(1) or read(*args)  # type: ignore[method-assign]
    pool = load_dataset("json", data_files=rows, split="train", cache_dir=cache)
    scorer = SAFTScorer(str(demo_folder()), method="saft", layer=2, cache_dir=store).fit(pool, pool.select(range(100)))
    mapped = pool.map(scorer, batched=True, batch_size=100)
    digest = hashlib.sha256(repr(mapped["saft_score"][:]).encode()).hexdigest()
    print(json.dumps({"calls": len(calls), "digest": digest, "fingerprint": mapped._fingerprint}))


if __name__ == "__main__":
    main(*sys.argv[1:])
