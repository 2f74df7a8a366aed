"""Which shape a row has, in SFTTrainer's order of precedence, and what in it is the response."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.errors import SAFTInputError
from saft_hf.render.readouts import Spans
from saft_hf.render.rendering import TokenIds
from saft_hf.status import RowStatus

Message = dict[str, Any]

CHAT_COLUMNS = ("prompt", "completion", "messages", "conversations")
TOKEN_COLUMNS = ("input_ids", "labels", "completion_mask", "assistant_masks", "seq_lengths")
OPTION_COLUMNS = ("tools", "chat_template_kwargs")
IMAGE_COLUMNS = ("image", "images")
FORMATTED_COLUMN = "text"  # where SFTTrainer puts what `formatting_func` returns, whatever the text field

# ShareGPT's and Gemma's names beside the usual one: SFTTrainer does not rename roles either.
ASSISTANT_ROLES = frozenset({"assistant", "gpt", "model"})

_RUN = re.compile(rb"\x01+")
_DEEPEST = 100

# Set by the caller of `apply_chat_template`; from a row they would change the form of what comes back. A template is a
# program: one from a row could run for ever.
_RESERVED_OPTIONS = frozenset(
    [
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    ]
)


@dataclass(frozen=True, slots=True, repr=False)  # the text of rows is in no traceback
class Chat:
    """A conversation: the responses begin at messages `turns`; with `completion`, one runs to the end."""

    messages: list[Message]
    turns: tuple[int, ...]
    completion: bool
    options: dict[str, Any]


@dataclass(frozen=True, slots=True, repr=False)
class Plain:
    """A string to tokenise, and the part of it that is the prompt (`None`: all of it is the response)."""

    prompt: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row that came tokenised."""

    input_ids: TokenIds
    spans: Spans
    boundary: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row without readouts, and why."""

    status: RowStatus
    detail: str


Row = Chat | Plain | Tokens | Rejected


def check_columns(columns: Iterable[str], text_field: str, *, formatted: bool) -> None:
    """Raise `SAFTInputError` where no row can be rendered with these columns.

    Args:
        columns: the names that the dataset has.
        text_field: the column of plain text.
        formatted: whether a `formatting_func` adds the column `text`.
    """
    found = list(columns)
    if images := [name for name in IMAGE_COLUMNS if name in found]:
        raise SAFTInputError(
            f"The dataset has the column {images[0]!r}. Rows with images cannot be scored: SFTTrainer reads "
            "them with a vision-language model's processor. Remove the column to score the text alone."
        )
    if "input_ids" in found:
        return
    if "prompt" in found and "completion" not in found:
        raise SAFTInputError(
            f"The dataset has the column 'prompt' but no 'completion' (columns found: {found}). SFTTrainer "
            "reads 'prompt' before any other column. Rename the column of responses to 'completion', or "
            "remove 'prompt'."
        )
    readable = {"prompt", "messages", "conversations", text_field}
    if readable.isdisjoint([*found, FORMATTED_COLUMN] if formatted else found):
        raise SAFTInputError(
            f"No column to render: found {found}; expected 'messages', 'conversations', 'prompt' and "
            f"'completion', {text_field!r} (the text field), or 'input_ids'. Rename a column, or name "
            "the text field."
        )


def read_row(row: Mapping[str, Any], text_field: str, eos_token: str | None, vocab_size: int) -> Row:
    """Find out what a row is.

    A null value counts as a missing one, so that rows of several shapes can share a table; where nothing is
    left to read, the row is rejected.

    Args:
        row: column -> value. Not changed.
        text_field: the column of plain text.
        eos_token: what plain text and plain completions must end with.
        vocab_size: token ids of tokenised rows must be below it.

    Returns:
        The row in the form to render it from, or `Rejected`.
    """
    if row.get("seq_lengths") is not None:
        return Rejected(RowStatus.PACKED, "'seq_lengths' says that several examples are packed in this row")
    if "input_ids" in row:
        return _read_tokens(row, vocab_size)
    row = _from_sharegpt(row)
    text = row.get(text_field)
    if row.get("prompt") is not None:
        return _read_prompt_completion(row, text, eos_token)
    if _is_chat(row.get("messages")):
        return _chat(row["messages"], row, None)
    if isinstance(text, str):
        return _blank_or(Plain(None, _with_eos(text, eos_token)), text, eos_token)
    if _is_chat(row.get("conversations")):  # not read by SFTTrainer under this name
        return _chat(row["conversations"], row, None)
    found = {name: row[name] for name in ("prompt", "messages", text_field, "conversations") if name in row}
    return Rejected(RowStatus.BAD_ROW, "nothing to render: " + ", ".join(map(_found, found, found.values())))


def _found(name: str, value: Any) -> str:
    """What a column holds in place of a dialogue or text: its type, and what to do about it."""
    if isinstance(value, Mapping):
        kinds = sorted({type(item).__name__ for item in value.values()})
        return f"{name!r} is a dict of {' and '.join(kinds) or 'nothing'}, not a list of messages"
    if isinstance(value, str) and value.lstrip().startswith("["):
        return f"{name!r} is a str that looks like JSON, not a list of messages: read it with `json.loads` first"
    if isinstance(value, list):
        lacks = " without the key 'role'" if value and isinstance(value[0], dict) and "role" not in value[0] else ""
        return f"{name!r} is a list of {type(value[0]).__name__ if value else 'nothing'}{lacks}"
    return f"{name!r} is null" if value is None else f"{name!r} is of type {type(value).__name__}"


def _from_sharegpt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rename from/value to role/content, and `conversations` to `messages`, where SFTTrainer does."""
    turns = row.get("conversations")
    if not (isinstance(turns, list) and turns and isinstance(turns[0], dict) and {"from", "value"} <= turns[0].keys()):
        return row
    renamed = {
        name: [_rename_keys(message) for message in row[name]] if isinstance(row.get(name), list) else row.get(name)
        for name in CHAT_COLUMNS
    }
    return {**row, **renamed, "messages": renamed["conversations"]}


def _rename_keys(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    renamed = dict(message)
    for old, new in (("from", "role"), ("value", "content")):
        if old in renamed:
            renamed[new] = renamed.pop(old)
    return renamed


def _read_prompt_completion(row: Mapping[str, Any], text: Any, eos_token: str | None) -> Row:
    prompt, completion = row["prompt"], row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        # SFTTrainer gives the end token to the text column where there is one, only else to the completion.
        text_takes_eos = isinstance(text, str) and _with_eos(text, eos_token) != text
        ended = completion if text_takes_eos else _with_eos(completion, eos_token)
        return _blank_or(Plain(prompt, prompt + ended), completion, eos_token)
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        found = " and ".join(_found(name, row.get(name)) for name in ("prompt", "completion"))
        return Rejected(RowStatus.BAD_ROW, f"both must be strings, or both lists of messages: {found}")
    if not prompt:
        return Rejected(RowStatus.BAD_ROW, "'prompt' is an empty list")
    if not completion:
        return Rejected(RowStatus.EMPTY_RESPONSE, "'completion' is an empty list")
    return _chat(prompt + completion, row, len(prompt))


def _chat(messages: list[Any], row: Mapping[str, Any], prompt_length: int | None) -> Row:
    for number, message in enumerate(messages):
        if problem := _message_problem(message):
            return Rejected(RowStatus.BAD_ROW, f"message {number}: {problem}")
    options = _chat_options(row)
    if isinstance(options, Rejected):
        return options
    first = prompt_length or 0
    turns = tuple(i for i in range(first, len(messages)) if messages[i]["role"] in ASSISTANT_ROLES)
    if not turns:
        return Rejected(RowStatus.NO_RESPONSE, "no message has the role 'assistant'")
    if _is_blank(messages[turns[-1]]):
        return Rejected(RowStatus.EMPTY_RESPONSE, "the last assistant message has no content")
    if prompt_length is None:
        return Chat(messages, turns, False, options)
    return Chat(messages, (prompt_length,), True, options)


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def _message_problem(message: Any) -> str:
    if not isinstance(message, dict):
        return f"expected a dict with 'role' and 'content', found {type(message).__name__}"
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        return f"'role' must be a string, found {type(role).__name__}"
    nullable = role in ASSISTANT_ROLES or role == "tool"  # a tool call has no content
    if isinstance(content, str | list) or (nullable and content is None) or role == "tool":
        return ""
    return f"'content' must be a string or a list of parts, found {type(content).__name__}"


def _is_blank(message: Message) -> bool:
    content = message.get("content")
    if message.get("tool_calls"):
        return False
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return not any(isinstance(text, str) and text.strip() for text in texts)


def _chat_options(row: Mapping[str, Any]) -> dict[str, Any] | Rejected:
    """`tools` and `chat_template_kwargs` as SFTTrainer hands them to the template: the latter win."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            return Rejected(RowStatus.BAD_ROW, f"'tools' is not JSON ({type(error).__name__})")
    extra = {} if row.get("chat_template_kwargs") is None else row["chat_template_kwargs"]
    if not isinstance(extra, Mapping) or not all(isinstance(name, str) for name in extra):
        found = type(extra).__name__
        return Rejected(RowStatus.BAD_ROW, f"'chat_template_kwargs' must be a dict with string keys, found {found}")
    # A table gives every row every key: those of other rows are null.
    reserved = _RESERVED_OPTIONS.intersection(extra)
    if brought := sorted(name for name in reserved if extra[name] is not None):
        return Rejected(RowStatus.BAD_ROW, f"'chat_template_kwargs' sets {brought}, which a row must not")
    options = {"tools": tools, **{name: value for name, value in extra.items() if name not in reserved}}
    if not _is_shallow(options, _DEEPEST):
        return Rejected(RowStatus.BAD_ROW, f"'tools' or 'chat_template_kwargs' is nested deeper than {_DEEPEST} levels")
    return options


def _is_shallow(value: Any, most: int) -> bool:
    """Whether there are at most so many levels: from JSON they come as deep as Python's stack allows."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return most > 0 and all(_is_shallow(item, most - 1) for item in items)


def _with_eos(text: str, eos_token: str | None) -> str:
    if eos_token is None:
        raise SAFTInputError(
            "The tokenizer has no eos_token, and SFTTrainer ends plain text and plain completions with it. "
            "Set tokenizer.eos_token."
        )
    return text if text.endswith(eos_token) else text + eos_token


def _blank_or(row: Plain, response: str, eos_token: str | None) -> Row:
    if response.removesuffix(eos_token or "").strip():
        return row
    return Rejected(RowStatus.EMPTY_RESPONSE, "the response is empty or white space")


def _read_tokens(row: Mapping[str, Any], vocab_size: int) -> Row:
    ids = _int_array(row["input_ids"])
    if ids is None or not ids.size:
        return Rejected(RowStatus.BAD_ROW, "'input_ids' must be a list of integers that is not empty")
    if ids.min() < 0 or ids.max() >= vocab_size:
        return Rejected(RowStatus.BAD_ROW, f"'input_ids' has an id outside the tokenizer's 0 to {vocab_size - 1}")
    names = [name for name in ("labels",) if row.get(name) is not None] or [
        name for name in ("completion_mask", "assistant_masks") if row.get(name) is not None
    ]
    marked = np.ones(ids.size, bool)
    for name in names:
        mask = _int_array(row[name])
        if mask is None or mask.size != ids.size:
            return Rejected(RowStatus.BAD_ROW, f"{name!r} must hold one integer for each of the {ids.size} input_ids")
        marked &= mask != (-100 if name == "labels" else 0)
    if not marked.any():
        return Rejected(RowStatus.NO_RESPONSE, f"{' and '.join(names)} mark no token as a response")
    # Where every token is marked, nothing is told apart.
    return Tokens(ids.astype(np.int32), runs(marked), boundary=not marked.all())


def _int_array(values: Any) -> NDArray[np.int64] | None:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError):  # ragged, or no array at all
        return None
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "biu" else None


def runs(mask: NDArray[np.bool_]) -> Spans:
    """Half-open ranges of the runs of `True`.

    Examples:
        >>> runs(np.array([False, True, True, False, True]))
        ((1, 3), (4, 5))
    """
    return tuple(run.span() for run in _RUN.finditer(mask.tobytes()))
