"""`saft-hf COMMAND [--options] [--config file.yaml]`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any

from saft_hf.cli import arguments
from saft_hf.cli.arguments import Arguments
from saft_hf.cli.flags import ShellFormatter, flags_of, in_flags
from saft_hf.cli.help import screen, titled
from saft_hf.errors import SAFTError, SAFTUndecidedError
from saft_hf.version import __version__

# Command -> what it does, in a line; the module of the same name (with `_` for `-`) has `run(argv)`.
COMMANDS = {
    "score": "add a saft_score column to a dataset, and save the scorer",
    "filter": "score a dataset, and save the rows that are kept, an audit and the scorer",
    "review": "write a page on which people look at what was removed, and mark rows",
    "fit-reference": "fit a probe on labelled rows of other sources, to filter any pool with `--reference`",
    "suggest-labels": "lay out rows for people to label",
    "certify": "bound the harmful share of what is kept, with labels that chose nothing",
    "push": "push a folder again that could not be pushed",
    "sft": "fine-tune on the rows that are kept: what `trl sft` does, and its options",
    "cache": "list the vectors that are kept on disk, or remove some",
    "evaluate": "how one model answers harmful and harmless prompts: judges, likelihood, utility, over-refusal",
    "experiment": "compare filters by the models that are tuned on what they keep, and write a report",
    "demo": "score and filter the rows that ship with the package, offline, in a minute",
}

OWN_OPTIONS = ("sft", "evaluate", "experiment")
"""Commands with options of their own, `KINDS` of their modules."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; by default those of the shell.

    Returns:
        Exit status: 0; 2 where the input, or the system, does not allow the command; 3 where no decision can honestly
        be taken; as shells have them, 130 where it was stopped, and 141 where nobody reads what it prints.
    """
    try:
        status = _main(*((sys.argv[1:] if argv is None else argv) or [""]))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says so when it ends
        return 141
    return status


def _main(command: str, *words: str) -> int:
    if command in ("", "-h", "--help"):
        print(_usage())
        return 0 if command else 2
    if command == "--version":
        print(f"saft-hf {__version__}")
        return 0
    if command not in COMMANDS:
        print(f"saft-hf: there is no command {command!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    if command != "cache" and (asked := {"-h", "--help", "--help_all"}.intersection(words)):
        table, options = _options(command)
        print(screen(command, COMMANDS[command], options, table.COMMON, everything="--help_all" in asked))
        return 0
    flags = cache(lambda: flags_of(option.name for _, option in _options(command)[1]))
    handler = logging.StreamHandler()
    handler.setFormatter(ShellFormatter(flags))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    return _run(command, words, lambda error: in_flags(error, flags()))


def _run(command: str, words: Sequence[str], shown: Callable[[str], str]) -> int:
    """Run a command, and leave the process group that it may have joined.

    Where several processes run it, one reports: warnings come from the main process, an error, which all of them raise,
    from one of each machine.
    """
    from accelerate import PartialState  # a second or more to import: not for `--help`
    from torch.distributed import is_initialized

    if os.environ.get("RANK", "0") != "0":
        _be_quiet()
    try:
        import_module(f"saft_hf.cli.{command.replace('-', '_')}").run(words)
        if is_initialized():  # a trainer may have left already
            # A process that leaves while another still talks to it can take that one down with it.
            PartialState().wait_for_everyone()
    except BrokenPipeError:
        raise
    except (SAFTError, OSError) as error:
        _report(f"saft-hf {command}: {type(error).__name__}: {shown(str(error))}")
        return 3 if isinstance(error, SAFTUndecidedError) else 2
    except KeyboardInterrupt:
        _report(f"saft-hf {command}: stopped. Start it again to go on where it was.")
        return 130
    finally:
        if PartialState._shared_state:
            PartialState().destroy_process_group()
    return 0


def _report(text: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def _be_quiet() -> None:
    """No warning and no progress bar of any package from this process."""
    import datasets
    import transformers.utils.logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def _options(command: str) -> tuple[Any, list[tuple[str, Any]]]:
    """The module with the tables of a command's help, and its options with the titles of their groups."""
    if command in OWN_OPTIONS:
        table = import_module(f"saft_hf.cli.{command}")
        return table, titled([each for kind in table.KINDS for each in fields(kind)], table.GROUPS)
    options = titled(fields(Arguments), arguments.GROUPS)
    return arguments, [each for each in options if command in each[1].metadata["commands"]]


def _usage() -> str:
    commands = "\n".join(f"  {name:<14} {about}" for name, about in COMMANDS.items())
    return f"""usage: saft-hf COMMAND [--options] [--config file.yaml]
       accelerate launch -m saft_hf COMMAND ...    on several processes

commands:
{commands}

saft-hf COMMAND --help shows the options of a command."""
