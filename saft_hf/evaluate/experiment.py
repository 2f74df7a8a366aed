"""The contamination experiment: pools, arms, models, metrics; a JSON file a run, none done twice."""

from __future__ import annotations

import gc
import logging
from dataclasses import asdict
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from saft_hf.demonstrations import BUILT_IN
from saft_hf.evaluate.arms import choose_rows, selection_metrics, with_demonstrations
from saft_hf.evaluate.config import (
    HARMLESS,
    ExperimentConfig,
    digest,
    first_word,
    model_identity,
    same_size_as,
    without_demonstrations,
)
from saft_hf.evaluate.examiner import PROTOCOL, Examiner
from saft_hf.evaluate.pools import Dialogue, DrawnPool, ExperimentRows
from saft_hf.evaluate.probe import probe
from saft_hf.evaluate.records import (
    EXPERIMENT_FILE,
    MODELS,
    PROBES,
    RUNS,
    Condition,
    ExperimentRecord,
    ModelRun,
    Run,
    SelectionMetrics,
    read_record,
)
from saft_hf.evaluate.tuning import Tuned, load, tuned
from saft_hf.files import write_json
from saft_hf.records import to_plain
from saft_hf.version import __version__

logger = logging.getLogger(__name__)


class Experiment:
    """All arms on all pools at all seeds.

    Every run (an arm on a pool at a seed) is a file in `runs/`, named by all that it depends on; what a tuned model
    does is a file in `models/`, named by the rows, the seed and the options it was trained with. So arms that keep the
    same rows share one training, and a run that is stopped goes on where it was. No file holds text.

    Args:
        config: what to do.
        rows: what pools, questions and judge rows are drawn from.

    Examples:
        >>> Experiment(config, rows).run()  # doctest: +SKIP
    """

    def __init__(self, config: ExperimentConfig, rows: ExperimentRows) -> None:
        config.check()
        self.config = config
        self.rows = rows
        self.examiner = Examiner(config, rows)
        self.folder = Path(config.output_dir or "")
        for name in (RUNS, MODELS, PROBES):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def run(self) -> Path:
        """Do every run that is not there yet.

        Returns:
            The folder, with `experiment.json`, and a file a run.

        Raises:
            SAFTInputError: data and options do not go together.
        """
        c = self.config
        untuned = self._model(None, 0) if "untuned" in c.arms else None
        probes = [
            self._probe(Condition(pool=kind, share=share, seed=c.seeds[0]))
            for kind, share in c.conditions
            if kind != HARMLESS
        ]
        runs: list[str] = []
        # All of one seed before the next, so that a run that is stopped has whole seeds.
        for seed, (kind, share) in product(c.seeds, c.conditions):
            condition = Condition(pool=kind, share=share, seed=seed)
            pool = self._draw(condition)
            kept: dict[str, int] = {}
            for arm in c.arms_on(kind):
                name, selection = self._run(condition, pool, arm, kept.get(same_size_as(arm) or ""))
                kept[arm] = selection.kept
                runs.append(name)
                record = ExperimentRecord(
                    config=c,
                    version=__version__,
                    held_out=self.examiner.counts,
                    judges=self.examiner.accuracies,
                    untuned=untuned,
                    runs=runs,
                    probes=probes,
                )
                write_json(self.folder / EXPERIMENT_FILE, to_plain(record))
        return self.folder

    @cached_property
    def _base(self) -> list[Any]:
        """What every name depends on."""
        c = self.config
        return [PROTOCOL, __version__, model_identity(c.model_name_or_path or "", c.model_revision)]

    def _draw(self, condition: Condition) -> DrawnPool:
        c = self.config
        return self.rows.pool(
            condition.pool, condition.share, c.rows, c.labelled_rows, c.demonstrations, condition.seed
        )

    def _run(self, condition: Condition, pool: DrawnPool, arm: str, size: int | None) -> tuple[str, SelectionMetrics]:
        c = self.config
        base, share = without_demonstrations(arm)
        options: list[Any] = [c.demonstrations_from if share else None]
        options += [c.asked_model] if first_word(base) == "ask" else [c.dtype, c.layer if base == "saft" else size]
        name = digest([*self._base, _drawn(condition, pool), arm, options, c.training, c.lora, self.examiner.digest])
        path = self.folder / RUNS / f"{name}.json"
        if path.exists() and (self.folder / MODELS / f"{(done := read_record(Run, path)).model}.json").exists():
            return name, done.selection
        chosen = choose_rows(base, pool, c, condition.seed, size)
        selection, scores = selection_metrics(chosen, pool), chosen.scores
        logger.info("%s %s: %d of %d rows kept. %s", condition, arm, selection.kept, selection.rows, chosen.note)
        given = None if c.demonstrations_from == BUILT_IN else self.rows.refusals_beside(pool)
        rows = with_demonstrations([pool.rows[i] for i in chosen.kept], share, given)
        run = Run(
            **vars(condition),
            arm=arm,
            selection=selection,
            model=self._model(rows, condition.seed, filtered=base != "none"),
            scores=None if scores is None else [None if np.isnan(s) else float(s) for s in scores],
            truth=None if scores is None else pool.harmful.astype(int).tolist(),
        )
        write_json(path, to_plain(run))
        return name, selection

    def _model(self, rows: list[Dialogue] | None, seed: int, *, filtered: bool = False) -> str:
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
        metrics, texts = self.examiner.examine(model.model, model.tokenizer)
        if self.config.keep_text:
            (self.folder / "texts").mkdir(exist_ok=True)
            write_json(self.folder / "texts" / path.name, texts)
        write_json(path, to_plain(ModelRun(training=model.training, metrics=metrics)))

    def _probe(self, condition: Condition) -> str:
        c, pool = self.config, self._draw(condition)
        name = digest([*self._base, _drawn(condition, pool), c.dtype, c.layer, c.max_length])
        path = self.folder / PROBES / f"{name}.json"
        if not path.exists():
            write_json(path, to_plain(probe(condition, pool, c)))
        return name


def _drawn(condition: Condition, pool: DrawnPool) -> list[Any]:
    """What tells one pool from another."""
    return [asdict(condition), [[row.messages, row.harmful] for row in pool.rows], pool.labelled.tolist()]
