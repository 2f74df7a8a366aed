"""Score a dataset on a Ray cluster with a fitted scorer.

    pip install 'saft-hf[ray]'
    python examples/ray_map_batches.py --scorer out/scorer --rows 'rows/*.jsonl' --output scored/

A scorer fitted once (`saft-hf score`, `SAFTScorer.fit`) scores any shard by itself: a row's score depends on that row
alone, to 1e-5 of the largest in float32. Each actor loads the model once; its GPU is the one that Ray gives it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from saft_hf import SAFTScorer


class Score:
    """A scorer as Ray Data's `map_batches` wants it: made once an actor, then called with numpy batches."""

    def __init__(self, scorer: str) -> None:
        self.scorer = SAFTScorer.from_pretrained(scorer)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Add `saft_score` and `saft_status`; rows keep their order."""
        rows = {name: plain(column) for name, column in batch.items()}
        found = self.scorer(rows)
        return {**batch, "saft_score": found["saft_score"], "saft_status": np.asarray(found["saft_status"], object)}


def plain(value: Any) -> Any:
    """Numpy values as Python's: a chat template knows lists and dicts, not arrays of objects."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


def main() -> None:
    """Read, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", required=True, help="folder of a fitted scorer")
    parser.add_argument("--rows", required=True, help="jsonl files")
    parser.add_argument("--output", required=True, help="folder for parquet files")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    options = parser.parse_args()
    if find_spec("ray") is None:
        parser.error("Ray is not installed: pip install 'saft-hf[ray]'")
    import ray

    scored = ray.data.read_json(options.rows).map_batches(
        Score,
        fn_constructor_args=(options.scorer,),
        concurrency=options.actors,
        num_gpus=options.gpus,
        batch_size=1024,
    )
    scored.write_parquet(options.output)


if __name__ == "__main__":
    main()
