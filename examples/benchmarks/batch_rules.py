"""How batches are cut: token budgets, and the plain rule of 8 rows in order, on the same rows in one run.

    python examples/benchmarks/batch_rules.py
    python examples/benchmarks/batch_rules.py --model_name_or_path llama-7b --device cuda --dtype bfloat16

Every rule reads the same unique renderings with the same truncated model, through `read_batch`; rules take turns and
the best of their times counts. So the differences are those of the rule alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from shapes import settle
from task import ROOT, Task

from saft_hf.embed.features import Features, read_batch
from saft_hf.embed.plan import make_plan
from saft_hf.embed.survey import survey_renderings
from saft_hf.render import Renderer, Rendering

IN_ORDER, BY_LENGTH = "8 rows in order", "8 rows by length"


def rules_of(renderings: list[Rendering], readout: str, budgets: list[int]) -> dict[str, list[list[int]]]:
    """Each rule's batches, as indices of unique renderings."""
    survey = survey_renderings(renderings, (readout,))
    usable, rules = np.flatnonzero(survey.usable), {}
    for budget in budgets:
        plan = make_plan(survey.keys, survey.lengths, survey.usable, token_budget=budget, bytes_per_row=1)
        batches = [batch for shard in range(plan.num_shards) for batch in plan.shard_batches(shard)]
        rules[f"{budget:,} tokens"] = [plan.first_row[batch].tolist() for batch in batches]
    _, first = np.unique(survey.keys[usable], axis=0, return_index=True)
    rows = np.sort(usable[first])
    by_length = rows[np.argsort(-survey.lengths[rows], kind="stable")]
    for name, order in ((IN_ORDER, rows.tolist()), (BY_LENGTH, by_length.tolist())):
        rules[name] = [order[i : i + 8] for i in range(0, len(order), 8)]
    return rules


def main() -> None:
    """Measure every rule in turns, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Task.add_options(parser, rows=1000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--readout", default="response_mean")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "batch_rules.json")
    options = parser.parse_args()
    task, readout = Task.of(options), options.readout
    source, device = task.source(), torch.device(task.device)
    rows, features = task.read_rows(), Features((task.layer,), (readout,))
    renderings = Renderer(source.tokenizer)(rows[:])
    rules = rules_of(renderings, readout, options.budgets)
    seconds: dict[str, list[float]] = {name: [] for name in rules}
    with source.opened(features.layers, device) as backbone:
        for _ in range(options.turns):
            for name, batches in rules.items():
                begin = time.perf_counter()
                for batch in batches:
                    read_batch(backbone, [renderings[row] for row in batch], features)
                settle(task.device)
                seconds[name].append(time.perf_counter() - begin)
    results = []
    for name, batches in rules.items():
        lengths = [[renderings[row].needed(features.readouts) for row in batch] for batch in batches]
        fed = sum(len(batch) * max(batch) for batch in lengths)
        best = min(seconds[name])
        results.append(
            {
                "rule": name,
                "batches": len(batches),
                "padding": 1 - sum(map(sum, lengths)) / fed,
                "rows_per_s": sum(map(len, batches)) / best,
                "times_in_order": min(seconds[IN_ORDER]) / best,
            }
        )
        print("{rule:>18}: {batches:>5} batches, {padding:6.1%} padding, ".format(**results[-1]), end="")
        print("{rows_per_s:8.1f} rows/s, {times_in_order:.2f}x 8 rows in order".format(**results[-1]))
    print(f"{torch.get_num_threads()} threads; the package takes {source.token_budget(device):,} tokens here.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
