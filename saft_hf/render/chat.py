"""Conversations -> token ids and response spans, by the chat template, many at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import Any, TypeVar

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from saft_hf.errors import SAFTInputError
from saft_hf.render import find_turns
from saft_hf.render.readouts import Span, Spans
from saft_hf.render.rendering import TokenIds
from saft_hf.render.rows import Chat, Message, Rejected, Tokens, runs
from saft_hf.status import RowStatus

_Item = TypeVar("_Item")
_Encoded = TypeVar("_Encoded")
_Placed = tuple[TokenIds, NDArray[np.int64]]
"""Tokens, and where in the text each of them ends."""

# What a template, or the tokenizer, raises on a value that it cannot take.
ROW_ERRORS = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    *(MemoryError, RecursionError),
)
_ROUND = 8
"""Turns of a dialogue that are rendered before it is seen whether later ones matter."""
_LONG = 4
"""From so many responses on, their places are told in few renderings; below, to render each turn costs no more."""
_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


def encode_each(
    encode: Callable[[list[_Item]], Sequence[_Encoded]], items: list[_Item], status: RowStatus
) -> list[_Encoded | Rejected]:
    """Encode all items at once; where that raises, halve until the items that raise stand alone.

    Args:
        encode: items -> results, one for each, in order; one item's result does not depend on the others.
        items: what to encode.
        status: the status of an item that raises one of `ROW_ERRORS`.
    """
    if not items:
        return []
    try:
        return list(encode(items))
    except SAFTInputError:  # about all rows, not one
        raise
    except ROW_ERRORS as error:
        if len(items) == 1:
            return [Rejected(status, describe(error))]
    half = len(items) // 2
    return encode_each(encode, items[:half], status) + encode_each(encode, items[half:], status)


def describe(error: Exception) -> str:
    """The error's class, with its message where the template's author wrote it: others may quote the row."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, TemplateError) else name


class ChatEncoder:
    """Renders and tokenises conversations as SFTTrainer does, and finds the responses in them.

    Args:
        tokenizer: its chat template renders the conversations. Not changed.
        chat_template: a template, or the name of one, in place of the tokenizer's own.
        limit: only responses that begin among so many tokens need be found; None for all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, limit: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.limit = limit

    def __call__(self, chats: Sequence[Chat]) -> list[Tokens | Rejected]:
        """Encode conversations, those with equal template arguments together."""
        keys = [(chat.completion, repr(chat.options)) for chat in chats]
        order = sorted(range(len(chats)), key=keys.__getitem__)
        encoded: dict[int, Tokens | Rejected] = {}
        for _, group in groupby(order, key=keys.__getitem__):
            numbers = list(group)
            encoded |= zip(numbers, self._encode_group([chats[i] for i in numbers]), strict=True)
        return [encoded[i] for i in range(len(chats))]

    def _encode_group(self, chats: list[Chat]) -> list[Tokens | Rejected]:
        options = {"chat_template": self.chat_template, **chats[0].options}
        template = self._template(options)
        conversations = [chat.messages for chat in chats]
        # Python tokenizers cannot say which token a character went to, so markers do not help there.
        if not chats[0].completion and _GENERATION_MARKER.search(template) and self.tokenizer.is_fast:
            return self._render(conversations, options, self._marked)
        placed = self._long(chats, options)
        rest = [row for row in range(len(chats)) if row not in placed]
        placed |= zip(rest, self._turn_by_turn([chats[row] for row in rest], options), strict=True)
        return [placed[row] for row in range(len(chats))]

    def _turn_by_turn(self, chats: list[Chat], options: dict[str, Any]) -> list[Tokens | Rejected]:
        """Responses by rendering what stands before and up to each of them: n turns are rendered n times.

        Some turns at a time, and none behind `limit`: a dialogue without end costs what is left of it.
        """
        fulls = self._render([chat.messages for chat in chats], options, self._ids)
        parts: list[_Parts] = [[] for _ in chats]
        placed = [_respond(full, []) for full in fulls]
        prompted = {**options, "add_generation_prompt": True}
        for first in range(0, max((len(chat.turns) for chat in chats), default=0), _ROUND):
            going = [
                row
                for row, chat in enumerate(chats)
                if first < len(chat.turns) and self._goes_on(fulls[row], placed[row], parts[row])
            ]
            turns = [(row, i) for row in going for i in chats[row].turns[first : first + _ROUND]]
            heads = {(row, i): chats[row].messages[:i] for row, i in turns if i > 0}
            tails = {
                (row, i): chats[row].messages[: i + 1]
                for row, i in turns
                if not chats[row].completion and i + 1 < len(chats[row].messages)
            }
            head_ids = dict(zip(heads, self._render(list(heads.values()), prompted, self._ids), strict=True))
            tail_ids = dict(zip(tails, self._render(list(tails.values()), options, self._ids), strict=True))
            for row, i in turns:
                parts[row].append((head_ids.get((row, i)), tail_ids.get((row, i))))
            for row in going:
                placed[row] = _respond(fulls[row], parts[row])
        return placed

    def _goes_on(self, full: TokenIds | Rejected, found: Tokens | Rejected, parts: _Parts) -> bool:
        """Whether later turns of a row may matter."""
        if isinstance(full, Rejected) or any(isinstance(ids, Rejected) for pair in parts for ids in pair):
            return False
        return isinstance(found, Rejected) or self.limit is None or found.spans[-1][0] < self.limit

    def _long(self, chats: list[Chat], options: dict[str, Any]) -> dict[int, Tokens | Rejected]:
        """Conversations of many turns, by number, where the places of their responses can be told in few renderings."""
        if chats[0].completion or not self.tokenizer.is_fast:
            return {}
        long = {row: chat for row, chat in enumerate(chats) if len(chat.turns) >= _LONG and find_turns.can_mark(chat)}
        if not long:
            return {}
        texts = partial(self._render, encode=self._texts)
        prompted = {**options, "add_generation_prompt": True}
        found = find_turns.find_turns(
            list(long.values()), lambda some: texts(some, options), lambda some: texts(some, prompted)
        )
        known = {row: turns for row, turns in zip(long, found, strict=True) if turns is not None}
        edges = {row: [0, *(edge for span in turns.spans for edge in span)] for row, turns in known.items()}
        pieces = [known[row].text[a:b] for row, own in edges.items() for a, b in pairwise(own)]
        encode = partial(encode_each, self._with_offsets, status=RowStatus.TEMPLATE_ERROR)
        tokens, parts = encode([turns.text for turns in known.values()]), iter(encode(pieces))
        placed: dict[int, Tokens | Rejected] = {}
        for (row, own), encoded in zip(edges.items(), tokens, strict=True):
            cut = [(begin, next(parts)) for begin, _ in pairwise(own)]
            if isinstance(encoded, Rejected):
                placed[row] = encoded
                continue
            at = [None if isinstance(part, Rejected) else _shared(encoded, part, begin) for begin, part in cut]
            numbers = [number for number in at if number is not None]
            if len(numbers) == len(at):
                placed[row] = _tokens(
                    encoded[0], tuple((a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True) if a < b)
                )
        return placed

    def _template(self, options: dict[str, Any]) -> str:
        try:
            return str(self.tokenizer.get_chat_template(options["chat_template"], options["tools"]))
        except ValueError as error:
            raise SAFTInputError(
                "The rows are conversations, and the tokenizer has no chat template to render them with. Set "
                "tokenizer.chat_template, pass chat_template, or take the tokenizer of the chat model."
            ) from error

    def _render(
        self,
        conversations: list[list[Message]],
        options: dict[str, Any],
        encode: Callable[[list[list[Message]], dict[str, Any]], Sequence[_Encoded]],
    ) -> list[_Encoded | Rejected]:
        def encode_some(some: list[list[Message]]) -> Sequence[_Encoded]:
            try:
                return encode(some, options)
            except TemplateSyntaxError as error:
                raise SAFTInputError(f"The chat template is not valid Jinja: {error}") from error

        return encode_each(encode_some, conversations, RowStatus.TEMPLATE_ERROR)

    def _ids(self, conversations: list[list[Message]], options: dict[str, Any]) -> list[TokenIds]:
        out = self.tokenizer.apply_chat_template(conversations, tokenize=True, return_dict=True, **options)
        return [np.array(ids, np.int32) for ids in out["input_ids"]]

    def _texts(self, conversations: list[list[Message]], options: dict[str, Any]) -> list[str]:
        return list(self.tokenizer.apply_chat_template(conversations, tokenize=False, **options))

    def _with_offsets(self, texts: list[str]) -> list[_Placed]:
        """Tokens of rendered conversations, and where in the text each of them ends."""
        out = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        ends = [np.array([end for _, end in offsets], np.int64) for offsets in out["offset_mapping"]]
        # A token may be reported with less of the text than it covers: the ends never fall.
        return [
            (np.array(ids, np.int32), np.maximum.accumulate(end))
            for ids, end in zip(out["input_ids"], ends, strict=True)
        ]

    def _marked(self, conversations: list[list[Message]], options: dict[str, Any]) -> list[Tokens | Rejected]:
        out = self.tokenizer.apply_chat_template(
            conversations, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
        )
        return [
            _tokens(np.array(ids, np.int32), runs(np.array(mask, bool)))
            for ids, mask in zip(out["input_ids"], out["assistant_masks"], strict=True)
        ]


def common_prefix(one: TokenIds, other: TokenIds) -> int:
    """Number of leading tokens that two sequences share."""
    n = min(len(one), len(other))
    differ = np.flatnonzero(one[:n] != other[:n])
    return int(differ[0]) if differ.size else n


def _shared(whole: _Placed, piece: _Placed, begin: int) -> int | None:
    """How many tokens the whole shares with its text up to the end of a piece: its last ones may join what follows.

    Args:
        whole: tokens of all of the text.
        piece: tokens of a piece of it alone. Its first ones may differ: a tokenizer may begin a text with a space.
        begin: where the piece begins in the text.

    Returns:
        The number; None where the piece has no token of the whole.
    """
    (ids, ends), (own_ids, own_ends) = whole, piece
    first, stop = np.searchsorted(ends, [begin, begin + own_ends[-1] if own_ends.size else begin], side="right")
    known = set(zip(ends[first:stop].tolist(), ids[first:stop].tolist(), strict=True))
    reached = None
    for end, token in zip((own_ends + begin).tolist(), own_ids.tolist(), strict=True):
        if (end, token) in known:
            reached = end
        elif reached is not None:
            break
    return None if reached is None else int(np.searchsorted(ends, reached, side="right"))


def _tokens(ids: TokenIds, spans: Spans) -> Tokens | Rejected:
    if not spans:
        return Rejected(RowStatus.NO_RESPONSE, "the chat template renders no token of a response")
    return Tokens(ids, spans, boundary=True)


_Parts = list[tuple[TokenIds | Rejected | None, TokenIds | Rejected | None]]


def _respond(full: TokenIds | Rejected, turns: _Parts) -> Tokens | Rejected:
    """Place each response in the whole row's tokens.

    Args:
        full: the whole row.
        turns: for each response, the messages before it with the generation prompt (`None`: there are none),
            and the messages up to and with it (`None`: it runs to the end).
    """
    if isinstance(full, Rejected):
        return full
    spans: list[Span] = []
    end = 0
    for head, tail in turns:
        if isinstance(head, Rejected):
            return head
        if isinstance(tail, Rejected):
            return tail
        start = end if head is None else _turn_start(full, head, end)
        end = len(full) if tail is None else _turn_end(full, tail, start)
        if start < end:
            spans.append((start, end))
    return _tokens(full, tuple(spans))


def _turn_start(full: TokenIds, head: TokenIds, previous_end: int) -> int:
    shared = common_prefix(head, full)
    # Templates that drop earlier reasoning render `head` differently inside an earlier response. What stands
    # between that response and this one is not rewritten, so it is found by the end of `head`.
    return shared if shared >= previous_end else previous_end + _overlap(head, full[previous_end:])


def _turn_end(full: TokenIds, tail: TokenIds, start: int) -> int:
    shared = common_prefix(tail, full)
    if shared == len(tail):
        return max(shared, start)
    # The response is rewritten once something follows it: as a rule its reasoning goes and its end stays.
    return max(shared, start + _overlap(tail, full[start:]))


def _overlap(text: TokenIds, following: TokenIds) -> int:
    """Length of the longest end of `text` that `following` begins with."""
    if not following.size:
        return 0
    for at in np.flatnonzero(text == following[0]):
        if np.array_equal(text[at:], following[: len(text) - at]):
            return int(len(text) - at)
    return 0
