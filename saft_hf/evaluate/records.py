"""The files of an experiment, one record a file. They hold no text of rows or answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from saft_hf.evaluate.config import ExperimentConfig
from saft_hf.evaluate.judges import JudgeAccuracy
from saft_hf.evaluate.metrics import PromptMetrics

T = TypeVar("T")

RUNS, MODELS, PROBES, EXPERIMENT_FILE = "runs", "models", "probes", "experiment.json"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A pool of one kind, harmful share and seed."""

    pool: str
    share: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class SelectionMetrics:
    """How well an arm chose; shares and rates are None where nothing can be divided.

    Attributes:
        rows: of the pool.
        kept: kept ones among them.
        still_harmful: harmful share of the kept rows.
        precision: of "removed" for "harmful".
        recall: likewise.
        benign_kept: share of the harmless rows that is kept.
        demonstrations: rows that show a safe refusal.
        demonstrations_kept: share of them that is kept.
        auroc: of the score, on the rows that the filter saw no label of.
        seconds: that choosing took.
        note: what a reader must know, such as that the filter could not decide; or "".
        threshold: rows with a score above it are removed.
        method: how the score was found.
        layers: that the score reads.
        readouts: that it reads.
        undecided: whether the filter could take no decision by the scores.
    """

    rows: int
    kept: int
    still_harmful: float | None
    precision: float | None
    recall: float | None
    benign_kept: float | None
    demonstrations: int
    demonstrations_kept: float | None
    auroc: float | None
    seconds: float
    note: str
    threshold: float | None
    method: str | None
    layers: list[int]
    readouts: list[str]
    undecided: bool = False


@dataclass(frozen=True, kw_only=True)
class Run(Condition):
    """An arm on a pool: a file of `runs/`.

    Attributes:
        arm: its name.
        selection: how well it chose.
        model: name of the file of its model.
        scores: one a row, None where there is none; None where the arm has no scores.
        truth: 1 for a harmful row; None where the arm has no scores.
    """

    arm: str
    selection: SelectionMetrics
    model: str
    scores: list[float | None] | None
    truth: list[int] | None


@dataclass(frozen=True)
class Training:
    """How a model was trained; all zero for one that was not."""

    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What a model did after training, or as it was: a file of `models/`."""

    training: Training
    metrics: PromptMetrics


@dataclass(frozen=True, kw_only=True)
class Probe(Condition):
    """Where in a model harm shows on a pool: a file of `probes/`.

    Attributes:
        layers: that were read.
        layer: of the projection.
        auroc: score -> readout -> one value a layer, for `energy` (the published score with k = 1) and `difference`
            (projection on the difference of class means of the labelled rows).
        projection: each row on the first two principal directions at the published readout.
        truth: 1 for a harmful row, in the same order.
        explained: share of variance along each direction.
    """

    layers: list[int]
    layer: int
    auroc: dict[str, dict[str, list[float | None]]]
    projection: list[list[float]]
    truth: list[int]
    explained: list[float]


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord:
    """What belongs together, for a folder may hold runs of other options too: `experiment.json`.

    Attributes:
        config: of the experiment.
        version: of saft_hf.
        held_out: kind -> how many questions a model was asked.
        judges: name of a judge that was fitted here -> how good it is.
        untuned: name of the file of the untuned model; None where that is no arm.
        runs: names of the files of the runs that are done.
        probes: names of the files of the probes.
    """

    config: ExperimentConfig
    version: str
    held_out: dict[str, int]
    judges: dict[str, JudgeAccuracy]
    untuned: str | None
    runs: list[str]
    probes: list[str]


def read_record(kind: type[T], path: Path) -> T:
    """Read one of these files. `from_plain` is for files of strangers, and refuses lists as long as a pool."""
    result: T = _record(kind, json.loads(path.read_text(encoding="utf-8")))
    return result


def _record(kind: Any, value: Any) -> Any:
    inner = next((one for one in (kind, *get_args(kind)) if is_dataclass(one)), None)
    if inner is None or value is None:
        return value
    if get_origin(kind) is dict:
        return {name: _record(inner, item) for name, item in value.items()}
    hints = get_type_hints(inner)
    return inner(**{name: _record(hints.get(name), item) for name, item in value.items()})  # type: ignore[operator]
