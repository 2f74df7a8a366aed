"""What a rendered row is, and which of its tokens a readout needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saft_hf.errors import SAFTInputError
from saft_hf.status import RowStatus

TokenIds = NDArray[np.int32]
Span = tuple[int, int]
TruncationMode = Literal["keep_start", "keep_end"]


class Readout(StrEnum):
    """Where in a row the hidden state is read."""

    START = "response_start"
    """The last token before the (last) response: the published readout, which sees only the prompt."""
    MEAN = "response_mean"
    """The mean over the tokens of all responses."""
    END = "response_end"
    """The last token of the (last) response."""


@dataclass(frozen=True)
class RenderConfig:
    """The options of SFTTrainer that change a row's tokens.

    Args:
        max_length (`int` or `None`, defaults to `1024`): Tokens a row is cut to, `None` for no cut.
        truncation_mode (`str`, defaults to `"keep_start"`): Which end stays: `"keep_start"` or `"keep_end"`.
        text_field (`str`, defaults to `"text"`): The column of plain text (`dataset_text_field` there).

    Raises:
        SAFTInputError: An option has a value that SFTTrainer would not take.
    """

    max_length: int | None = 1024
    truncation_mode: TruncationMode = "keep_start"
    text_field: str = "text"

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise SAFTInputError(f"max_length is {self.max_length}; it must be at least 1, or None for no cut.")
        if self.truncation_mode not in get_args(TruncationMode):
            raise SAFTInputError(f"truncation_mode is {self.truncation_mode!r}; expected 'keep_start' or 'keep_end'.")
        if not self.text_field:
            raise SAFTInputError("text_field is empty; name the column of plain text, for example 'text'.")


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """One row as the model sees it.

    Args:
        input_ids (`np.ndarray`, int32, `[n]`): The tokens that SFTTrainer trains on, cut to `max_length`;
            none where the status is not `OK`.
        spans (`tuple` of `(start, end)`): The responses, as half-open token ranges: in order, disjoint, not
            empty. Plain text is one response: `((0, n),)`.
        boundary (`bool`): Whether prompt and response are told apart; `False` for plain text.
        status (`RowStatus`): `OK`, or why no readout can be taken at all.
        detail (`str`): A few words for people; never the row's text.
    """

    input_ids: TokenIds
    spans: tuple[Span, ...]
    boundary: bool
    status: RowStatus
    detail: str = ""

    @classmethod
    def failed(cls, status: RowStatus, detail: str) -> Rendering:
        """A row without readouts, and why."""
        return cls(np.empty(0, np.int32), (), False, status, detail)

    def status_for(self, readout: Readout) -> RowStatus:
        """Whether `readout` is defined here: text, and a response at token 0, have no `response_start`."""
        if self.status is RowStatus.OK and readout == Readout.START and not self._has_start:
            return RowStatus.NO_RESPONSE_START
        return self.status

    def needed(self, readouts: Sequence[Readout]) -> int:
        """How many leading tokens must be fed to take `readouts`; 0 where there is none to take."""
        if not self.spans:
            return 0
        start, end = self.spans[-1]
        return start if set(readouts) <= {Readout.START} else end

    def key(self, readouts: Sequence[Readout]) -> bytes:
        """16 bytes; rows with equal keys have equal vectors, so one of them is enough to embed."""
        digest = blake2b(digest_size=16)
        if not set(readouts) <= {Readout.START}:
            # Count first, so that no row's spans can be taken for another row's tokens.
            digest.update(np.array([len(self.spans), *sum(self.spans, ())], np.int32).tobytes())
        digest.update(self.input_ids[: self.needed(readouts)].tobytes())
        return digest.digest()

    @property
    def _has_start(self) -> bool:
        return self.boundary and self.spans[-1][0] > 0
