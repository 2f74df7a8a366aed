"""What a rendered row is, and which of its tokens a readout needs."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saft_hf.errors import SAFTInputError
from saft_hf.render.readouts import READOUTS, START, OneToken, Spans
from saft_hf.status import RowStatus

TokenIds = NDArray[np.int32]
TruncationMode = Literal["keep_start", "keep_end"]


@dataclass(frozen=True)
class RenderConfig:
    """The options of SFTTrainer that change a row's tokens.

    Args:
        max_length (`int` or `None`, *optional*, defaults to `1024`): tokens a row is cut to, `None` for no cut.
        truncation_mode (`str`, *optional*, defaults to `"keep_start"`): which end stays, or `"keep_end"`.
        text_field (`str`, *optional*, defaults to `"text"`): the column of plain text (`dataset_text_field` there).

    Raises:
        SAFTInputError: an option has a value that SFTTrainer would not take.
    """

    max_length: int | None = 1024
    truncation_mode: TruncationMode = "keep_start"
    text_field: str = "text"

    def __post_init__(self) -> None:
        if self.max_length is not None and not (isinstance(self.max_length, int) and self.max_length >= 1):
            raise SAFTInputError(
                f"max_length is {self.max_length!r}; it must be a whole number of at least 1, or None for no cut."
            )
        if self.truncation_mode not in get_args(TruncationMode):
            raise SAFTInputError(f"truncation_mode is {self.truncation_mode!r}; expected 'keep_start' or 'keep_end'.")
        if not self.text_field:
            raise SAFTInputError("text_field is empty; name the column of plain text, for example 'text'.")


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """One row as the model sees it.

    Args:
        input_ids (`np.ndarray`, int32, `[n]`): the tokens that SFTTrainer trains on, cut to `max_length`;
            none where the status is not `OK`.
        spans (`tuple` of `(start, end)`): the responses, as half-open token ranges: in order, disjoint, not
            empty. Plain text is one response: `((0, n),)`.
        boundary (`bool`): whether prompt and response are told apart; `False` for plain text.
        status (`RowStatus`): `OK`, or why no readout can be taken at all.
        detail (`str`): a few words for people; never the row's text.
    """

    input_ids: TokenIds
    spans: Spans
    boundary: bool
    status: RowStatus
    detail: str = ""

    @classmethod
    def failed(cls, status: RowStatus, detail: str) -> Rendering:
        """A row without readouts, and why."""
        return cls(np.empty(0, np.int32), (), False, status, detail)

    def status_for(self, readout: str) -> RowStatus:
        """Whether a readout is defined here: text, and a response at token 0, have no `response_start`."""
        entry = READOUTS[readout]
        if self.status is not RowStatus.OK:
            return self.status
        nothing_before = isinstance(entry.pooling, OneToken) and entry.pooling.position(self.spans) < 0
        if nothing_before or (entry.needs_boundary and not self.boundary):
            return RowStatus.NO_RESPONSE_START
        return RowStatus.OK

    def needed(self, readouts: Iterable[str]) -> int:
        """How many leading tokens must be fed to take `readouts`; 0 where there is none to take."""
        if not self.spans:
            return 0
        start, end = self.spans[-1]
        return end if see_response(readouts) else start

    def key(self, readouts: Iterable[str]) -> bytes:
        """16 bytes; rows with equal keys have equal vectors, so one of them is enough to embed.

        With `READOUTS`, all of them, rows with equal keys have equal tokens, responses too.
        """
        readouts = tuple(readouts)
        # Count first, so that no row's spans can be taken for another row's tokens.
        spans = [len(self.spans), *chain(*self.spans)] if see_response(readouts) else []
        digest = blake2b(struct.pack(f"={len(spans)}i", *spans), digest_size=16)
        digest.update(self.input_ids[: self.needed(readouts)].tobytes())
        return digest.digest()

    def prompt_key(self) -> bytes:
        """16 bytes; rows with equal ones have the same tokens before the last response. Plain text is a prompt."""
        return self.key((START,) if self.boundary else READOUTS)


def see_response(readouts: Iterable[str]) -> bool:
    """Whether one of these is fed a token of the last response."""
    return any(READOUTS[readout].sees_response for readout in readouts)
