"""The contamination experiment: pools, arms, models, figures; a JSON file a run, none done twice."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from saft_hf.evaluate.arms import select, selection_figures
from saft_hf.evaluate.config import ExperimentConfig, digest, model_identity, same_size_as
from saft_hf.evaluate.examiner import ALGORITHM, Examiner
from saft_hf.evaluate.pools import Pool, Source
from saft_hf.evaluate.probe import probe
from saft_hf.evaluate.tuning import Tuned, load, tuned
from saft_hf.files import replacing
from saft_hf.version import __version__

logger = logging.getLogger(__name__)

RUNS, MODELS, PROBES, SETTING = "runs", "models", "probes", "experiment.json"


@dataclass(frozen=True)
class Cell:
    """A pool of one kind, harmful share and seed."""

    pool: str
    share: float
    seed: int


class Experiment:
    """All arms on all pools at all seeds.

    Every run (an arm on a pool at a seed) is a file in `runs/`, named by all that it depends on; what a tuned model
    does is a file in `models/`, named by the rows, the seed and the options it was trained with. So arms that keep the
    same rows share one training, and a run that is stopped goes on where it was. No file holds text.

    Args:
        config: what to do.
        source: the rows.

    Example:
        >>> Experiment(config, source).run()  # doctest: +SKIP
    """

    def __init__(self, config: ExperimentConfig, source: Source) -> None:
        config.check()
        self.config = config
        self.source = source
        self.examiner = Examiner(config, source)
        self.folder = Path(config.output_dir or "")
        for name in (RUNS, MODELS, PROBES):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    # -- what there is ---------------------------------------------------------------------------------------------

    @cached_property
    def _base(self) -> list[Any]:
        """What every name depends on."""
        return [
            ALGORITHM,
            __version__,
            model_identity(self.config.model_name_or_path or "", self.config.model_revision),
        ]

    def cells(self) -> Iterator[Cell]:
        """Every pool; all of one seed before the next, so that a run that is stopped has whole seeds."""
        for seed in self.config.seeds:
            for share in self.config.shares:
                for pool in self.config.pools:
                    yield Cell(pool, share, seed)

    def draw(self, cell: Cell) -> Pool:
        """The rows of a cell, and which of them are labelled."""
        c = self.config
        return self.source.pool(cell.pool, cell.share, c.rows, c.labels, c.demonstrations, cell.seed)

    # -- do it -----------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Do every run that is not there yet.

        Returns:
            The folder, with `experiment.json`, and a file a run.

        Raises:
            SAFTInputError: data and options do not go together.
        """
        c = self.config
        untuned = self._model(None, 0) if "untuned" in c.arms else None
        probes = [self._probe(Cell(pool, share, c.seeds[0])) for share in c.shares for pool in c.pools]
        runs: list[str] = []
        arms = sorted((arm for arm in c.arms if arm != "untuned"), key=lambda arm: arm.startswith("random"))
        for cell in self.cells():
            pool = self.draw(cell)
            kept: dict[str, int] = {}
            for arm in arms:
                name, selection = self._run(cell, pool, arm, kept.get(same_size_as(arm)))
                kept[arm] = selection["kept"]
                runs.append(name)
                self._write_setting(untuned, runs, probes)
        return self.folder

    def _run(self, cell: Cell, pool: Pool, arm: str, size: int | None) -> tuple[str, dict[str, Any]]:
        c = self.config
        rows = digest([[row.messages, row.harmful] for row in pool.rows])
        options = [c.asked_model] if arm == "ask" else [c.dtype, c.layer if arm == "saft" else size]
        drawn = [asdict(cell), rows, pool.labelled.tolist()]
        name = digest([*self._base, drawn, arm, options, c.training, c.lora, self.examiner.digest])
        path = self.folder / RUNS / f"{name}.json"
        if path.exists() and (self.folder / MODELS / f"{(done := read_json(path))['model']}.json").exists():
            return name, done["selection"]
        selection = select(arm, pool, c, cell.seed, size)
        figures = selection_figures(selection, pool)
        logger.info("%s %s: %d of %d rows kept. %s", cell, arm, figures["kept"], len(pool.rows), selection.note)
        scores = selection.scores
        content = {
            **asdict(cell),
            "arm": arm,
            "selection": figures,
            "model": self._model([pool.rows[i] for i in selection.kept], cell.seed, filtered=arm != "none"),
            "scores": None if scores is None else [None if np.isnan(s) else float(s) for s in scores],
            "truth": None if scores is None else pool.harmful.astype(int).tolist(),
        }
        write_json(path, content)
        return name, figures

    def _model(self, rows: list[Any] | None, seed: int, *, filtered: bool = False) -> str:
        """Train on rows, or on none, and measure; by name where that was done before."""
        c = self.config
        content = None if rows is None else [row.messages for row in rows]
        tuning = None if rows is None else [seed, c.training, c.lora]
        name = digest([*self._base, c.dtype, content, tuning, self.examiner.digest])
        path = self.folder / MODELS / f"{name}.json"
        if path.exists():
            return name
        keep = c.keep_models == "all" or (c.keep_models == "filtered" and filtered)
        if rows is None:
            self._measure(load(c), path)
        else:
            with tuned(c, rows, seed, self.folder / "checkpoints" / name if keep else None) as model:
                self._measure(model, path)
        gc.collect()
        return name

    def _measure(self, model: Tuned, path: Path) -> None:
        c = self.config
        measured = self.examiner.examine(model.model, model.tokenizer)
        if c.keep_text:
            (self.folder / "texts").mkdir(exist_ok=True)
            write_json(self.folder / "texts" / path.name, measured.texts)
        write_json(path, {**model.facts, "figures": measured.figures})

    def _probe(self, cell: Cell) -> str:
        c = self.config
        pool = self.draw(cell)
        rows = digest([[row.messages, row.harmful] for row in pool.rows])
        name = digest([*self._base, asdict(cell), rows, pool.labelled.tolist(), c.layer, c.max_length])
        path = self.folder / PROBES / f"{name}.json"
        if not path.exists():
            write_json(path, {**asdict(cell), **probe(load(c), pool, c)})
        return name

    def _write_setting(self, untuned: str | None, runs: list[str], probes: list[str]) -> None:
        """What belongs together: a folder may hold runs of other options too."""
        content = {
            "config": asdict(self.config),
            "version": __version__,
            "held_out": self.examiner.counts,
            "trained_judge": self.examiner.accuracy,
            "untuned": untuned,
            "runs": runs,
            "probes": probes,
        }
        write_json(self.folder / SETTING, content)


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that `write_json` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file: the whole of it, or nothing."""
    with replacing(path) as [file]:
        file.write((json.dumps(content, sort_keys=True, allow_nan=False) + "\n").encode())
