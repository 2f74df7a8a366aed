"""Rows per second against the plain way, in one run: `make bench`.

    python examples/benchmarks/bench.py                                            # lab-lm, all rows
    python examples/benchmarks/bench.py --model_name_or_path llama-0.1b --rows 400 --plain_rows 48
    python examples/benchmarks/bench.py --model_name_or_path llama-7b --device cuda --dtype bfloat16

The plain way: transformers' own `AutoModelForCausalLM`, batches of 8 in row order, the whole sequence, attention
mask, `output_hidden_states=True`, language-model head. It is timed on random runs of 8 neighbouring rows, each read
once before to warm up, in chunks between our own runs; a chunk that is slower than their median by more than a third
is left out, and said. Each part runs in a fresh process, for its peak memory. Both ways start from rows and render
them; model loading and imports are not timed. Of our own runs the median of three counts. On a busy machine the plain
way suffers most, so its ratios must not be quoted: that is said, too.

Ours is `Extractor.embed` on all rows with an empty store: rendering, planning, forward and writing to disk. The
model's FLOP/s count two operations for each weight that a real token meets; the share is that of one large product of
random numbers in the same dtype, measured in the same process. Differences are relative: the length of the difference
of two vectors by the length of the plain way's; in 16 bits both ways are also compared with the same weights in
float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from shapes import matmul_rate, peak_mib, settle, weights_run, whole_model
from task import ROOT, Task, alone

from saft_hf.distributed import World
from saft_hf.embed.extract import Extractor
from saft_hf.embed.features import Features, feature_name
from saft_hf.render import MEAN, START, Renderer, Rendering
from saft_hf.status import RowStatus

READOUTS = (START, MEAN)
BATCH = 8
TOLERANCE = 1e-4
COLD, BUSY = 2 / 3, 10
"""A chunk below this part of the median rate is cold; other work above this per cent of the processors is a lot."""
CHUNKS = len(READOUTS) + 1


@dataclass(frozen=True)
class Part:
    """One way, measured.

    Attributes:
        vectors: for each readout, the sampled rows by number.
        exact: the same with the weights in float32, where they are not.
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
    exact: dict[str, dict[int, np.ndarray]] | None = None


def pool(states: np.ndarray, rendering: Rendering, readout: str) -> np.ndarray:
    """One readout of one row's hidden states (`float32 [T, d]`), written out plainly."""
    if readout == START:
        return states[rendering.spans[-1][0] - 1]
    return np.concatenate([states[start:end] for start, end in rendering.spans]).mean(axis=0)


def plain_way(task: Task, batches: tuple[int, ...]) -> Part:
    """Embed the given batches of 8 neighbouring rows as one would without this package."""
    rows = task.read_rows()
    tokenizer = task.tokenizer
    renderer, pad = Renderer(tokenizer), tokenizer.pad_token_id or 0
    model = whole_model(task.model, task.device, task.torch_dtype)
    rate = matmul_rate(task.device, task.torch_dtype)
    vectors: dict[str, dict[int, np.ndarray]] = {readout: {} for readout in READOUTS}
    count = tokens = fed = 0

    def embed(first: int, keep: dict[str, dict[int, np.ndarray]] | None) -> None:
        nonlocal count, tokens, fed
        renderings = renderer(rows[first : first + BATCH])
        usable = [(first + i, r) for i, r in enumerate(renderings) if r.status is RowStatus.OK]
        width = max(len(r.input_ids) for _, r in usable)
        ids = torch.full((len(usable), width), pad)
        mask = torch.zeros_like(ids)
        for i, (_, rendering) in enumerate(usable):
            ids[i, : len(rendering.input_ids)] = torch.from_numpy(rendering.input_ids)
            mask[i, : len(rendering.input_ids)] = 1
        with torch.no_grad():
            output = model(
                input_ids=ids.to(task.device), attention_mask=mask.to(task.device), output_hidden_states=True
            )
        states = output.hidden_states[task.layer].float().cpu().numpy()
        found = {q: {row: pool(states[i], r, q) for i, (row, r) in enumerate(usable)} for q in READOUTS}
        if keep is not None:
            count, tokens, fed = count + len(usable), tokens + int(mask.sum()), fed + mask.numel()
            for readout in READOUTS:
                keep[readout].update(found[readout])

    for batch in batches:  # every shape once, to warm up
        embed(batch * BATCH, keep=None)
    settle(task.device)
    clock = Clock()
    for batch in batches:
        embed(batch * BATCH, keep=vectors)
    settle(task.device)
    seconds, peak = clock.read(), peak_mib(task.device)
    part = Part(count, count, tokens, 1 - tokens / fed, *seconds, peak, rate, vectors)
    if task.torch_dtype.itemsize > 2:
        return part
    model, exact = model.float(), {readout: {} for readout in READOUTS}
    for batch in batches:
        embed(batch * BATCH, keep=exact)
    return replace(part, exact=exact)


def our_way(task: Task, readout: str, runs: int) -> Part:
    """Embed all rows into an empty store, some times; the median counts."""
    rows = task.read_rows()
    source, device = task.source(), torch.device(task.device)
    features = Features((task.layer,), (readout,))
    with tempfile.TemporaryDirectory() as folder:

        def extractor(store: str) -> Extractor:
            place, budget = Path(folder) / store, task.token_budget
            renderer = Renderer(source.tokenizer)
            return source.extractor(renderer, features, folder=place, world=World(), device=device, token_budget=budget)

        extractor("warm").embed(rows.select(range(BATCH)))  # loads the model, as for the plain way
        rate = matmul_rate(task.device, task.torch_dtype)
        times = []
        for run in range(runs):
            clock = Clock()
            embedded = extractor(f"cold-{run}").embed(rows)
            times.append(clock.read())
        seconds, cpu_seconds = sorted(times)[runs // 2]
        name = feature_name(task.layer, readout)
        found = embedded.states(name)
    plan = embedded.plan
    sampled = {
        row: found[row]
        for batch in task.batches
        for row in range(batch * BATCH, (batch + 1) * BATCH)
        if plan.row_to_unique[row] >= 0
    }
    return Part(
        rows=int((plan.row_to_unique >= 0).sum()),
        unique=plan.num_unique,
        tokens=int(plan.lengths.sum()),
        padding_share=plan.padding_share,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_mib=peak_mib(task.device),
        matmul_flops=rate,
        vectors={readout: sampled},
    )


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._begin = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds on the wall, and of all threads."""
        return time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]


def joined(parts: list[Part]) -> Part:
    """The chunks of the plain way as one."""
    fed = sum(part.tokens / (1 - part.padding_share) for part in parts)
    tokens = sum(part.tokens for part in parts)
    return Part(
        rows=sum(part.rows for part in parts),
        unique=sum(part.unique for part in parts),
        tokens=tokens,
        padding_share=1 - tokens / fed,
        seconds=sum(part.seconds for part in parts),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
        peak_mib=max(part.peak_mib for part in parts),
        matmul_flops=max(part.matmul_flops for part in parts),
        vectors={q: {row: v for part in parts for row, v in part.vectors[q].items()} for q in READOUTS},
    )


def figures(part: Part, plain: Part, weights: int) -> dict[str, float | int]:
    """What is printed of one way."""
    numbers = {key: value for key, value in asdict(part).items() if key not in ("vectors", "exact")}
    rows, unique = part.rows / part.seconds, part.unique / part.seconds
    base = plain.rows / plain.seconds
    return {
        **numbers,
        "rows_per_s": rows,
        "unique_per_s": unique,
        "tokens_per_s": part.tokens / part.seconds,
        "model_flops": 2 * weights * part.tokens / part.seconds,
        "of_matmul": 2 * weights * part.tokens / part.seconds / part.matmul_flops,
        "times_plain": rows / base,
        "times_plain_unique": unique / base,
        "times_plain_cpu": (part.rows / part.cpu_seconds) / (plain.rows / plain.cpu_seconds),
    }


def difference(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> float:
    """Largest difference relative to a vector's length, over the rows of the other way.

    Raises:
        ValueError: a row was embedded by one way and not by the other.
    """
    if not set(other) <= set(one) or not other:
        raise ValueError(f"the two ways embedded different rows: {len(one)} and {len(other)}.")
    return max(float(np.linalg.norm(one[row] - v) / np.linalg.norm(v)) for row, v in other.items())


def measure(task: Task, runs: int) -> dict[str, Any]:
    """Measure both ways in turn; the vectors are compared and not kept."""
    busy = psutil.cpu_percent(interval=1)
    chunks = [task.batches[i::CHUNKS] for i in range(CHUNKS)]
    plain_parts = [alone(plain_way, task, chunks[0])]
    ours: dict[str, Part] = {}
    for readout, chunk in zip(READOUTS, chunks[1:], strict=True):
        ours[readout] = alone(our_way, task, readout, runs)
        plain_parts.append(alone(plain_way, task, chunk))
    rates = [part.rows / part.seconds for part in plain_parts]
    warm = [part for part, rate in zip(plain_parts, rates, strict=True) if rate >= COLD * sorted(rates)[CHUNKS // 2]]
    plain, weights = joined(warm), weights_run(task.model, task.layer)
    result = {
        "task": asdict(task) | {"batches": len(task.batches)},
        "threads": torch.get_num_threads(),
        "busy_percent_before": busy,
        "runs": runs,
        "plain_rows_per_s_by_chunk": rates,
        "cold_chunks": CHUNKS - len(warm),
        "plain": figures(plain, plain, weights["plain"]),
    }
    exact = plain_parts[0].exact
    for readout, part in ours.items():
        differences = {
            "max_difference": max(difference(part.vectors[readout], p.vectors[readout]) for p in plain_parts)
        }
        if exact is not None:
            differences["from_float32"] = difference(part.vectors[readout], exact[readout])
            differences["plain_from_float32"] = difference(plain_parts[0].vectors[readout], exact[readout])
        result[readout] = figures(part, plain, weights["ours"]) | differences
    return result


COLUMNS = {
    "rows": "{:,}",
    "unique": "{:,}",
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
    chunks = ", ".join(f"{rate:.1f}" for rate in result["plain_rows_per_s_by_chunk"])
    print(
        f"\nplain: a random sample; rows/s of its {CHUNKS} chunks: {chunks}; {result['cold_chunks']} left out as cold."
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
    parser.add_argument("--runs", type=int, default=3, help="times that each of our ways is run; the median counts")
    parser.add_argument("--seed", type=int, default=0, help="draws the rows of the plain way")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "bench.json")
    options = parser.parse_args()
    task = Task.of(options, token_budget=options.token_budget)
    batches = len(task.read_rows()) // BATCH
    wanted = min(batches, max(CHUNKS, options.plain_rows // BATCH))
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
