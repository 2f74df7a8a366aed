"""Time and peak memory of the statistics of a fit on a CPU: they must be a small share of the whole.

Of the published score: covariance and principal directions of all rows. Of a score that labels teach: everything that
`fit` does with 100 labels once the vectors of two layers at two readouts are stored.

    python examples/benchmarks/directions.py
    python examples/benchmarks/directions.py --d 16384 --rows 2048

Vectors are random with a power-law spectrum, summed shard by shard along the tree that `fit` uses. Each size runs in a
fresh process. The share is that of a Llama shape of that width (see MODELS), read to its middle layer: the forward is
counted in multiplications at this machine's measured float32 rate, as no model of that size runs here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from scipy.linalg import eigh
from shapes import peak_mib

from saft_hf.distributed import World
from saft_hf.embed import Embedded, Features
from saft_hf.embed.plan import KEY_BYTES, make_plan
from saft_hf.embed.reduce import tree_reduce
from saft_hf.embed.store import Store
from saft_hf.render import MEAN, START
from saft_hf.score import Frame, Moments, fit_direction, principal_subspace
from saft_hf.scorer.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 24
"""Tokens of a prompt in beavertails_pairs, on average."""

MODELS = {4096: (16, 11008), 8192: (40, 28672), 16384: (63, 53248)}
"""Hidden size -> blocks up to the middle layer and feed-forward width (Llama 2 7B, 2 70B, 3.1 405B)."""


def learned(d: int, rows: int, shards: int) -> dict[str, float]:
    """Seconds of learning from 100 labels, with random vectors in a store."""
    features, draw = Features((1, 2), (START, MEAN)), np.random.default_rng(0)
    spread = np.arange(1, d + 1, dtype=np.float32) ** -0.5
    keys, lengths = draw.integers(0, 256, (rows, KEY_BYTES), dtype=np.uint8), np.full(rows, shards, np.int32)
    plan = make_plan(keys, lengths, np.ones(rows, bool), token_budget=rows, bytes_per_row=16 * d)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), features.names)
        for shard in range(plan.num_shards):
            own = plan.shard_keys(shard)
            vectors = {name: draw.standard_normal((len(own), d), dtype=np.float32) * spread for name in features.names}
            store.write(shard, own, vectors)
        clock = time.perf_counter()
        pool = Pool.__new__(Pool)  # as it is once rows are embedded
        pool.features, pool.world = features, World()
        pool.embedded = Embedded(survey=None, plan=plan, store=store, world=pool.world, width=d)
        frame = Frame.of(pool.components)
        components = time.perf_counter() - clock
        moments = pool.moments(features.names, frame.block_coordinates)
        at = pool.embedded.compute(features.names, frame.coordinates, frame.size, only=np.arange(100))
        coordinates = time.perf_counter() - clock - components
        direction = fit_direction(frame, moments, at, at[:, 0] > 0, np.arange(100))
        pool.scores(frame.score(direction.weights))
        whole = time.perf_counter() - clock
    return {"d": d, "rows": rows, "learned_s": whole, "components_s": components, "coordinates_s": coordinates}


def measure(d: int, rows: int, shards: int, k: int, dense: bool) -> dict[str, float]:
    """Seconds and peak MiB of summing and solving, at one width."""
    start = peak_mib()
    spread = np.arange(1, d + 1, dtype=np.float32) ** -0.5

    def shard(number: int) -> Moments:
        count = rows * (number + 1) // shards - rows * number // shards
        return Moments.of(np.random.default_rng(number).standard_normal((count, d), dtype=np.float32) * spread)

    clock = time.perf_counter()
    total = tree_reduce(World(), shards, shard, Moments.merge)
    assert total is not None
    summed = time.perf_counter() - clock
    clock = time.perf_counter()
    found = principal_subspace(total, k)
    solved = time.perf_counter() - clock
    figures = {"d": d, "rows": rows, "covariance_s": summed, "directions_s": solved, "peak_mib": peak_mib() - start}
    figures["d_x_d_mib"] = d * d * 8 / 2**20
    if d in MODELS:
        blocks, wide = MODELS[d]
        flops = 2 * rows * TOKENS * blocks * (4 * d * d + 3 * d * wide)
        figures["share"] = (summed + solved) / (summed + solved + flops / matmul_rate())
    if dense:
        clock = time.perf_counter()
        _, vectors = eigh(total.scatter, subset_by_index=[d - k, d - 1])
        figures["dense_s"] = time.perf_counter() - clock
        figures["one_minus_cosine"] = float(
            np.abs(1 - np.abs((vectors[:, ::-1].T * found.directions).sum(axis=1))).max()
        )
    return figures


def matmul_rate() -> float:
    """Float32 operations a second of one large product, the best of three."""
    a = np.ones((2048, 2048), np.float32)
    seconds = []
    for _ in range(3):
        clock = time.perf_counter()
        _ = a @ a
        seconds.append(time.perf_counter() - clock)
    return 2 * 2048**3 / min(seconds)


def main() -> None:
    """Measure each width, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, nargs="+", default=(4096, 8192))
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--dense_up_to", type=int, default=4096, help="also solve the whole matrix, up to this width")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "directions.json")
    options = parser.parse_args()
    results = []
    for d in options.d:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            work = (d, options.rows, options.shards, options.k, d <= options.dense_up_to)
            results.append(alone.submit(measure, *work).result())
            results.append(alone.submit(learned, d, options.rows, options.shards).result())
        for result in results[-2:]:
            print("  ".join(f"{name} {value:,.4g}" for name, value in result.items()), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
