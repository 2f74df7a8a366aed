"""Frozen dataclasses to JSON and back: what is read from a file has the fields and types that it must have."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

MAX_TEXT = 4096
"""Characters of a text that is read from a file."""
MAX_ITEMS = 4096
"""Entries of a list or an object that is read from a file."""
MAX_NUMBER = 2**53
"""Size of a whole number that is read from a file: a float has room for it, and so has what it is counted in."""


@dataclass(frozen=True)
class Between:
    """The range of a number that is read from a file, ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Matching:
    """The pattern of a text that is read from a file."""

    pattern: str


Count = Annotated[int, Between(0, MAX_NUMBER)]
Share = Annotated[float, Between(-1e-9, 1 + 1e-9)]  # a quotient of sums may be a rounding beyond 1
Digest = Annotated[str, Matching("[0-9a-f]{64}")]
Name = Annotated[str, Matching("[A-Za-z0-9_.=@+-]{1,80}")]  # a word of ours, not a sentence of somebody else's


def to_plain(value: Any) -> Any:
    """A record as JSON types: objects, lists, numbers, text.

    Examples:
        >>> from saft_hf.summary import ThresholdEffect
        >>> to_plain(ThresholdEffect(fpr=0.05, recall=0.9))
        {'fpr': 0.05, 'recall': 0.9, 'attainable': True, 'curve': []}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], value: Any, name: str = "") -> T:
    """A record from JSON types, which must be exactly those of its fields.

    Args:
        kind: the dataclass; of its fields, those without a default must be there, and no others may be.
        value: what JSON gave.
        name: of the value, for the error.

    Returns:
        The record.

    Raises:
        ValueError: a field is missing, unknown, of another type, out of its range or pattern, too long, not finite, or
            has signs that cannot be printed. The message names it.

    Examples:
        >>> from saft_hf.summary import LabelCounts
        >>> from_plain(LabelCounts, {"rows": "100", "harmful": 25, "column": "is_safe"})
        Traceback (most recent call last):
        ValueError: rows: a str, not int
    """
    result: T = _read(kind, value, name)
    return result


def _read(kind: Any, value: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _within(_read(args[0], value, name), args[1], name)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{name}: {_shown(value)}, none of {list(args)}")
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        inner = [arg for arg in args if arg is not NoneType]
        if len(inner) == 1:
            return _read(inner[0], value, name)
        # Of several scalars the exact type decides: True is no number here.
        return _read(next((arg for arg in inner if type(value) is arg), inner[0]), value, name)
    if is_dataclass(kind):
        return _read_record(kind, value, name)
    if origin is tuple:
        items = _sized(list, value, name)
        kinds = [args[0]] * len(items) if args[1:] == (...,) else list(args)
        if len(kinds) != len(items):
            raise ValueError(f"{name}: {len(items)} entries, not {len(kinds)}")
        return tuple(_read(one, item, f"{name}[{i}]") for i, (one, item) in enumerate(zip(kinds, items, strict=True)))
    if origin is dict:
        items = _sized(dict, value, name)
        return {_read(args[0], key, name): _read(args[1], item, f"{name}.{key}"[:100]) for key, item in items.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(_read(str, value, name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if type(value) is int and abs(value) > MAX_NUMBER:
        raise ValueError(f"{name}: {_shown(value)}, not a number up to {MAX_NUMBER}")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name}: a {type(value).__name__}, not {getattr(kind, '__name__', kind)}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name}: not finite")
    if kind is str and (len(value) > MAX_TEXT or not value.isprintable()):
        raise ValueError(f"{name}: longer than {MAX_TEXT} characters, or with signs that cannot be printed")
    return value


def _within(value: Any, bound: Between | Matching, name: str) -> Any:
    match bound:
        case Between(low, high) if not low <= value <= high:
            raise ValueError(f"{name}: {_shown(value)}, not between {low:g} and {high:g}")
        case Matching(pattern) if not re.fullmatch(pattern, value):
            raise ValueError(f"{name}: {_shown(value)}, not of the form {pattern}")
    return value


def _shown(value: Any) -> str:
    """A value in a message: it may be as long as a file."""
    return repr(value)[:50]


def _read_record(kind: Any, value: Any, name: str) -> Any:
    items = _sized(dict, value, name)
    hints = get_type_hints(kind, include_extras=True)
    known = {field.name for field in fields(kind)}
    if unknown := sorted(items.keys() - known):
        raise ValueError(f"{name or 'the record'}: an unknown field {str(unknown[0])[:50]!r}")
    dot = f"{name}." if name else ""
    read = {key: _read(hints[key], item, dot + key) for key, item in items.items()}
    try:
        return kind(**read)
    except TypeError as error:  # a field is missing
        raise ValueError(f"{name or 'the record'}: {error}") from error


def _sized(kind: type[list[Any]] | type[dict[str, Any]], value: Any, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name or 'the record'}: a {type(value).__name__}, not {kind.__name__}")
    if len(value) > MAX_ITEMS:
        raise ValueError(f"{name}: {len(value)} entries, at most {MAX_ITEMS} are read")
    return value
