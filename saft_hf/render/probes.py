"""A few fixed rows: tokenizers and chat templates that make the same tokens of them count as the same."""

from __future__ import annotations

from typing import Any

_TOOL = {
    "type": "function",
    "function": {
        "name": "tide",
        "description": "When the tide turns.",
        "parameters": {"type": "object", "properties": {"port": {"type": "string"}}, "required": ["port"]},
    },
}
_SYSTEM = {"role": "system", "content": "  Answer in one sentence.\n"}
_ASK = {"role": "user", "content": "When does the ferry leave?"}
_THINK = {"role": "assistant", "content": "<think>\nThe timetable says nine.\n</think>\n\n At nine. "}
_AGAIN = {"role": "user", "content": "  And in winter — né, \U0001f6a2?\n\n"}
_ANSWER = {"role": "assistant", "content": "At ten."}


PROBES: tuple[dict[str, Any], ...] = (
    {"messages": [_ASK, _ANSWER]},
    {"messages": [_SYSTEM, _ASK, _ANSWER]},
    {"messages": [_ASK, _THINK, _AGAIN, _ANSWER]},
    {"messages": [_SYSTEM, _ASK, _ANSWER, _AGAIN, _THINK]},
    {"messages": [_ASK, _ANSWER], "tools": [_TOOL]},
    {"prompt": [_SYSTEM, _AGAIN], "completion": [_THINK]},
    {"prompt": _ASK["content"], "completion": " " + _ANSWER["content"]},
    {"text": f"{_AGAIN['content']} {_ANSWER['content']}"},
)
"""Each is one row of its own shape; `Renderer.template_digest` renders them."""

NO_CLOCK = "{% macro strftime_now(format) %}01 January 2000{% endmacro %}"
"""Put before a template that writes the date: it is the same template tomorrow."""
