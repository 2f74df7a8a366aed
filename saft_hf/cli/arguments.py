"""What commands are told: every option of the shell, read from words and YAML by TRL's parser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, TypeVar, get_type_hints

from yaml import YAMLError

from saft_hf.errors import SAFTInputError
from saft_hf.names import did_you_mean
from saft_hf.scorer.options import BY_NAME
from saft_hf.summary import DEMONSTRATIONS_SHARE

T = TypeVar("T")

_FIT = ("score", "filter", "suggest-labels", "certify", "demo")
_REVIEW = ("review",)
_NAMED = (*_FIT, *_REVIEW)
_DATA = (*_NAMED, "sft")  # which takes those of `trl sft` and `SAFTSFTConfig` beside these
_READ = (*_FIT, "fit-reference")
_SCORER = _FIT[:-1]
_FILTER = ("filter", "demo")
_ROWS = ("score", *_FILTER)
_PUSH = (*_ROWS, "push", "fit-reference")
_CERTIFY = ("certify",)
_SUGGEST = ("suggest-labels",)
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|-inf", re.IGNORECASE)
_REPOSITORIES = ("push_to_hub", "hub_scorer")


def _flag(
    commands: tuple[str, ...], text: str, default: str | float | None = None, *, beside: tuple[str, ...] = ()
) -> Any:
    """A flag of some commands; `beside`: without one of these flags it would have no effect."""
    return field(default=default, metadata={"commands": commands, "help": text, "beside": beside})


def _option(name: str, commands: tuple[str, ...] = _FIT) -> Any:
    """An option of the scorer: default and help are those of its table."""
    return _flag(commands, BY_NAME[name].help, BY_NAME[name].default)


@dataclass
class Arguments:
    """Every option of the shell, in the order of the help texts; a command reads those that name it."""

    model_name_or_path: str | None = _flag(_READ, "Hub id or folder of the model that will be tuned.")
    model_revision: str | None = _flag(_READ, "Commit, branch or tag of the model.", beside=("model_name_or_path",))
    scorer: str | None = _flag(_SCORER, "Folder or Hub id of a fitted scorer, in place of fitting one.")
    dataset_name: str | None = _flag(_NAMED, "Hub id, folder or file (json, jsonl, csv, parquet).")
    dataset_config: str | None = _flag(_NAMED, "Configuration of a Hub dataset.")
    dataset_revision: str | None = _flag(_NAMED, "Commit, branch or tag of a Hub dataset.")
    dataset_train_split: str = _flag(_NAMED, "Split to score.", "train")
    dataset_streaming: bool = _flag(_NAMED, "Read a Hub dataset row by row: its files are not fetched first.", False)
    prompt_column: str | None = _flag(_DATA, "Column of prompts: `instruction`; `instruction,input` are joined.")
    response_column: str | None = _flag(_DATA, "Column of responses, such as `response` or `output`.")
    parse_json: bool = _flag(_DATA, "Dialogues, such as in `messages`, are JSON text.", False)

    layer: int | None = _option("layer", _READ)
    readout: str | None = _option("readout", _READ)
    method: str | None = _option("method")
    k: int | None = _option("k")
    threshold: float | None = _option("threshold")
    contamination: float | None = _option("contamination")
    reference: list[str] | None = _option("reference", _READ)  # noqa: RUF009 - a `field`
    dtype: str = _option("dtype", _READ)
    attn_implementation: str | None = _option("attn_implementation", _READ)
    vector_dtype: str = _option("vector_dtype", _READ)
    max_length: int = _option("max_length", _READ)
    cache_dir: str | None = _option("cache_dir", _READ)
    trust_remote_code: bool = _option("trust_remote_code", _READ)

    labelled_name: str | None = _flag((*_FIT, "sft"), "Rows that people labelled, named likewise.")
    labelled_rows: int | None = _flag((*_FIT, "sft"), "Or draw this many of the rows that have a label.")
    seed: int = _flag(_NAMED, "Of the draw of rows.", 0, beside=("labelled_rows", "uniform"))
    trust_labels: bool = _flag(
        ("filter", *_CERTIFY), "Let labels in the file of `scorer` decide their rows.", False, beside=("scorer",)
    )
    label_column: str | None = _option("label_column")
    harmful_value: str | None = _option("harmful_value")
    label_sampling: str = _option("label_sampling")

    aim: str | None = _option("aim")
    fit_rows: int | None = _option("fit_rows")
    on_undecided: str | None = _option("on_undecided")
    on_error: str = _option("on_error", (*_FILTER, *_CERTIFY))
    refusal_column: str | None = _option("refusal_column", _FILTER)
    marks: str | None = _option("marks", (*_FILTER, *_REVIEW))
    by: str | None = _option("by", (*_FILTER, *_REVIEW))
    all: bool = _flag(_REVIEW, "Put all rows into the page, not only those of its tables.", False)

    demonstrations: str | None = _flag(
        ("filter",), "Safe answers to harmful requests to mix in: `built-in`, or named like `dataset_name`."
    )
    demonstrations_share: float = _flag(
        ("filter",),
        "How many of them, as a share of the kept rows.",
        DEMONSTRATIONS_SHARE,
        beside=("demonstrations",),
    )

    fresh_labels: str | None = _flag((*_CERTIFY, "sft"), "Rows labelled after the fit, drawn by `suggest-labels`.")
    alpha: str = _flag(
        _CERTIFY,
        "Largest harmful share of what is kept; one for each value of `stratify_by`: `refusal=0.2,other=0.05`.",
        "0.05",
    )
    delta: float = _flag(_CERTIFY, "Chance that a certificate is issued and false.", 0.1)
    looks: int = _flag(_CERTIFY, "How often in all you will add labels and certify again; delta is split.", 1)
    stratify_by: str | None = _flag(_CERTIFY, "Column from whose values labels were drawn, or that have an alpha each.")
    uniform: int = _flag(_SUGGEST, "Rows drawn at random: their labels may fit, certify or estimate shares.", 100)
    informative: int = _flag(_SUGGEST, "Rows near the threshold, and such as no source explains: for fitting alone.", 0)
    kept_only: bool = _flag(
        _SUGGEST, "Draw the uniform rows from those kept at the threshold: to certify just these.", False
    )
    labels_file: str = _flag(_SUGGEST, "File in `output_dir`, `.jsonl` or (for plain values) `.csv`.", "labels.jsonl")

    output_dir: str | None = _flag(_READ, "Folder for the results.")
    overwrite: bool = _flag(
        (*_ROWS, *_CERTIFY), "Write into a folder that holds other files: those of the same names go.", False
    )
    save_removed: bool = _flag(_FILTER, "Save the removed rows too, with score and reason: harmful text.", False)
    output_format: str = _flag((*_ROWS, *_CERTIFY), "`parquet` (for `load_dataset`, `trl sft`) or `arrow`.", "parquet")
    folder: str | None = _flag(("push", *_REVIEW), "Folder that a failed push kept, or that `filter` wrote.")

    push_to_hub: str | None = _flag(_PUSH, "Push to this Hub repository, `user/name`.")
    hub_repo_type: str = _flag(("push",), "`dataset` or `model`.", "dataset")
    hub_private: bool | None = _flag(
        _PUSH, "`true`: must be private. `false`: public where new, which else is private.", beside=_REPOSITORIES
    )
    hub_revision: str | None = _flag(_PUSH, "Branch to push to.", beside=_REPOSITORIES)
    hub_create_pr: bool = _flag(_PUSH, "Open a pull request instead.", False, beside=_REPOSITORIES)
    hub_include_indices: bool = _flag(
        (*_FILTER, "push"), "Push indices and digests to a public repository too.", False, beside=_REPOSITORIES[:1]
    )
    hub_include_removed: bool = _flag(
        _FILTER, "Push the removed rows too; only to a private repository.", False, beside=_REPOSITORIES[:1]
    )
    hub_scorer: str | None = _flag(_ROWS, "Push the scorer to this Hub repository.")


GROUPS = {
    "model_name_or_path": "Model",
    "dataset_name": "Rows",
    "layer": "Score",
    "dtype": "How the model is read",
    "labelled_name": "Labels",
    "aim": "Decision",
    "demonstrations": "Demonstrations",
    "fresh_labels": "Certificate",
    "uniform": "Rows to label",
    "output_dir": "Files",
    "push_to_hub": "Hub",
}
"""Option that begins a group of `--help` -> title: a new option belongs to the group that it stands in."""

COMMON = (
    *("model_name_or_path", "scorer", "dataset_name", "prompt_column", "response_column"),
    *("method", "threshold", "contamination", "reference"),
    *("labelled_name", "labelled_rows", "label_column", "aim"),
    *("fresh_labels", "alpha", "looks", "uniform", "informative", "kept_only"),
    *("output_dir", "folder", "marks", "all", "push_to_hub", "hub_repo_type", "hub_scorer"),
)
"""Options that `--help` shows; `--help_all` shows the others too."""


def parse(command: str, argv: Sequence[str], defaults: dict[str, Any] | None = None) -> Arguments:
    """Read a command's words, and its YAML where `--config` names one (words win over YAML).

    Args:
        command: its name.
        argv: the words after it.
        defaults: what holds where neither says otherwise.

    Returns:
        The options; those that the command does not take have their defaults.

    Raises:
        SAFTInputError: the command does not take an option, an option has no effect without another, or the YAML
            cannot be read.
    """
    given = vars(parse_as(dataclass_of(command), command, argv, defaults))
    for each in fields(Arguments):
        if each.name not in given:
            continue
        beside = [name for name in each.metadata["beside"] if name in given]
        if beside and given[each.name] != each.default and not any(given[name] for name in beside):
            raise SAFTInputError(f"`--{each.name}`: without effect without `--{'` or `--'.join(beside)}`.")
    return Arguments(**given)


def dataclass_of(command: str) -> type[Any]:
    """A dataclass of the options that a command takes."""
    types = get_type_hints(Arguments)
    return make_dataclass(
        "Own",
        [
            (each.name, types[each.name], field(default=each.default, metadata={"help": each.metadata["help"]}))
            for each in fields(Arguments)
            if command in each.metadata["commands"]
        ],
    )


def parse_as(kind: type[T], command: str, argv: Sequence[str], defaults: dict[str, Any] | None = None) -> T:
    """As `parse`, for a dataclass of options that are all one command's."""
    *options, from_yaml, from_words = parse_known((kind,), command, argv, defaults)
    reject(command, [*from_yaml, *from_words], (kind,))
    result: T = options[0]
    return result


def parse_known(
    kinds: tuple[type, ...], command: str, argv: Sequence[str], defaults: dict[str, Any] | None = None
) -> tuple[Any, ...]:
    """As `parse_as`, for several dataclasses: these, and what of the YAML and of the words is in none of them."""
    from trl import TrlParser  # seconds to import: not for `--help`

    parser = TrlParser(kinds, prog=f"saft-hf {command}", add_help=False, allow_abbrev=False)
    parser.set_defaults(**(defaults or {}))
    try:
        parsed: tuple[Any, ...] = parser.parse_args_and_config(
            _with_signs(argv), return_remaining_strings=True, separate_remaining_strings=True
        )
    except (OSError, ValueError, YAMLError) as error:
        raise SAFTInputError(f"{error} (`saft-hf {command} --help` lists the options.)") from error
    return parsed


def _with_signs(argv: Sequence[str]) -> list[str]:
    """Words, with negative numbers tied to their options: argparse takes `-3.1e-05` for an option of its own."""
    tied: list[str] = []
    for word in argv:
        if _NEGATIVE.fullmatch(word) and tied and tied[-1].startswith("--") and "=" not in tied[-1]:
            tied[-1] += f"={word}"
        else:
            tied.append(word)
    return tied


def reject(command: str, unknown: Sequence[str], kinds: tuple[Any, ...]) -> None:
    """Refuse words that are no options of a command.

    Args:
        command: its name.
        unknown: the words.
        kinds: dataclasses of the options that it takes, to say which was meant.
    """
    if unknown:
        own = [each.name for kind in kinds for each in fields(kind)]
        places = {f"`saft-hf {command}`": own}
        for each in fields(Arguments):
            for other in each.metadata["commands"]:
                if other != command:
                    places.setdefault(f"`saft-hf {other}`", []).append(each.name)
        hint = did_you_mean(unknown[0].lstrip("-").replace("-", "_"), places)
        raise SAFTInputError(
            f"`saft-hf {command}` does not take {' '.join(unknown)} (`saft-hf {command} --help` lists its options.) "
            f"{hint}".rstrip()
        )
