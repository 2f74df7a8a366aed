"""The errors that saft_hf raises: every one says what was found, what was expected and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class SAFTError(Exception):
    """Base of every error that saft_hf raises on purpose."""


class SAFTInputError(SAFTError, ValueError):
    """The data, a label, a column or an argument is not what it must be. Nothing was written or lost."""


class SAFTUndecidedError(SAFTError):
    """Scores exist, but no decision can honestly be taken from them."""


class SAFTArtifactError(SAFTError):
    """A saved scorer is damaged, hostile, or belongs to another model, revision or chat template."""


class SAFTHubError(SAFTError):
    """The Hub was not reached, or refused. What was to be pushed is still here, and the message says where."""


def did_you_mean(name: str, places: Mapping[str, Iterable[str]]) -> str:
    """Where an unknown option goes, or which one was meant: a sentence, empty where none is near.

    Args:
        name: of the option.
        places: what takes options -> the options that it takes; the likeliest first.

    Example:
        >>> did_you_mean("labeled", {"`fit`": ["labelled", "aim"]})
        'Did you mean `labelled` of `fit`?'
    """
    for place, names in places.items():
        if name in names:
            return f"It goes to {place}."
        if same := {f"saft_{name}", name.removeprefix("saft_")} & set(names):
            return f"Did you mean `{same.pop()}` of {place}?"
    where = {known: place for place, names in reversed(list(places.items())) for known in names}
    near = get_close_matches(name, where, n=1)
    return f"Did you mean `{near[0]}` of {where[near[0]]}?" if near else ""
