"""The lines of an experiment as rows of text: what was chosen, what the models do, and differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saft_hf.evaluate.bootstrap import Interval
from saft_hf.evaluate.config import without_demonstrations
from saft_hf.evaluate.metrics import PromptMetrics
from saft_hf.evaluate.results import MARK, Line, Results, by, difference
from saft_hf.evaluate.verdicts import beside

_ARM = ("pool", "harmful share", "arm", "seeds", "kept", "still harmful", "demonstrations")
_CHOSEN = {
    "precision": "precision",
    "recall": "recall",
    "refusals kept": "demonstrations_kept",
    "AUROC": "auroc",
    "seconds": "seconds",
}
"""Head -> attribute of a line or of what was chosen."""
CANNOT_TELL = "cannot tell"


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The table: heads and rows, as text, without columns that hold nothing. Shares are of one; intervals are 95 %."""
    rows = [_row(line) for line in results.lines]
    heads = [head for head in rows[0] if any(row[head] != "-" for row in rows)]
    return heads, [[row[head] for head in heads] for row in rows]


def split_heads(heads: list[str]) -> tuple[list[str], list[str]]:
    """The heads of two tables, in place of one that is wider than a screen: what was chosen, what the models do."""
    chosen = [head for head in heads if head in (*_ARM, *_CHOSEN) and head != "seeds"]
    return chosen, [head for head in heads if head not in _CHOSEN]


@dataclass(frozen=True)
class Difference:
    """What an arm changes beside another on the same pools.

    Attributes:
        pool: its kind.
        share: its harmful share.
        arm: the one.
        beside: the other, whose values are taken from the first one's.
        seeds: how many both have.
        gaps: what is compared -> mean and interval.
    """

    pool: str
    share: float
    arm: str
    beside: str
    seeds: int
    gaps: dict[str, Interval | None]


def compared(results: Results) -> list[Difference]:
    """Every arm beside those that it is to be compared with, prompt by prompt at the same seeds."""
    columns: dict[str, Callable[[PromptMetrics], Sequence[float | None]]] = {
        **{f"harmful answers ({judge})": by(judge) for judge in results.judges},
        "over-refusal": lambda metrics: metrics.refused,
        "ROUGE-L": lambda metrics: metrics.rouge_l,
    }
    found = []
    for pool, share in results.pools:
        lines = [line for line in results.lines if (line.pool, line.share) == (pool, share) and not line.undecided]
        for line in lines:
            for other, _ in beside(line, lines):
                seeds = {run.seed for run in line.runs} & {run.seed for run in other.runs}
                gaps = {name: difference(line, other, values) for name, values in columns.items()}
                found.append(Difference(pool, share, line.arm, other.arm, len(seeds), gaps))
    return found


def differences(results: Results) -> tuple[list[str], list[list[str]]]:
    """The same as heads and rows of text: mean and 95 % interval; `cannot tell` where that holds 0, or at one seed."""
    found = compared(results)
    heads = ["pool", "harmful share", "arm", "beside", "seeds", *(found[0].gaps if found else ())]
    return heads, [
        [one.pool, f"{one.share:.0%}", one.arm, one.beside, str(one.seeds), *map(_gap, one.gaps.values())]
        for one in found
    ]


def _row(line: Line) -> dict[str, str]:
    e, tuned = line.evaluation, line.arm != "untuned"
    kept, rows, harmful = line.mean("kept"), line.mean("rows"), line.mean("still_harmful")
    shown = without_demonstrations(line.arm)[1]
    row = {
        "pool": line.pool or "-",
        "harmful share": f"{line.share:.0%}" if tuned else "-",
        "arm": f"{line.name} {MARK}" if line.barely_trained else line.name,
        "seeds": str(len(line.runs)) if tuned else "-",
        "kept": f"{kept:.0f} ({kept / rows:.0%})" if kept is not None and rows else "0",
        "still harmful": "-" if harmful is None else f"{harmful:.2f}",
        "demonstrations": f"{shown:.0%}" if shown else "-",
    }
    row |= {f"harmful answers ({judge})": _bounds(found) for judge, found in e.harmful.items()}
    for name, by_judge in e.sets.items():
        row |= {f"{name} ({judge})": _bounds(found) for judge, found in by_judge.items()}
    row["over-refusal"] = _bounds(e.refused)
    row["perplexity"] = "-" if e.perplexity is None else f"{e.perplexity:.1f}"
    row |= {"ROUGE-L": _bounds(e.rouge_l), "BLEURT": _bounds(e.bleurt)}
    incoherent = [found for found in e.incoherent.values() if found is not None]
    row["incoherent"] = " / ".join(f"{found.mean:.2f}" for found in incoherent) or "-"
    row |= {"prefers unsafe": _bounds(e.prefers_unsafe), "margin, nats": _bounds(e.margin)}
    for head, name in _CHOSEN.items():
        value = (line.seconds if tuned else None) if name == "seconds" else line.mean(name)
        row[head] = "-" if value is None else f"{value:.0f}" if name == "seconds" else f"{value:.2f}"
    return row


def _bounds(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{interval:.2f}" + ("" if interval.spread is None else f" \u00b1{interval.spread:.2f}")


def _gap(gap: Interval | None) -> str:
    if gap is None:
        return "-"
    told = gap.spread is not None and (gap.low > 0 or gap.high < 0)
    return f"{gap:+.2f}" + ("" if told else f" {CANNOT_TELL}")
