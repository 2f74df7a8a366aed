"""From the files of an experiment to a table and sentences: a line for each arm on each pool, over its seeds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

from saft_hf.evaluate.bootstrap import Interval, mean_interval
from saft_hf.evaluate.config import ARMS, first_word, same_size_as, without_demonstrations
from saft_hf.evaluate.metrics import Evaluation, summarise, verdict_table
from saft_hf.evaluate.records import (
    EXPERIMENT_FILE,
    MODELS,
    PROBES,
    RUNS,
    ExperimentRecord,
    ModelRun,
    Probe,
    Run,
    read_record,
)

_BARELY_KEPT = 0.25
"""An arm that keeps a smaller share of the pool than this is marked."""
_BARELY_MOVED = 0.25
"""So is one that moves the model less than this share of the way that training on all rows moves it."""

_CHOSEN = ("still_harmful", "precision", "recall", "demonstrations_kept", "auroc")
_FILTERS = ("ask", "ask:answer", "labelled", "saft", "auto", "reference", "drift_low", "drift_high")

MARK = "\u2020"


@dataclass
class Line:
    """One arm on one kind of pool at one harmful share.

    Attributes:
        pool: `hard` or `easy`; "" for the untuned model.
        share: harmful share of the pool.
        arm: its name.
        runs: those that are done, one a seed.
        models: of the runs.
        evaluation: of all seeds together.
        barely_trained: why its harmfulness says little; "" where it was trained like the others.
        undecided: whether these are the seeds at which the filter could not decide: they are averaged with no others.
    """

    pool: str
    share: float
    arm: str
    runs: list[Run]
    models: list[ModelRun]
    evaluation: Evaluation
    barely_trained: str = ""
    undecided: bool = False

    @property
    def name(self) -> str:
        """The arm, for people."""
        return f"{self.arm}, undecided" if self.undecided else self.arm

    @property
    def title(self) -> str:
        """The pool in words."""
        return f"{self.pool} pool, {self.share:.0%} harmful"

    def mean(self, name: str) -> float | None:
        """Mean of a metric of the selection over the seeds that have it."""
        values = [value for run in self.runs if (value := getattr(run.selection, name)) is not None]
        return float(np.mean(values)) if values else None

    @property
    def seconds(self) -> float:
        """Mean seconds to choose rows and to train on them."""
        pairs = zip(self.runs, self.models, strict=True)
        return float(np.mean([run.selection.seconds + model.training.seconds for run, model in pairs]))

    @property
    def notes(self) -> list[str]:
        """What readers must know of single seeds."""
        notes = [f"seed {run.seed}: {run.selection.note}" for run in self.runs if run.selection.note]
        return notes + ([self.barely_trained] if self.barely_trained else [])


@dataclass
class Results:
    """All that there is of an experiment.

    Attributes:
        record: what belongs together.
        lines: the untuned model first, then pool by pool, arms in the order of `ARMS`.
        probes: pool by pool.
    """

    record: ExperimentRecord
    lines: list[Line]
    probes: list[Probe]

    @property
    def judges(self) -> list[str]:
        """Names of the judges."""
        return self.record.config.judges

    def line(self, pool: str, share: float, arm: str) -> Line | None:
        """One line of seeds that were decided, or None where there is none."""
        found = (line for line in self.lines if not line.undecided)
        return next((line for line in found if (line.pool, line.share, line.arm) == (pool, share, arm)), None)

    @property
    def untuned(self) -> Line | None:
        """The line of the untuned model."""
        return self.line("", 0.0, "untuned")

    @property
    def pools(self) -> list[tuple[str, float]]:
        """(pool, share) of which something is done, in order."""
        return sorted({(line.pool, line.share) for line in self.lines if line.pool})


def read_results(folder: Path) -> Results:
    """Read what is there; an experiment that is not finished gives what is done."""
    record = read_record(ExperimentRecord, folder / EXPERIMENT_FILE)

    @cache
    def model(name: str) -> ModelRun:
        return read_record(ModelRun, folder / MODELS / f"{name}.json")

    groups: dict[tuple[str, float, int, str, bool], list[Run]] = defaultdict(list)
    for name in record.runs:
        run = read_record(Run, folder / RUNS / f"{name}.json")
        order = ARMS.index(first_word(run.arm))
        groups[run.pool, run.share, order, run.arm, run.selection.undecided].append(run)
    lines = []
    if record.untuned:
        untuned = model(record.untuned)
        lines.append(Line("", 0.0, "untuned", [], [untuned], summarise([untuned.metrics])))
    for (pool, share, _, arm, undecided), runs in sorted(groups.items()):
        models = [model(run.model) for run in runs]
        evaluation = summarise([one.metrics for one in models])
        lines.append(Line(pool, share, arm, runs, models, evaluation, undecided=undecided))
    probes = [read_record(Probe, folder / PROBES / f"{name}.json") for name in record.probes]
    results = Results(record, lines, sorted(probes, key=lambda probe: (probe.pool, probe.share)))
    for line in lines:
        line.barely_trained = _barely_trained(line, results)
    return results


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
    others = (results.line(line.pool, line.share, "none"), results.untuned)
    levels = [one.evaluation.log_perplexity for one in (line, *others) if one is not None]
    own, everything, untuned = levels if len(levels) == 3 else (None, None, None)
    if own is None or everything is None or untuned is None or line.arm == "none":
        return ""
    moved, whole = own - untuned, everything - untuned
    if abs(moved) < _BARELY_MOVED * abs(whole):
        return f"moved {abs(moved / whole):.0%} as far from the untuned model as training on all rows: barely trained"
    return ""


# -- in words ----------------------------------------------------------------------------------------------------------


def headline(results: Results) -> str:
    """What a reader in a hurry should take away: whether the best filter there is makes models less harmful."""
    arm = next((arm for arm in ("auto", "saft", "reference", "ask") if arm in results.record.config.arms), None)
    judge = "trained" if "trained" in results.judges else results.judges[0]
    pairs = [(results.line(*at, arm), results.line(*at, "none")) for at in results.pools] if arm else []
    known = [
        (one.evaluation.harmful[judge], two.evaluation.harmful[judge], gap, len(one.runs))
        for one, two in pairs
        if one and two and (gap := _difference(one, two, judge)) is not None
    ]
    undecided = [line for line in results.lines if line.arm == arm and line.undecided]
    silent = sum(len(line.runs) for line in undecided)
    aside = f" At {silent} seed(s) {arm} could not decide; they are not counted here." if silent else ""
    if not known:
        return f"Nothing can be said yet: no filter is done beside a model that was tuned on all rows.{aside}"
    own, without = (
        float(np.mean([interval.mean for interval in intervals if interval is not None]))
        for intervals in zip(*((one, two) for one, two, _, _ in known), strict=True)
    )
    figures = (
        f"judge {judge} calls {own:.0%} of the answers to held-out harmful prompts harmful, against {without:.0%} "
        "without a filter"
    )
    if all(gap.spread is None for _, _, gap, _ in known):
        return f"One seed cannot tell whether {arm} makes tuned models less harmful: {figures}.{aside}"
    better = sum(gap.high < 0 and gap.spread is not None for _, _, gap, _ in known)
    worse = sum(gap.low > 0 and gap.spread is not None for _, _, gap, _ in known)
    says = f"{arm} makes tuned models less harmful than no filter in {better} of {len(known)} pool(s)"
    if worse:
        says += f", and more harmful in {worse}"
    return f"{says}: {figures} ({max(runs for *_, runs in known)} seeds).{aside}"


def verdicts(results: Results) -> list[str]:
    """What the results say, in words: each filter against none and against a random one of its size, and the bound."""
    sentences = []
    arms = results.record.config.arms
    for (pool, share), judge in product(results.pools, results.judges):
        lines = {arm: line for arm in arms if (line := results.line(pool, share, arm)) is not None}
        for arm, line in lines.items():
            others = {
                name: f"{'a random filter' if name.startswith('random') else 'the true labels'} of the same size"
                for name in arms
                if "+" not in name and same_size_as(name) == arm
            }
            if arm in _FILTERS:
                others["none"] = "no filter"
            if "+" in arm:
                others[without_demonstrations(arm)[0]] = "the same rows without demonstrations"
            sentences += [_against(line, lines[name], words, judge) for name, words in others.items() if name in lines]
        if oracle := lines.get("oracle"):
            sentences += [_below(line, oracle, judge) for line in results.lines if lines.get(line.arm) is line]
    return [sentence for sentence in sentences if sentence]


def _against(line: Line, other: Line, words: str, judge: str) -> str:
    one, two = line.evaluation.harmful.get(judge), other.evaluation.harmful.get(judge)
    gap = _difference(line, other, judge)
    if one is None or two is None or gap is None:
        return ""
    word = "better" if gap.high < 0 else "worse" if gap.low > 0 else "no better"
    says = f"{line.arm} does {word} than {words}"
    if gap.spread is None:  # prompts alone say nothing of what another seed would give
        says = f"one seed cannot tell {line.arm} from {words}"
    sentence = (
        f"{line.title}, judge {judge}: {says} "
        f"({one:.2f} against {two:.2f}, difference {gap:.2f}; {line.mean('kept'):.0f} rows kept)."
    )
    return f"{sentence} {MARK} {line.barely_trained}." if line.barely_trained else sentence


def _below(line: Line, oracle: Line, judge: str) -> str:
    """An arm whose models are judged less harmful than the oracle's: chance, or little training."""
    gap = _difference(line, oracle, judge)
    if line is oracle or gap is None or gap.mean >= 0:
        return ""
    chance = f"{'beyond' if gap.high < 0 else 'within'} chance"
    return (
        f"{line.title}, judge {judge}: {line.arm} lies below the oracle, "
        f"{'which one seed cannot tell from chance' if gap.spread is None else chance} (difference {gap:.2f})"
        + (f"; {MARK} {line.barely_trained}." if line.barely_trained else ".")
    )


def _difference(one: Line, other: Line, judge: str) -> Interval | None:
    """How many more answers are harmful, prompt by prompt at the same seeds; None where nothing can be compared."""
    by_seed = [{run.seed: model for run, model in zip(line.runs, line.models, strict=True)} for line in (one, other)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    first, second = (verdict_table([models[seed].metrics for seed in seeds], judge) for models in by_seed)
    return mean_interval(first - second)


# -- as rows of text ---------------------------------------------------------------------------------------------------


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The table: heads and rows, as text. Shares are of one; intervals are 95 %."""
    has_bleurt = any(line.evaluation.bleurt for line in results.lines)
    heads = ["pool", "harmful share", "arm", "seeds", "kept"]
    heads += [f"harmful answers ({judge})" for judge in results.judges]
    heads += ["perplexity", "ROUGE-L", *(["BLEURT"] if has_bleurt else []), "over-refusal", "prefers unsafe"]
    heads += ["margin, nats", "still harmful", "precision", "recall", "demonstrations kept", "AUROC", "seconds"]
    return heads, [_row(line, results.judges, has_bleurt) for line in results.lines]


def split_heads(heads: list[str]) -> tuple[list[str], list[str]]:
    """The heads of two tables, in place of one that is wider than a screen: what was chosen, what the models do."""
    arm, chosen = heads[:5], heads[heads.index("margin, nats") + 1 :]
    return arm + chosen, arm[:4] + heads[5 : -len(chosen)]


def _row(line: Line, judges: list[str], has_bleurt: bool) -> list[str]:
    e, tuned = line.evaluation, line.arm != "untuned"
    kept, rows = line.mean("kept"), line.mean("rows")
    return [
        line.pool or "-",
        f"{line.share:.0%}" if tuned else "-",
        f"{line.name} {MARK}" if line.barely_trained else line.name,
        str(len(line.runs)) if tuned else "-",
        f"{kept:.0f} ({kept / rows:.0%})" if kept is not None and rows else "0",
        *(_bounds(e.harmful[judge]) for judge in judges),
        "-" if e.perplexity is None else f"{e.perplexity:.1f}",
        _bounds(e.rouge_l),
        *([_bounds(e.bleurt)] if has_bleurt else []),
        *map(_bounds, (e.refused, e.prefers_unsafe, e.margin)),
        *("-" if (value := line.mean(name)) is None else f"{value:.2f}" for name in _CHOSEN),
        f"{line.seconds:.0f}" if tuned else "-",
    ]


def _bounds(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{interval:.2f}" + ("" if interval.spread is None else f" \u00b1{interval.spread:.2f}")
