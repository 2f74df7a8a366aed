"""`--help`: what a command does, an example, and its options in groups; a screen of them unless all are asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field
from itertools import groupby
from operator import itemgetter
from textwrap import fill, wrap
from typing import Any

EXAMPLES = {
    "score": "--model_name_or_path Qwen/Qwen3-0.6B --dataset_name rows.jsonl --output_dir scored",
    "filter": "--model_name_or_path Qwen/Qwen3-0.6B --dataset_name rows.jsonl --labelled_rows 100 --output_dir out",
    "review": "--folder out --dataset_name rows.jsonl",
    "suggest-labels": "--scorer out/scorer --dataset_name rows.jsonl --uniform 200 --output_dir labels",
    "certify": "--scorer out/scorer --dataset_name rows.jsonl --fresh_labels labels/labels.jsonl --alpha 0.05 "
    "--output_dir certified",
    "fit-reference": "--model_name_or_path Qwen/Qwen3-0.6B --reference labelled.jsonl benign.csv,harmful=false "
    "--output_dir probe",
    "push": "--folder out/scorer --push_to_hub me/scorer --hub_repo_type model",
    "sft": "--model_name_or_path Qwen/Qwen3-0.6B --dataset_name rows.jsonl --labelled_rows 100 --output_dir tuned",
    "evaluate": "--model_name_or_path tuned --labelled_name labelled.jsonl --benign_name harmless.jsonl "
    "--output_dir evaluated",
    "experiment": "--config examples/contamination/small.yaml --output_dir experiment",
    "demo": "--output_dir saft_demo",
}
"""Command -> words that it can be called with."""

_WIDTH, _COLUMN = 79, 25


def screen(
    command: str, about: str, options: Sequence[tuple[str, Field[Any]]], common: Sequence[str], *, everything: bool
) -> str:
    """The text of `--help`.

    Args:
        command: its name.
        about: what it does, in a line.
        options: those that it takes, as fields of dataclasses, with the titles of their groups.
        common: options that are shown unless all are asked for.
        everything: show all of them.

    Returns:
        Lines of at most 79 characters.
    """
    shown = [(title, option) for title, option in options if everything or option.name in common]
    lines = [f"usage: saft-hf {command} [--options] [--config FILE.yaml]"]
    lines += ["", _filled(f"{about[0].upper()}{about[1:]}."), "", _example(command), ""]
    for title, group in groupby(shown, itemgetter(0)):
        lines += [f"{title}:", *(_line(option) for _, option in group), *([""] if everything else [])]
    more = f"--help_all shows {hidden} more. " if (hidden := len(options) - len(shown)) else ""
    return "\n".join([*lines, _filled(f"{more}--config names a YAML file with any of them; words win over it.")])


def titled(options: Iterable[Field[Any]], groups: Mapping[str, str]) -> list[tuple[str, Field[Any]]]:
    """Options with the titles of their groups: `groups` names the option that begins each."""
    title, result = "Options", []
    for option in options:
        title = groups.get(option.name, title)
        result.append((title, option))
    return result


def _example(command: str) -> str:
    # A word and its value stay on one line.
    text = re.sub(r"(--\w+) (?!--)", "\\1\N{NO-BREAK SPACE}", f"saft-hf {command} {EXAMPLES[command]}")
    lines = wrap(text, _WIDTH - 2, initial_indent="  ", subsequent_indent="      ")
    return " \\\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _line(option: Field[Any]) -> str:
    default = option.default if option.default_factory is MISSING else option.default_factory()
    shown = "" if default is MISSING or default in (None, False, "", {}, []) else f" [{default}]"
    text = " ".join(str(option.metadata.get("help", "")).split())
    name = f"  --{option.name}"
    start = f"{name} " if len(name) < _COLUMN else f"{name}\n"
    body = _filled(f"{text}{shown}", " " * _COLUMN)
    return start + (body[len(start) :] if start.endswith(" ") else body) if body.strip() else name


def _filled(text: str, indent: str = "") -> str:
    return fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
