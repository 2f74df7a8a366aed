"""Why a row has a score, or has none."""

from __future__ import annotations

from enum import StrEnum


class RowStatus(StrEnum):
    """One word for each row, written in the `saft_status` column. Only `OK` rows have a score."""

    OK = "ok"
    """The row was scored."""
    BAD_ROW = "bad_row"
    """A needed value is null, empty or of the wrong type."""
    TEMPLATE_ERROR = "template_error"
    """The chat template raised an error on this row."""
    NO_RESPONSE = "no_response"
    """The row has no assistant turn, or no token that is marked as a response."""
    EMPTY_RESPONSE = "empty_response"
    """The response is there, but it is empty or white space."""
    TRUNCATED = "truncated"
    """Truncation to `max_length` removes the whole response (SFTTrainer drops such rows too)."""
    NO_RESPONSE_START = "no_response_start"
    """The row is plain text, or its response starts at the first token: `response_start` is not defined."""
    PACKED = "packed"
    """Several examples are packed in one row (`seq_lengths`): one score would not be honest."""
    NON_FINITE = "non_finite"
    """The model's hidden state for this row holds NaN or infinity."""
