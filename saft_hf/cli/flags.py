"""What the library says of its arguments, in the words of a shell."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping

_WORDS = {"labelled": "labelled_name", "saft_labelled": "labelled_name", "saft_fresh_labels": "fresh_labels"}
_WORDS |= {"file_format": "output_format"}
"""Argument of Python -> option of another name."""

_ELSEWHERE = {"`json.loads`": "`--parse_json true`"}


def flags_of(options: Iterable[str]) -> dict[str, str]:
    """Argument of the library -> option of a command that stands for it.

    Args:
        options: names of the command's options. Where the trainer's are among them, an argument of the scorer is the
            one with `saft_` before it; what says how to push has `hub_`.
    """
    names = list(options)
    flags = {name.removeprefix("hub_"): name for name in names}
    flags |= {name.removeprefix("saft_"): name for name in names if name.startswith("saft_")}
    flags |= {name: name for name in names}
    return flags | {name: option for name, option in _WORDS.items() if option in flags}


def in_flags(text: str, flags: Mapping[str, str]) -> str:
    """A message with options in place of arguments.

    Examples:
        >>> in_flags("Give `labelled`, or `k=2`.", flags_of(["labelled_name", "k"]))
        'Give `--labelled_name`, or `--k 2`.'
    """
    name = "|".join(map(re.escape, sorted(flags, key=len, reverse=True)))

    def with_value(found: re.Match[str]) -> str:
        value = found[2].strip("'\"")
        value = value.lower() if value in ("True", "False") else value
        return f"--{flags[found[1]]} {value}".rstrip()

    if not flags:
        return text
    text = re.sub(rf"`({name})`", lambda found: f"`--{flags[found[1]]}`", text)
    text = re.sub(rf"(?<![\w.(-])({name})=('[^']*'|\"[^\"]*\"|\[[^\]]*\]|\.\.\.|[\w.@+-]*\w|)", with_value, text)
    for python, shell in _ELSEWHERE.items():
        text = text.replace(python, shell)
    return text


class ShellFormatter(logging.Formatter):
    """Warnings as a shell shows them: those of the library name options.

    Args:
        flags: makes what `flags_of` does, when it is first needed.
    """

    def __init__(self, flags: Callable[[], Mapping[str, str]]) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._flags = flags

    def format(self, record: logging.LogRecord) -> str:
        """One line; with a traceback where there is one."""
        text = super().format(record)
        return in_flags(text, self._flags()) if record.name.startswith("saft_hf") else text
