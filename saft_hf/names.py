"""Names of options: a misspelt or misplaced one is told where it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def did_you_mean(name: str, places: Mapping[str, Iterable[str]]) -> str:
    """Where an unknown option goes, or which one was meant: a sentence, empty where none is near.

    Args:
        name: of the option.
        places: what takes options -> the options that it takes; the likeliest first.

    Examples:
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


def check_names(taker: str, given: Iterable[str], places: Mapping[str, Iterable[str]]) -> None:
    """Refuse arguments that the first of some places does not take, in Python's words, and say where they go.

    Raises:
        TypeError: there is one.
    """
    known = set(next(iter(places.values())))
    for name in given:
        if name not in known:
            message = f"{taker} got an unexpected keyword argument {name!r}. {did_you_mean(name, places)}"
            raise TypeError(message.removesuffix(". "))


def names_checked(*methods: str, elsewhere: Mapping[str, Iterable[str]] | None = None) -> Callable[[type[T]], type[T]]:
    """A decorator: methods of a class check the names of their arguments before they run.

    Args:
        methods: their names.
        elsewhere: further places that take options, where one may have been meant.
    """

    def decorate(kind: type[T]) -> type[T]:
        places = {
            f"`{kind.__name__}{'' if name == '__init__' else '.' + name}(...)`": list(
                signature(getattr(kind, name)).parameters
            )[1:]
            for name in methods
        }
        for name, place in zip(methods, places, strict=True):
            order = {place: places[place], **places, **(elsewhere or {})}
            setattr(kind, name, _checked(getattr(kind, name), place.strip("`"), order))
        return kind

    return decorate


def _checked(method: Callable[P, T], taker: str, places: Mapping[str, Iterable[str]]) -> Callable[P, T]:
    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        check_names(taker, kwargs, places)
        return method(*args, **kwargs)

    return call
