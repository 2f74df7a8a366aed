"""The errors that saft_hf raises: every one says what was found, what was expected and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

_SHOWN = 5


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


def few(items: Iterable[object]) -> str:
    """The first few of many things, for an error."""
    first = list(islice(items, _SHOWN + 1))
    return ", ".join(map(str, first[:_SHOWN])) + ", ..." * (len(first) > _SHOWN)
