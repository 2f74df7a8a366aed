"""Where in a row its hidden states are read: one entry a readout, and everybody else asks the entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Span = tuple[int, int]
Spans = tuple[Span, ...]

START = "response_start"
MEAN = "response_mean"
END = "response_end"


@dataclass(frozen=True)
class OneToken:
    """The state of one token is read.

    Attributes:
        position: spans of a row's responses -> index of the token; below 0 where the row has none.
    """

    position: Callable[[Spans], int]


@dataclass(frozen=True)
class MeanOf:
    """The mean of the states of some tokens is read.

    Attributes:
        ranges: spans of a row's responses -> ranges of the tokens, disjoint and not empty.
    """

    ranges: Callable[[Spans], Spans]


Pooling = OneToken | MeanOf


@dataclass(frozen=True)
class Readout:
    """How a sequence of hidden states becomes one vector.

    What is read stands at or after the last token before the first response: tokens before that may have been read
    once for all rows (a shared prefix).

    Attributes:
        name: by which users and files call it.
        note: what a summary must say of it.
        sees_response: whether a token of the last response is fed; if not, rows that differ only there are equal.
        needs_boundary: whether prompt and response must be told apart, which they are not in plain text.
        pooling: which tokens are read.
    """

    name: str
    note: str
    sees_response: bool
    needs_boundary: bool
    pooling: Pooling


READOUTS: dict[str, Readout] = {
    readout.name: readout
    for readout in (
        # The published readout: the last token before the last response.
        Readout(
            START,
            note="`response_start` reads the start of the last assistant turn and sees only what stands before it: "
            "two answers to one prompt get the same score.",
            sees_response=False,
            needs_boundary=True,
            pooling=OneToken(lambda spans: spans[-1][0] - 1),
        ),
        Readout(
            MEAN,
            note="`response_mean` reads every assistant turn of a dialogue.",
            sees_response=True,
            needs_boundary=False,
            pooling=MeanOf(lambda spans: spans),
        ),
        Readout(
            END,
            note="`response_end` reads the last assistant turn of a dialogue.",
            sees_response=True,
            needs_boundary=False,
            pooling=OneToken(lambda spans: spans[-1][1] - 1),
        ),
    )
}
"""Every readout by name. A new one is one more entry."""
