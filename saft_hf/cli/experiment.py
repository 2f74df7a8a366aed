"""`saft-hf experiment`: is the tuned model safer? Every arm on every pool, and a report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from saft_hf.cli.arguments import parse_as
from saft_hf.evaluate.config import EvaluationConfig, ExperimentConfig
from saft_hf.evaluate.experiment import Experiment
from saft_hf.evaluate.pools import Dialogue, ExperimentRows, read_rows
from saft_hf.evaluate.report import write_report
from saft_hf.named import NamedDataset
from saft_hf.scorer.reference_rows import ReferenceSource

KINDS = (ExperimentConfig,)
GROUPS = {
    "model_name_or_path": "Model",
    "output_dir": "Results",
    "labelled_name": "Rows",
    "judges": "Questions",
    "pools": "Pools and arms",
    "training": "Training",
}
COMMON = (
    *("model_name_or_path", "output_dir", "labelled_name", "label_column", "benign_name", "safe_prompts_name"),
    *("judges", "pools", "shares", "rows", "labelled_rows", "seeds", "arms"),
    *("training", "keep_models"),
)


def run(argv: Sequence[str]) -> None:
    """Do the runs that are not there yet, then write the report.

    Raises:
        SAFTInputError: an option is unknown or missing, or data and options do not go together.
    """
    config = parse_as(ExperimentConfig, "experiment", argv)
    config.check()
    logging.getLogger("saft_hf.evaluate").setLevel(logging.INFO)
    print(f"Report: {write_report(Experiment(config, load_source(config)).run())}")


def load_source(config: EvaluationConfig) -> ExperimentRows:
    """All rows that pools, judge rows and questions are drawn from."""
    labelled = NamedDataset(config.labelled_name or "", config.labelled_split).load()
    return ExperimentRows(
        read_rows(labelled, labelled=True, label_column=config.label_column, harmful_value=config.harmful_value),
        [
            [row for row in _optional(name, config.benign_split, labelled=True) if not row.harmful]
            for name in config.benign_name
        ],
        _optional(config.refusals_name, "train"),
        _optional(config.safe_prompts_name, config.safe_prompts_split, labelled=True),
        config.split_seed,
        dict(_prompts(name) for name in config.harmful_prompts),
    )


def _prompts(given: str) -> tuple[str, list[Dialogue]]:
    """The name of a set of prompts, without folders or owner, and its rows."""
    source = ReferenceSource.of(given)
    dataset = NamedDataset(str(source.path), source.split or "train", source.config, source.revision).load()
    return source.name or Path(str(source.path)).name, read_rows(dataset, labelled=False)


def _optional(name: str | None, split: str, *, labelled: bool = False) -> list[Dialogue]:
    """Rows of a dataset; none where there is no name. Labels are read where the dataset has them."""
    if name is None:
        return []
    dataset = NamedDataset(name, split).load()
    known = {"is_safe", "safe", "is_harmful", "harmful", "unsafe"} & set(dataset.column_names)
    return read_rows(dataset, labelled=labelled and bool(known))
