"""From the files of an experiment to a table: a line for each arm on each pool, over its seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saft_hf.evaluate.bootstrap import Interval, mean_interval
from saft_hf.evaluate.config import ARMS, same_size_as
from saft_hf.evaluate.experiment import MODELS, PROBES, RUNS, SETTING, read_json
from saft_hf.evaluate.measure import summarise, verdict_table

_BARELY_KEPT = 0.25
"""An arm that keeps a smaller share of the pool than this is marked."""
_BARELY_MOVED = 0.25
"""So is one that moves the model less than this share of the way that training on all rows moves it."""

_CHOSEN = ("still_harmful", "precision", "recall", "demonstrations_kept", "auroc")

_FILTERS = ("ask", "saft", "auto", "reference")

MARK = "\u2020"


@dataclass
class Line:
    """One arm on one kind of pool at one harmful share.

    Attributes:
        pool: `hard` or `easy`; "" for the untuned model.
        share: harmful share of the pool.
        arm: its name.
        seeds: those that are done.
        runs: content of their files.
        models: content of the files of their models.
        summary: of all seeds together (`summarise`).
        barely_trained: why its harmfulness says little; "" where it was trained like the others.
    """

    pool: str
    share: float
    arm: str
    seeds: list[int]
    runs: list[dict[str, Any]]
    models: list[dict[str, Any]]
    summary: dict[str, Any]
    barely_trained: str = ""

    def mean(self, name: str) -> float | None:
        """Mean of a figure of the selection over the seeds that have it."""
        values = [run["selection"][name] for run in self.runs if run["selection"][name] is not None]
        return float(np.mean(values)) if values else None

    @property
    def seconds(self) -> float:
        """Mean seconds to choose rows and to train on them."""
        spent = [
            run["selection"]["seconds"] + model["train_seconds"]
            for run, model in zip(self.runs, self.models, strict=False)
        ]
        return float(np.mean(spent)) if spent else 0.0

    @property
    def notes(self) -> list[str]:
        """What readers must know of single seeds."""
        told = [f"seed {run['seed']}: {run['selection']['note']}" for run in self.runs if run["selection"]["note"]]
        return told + ([self.barely_trained] if self.barely_trained else [])


@dataclass
class Results:
    """All that an experiment found.

    Attributes:
        setting: `experiment.json`.
        lines: the untuned model first, then pool by pool, arms in the order of `ARMS`.
        probes: content of the files of `probes/`, pool by pool.
    """

    setting: dict[str, Any]
    lines: list[Line]
    probes: list[dict[str, Any]]

    @property
    def judges(self) -> list[str]:
        """Names of the judges."""
        return list(self.setting["config"]["judges"])

    def line(self, pool: str, share: float, arm: str) -> Line | None:
        """One line, or None where nothing of it is done."""
        return next((line for line in self.lines if (line.pool, line.share, line.arm) == (pool, share, arm)), None)

    @property
    def untuned(self) -> Line | None:
        """The line of the untuned model."""
        return self.line("", 0.0, "untuned")

    @property
    def cells(self) -> list[tuple[str, float]]:
        """(pool, share) of which something is done, in order."""
        return sorted({(line.pool, line.share) for line in self.lines if line.pool})


def read_results(folder: Path) -> Results:
    """Read what is there; an experiment that is not finished gives what is done."""
    setting = read_json(folder / SETTING)
    models: dict[str, dict[str, Any]] = {}

    def model(name: str) -> dict[str, Any]:
        if name not in models:
            models[name] = read_json(folder / MODELS / f"{name}.json")
        return models[name]

    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = defaultdict(list)
    for name in setting["runs"]:
        run = read_json(folder / RUNS / f"{name}.json")
        groups[run["pool"], run["share"], run["arm"]].append(run)
    lines = []
    if setting["untuned"]:
        lines.append(_line("", 0.0, "untuned", [], [model(setting["untuned"])]))
    for pool, share, arm in sorted(groups, key=lambda key: (key[0], key[1], _place(key[2]))):
        runs = groups[pool, share, arm]
        lines.append(_line(pool, share, arm, runs, [model(run["model"]) for run in runs]))
    probes = [read_json(folder / PROBES / f"{name}.json") for name in setting["probes"]]
    results = Results(setting, lines, sorted(probes, key=lambda found: (found["pool"], found["share"])))
    for line in lines:
        line.barely_trained = _barely_trained(line, results)
    return results


def _line(pool: str, share: float, arm: str, runs: list[dict[str, Any]], models: list[dict[str, Any]]) -> Line:
    seeds = [run["seed"] for run in runs]
    return Line(pool, share, arm, seeds, runs, models, summarise([one["figures"] for one in models]))


def _place(arm: str) -> tuple[int, str]:
    return ARMS.index(arm.partition(":")[0]), arm


def _barely_trained(line: Line, results: Results) -> str:
    """Why an arm looks like the untuned model whatever its rows; "" where it does not.

    How far training moved a model is taken from its log-perplexity on held-out harmless rows, for which every arm has
    the same reference answers.
    """
    if line.arm == "untuned":
        return "not tuned"
    rows, kept = line.mean("rows"), line.mean("kept")
    if rows and kept is not None and kept < _BARELY_KEPT * rows:
        return f"keeps {kept:.0f} of {rows:.0f} rows: barely trained"
    everything, untuned = results.line(line.pool, line.share, "none"), results.untuned
    levels = [one.summary["log_perplexity"] for one in (line, everything, untuned) if one is not None]
    if len(levels) < 3 or None in levels or line.arm == "none":
        return ""
    moved, whole = levels[0] - levels[2], levels[1] - levels[2]
    if abs(moved) < _BARELY_MOVED * abs(whole):
        return f"moved {abs(moved / whole):.0%} as far from the untuned model as training on all rows: barely trained"
    return ""


# -- in words ----------------------------------------------------------------------------------------------------------


def verdicts(results: Results) -> list[str]:
    """What the figures say, in words: each filter against none and against a random one of its size, and the bound."""
    told = []
    arms = results.setting["config"]["arms"]
    for pool, share in results.cells:
        for judge in results.judges:
            for arm in arms:
                others = {name: "a random filter of the same size" for name in arms if _is_random_for(name, arm)}
                if arm in _FILTERS:
                    others["none"] = "no filter"
                found = (_against(results, pool, share, arm, other, words, judge) for other, words in others.items())
                told += [sentence for sentence in found if sentence]
            told += _bound(results, pool, share, judge)
    return told


def _is_random_for(name: str, arm: str) -> bool:
    return name.startswith("random") and same_size_as(name) == arm


def _against(results: Results, pool: str, share: float, arm: str, other: str, words: str, judge: str) -> str | None:
    like, beside = results.line(pool, share, arm), results.line(pool, share, other)
    if like is None or beside is None:
        return None
    one, two, gap = _interval(like, judge), _interval(beside, judge), _difference(like, beside, judge)
    if one is None or two is None or gap is None:
        return None
    word = "better" if gap.high < 0 else "worse" if gap.low > 0 else "no better"
    told = (
        f"{pool} pool, {share:.0%} harmful, judge {judge}: {arm} does {word} than {words} "
        f"({_shown(one)} against {_shown(two)}, difference {_shown(asdict(gap))}; {like.mean('kept'):.0f} rows kept)."
    )
    return f"{told} {MARK} {like.barely_trained}." if like.barely_trained else told


def _bound(results: Results, pool: str, share: float, judge: str) -> list[str]:
    """Arms whose models are judged less harmful than the oracle's: chance, or little training."""
    oracle = results.line(pool, share, "oracle")
    if oracle is None:
        return []
    told = []
    for line in results.lines:
        if (line.pool, line.share) != (pool, share) or line.arm in ("oracle", "untuned"):
            continue
        gap = _difference(line, oracle, judge)
        if gap is not None and gap.mean < 0:
            told.append(
                f"{pool} pool, {share:.0%} harmful, judge {judge}: {line.arm} lies below the oracle, "
                f"{'beyond' if gap.high < 0 else 'within'} chance (difference {_shown(asdict(gap))})"
                + (f"; {MARK} {line.barely_trained}." if line.barely_trained else ".")
            )
    return told


def _difference(one: Line, other: Line, judge: str) -> Interval | None:
    """How many more answers are harmful, prompt by prompt at the same seeds; None where nothing can be compared."""
    both = sorted(set(one.seeds) & set(other.seeds))
    tables = []
    for line in (one, other):
        models = dict(zip(line.seeds, line.models, strict=True))
        tables.append(verdict_table([models[seed]["figures"] for seed in both], judge))
    found = mean_interval(tables[0] - tables[1]) if both and tables[0].size else None
    return None if found is None or np.isnan(found.mean) else found


def _interval(line: Line, judge: str) -> dict[str, float] | None:
    found: dict[str, float] | None = line.summary["harmful"].get(judge)
    return found


def _shown(interval: dict[str, Any]) -> str:
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


# -- as rows of text ---------------------------------------------------------------------------------------------------


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The table: heads and rows, as text. Shares are of one; intervals are 95 %."""
    has_bleurt = any(line.summary["bleurt"] for line in results.lines)
    heads = ["pool", "harmful share", "arm", "seeds", "kept"]
    heads += [f"harmful answers ({judge})" for judge in results.judges]
    heads += ["perplexity", "ROUGE-L", *(["BLEURT"] if has_bleurt else []), "over-refusal", "prefers unsafe"]
    heads += ["margin, nats", "still harmful", "precision", "recall", "demonstrations kept", "AUROC", "seconds"]
    return heads, [_cells(line, results, heads) for line in results.lines]


def _cells(line: Line, results: Results, heads: Sequence[str]) -> list[str]:
    summary, tuned = line.summary, line.arm != "untuned"
    chosen = [line.mean(name) if tuned else None for name in _CHOSEN]
    kept, rows = (line.mean("kept"), line.mean("rows")) if tuned else (None, None)
    return [
        line.pool or "-",
        f"{line.share:.0%}" if tuned else "-",
        f"{line.arm} {MARK}" if line.barely_trained else line.arm,
        str(len(line.seeds)) if tuned else "-",
        f"{kept:.0f} ({kept / rows:.0%})" if kept is not None and rows else "0",
        *(_bounds(summary["harmful"][judge]) for judge in results.judges),
        "-" if summary["perplexity"] is None else f"{summary['perplexity']:.1f}",
        _bounds(summary["rouge_l"]),
        *([_bounds(summary["bleurt"])] if "BLEURT" in heads else []),
        _bounds(summary["refused"]),
        _bounds(summary["prefers_unsafe"]),
        _bounds(summary["margin"]),
        *map(_number, chosen),
        f"{line.seconds:.0f}" if tuned else "-",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _bounds(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "-"
    spread = "" if interval["spread"] is None else f" \u00b1{interval['spread']:.2f}"
    return f"{_shown(interval)}{spread}"
