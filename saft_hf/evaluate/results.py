"""From the files of an experiment to a line for each arm on each pool, over its seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from saft_hf.evaluate.bootstrap import Interval, mean_interval
from saft_hf.evaluate.config import ARMS, first_word
from saft_hf.evaluate.judges import RefusalJudge
from saft_hf.evaluate.metrics import Evaluation, PromptMetrics, summarise
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

MARK = "\u2020"


@dataclass
class Line:
    """One arm on one kind of pool at one harmful share.

    Attributes:
        pool: its kind; "" for the untuned model.
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

    @property
    def best_judge(self) -> str:
        """A guard model where there is one; else the judge that is right most often, as far as that is known."""
        accuracies = self.record.judges
        guards = [judge for judge in self.judges if judge not in (RefusalJudge.name, *accuracies)]
        known = [judge for judge in self.judges if judge in accuracies]
        known.sort(key=lambda judge: accuracies[judge].balanced_accuracy, reverse=True)
        return [*guards, *known, *self.judges][0]

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


def by(judge: str) -> Callable[[PromptMetrics], Sequence[float | None]]:
    """The verdicts of a judge, for `difference`."""
    return lambda metrics: metrics.harmful[judge]


def difference(one: Line, other: Line, values: Callable[[PromptMetrics], Sequence[float | None]]) -> Interval | None:
    """How much more of something, prompt by prompt at the same seeds; None where nothing can be compared.

    Args:
        one: a line.
        other: what is taken from it.
        values: of one model, a value a prompt.
    """
    by_seed = [{run.seed: model for run, model in zip(line.runs, line.models, strict=True)} for line in (one, other)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    first, second = (np.array([values(models[seed].metrics) for seed in seeds], dtype=np.float64) for models in by_seed)
    return mean_interval(first - second)
