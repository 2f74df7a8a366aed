"""`saft-hf experiment`: is the tuned model safer? Every arm on every pool, and a report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

from trl import TrlParser
from yaml import YAMLError

from saft_hf.cli.data import load_rows
from saft_hf.errors import SAFTInputError
from saft_hf.evaluate.config import EvaluationConfig, ExperimentConfig
from saft_hf.evaluate.experiment import Experiment
from saft_hf.evaluate.pools import Row, Source, read_rows
from saft_hf.evaluate.report import write_report

Config = TypeVar("Config", bound=EvaluationConfig)


def run(argv: Sequence[str]) -> None:
    """Do the runs that are not there yet, then write the report.

    Raises:
        SAFTInputError: an option is unknown or missing, or data and options do not go together.
    """
    config = parse_config(ExperimentConfig, "experiment", argv)
    logging.getLogger("saft_hf.evaluate").setLevel(logging.INFO)
    print(f"Report: {write_report(Experiment(config, load_source(config)).run())}")


def parse_config(kind: type[Config], command: str, argv: Sequence[str]) -> Config:
    """Read a command's words, and its YAML where `--config` names one, and check them.

    Raises:
        SAFTInputError: an option is unknown or missing, or the YAML cannot be read.
    """
    parser = TrlParser((kind,), prog=f"saft-hf {command}")
    try:
        (config,) = parser.parse_args_and_config(list(argv), fail_with_unknown_args=True)
    except (OSError, ValueError, YAMLError) as error:
        raise SAFTInputError(f"{error} (`saft-hf {command} --help` lists the options.)") from error
    assert isinstance(config, kind)  # noqa: S101 - for the type checker
    config.check()
    return config


def load_source(config: EvaluationConfig) -> Source:
    """All rows that pools, judge rows and questions are drawn from."""
    labelled = load_rows(config.labelled_name or "", split=config.labelled_split)
    return Source(
        read_rows(labelled, labelled=True, label_column=config.label_column, harmful_value=config.harmful_value),
        _optional(config.benign_name, config.benign_split),
        _optional(config.refusals_name, "train"),
        _optional(config.safe_prompts_name, config.safe_prompts_split, labelled=True),
        config.split_seed,
    )


def _optional(name: str | None, split: str, *, labelled: bool = False) -> list[Row]:
    """Rows of a dataset; none where there is no name. Labels are read where the dataset has them."""
    if name is None:
        return []
    dataset = load_rows(name, split=split)
    known = {"is_safe", "safe", "is_harmful", "harmful", "unsafe"} & set(dataset.column_names)
    return read_rows(dataset, labelled=labelled and bool(known))
