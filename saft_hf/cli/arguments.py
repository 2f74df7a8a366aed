"""What the commands are told: one dataclass a subject, read from words and YAML by TRL's parser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trl import TrlParser
from yaml import YAMLError

from saft_hf.errors import SAFTInputError


@dataclass
class ModelArguments:
    """The model that will be tuned: its own hidden states score the rows."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub id or folder of the model."})
    model_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of the model."})
    dtype: str = field(
        default="auto",
        metadata={"help": "`auto` (the checkpoint's; float32 on CPU), `bfloat16`, `float16`, `float32`."},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "As in transformers."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})


@dataclass
class DatasetArguments:
    """The rows to score, and those that people labelled."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Hub id, a folder, or a json, jsonl, csv or parquet file (a pattern for several)."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, branch or tag of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to score."})
    labelled_name: str | None = field(
        default=None, metadata={"help": "Rows that people labelled: named like `dataset_name`."}
    )
    labelled_rows: int | None = field(
        default=None,
        metadata={"help": "Draw this many labelled rows at random from the dataset itself, which has the labels."},
    )
    label_column: str | None = field(
        default=None, metadata={"help": "By default `is_safe`, `safe`, `is_harmful`, `harmful` or `unsafe`."}
    )
    harmful_value: str | None = field(
        default=None, metadata={"help": "The value that marks a harmful row, where the column's name does not say."}
    )
    label_sampling: str = field(
        default="uniform", metadata={"help": "`uniform`: labelled rows were drawn at random from the pool; or `other`."}
    )
    seed: int = field(default=0, metadata={"help": "Of the draw of `labelled_rows`."})
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Read a Hub dataset row by row, in place of fetching its files first."}
    )


@dataclass
class ScorerArguments:
    """The score and the threshold."""

    scorer: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub id of a fitted scorer: nothing is fitted, its model and options hold."},
    )
    method: str | None = field(
        default=None,
        metadata={"help": "`saft` (published), `directed`, `auto` (the default with labels), `reference` (without)."},
    )
    layer: int | None = field(
        default=None, metadata={"help": "Index into `hidden_states`; by default what the method reads."}
    )
    readout: str | None = field(
        default=None, metadata={"help": "`response_start` (published), `response_mean` or `response_end`."}
    )
    aim: str | None = field(
        default=None,
        metadata={"help": "Of the threshold: `fpr=0.05`, `recall=0.9`, `share=0.1` or `f1`."},
    )
    k: int | None = field(
        default=None, metadata={"help": "Directions to sum; by default chosen from 1 to 4 on labels."}
    )
    threshold: float | None = field(default=None, metadata={"help": "Remove rows with a score above it."})
    contamination: float | None = field(
        default=None, metadata={"help": "Remove this share of the pool, the rows with the highest scores."}
    )
    vector_dtype: str = field(
        default="float32", metadata={"help": "Of the vectors that are kept; `float16` halves the store."}
    )
    max_length: int = field(default=1024, metadata={"help": "Rows are cut to this many tokens, as SFTTrainer would."})
    fit_rows: int | None = field(default=None, metadata={"help": "Fit on the first so many rows only."})
    on_undecided: str = field(
        default="raise", metadata={"help": "Where no threshold can honestly be chosen: `raise`, or `keep` every row."}
    )
    on_error: str = field(
        default="exclude", metadata={"help": "Rows without a score: `exclude` them, `keep` them, or `raise`."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where vectors are kept; by default `saft` in the Hugging Face home."}
    )
    refusal_column: str | None = field(
        default=None,
        metadata={"help": "A column of booleans that says which rows are safe refusals, to see their loss."},
    )


@dataclass
class HubArguments:
    """Where results are pushed to. The token is the one that is logged in, or HF_TOKEN."""

    push_to_hub: str | None = field(default=None, metadata={"help": "Push to this Hub repository, `user/name`."})
    hub_private: bool | None = field(
        default=None,
        metadata={
            "help": "By default a new repository is private and one that stands stays what it is. `true`: it must be "
            "private. `false`: a new one is public."
        },
    )
    hub_revision: str | None = field(default=None, metadata={"help": "Branch to push to."})
    hub_create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead."})
    hub_include_indices: bool = field(
        default=False, metadata={"help": "Push indices and digests of all rows to a public repository too."}
    )


@dataclass
class OutputArguments(HubArguments):
    """Where the results go."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for the dataset, the audit and the scorer."})
    output_format: str = field(
        default="arrow", metadata={"help": "`arrow` (for `datasets.load_from_disk`) or `parquet`."}
    )
    hub_include_removed: bool = field(
        default=False, metadata={"help": "`filter`: push the removed rows too; only to a private repository."}
    )
    hub_scorer: str | None = field(default=None, metadata={"help": "Push the scorer to this Hub repository."})


Arguments = tuple[ModelArguments, DatasetArguments, ScorerArguments, OutputArguments]


def parse(command: str, argv: Sequence[str], defaults: dict[str, Any] | None = None) -> Arguments:
    """Read a command's words, and its YAML where `--config` names one (words win over YAML).

    Args:
        command: its name, for the help text.
        argv: the words after it.
        defaults: what holds where neither says otherwise.

    Raises:
        SAFTInputError: an option is unknown, or the YAML cannot be read.
    """
    parsed: Arguments = _read(command, argv, (), defaults)
    return parsed


@dataclass
class CertifyArguments:
    """Fresh labels, and what they shall show."""

    fresh_labels: str | None = field(
        default=None,
        metadata={
            "help": "Rows of the dataset that people labelled, drawn at random from those that the scorer was not "
            "fitted on; named like `dataset_name`. `saft-hf suggest-labels` draws them."
        },
    )
    alpha: float = field(default=0.05, metadata={"help": "Largest harmful share of the rows that are kept."})
    delta: float = field(default=0.1, metadata={"help": "Chance that a certificate is issued and false."})
    stratify_by: str | None = field(
        default=None, metadata={"help": "A column, where labels were drawn from each of its values on its own."}
    )


@dataclass
class SuggestArguments:
    """Which rows people should label next."""

    uniform: int = field(
        default=100, metadata={"help": "Rows drawn at random: their labels may fit, certify or estimate shares."}
    )
    informative: int = field(
        default=0, metadata={"help": "Rows near the threshold, spread out: their labels are for fitting alone."}
    )
    labels_file: str = field(
        default="labels.jsonl",
        metadata={"help": "Name of the file in `output_dir`, `.jsonl` or `.csv` (for columns of plain values)."},
    )


Own = TypeVar("Own")


def parse_with(
    command: str, argv: Sequence[str], own: type[Own], defaults: dict[str, Any] | None = None
) -> tuple[Arguments, Own]:
    """As `parse`, with the options of one command's own, for a command that pushes nothing.

    Raises:
        SAFTInputError: as `parse`; or it is told to push.
    """
    *shared, options = _read(command, argv, (own,), defaults)
    arguments: Arguments = tuple(shared)
    output = arguments[3]
    if output.push_to_hub or output.hub_scorer:
        raise SAFTInputError(f"`saft-hf {command}` pushes nothing: leave `--push_to_hub` and `--hub_scorer` out.")
    return arguments, options


def _read(command: str, argv: Sequence[str], own: tuple[type, ...], defaults: dict[str, Any] | None) -> Any:
    kinds = (ModelArguments, DatasetArguments, ScorerArguments, OutputArguments, *own)
    parser = TrlParser(kinds, prog=f"saft-hf {command}")
    parser.set_defaults(**(defaults or {}))
    found: Arguments = parsed(parser, command, argv)
    return found


def parsed(parser: TrlParser, command: str, argv: Sequence[str]) -> Any:
    """What a command's parser reads.

    Raises:
        SAFTInputError: an option is unknown, or the YAML cannot be read.
    """
    try:
        return tuple(parser.parse_args_and_config(list(argv), fail_with_unknown_args=True))
    except (OSError, ValueError, YAMLError) as error:
        raise SAFTInputError(f"{error} (`saft-hf {command} --help` lists the options.)") from error
