"""A system prompt that stands before every row: read once, and read again with each row, in one run.

    python examples/benchmarks/prefix.py
    python examples/benchmarks/prefix.py --model_name_or_path llama-7b --device cuda --dtype bfloat16

`Extractor.embed` on the same rows into an empty store, with system prompts of some lengths; both ways take turns, in
one process, and the better of two times counts. The vectors are compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from shapes import settle
from task import ROOT, Task

from saft_hf.distributed import World
from saft_hf.embed.features import Features, feature_name
from saft_hf.embed.source import ModelSource
from saft_hf.render import MEAN, START, Renderer

TURNS = 2


def with_system_prompt(rows: Dataset, words: int) -> Dataset:
    """Dialogues that start with the same system prompt."""
    text = " ".join(["You answer in a calm and helpful way."] * words)[: 4 * words]

    def dialogue(row: dict[str, Any]) -> dict[str, Any]:
        turns = row.get("messages") or [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        return {"messages": [{"role": "system", "content": text}, *turns]}

    return rows.map(dialogue, remove_columns=rows.column_names, load_from_cache_file=False)


def measure(task: Task, source: ModelSource, rows: Dataset, readout: str) -> dict[str, Any]:
    """Seconds of both ways, and how far their vectors are apart."""
    features, device = Features((task.layer,), (readout,)), torch.device(task.device)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    found = {}
    with tempfile.TemporaryDirectory() as folder:

        def embed(name: str, shares: bool, data: Dataset) -> Any:
            place, renderer = Path(folder) / name, Renderer(source.tokenizer)
            options = {"folder": place, "world": World(), "device": device, "shares_prefix": None if shares else False}
            return source.extractor(renderer, features, **options).embed(data)

        embed("warm", True, rows.select(range(16)))
        for turn in range(TURNS):
            for shares, taken in seconds.items():
                begin = time.perf_counter()
                embedded = embed(f"{turn}-{shares}", shares, rows)
                settle(task.device)
                taken.append(time.perf_counter() - begin)
                found[shares] = embedded.states(feature_name(task.layer, readout)), embedded.plan
    (one, plan), (other, plain) = found[True], found[False]
    return {
        "readout": readout,
        "prefix": len(plan.prefix),
        "tokens_each": float(plain.lengths.mean()),
        "rows_per_s": len(rows) / min(seconds[True]),
        "times_plain": min(seconds[False]) / min(seconds[True]),
        "difference": float(np.abs(one - other).max() / np.abs(other).max()),
    }


def main() -> None:
    """Measure, print a line for each length and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Task.add_options(parser, rows=1000)
    parser.add_argument("--words", type=int, nargs="+", default=[0, 20, 60, 200], help="of the system prompt, about")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "prefix.json")
    options = parser.parse_args()
    task, results = Task.of(options), []
    source, rows = task.source(), task.read_rows()
    for readout in (START, MEAN):
        for words in options.words:
            found = measure(task, source, with_system_prompt(rows, words), readout)
            results.append(found)
            said = (
                "{readout}: {prefix} tokens read once of {tokens_each:.0f} in a row, {rows_per_s:.0f} rows/s, "
                "{times_plain:.2f} times as fast; vectors differ by {difference:.0e} of the largest"
            )
            print(said.format(**found), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
