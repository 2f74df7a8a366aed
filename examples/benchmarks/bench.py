"""Rows per second against the plain way, in one run: `make bench`.

    python examples/benchmarks/bench.py                                            # lab-lm, all rows
    python examples/benchmarks/bench.py --model_name_or_path llama-0.1b --rows 400 --plain_rows 48
    python examples/benchmarks/bench.py --model_name_or_path llama-7b --device cuda --dtype bfloat16

The plain way: transformers' own `AutoModelForCausalLM`, batches of 8 in row order, the whole sequence, attention
mask, `output_hidden_states=True`, language-model head. It is timed on random runs of 8 neighbouring rows, each read
once before to warm up. Both ways start from rows and render them; model loading and imports are not timed.

Each way has a process of its own, and they take turns: a machine that becomes slower meets both. Each of our turns is
compared with the plain turns right before and after it; the median of the ratios counts. Where a plain turn is slower
than their median by more than a third, its neighbour counts alone, and that is said. Of our other figures each is its
own median; the plain row is the turn of the median rate, and differences are those of the first turn. On a CPU the peak
is that of the process so far, which both readouts share. On a busy machine the plain way suffers most, so its ratios
must not be quoted: that is said, too.

Ours is `Extractor.embed` on all rows with an empty store: rendering, planning, forward and writing to disk. The
model's FLOP/s count two operations for each weight that a real token meets; the share is that of one large product of
random numbers in the same dtype, measured in the same process before and after the turn. Differences are relative: the
length of the difference of two vectors by the length of the plain way's; in 16 bits both ways are also compared with
the same weights in float32.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset
from shapes import cpu_seconds, forget_peak, matmul_rate, peak_mib, settle, weights_run, whole_model
from task import ROOT, Task

from saft_hf.distributed import World
from saft_hf.embed.features import Features, feature_name
from saft_hf.render import MEAN, START, Renderer, Rendering
from saft_hf.status import RowStatus

READOUTS = (START, MEAN)
BATCH = 8
TOLERANCE = 1e-4
COLD, BUSY = 2 / 3, 10
"""A turn below this part of the median rate is cold; other work above this per cent of the processors is a lot."""


@dataclass(frozen=True)
class Part:
    """One turn of a way.

    Attributes:
        vectors: for each readout, the sampled rows by number.
    """

    rows: int
    unique: int
    tokens: int
    padding_share: float
    seconds: float
    cpu_seconds: float
    peak_mib: float
    matmul_flops: float
    vectors: dict[str, dict[int, np.ndarray]]

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


def pool(states: np.ndarray, rendering: Rendering, readout: str) -> np.ndarray:
    """One readout of one row's hidden states (`float32 [T, d]`), written out plainly."""
    if readout == START:
        return states[rendering.spans[-1][0] - 1]
    return np.concatenate([states[start:end] for start, end in rendering.spans]).mean(axis=0)


class PlainWay:
    """Embeds batches of 8 neighbouring rows as one would without this package."""

    def __init__(self, task: Task) -> None:
        self._task, self._rows, self._tokenizer = task, task.read_rows(), task.tokenizer
        self._renderer = Renderer(self._tokenizer)
        self._model = whole_model(task.model, task.device, task.torch_dtype)
        for batch in task.batches:  # every shape once, to warm up
            self._embed(batch * BATCH)

    def turn(self) -> Part:
        """All batches once."""
        task, vectors = self._task, {readout: dict[int, np.ndarray]() for readout in READOUTS}
        count = tokens = fed = 0
        with measured(task) as took:
            for batch in task.batches:
                found, lengths, in_batch = self._embed(batch * BATCH)
                count, tokens, fed = count + len(found[START]), tokens + lengths, fed + in_batch
                for readout in READOUTS:
                    vectors[readout] |= found[readout]
        return Part(count, count, tokens, 1 - tokens / fed, **took, vectors=vectors)

    def exact(self) -> dict[str, dict[int, np.ndarray]]:
        """The vectors of the same weights in float32, by readout and row; the last thing that is asked."""
        self._model = self._model.float()
        found = [self._embed(batch * BATCH)[0] for batch in self._task.batches]
        return {readout: {row: v for each in found for row, v in each[readout].items()} for readout in READOUTS}

    def _embed(self, first: int) -> tuple[dict[str, dict[int, np.ndarray]], int, int]:
        """Vectors of one batch by readout and row; its tokens, and those with padding."""
        task, pad = self._task, self._tokenizer.pad_token_id or 0
        renderings = self._renderer(self._rows[first : first + BATCH])
        usable = [(first + i, r) for i, r in enumerate(renderings) if r.status is RowStatus.OK]
        width = max(len(r.input_ids) for _, r in usable)
        ids = torch.full((len(usable), width), pad)
        mask = torch.zeros_like(ids)
        for i, (_, rendering) in enumerate(usable):
            ids[i, : len(rendering.input_ids)] = torch.from_numpy(rendering.input_ids)
            mask[i, : len(rendering.input_ids)] = 1
        with torch.no_grad():
            output = self._model(
                input_ids=ids.to(task.device), attention_mask=mask.to(task.device), output_hidden_states=True
            )
        states = output.hidden_states[task.layer].float().cpu().numpy()
        found = {q: {row: pool(states[i], r, q) for i, (row, r) in enumerate(usable)} for q in READOUTS}
        return found, int(mask.sum()), mask.numel()


class OurWay:
    """Embeds all rows into an empty store. A shape is read in place, with all of its blocks in memory."""

    def __init__(self, task: Task) -> None:
        self._task, self._rows, self._source = task, task.read_rows(), task.source()
        self.turn(START, self._rows.select(range(BATCH)))  # loads the model, as for the plain way

    def turn(self, readout: str, rows: Dataset | None = None) -> Part:
        """All rows once, or only these, the first of them."""
        rows = self._rows if rows is None else rows
        task, features = self._task, Features((self._task.layer,), (readout,))
        with tempfile.TemporaryDirectory() as folder:
            extractor = self._source.extractor(
                Renderer(self._source.tokenizer),
                features,
                folder=Path(folder),
                world=World(),
                device=torch.device(task.device),
                token_budget=task.token_budget,
            )
            with measured(task) as took:
                embedded = extractor.embed(rows)
            found = embedded.states(feature_name(task.layer, readout))
        plan = embedded.plan
        sampled = (row for batch in task.batches for row in range(batch * BATCH, (batch + 1) * BATCH))
        vectors = {row: found[row] for row in sampled if row < len(rows) and plan.row_to_unique[row] >= 0}
        return Part(
            rows=int((plan.row_to_unique >= 0).sum()),
            unique=plan.num_unique,
            tokens=int(plan.lengths.sum()),
            padding_share=plan.padding_share,
            **took,
            vectors={readout: vectors},
        )


_way: Any = None


def start(way: type[PlainWay] | type[OurWay], task: Task) -> None:
    """Make a way in the process that it has to itself."""
    global _way
    _way = way(task)


def ask(what: str, *args: Any) -> Any:
    """Have the way of this process do something; what it used for that is free for the other way."""
    result = getattr(_way, what)(*args)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return result


@contextmanager
def measured(task: Task) -> Iterator[dict[str, Any]]:
    """Yields what the block takes, as `Part` names it, filled in at its end; the matmul rate is that around it."""
    took: dict[str, Any] = {}
    rate_before = matmul_rate(task.device, task.torch_dtype)
    forget_peak(task.device)
    begin, processors = time.perf_counter(), cpu_seconds()
    yield took
    settle(task.device)
    took |= {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds() - processors}
    took["peak_mib"] = peak_mib(task.device)
    took["matmul_flops"] = (rate_before + matmul_rate(task.device, task.torch_dtype)) / 2


def figures(part: Part, plain: Part, weights: int) -> dict[str, float | int]:
    """What is printed of one way, beside a turn of the plain way."""
    numbers = {key: value for key, value in asdict(part).items() if key != "vectors"}
    unique = part.unique / part.seconds
    return {
        **numbers,
        "rows_per_s": part.rate,
        "unique_per_s": unique,
        "tokens_per_s": part.tokens / part.seconds,
        "model_flops": 2 * weights * part.tokens / part.seconds,
        "of_matmul": 2 * weights * part.tokens / part.seconds / part.matmul_flops,
        "times_plain": part.rate / plain.rate,
        "times_plain_unique": unique / plain.rate,
        "times_plain_cpu": (part.rows / part.cpu_seconds) / (plain.rows / plain.cpu_seconds),
    }


def medians(turns: list[dict[str, float | int]]) -> dict[str, float]:
    """The median of each figure over the turns."""
    return {name: median(turn[name] for turn in turns) for name in turns[0]}


def difference(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> float:
    """Largest difference relative to a vector's length, over the rows of the other way.

    Raises:
        ValueError: a row was embedded by one way and not by the other.
    """
    if not set(other) <= set(one) or not other:
        raise ValueError(f"the two ways embedded different rows: {len(one)} and {len(other)}.")
    return max(float(np.linalg.norm(one[row] - v) / np.linalg.norm(v)) for row, v in other.items())


def measure(task: Task, runs: int) -> dict[str, Any]:
    """Let the ways take turns; the vectors are compared and not kept."""
    busy = psutil.cpu_percent(interval=1)
    plain_turns: list[Part] = []
    our_turns: list[tuple[str, Part]] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=start, initargs=(PlainWay, task)) as plain:
        with ProcessPoolExecutor(1, spawn, initializer=start, initargs=(OurWay, task)) as ours:
            for process in (plain, ours):
                process.submit(int).result()  # both are ready before the first turn
            plain_turns.append(plain.submit(ask, "turn").result())
            for readout in READOUTS * runs:
                our_turns.append((readout, ours.submit(ask, "turn", readout).result()))
                plain_turns.append(plain.submit(ask, "turn").result())
        exact = None if task.torch_dtype.itemsize > 2 else plain.submit(ask, "exact").result()
    rates = [part.rate for part in plain_turns]
    typical = sorted(plain_turns, key=lambda part: part.rate)[len(rates) // 2]
    weights = weights_run(task.model, task.layer)
    result = {
        "task": asdict(task) | {"batches": len(task.batches)},
        "threads": torch.get_num_threads(),
        "busy_percent_before": busy,
        "runs": runs,
        "plain_rows_per_s_by_turn": rates,
        "cold_turns": sum(rate < COLD * typical.rate for rate in rates),
        "plain": figures(typical, typical, weights["plain"]),
    }
    for readout in READOUTS:
        turns = [(number, part) for number, (name, part) in enumerate(our_turns) if name == readout]
        beside = [
            figures(part, mean_of(plain_turns[number : number + 2], COLD * typical.rate), weights["ours"])
            for number, part in turns
        ]
        vectors = turns[0][1].vectors[readout]
        differences = {"max_difference": difference(vectors, typical.vectors[readout])}
        if exact is not None:
            differences["from_float32"] = difference(vectors, exact[readout])
            differences["plain_from_float32"] = difference(typical.vectors[readout], exact[readout])
        by_turn = {"times_plain_by_turn": [turn["times_plain"] for turn in beside]}
        result[readout] = medians(beside) | differences | by_turn
    return result


def mean_of(turns: list[Part], cold: float) -> Part:
    """A turn that took as long as these on average: those that are not cold, where there is one; all read the same."""
    turns = [part for part in turns if part.rate >= cold] or turns
    seconds, processors = (sum(getattr(p, name) for p in turns) / len(turns) for name in ("seconds", "cpu_seconds"))
    return replace(turns[0], seconds=seconds, cpu_seconds=processors)


COLUMNS = {
    "rows": "{:,.0f}",
    "unique": "{:,.0f}",
    "rows_per_s": "{:.1f}",
    "times_plain": "{:.1f}x",
    "times_plain_unique": "{:.1f}x",
    "times_plain_cpu": "{:.1f}x",
    "tokens_per_s": "{:,.0f}",
    "of_matmul": "{:.0%}",
    "padding_share": "{:.1%}",
    "peak_mib": "{:,.0f}",
    "max_difference": "{:.1e}",
    "from_float32": "{:.1e}",
    "plain_from_float32": "{:.1e}",
}


def print_table(result: dict[str, Any]) -> None:
    """Print one line a way."""
    lines = [["", *COLUMNS]]
    for way in ("plain", *READOUTS):
        found = result[way]
        lines.append([way, *(shown.format(found[key]) if key in found else "-" for key, shown in COLUMNS.items())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(feature.rjust(width) for feature, width in zip(line, widths, strict=True)))
    if result["busy_percent_before"] > BUSY:
        print(
            f"\nBUSY: other work took {result['busy_percent_before']:.0f} % of the processors. Do not quote the ratios."
        )
    rates = ", ".join(f"{rate:.1f}" for rate in result["plain_rows_per_s_by_turn"])
    print(f"\nplain: a random sample; rows/s of its turns: {rates}; {result['cold_turns']} of them cold.")
    for readout in READOUTS:
        print(
            f"{readout}: times plain by turn: " + ", ".join(f"{x:.1f}" for x in result[readout]["times_plain_by_turn"])
        )
    print("times_plain_unique counts equal renderings once: what is left without de-duplication.")
    print("of_matmul: model FLOP/s, real tokens and layers run only, against one large product in the same process.")
    print("times_plain_cpu compares processor seconds, which other work on the machine disturbs less.")


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw rows a second, where matplotlib is installed (`pip install 'saft-hf[plots]'`)."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    ways = ["plain", *READOUTS]
    figure = Figure(figsize=(6, 2.4), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(ways, [result[way]["rows_per_s"] for way in ways], color=["#999999", "#2a6f97", "#61a5c2"])
    axes.bar_label(bars, [f"{result[way]['times_plain']:.1f}x" for way in ways], padding=3)
    axes.set(xlabel="rows a second", title=f"{Path(result['task']['model']).name}, layer {result['task']['layer']}")
    axes.margins(x=0.12)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Read the options, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Task.add_options(parser, rows=0)
    parser.add_argument("--token_budget", type=int, help="tokens in a batch; default: what the package takes")
    parser.add_argument("--plain_rows", type=int, default=480, help="rows that the plain way is timed on")
    parser.add_argument("--runs", type=int, default=3, help="turns of each of our ways; the median counts")
    parser.add_argument("--seed", type=int, default=0, help="draws the rows of the plain way")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "bench.json")
    options = parser.parse_args()
    task = Task.of(options, token_budget=options.token_budget)
    batches = len(task.read_rows()) // BATCH
    wanted = min(batches, max(1, options.plain_rows // BATCH))
    drawn = np.random.default_rng(options.seed).choice(batches, wanted, replace=False)
    result = measure(replace(task, batches=tuple(sorted(drawn.tolist()))), options.runs)
    print_table(result)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2))
    plot(result, options.output.with_suffix(".png"))
    print(f"Written to {options.output}.")
    worst = max(result[readout]["max_difference"] for readout in READOUTS)
    if options.dtype == "float32" and worst > TOLERANCE:
        sys.exit(f"The vectors differ from the plain way by {worst:.1e}, more than {TOLERANCE:.0e}.")


if __name__ == "__main__":
    main()
