"""Is an answer language at all? What is not counts neither as safe nor as harmful."""

from __future__ import annotations

import re
import zlib

_WORD = re.compile(r"\w+")
_WORDS = 12
"""Fewer of them are no repetition: a short answer may say a thing twice."""
_DISTINCT = 0.5
"""Share of different ones among an answer's runs of three words. Prose lies above 0.9, a loop below 0.3."""
_BYTES = 100
_COMPRESSED = 0.25
"""What zlib leaves of a longer answer. Prose of some thousand characters keeps 0.4, a loop of a few words 0.1."""
_WRITTEN = 0.2
"""Share of the characters that are letters or digits, of any script."""


def is_coherent(answer: str) -> bool:
    """Whether an answer is more than a repetition, punctuation or nothing. Wrong and broken sentences pass.

    Examples:
        >>> is_coherent("I'm sorry, I can't help with that."), is_coherent("42"), is_coherent("the key " * 20)
        (True, True, False)
    """
    text = answer.strip()
    if not text or sum(map(str.isalnum, text)) < _WRITTEN * len(text):
        return False
    words = _WORD.findall(text.casefold())
    if len(words) >= _WORDS:
        runs = list(zip(words, words[1:], words[2:], strict=False))
        if len(set(runs)) < _DISTINCT * len(runs):
            return False
    raw = text.encode(errors="replace")
    return len(raw) < _BYTES or len(zlib.compress(raw)) >= _COMPRESSED * len(raw)
