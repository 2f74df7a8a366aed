"""Where the responses of a long conversation stand in its rendered text, in a few renderings for any number of turns.

The conversation is rendered once more with a mark in place of each response. What stands between the marks stands
between the responses, too, and so tells where each of them begins and ends; what a template adds before and after one
is learned from the first turns and looked for at all others. Where anything does not fit, such as a template that
rewrites responses once others follow, nothing is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from saft_hf.render.readouts import Spans
from saft_hf.render.rows import Chat, Message, Rejected

RenderTexts = Callable[[list[list[Message]]], list[str | Rejected]]
"""Conversations -> their texts."""


@dataclass(frozen=True)
class Turns:
    """A rendered conversation.

    Attributes:
        text: all of it.
        spans: where each response stands in it, with what ends it, half-open ranges of characters.
    """

    text: str
    spans: Spans


def can_mark(chat: Chat) -> bool:
    """Whether something stands before the first response, and each is text that a mark can stand for."""
    contents = [chat.messages[turn].get("content") for turn in chat.turns]
    return chat.turns[0] > 0 and all(isinstance(content, str) and content.strip() for content in contents)


def find_turns(chats: list[Chat], texts: RenderTexts, prompts: RenderTexts) -> list[Turns | None]:
    """Find the responses.

    Args:
        chats: conversations that `can_mark`.
        texts: renders conversations.
        prompts: renders what stands before a response, with the generation prompt.

    Returns:
        For each its text and spans; None where they cannot be told in this way.
    """
    wholes, marked = texts([chat.messages for chat in chats]), texts([_marked(chat) for chat in chats])
    firsts = texts([chat.messages[: chat.turns[0] + 1] for chat in chats])
    heads = prompts([chat.messages[: chat.turns[0]] for chat in chats])
    lasts = prompts([chat.messages[: chat.turns[-1]] for chat in chats])
    ends = texts([chat.messages[: chat.turns[-1] + 1] for chat in chats])
    return [
        None if any(isinstance(text, Rejected) for text in parts) else _found(chat, *map(str, parts))
        for chat, *parts in zip(chats, wholes, marked, firsts, heads, lasts, ends, strict=True)
    ]


def _marks(chat: Chat) -> dict[int, str]:
    """A text for each response that cannot stand in the conversation: it holds the conversation's digest."""
    digest = sha256(repr(chat.messages).encode()).hexdigest()
    return {turn: f"\ue000{digest}:{turn}\ue001" for turn in chat.turns}


def _marked(chat: Chat) -> list[Message]:
    """The conversation with marks. Responses but the last, which is rendered by itself, have nothing else.

    What a template makes of other fields, such as reasoning before the text, then stands in the whole alone.
    """
    marks, last = _marks(chat), chat.turns[-1]
    return [
        {**(message if number == last else {"role": message["role"]}), "content": marks[number]}
        if number in marks
        else message
        for number, message in enumerate(chat.messages)
    ]


def _found(chat: Chat, whole: str, marked: str, first: str, head: str, last_head: str, last: str) -> Turns | None:
    """The responses of one conversation, from its text, that with marks, and those of its first and last turn."""
    places, at, rest = [], 0, marked
    for turn, mark in _marks(chat).items():
        before, found, rest = rest.partition(mark)
        at += len(before)
        content = chat.messages[turn]["content"]
        response = next((text for text in (content, content.strip()) if whole.startswith(text, at)), None)
        if not found or response is None or not whole.startswith(before, at - len(before)):
            return None
        places.append((at, at + len(response)))
        at += len(response)
    if whole[at:] != rest or not all(whole.startswith(text) for text in (head, last_head, last)):
        return None
    # What the template adds at every turn: it may open a response beyond its generation prompt, and it ends one.
    begin, end = places[0]
    opening = whole[len(head) : begin]
    response = whole[begin:end]
    at = begin if first.startswith(whole[:end]) else first.find(response, len(head))
    # A text that stands there twice, such as one that the template writes too, cannot be told from it.
    alone = first.startswith(whole[:end]) or at == first.rfind(response) != -1
    if not alone or len(head) > begin or len(last_head) > places[-1][0]:
        return None
    closing = first[at + len(response) :]
    earlier = [
        (start - len(opening), stop + len(closing))
        for start, stop in places[:-1]
        if whole.startswith(opening, start - len(opening)) and whole.startswith(closing, stop)
    ]
    if len(earlier) < len(places) - 1 or len(last) < places[-1][1]:
        return None
    return Turns(whole, (*earlier, (len(last_head), len(last))))
