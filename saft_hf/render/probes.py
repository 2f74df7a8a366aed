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


def _parts(message: dict[str, Any], *first: dict[str, Any]) -> dict[str, Any]:
    """The message with its content as a list of parts."""
    texts = (message["content"], " Is it late?")
    return {**message, "content": [*first, *({"type": "text", "text": text} for text in texts)]}


def _call(arguments: Any, content: str | None, *ids: str) -> dict[str, Any]:
    """A message that calls the tool; some templates take nothing but nine letters or digits for an id."""
    function = {"name": "tide", "arguments": arguments}
    calls = [{"type": "function", "id": each, "function": function} for each in ids]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _result(content: Any, each: str = "tideCall1") -> dict[str, Any]:
    return {"role": "tool", "name": "tide", "tool_call_id": each, "content": content}


_PORT = {"port": "né"}
_CALL = _call(_PORT, "", "tideCall1")
_TWO = ("tideCall1", "tideCall2")
_LONG = {"role": "user", "content": "The ferry leaves at nine. " * 250}

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
"""Each is one row of its own shape; `Renderer.template_digest` renders them, and sees what readouts see of them."""

# A template that raises on one thing shows nothing of the rest of the dialogue: so one thing in each.
DIALOGUES: tuple[tuple[list[dict[str, Any]], dict[str, Any]], ...] = (
    ([_ASK, {**_ANSWER, "reasoning_content": "Winter is slow."}, _AGAIN, _ANSWER], {}),
    ([{**_SYSTEM, "role": "developer"}, _ASK, _ANSWER], {}),
    ([_ASK, _CALL, _result("At eight."), _ANSWER], {"tools": [_TOOL]}),
    ([_ASK, _CALL, _result("At eight."), _ANSWER], {}),
    ([_ASK, _call(_PORT, None, "tideCall1")], {}),
    ([_ASK, _call(_PORT, "I ask.", "tideCall1"), _result("At eight."), _ANSWER, _AGAIN, _ANSWER], {}),
    ([_ASK, _call('{"port": "né"}', "", "tideCall1"), _result('{"hour": 8}'), _ANSWER], {}),
    ([_ASK, _call(_PORT, "", *_TWO), *(_result("At eight.", each) for each in _TWO), _ANSWER], {}),
    ([_ASK, _CALL, _result({"hour": 8}), _ANSWER], {}),
    ([_ASK, _CALL, _parts(_result("At eight.")), _ANSWER], {}),
    ([_parts(_ASK), _ANSWER], {}),
    ([_parts(_ASK, {"type": "image"}), _ANSWER], {}),
    ([_ASK, _parts(_ANSWER), _AGAIN, _parts(_THINK)], {}),
    ([_parts(_SYSTEM), _ASK, _ANSWER], {}),
    ([_SYSTEM, *[_ASK, _ANSWER, _AGAIN, _THINK] * 64], {}),
    ([_LONG, {**_LONG, "role": "assistant"}, _AGAIN, _ANSWER], {}),
    ([_ASK, _ANSWER], {"enable_thinking": False, "reasoning_effort": "high"}),
    ([_ASK, _ANSWER], {"enable_thinking": True, "thinking": True}),
)
"""Messages that fewer rows hold, and what else the template is told: of these the digest sees the whole text."""

NO_CLOCK = "{% macro strftime_now(format) %}01 January 2000{% endmacro %}"
"""Put before a template that writes the date: it is the same template tomorrow."""
