"""Statuses, errors, and what holds for every batch."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from render_kit import (
    CHATML,
    INST,
    MARKED,
    SENTENCES,
    TAGS,
    TURNS,
    UNMARKED,
    dialogue,
    make_tokenizer,
    same,
    without_markers,
)
from transformers import AutoTokenizer

from saft_hf.errors import SAFTInputError
from saft_hf.render import END, MEAN, READOUTS, START, RenderConfig, Renderer, Rendering
from saft_hf.status import RowStatus

JUST_START, ALL = (START,), tuple(READOUTS)
ASK = {"role": "user", "content": "Why does bread rise?"}
ANSWER = {"role": "assistant", "content": "It is warm."}
TEMPLATES = {"marked": CHATML, "unmarked": without_markers(CHATML), "inst": INST, "turns": TURNS, "tags": TAGS}
RENDERERS = {
    name: Renderer(make_tokenizer(template), RenderConfig(max_length=60)) for name, template in TEMPLATES.items()
}


def status_of(renderer: Renderer | None = None, **row: Any) -> RowStatus:
    rendering = (renderer or RENDERERS["marked"])({name: [value] for name, value in row.items()})[0]
    if rendering.status is not RowStatus.OK:
        assert rendering.detail
        assert not rendering.spans
        assert not len(rendering.input_ids)
    return rendering.status


STATUSES: list[tuple[RowStatus, dict[str, Any]]] = [
    (RowStatus.OK, {"messages": [ASK, ANSWER]}),
    (RowStatus.OK, {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}]}),
    (RowStatus.OK, {"prompt": "Why?", "completion": " Because.", "messages": None}),
    (RowStatus.OK, {"prompt": None, "completion": None, "messages": [ASK, ANSWER]}),
    (RowStatus.OK, {"text": "A note.", "messages": None}),
    (RowStatus.BAD_ROW, {"messages": None}),
    (RowStatus.BAD_ROW, {"messages": []}),
    (RowStatus.BAD_ROW, {"messages": "Why?"}),
    (RowStatus.BAD_ROW, {"messages": [ASK, None]}),
    (RowStatus.BAD_ROW, {"messages": [ASK, {"role": None, "content": "It is warm."}]}),
    (RowStatus.BAD_ROW, {"messages": [{"role": "user", "content": None}, ANSWER]}),
    (RowStatus.BAD_ROW, {"messages": [ASK, {"role": "assistant", "content": 5}]}),
    (RowStatus.BAD_ROW, {"messages": [{"from": "user", "value": "Why?"}]}),
    (RowStatus.BAD_ROW, {"prompt": "Why?", "completion": None}),
    (RowStatus.BAD_ROW, {"prompt": None, "completion": "Because."}),
    (RowStatus.BAD_ROW, {"prompt": [ASK], "completion": "Because."}),
    (RowStatus.BAD_ROW, {"prompt": [], "completion": [ANSWER]}),
    (RowStatus.BAD_ROW, {"text": 7}),
    (RowStatus.BAD_ROW, {"text": "a lone surrogate \ud800"}),
    (RowStatus.BAD_ROW, {"messages": [ASK, ANSWER], "tools": "{not json"}),
    (RowStatus.OK, {"messages": [ASK, ANSWER], "chat_template_kwargs": None}),
    (RowStatus.OK, {"messages": [ASK, ANSWER], "chat_template_kwargs": {"chat_template": None, "padding": None}}),
    (RowStatus.BAD_ROW, {"messages": [ASK, ANSWER], "chat_template_kwargs": "{}"}),
    (RowStatus.BAD_ROW, {"messages": [ASK, ANSWER], "chat_template_kwargs": {"chat_template": "{{ 'a' * 9**12 }}"}}),
    (RowStatus.BAD_ROW, {"messages": [ASK, ANSWER], "chat_template_kwargs": {"padding": True}}),
    (RowStatus.BAD_ROW, {"input_ids": None, "messages": [ASK, ANSWER]}),
    (RowStatus.BAD_ROW, {"input_ids": []}),
    (RowStatus.BAD_ROW, {"input_ids": [1, 10**6]}),
    (RowStatus.BAD_ROW, {"input_ids": [1, -1]}),
    (RowStatus.BAD_ROW, {"input_ids": [1, None]}),
    (RowStatus.BAD_ROW, {"input_ids": [[1], [2, 3]]}),
    (RowStatus.BAD_ROW, {"input_ids": [1, 2, 3], "labels": [1, 2]}),
    (RowStatus.TEMPLATE_ERROR, {"messages": [ASK, ANSWER], "tools": json.dumps(["not a schema"])}),
    (RowStatus.BAD_ROW, {"messages": [ASK, ANSWER], "chat_template_kwargs": {"chat_template": "{% if %}"}}),
    (RowStatus.TEMPLATE_ERROR, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER]}),
    (RowStatus.NO_RESPONSE, {"messages": [ASK]}),
    (RowStatus.NO_RESPONSE, {"input_ids": [1, 2], "labels": [-100, -100]}),
    (RowStatus.NO_RESPONSE, {"input_ids": [1, 2], "completion_mask": [0, 1], "assistant_masks": [1, 0]}),
    (RowStatus.EMPTY_RESPONSE, {"messages": [ASK, {"role": "assistant", "content": " \n"}]}),
    (RowStatus.EMPTY_RESPONSE, {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": None}]}),
    (RowStatus.EMPTY_RESPONSE, {"prompt": "Why?", "completion": ""}),
    (RowStatus.EMPTY_RESPONSE, {"prompt": "Why?", "completion": " <eos>"}),
    (RowStatus.EMPTY_RESPONSE, {"prompt": [ASK], "completion": []}),
    (RowStatus.EMPTY_RESPONSE, {"text": " "}),
    (RowStatus.TRUNCATED, {"messages": [{"role": "user", "content": " ".join(SENTENCES * 9)}, ANSWER]}),
    (RowStatus.PACKED, {"input_ids": [1, 2, 3], "seq_lengths": [1, 2]}),
]


@pytest.mark.parametrize(("status", "row"), STATUSES, ids=lambda value: str(value)[:60])
def test_status(status: RowStatus, row: dict[str, Any]) -> None:
    assert status_of(**row) is status


@pytest.mark.smoke
def test_a_template_that_raises_costs_one_row() -> None:
    good = [ASK, ANSWER]
    bad = [{"role": "system", "content": "Be kind."}, *good]
    renderings = RENDERERS["turns"]({"messages": [good, bad, good, bad, good]})
    assert [r.status for r in renderings] == [RowStatus.OK, RowStatus.TEMPLATE_ERROR] * 2 + [RowStatus.OK]
    assert "no system turns" in renderings[1].detail


@pytest.mark.parametrize("raised", [MemoryError, RecursionError, OverflowError, KeyboardInterrupt])
def test_what_a_row_may_raise(raised: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    apply = type(tokenizer).apply_chat_template

    def render(self: Any, chats: list[Any], **options: Any) -> Any:
        if any(message["content"] == "bomb" for chat in chats for message in chat):
            raise raised
        return apply(self, chats, **options)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", render)
    bad = [{"role": "user", "content": "bomb"}, ANSWER]
    batch = {"messages": [[ASK, ANSWER], bad, [ASK, ANSWER]]}
    if raised is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            Renderer(tokenizer)(batch)
        return
    renderings = Renderer(tokenizer)(batch)
    assert [r.status for r in renderings] == [RowStatus.OK, RowStatus.TEMPLATE_ERROR, RowStatus.OK]
    assert renderings[1].detail == raised.__name__


def test_tools_that_are_nested_as_deep_as_the_stack_allows() -> None:
    depths = range(1, sys.getrecursionlimit() + 100, 9)
    tools = ["[" * depth + "]" * depth for depth in depths]
    renderings = Renderer(make_tokenizer())({"messages": [[ASK, ANSWER]] * len(tools), "tools": tools})
    assert {r.status for r in renderings[20:]} == {RowStatus.BAD_ROW}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": json.dumps([ASK, ANSWER])}, "'messages' is a str that looks like JSON.*json.loads"),
        ({"messages": "Why?"}, "'messages' is of type str"),
        ({"messages": {"role": ["user"], "content": ["Why?"]}}, "'messages' is a dict of list, not a list of messages"),
        ({"messages": [{"speaker": "user"}]}, "'messages' is a list of dict without the key 'role'"),
        ({"messages": ["Why?"]}, "'messages' is a list of str"),
        ({"messages": None, "text": 7}, "'messages' is null, 'text' is of type int"),
        ({"prompt": "Why?", "completion": [ANSWER]}, "'prompt' is of type str and 'completion' is a list of dict$"),
        ({"prompt": json.dumps([ASK]), "completion": None}, "'prompt' is a str that looks like JSON.*is null"),
        ({"messages": [ASK, ANSWER], "chat_template_kwargs": "{}"}, "dict with string keys, found str"),
    ],
)
def test_the_reason_names_what_was_found(row: dict[str, Any], says: str) -> None:
    detail = Renderer(make_tokenizer())({name: [value] for name, value in row.items()})[0].detail
    assert re.search(says, detail), detail


def test_a_formatting_function_of_the_old_kind_is_named() -> None:
    renderer = Renderer(make_tokenizer(), formatting_func=lambda rows: [f"{body}" for body in rows["body"]])
    (rendering,) = renderer({"body": ["A note."]})
    assert rendering.status is RowStatus.BAD_ROW
    assert "formatting_func returned a list" in rendering.detail


def test_labels_that_mask_nothing_tell_nothing() -> None:
    alone = RENDERERS["marked"]({"input_ids": [[5, 6, 7]]})[0]
    assert not alone.boundary
    for name, value in {"labels": [5, 6, 7], "completion_mask": [1, 1, 1], "assistant_masks": [1, 1, 1]}.items():
        assert same(RENDERERS["marked"]({"input_ids": [[5, 6, 7]], name: [value]})[0], alone)
    assert RENDERERS["marked"]({"input_ids": [[5, 6, 7]], "labels": [[-100, 6, 7]]})[0].boundary


def test_sharegpt_role_is_the_assistants_unless_the_template_marks_another() -> None:
    row = [ASK, {"role": "gpt", "content": "It is warm."}]
    for name, status in {"unmarked": RowStatus.OK, "tags": RowStatus.OK, "marked": RowStatus.NO_RESPONSE}.items():
        assert status_of(RENDERERS[name], messages=row) is status


def test_detail_does_not_quote_the_row() -> None:
    quoting = Renderer(make_tokenizer("{% for m in messages %}{{ [1].index(m.content) }}{% endfor %}"))
    rendering = quoting({"messages": [[ASK, ANSWER]]})[0]  # ValueError: 'Why does bread rise?' is not in list
    assert (rendering.status, rendering.detail) == (RowStatus.TEMPLATE_ERROR, "ValueError")


def test_a_formatting_function_that_fails_costs_one_row() -> None:
    renderer = Renderer(make_tokenizer(), formatting_func=lambda row: row["body"]["words"])
    renderings = renderer({"body": [{"words": "A note."}, {}, {"words": None}]})
    assert [r.status for r in renderings] == [RowStatus.OK, RowStatus.BAD_ROW, RowStatus.BAD_ROW]
    assert status_of(renderer, input_ids=[5, 6]) is RowStatus.OK  # not called where tokens are there, as in TRL


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (["question", "answer"], "found ['question', 'answer']"),
        ([], "found []"),
        (["completion"], "found ['completion']"),
        (["prompt", "messages"], "no 'completion'"),
        (["messages", "images"], "'images'"),
    ],
)
def test_columns_that_no_row_can_be_read_from(columns: list[str], says: str) -> None:
    with pytest.raises(SAFTInputError) as error:
        RENDERERS["marked"]({name: ["x"] for name in columns})
    assert says in str(error.value)


def test_no_chat_template_and_no_eos_token_are_not_the_rows_fault() -> None:
    tokenizer = make_tokenizer(None)
    assert status_of(Renderer(tokenizer), text="A note.") is RowStatus.OK
    for row in ({"messages": [ASK, ANSWER]}, {"prompt": [ASK], "completion": [ANSWER]}):
        with pytest.raises(SAFTInputError, match="chat_template"):
            status_of(Renderer(tokenizer), **row)
        assert status_of(Renderer(tokenizer, chat_template=CHATML), **row) is RowStatus.OK
    tokenizer.eos_token = None
    with pytest.raises(SAFTInputError, match="eos_token"):
        status_of(Renderer(tokenizer), text="A note.")


def test_a_template_that_is_no_jinja_is_not_the_rows_fault() -> None:
    with pytest.raises(SAFTInputError, match="not valid Jinja"):
        status_of(Renderer(make_tokenizer("{% for %}")), messages=[ASK, ANSWER])


def test_arguments() -> None:
    with pytest.raises(SAFTInputError, match="processor"):
        Renderer("gpt2")
    for options in ({"max_length": 0}, {"truncation_mode": "middle"}, {"text_field": ""}):
        with pytest.raises(SAFTInputError, match=next(iter(options))):
            RenderConfig(**options)


def test_no_rows() -> None:
    assert RENDERERS["marked"]({"messages": []}) == []


def test_other_columns_are_not_touched() -> None:
    class Batch(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            assert name == "text"
            return super().__getitem__(name)

    assert RENDERERS["marked"](Batch(text=["A note."], audio=[None]))[0].status is RowStatus.OK


# ---- readouts --------------------------------------------------------------------------------------------------


def rendering(ids: list[int], *spans: tuple[int, int], boundary: bool = True) -> Rendering:
    return Rendering(np.array(ids, np.int32), spans, boundary, RowStatus.OK)


def test_what_each_readout_needs() -> None:
    row = rendering(list(range(10)), (2, 4), (6, 9))
    assert row.needed([START]) == 6
    assert row.needed([MEAN]) == row.needed([END]) == row.needed(list(READOUTS)) == 9
    failed = Rendering.failed(RowStatus.TRUNCATED, "gone")
    assert failed.needed(list(READOUTS)) == 0
    assert all(failed.status_for(readout) is RowStatus.TRUNCATED for readout in READOUTS)
    text = rendering([1, 2], (0, 2), boundary=False)
    assert [text.status_for(r) for r in READOUTS] == [RowStatus.NO_RESPONSE_START, RowStatus.OK, RowStatus.OK]


def test_key_is_equal_where_the_vectors_are() -> None:
    row = rendering([1, 2, 3, 4, 5], (2, 4))
    other_answer = rendering([1, 2, 8, 9, 9], (2, 5))
    other_span = rendering([1, 2, 3, 4, 5], (1, 4))
    other_rest = rendering([1, 2, 3, 4, 7, 7], (2, 4))
    for readouts in ([MEAN], [END], list(READOUTS)):
        assert row.key(readouts) == other_rest.key(readouts)
        assert row.key(readouts) != other_answer.key(readouts)
        assert row.key(readouts) != other_span.key(readouts)
    assert row.key([START]) == other_answer.key([START]) == other_rest.key([START])
    assert row.key([START]) != other_span.key([START])
    assert len(row.key(list(READOUTS))) == 16


# ---- every batch -----------------------------------------------------------------------------------------------

words = st.sampled_from([*SENTENCES, "", " ", "<|im_end|>", "<eos>", "\n\nÜber 東京 🙂", "\x00"])
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 600) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "a"]), inner),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "assistant", "tool", "gpt"])},
        optional={"content": words | words | junk, "tool_calls": st.none() | junk},
    ),
    max_size=5,
)
turns = st.integers(0, 999).map(lambda seed: dialogue(random.Random(seed), turns=seed % 4 + 1, system=seed % 3 == 0))
flags = st.lists(st.integers(0, 1), max_size=6)
VALUES = {
    "messages": turns | messages | junk,
    "prompt": words | messages | junk,
    "completion": words | messages | junk,
    "conversations": messages | junk,
    "text": words | junk,
    "tools": st.sampled_from([None, "[]", "{", '[{"name": "look"}]']) | junk,
    "chat_template_kwargs": st.sampled_from([{}, {}, {"mood": "calm"}]) | junk,
    "input_ids": st.lists(st.integers(0, 400), max_size=6) | junk,
    "labels": st.lists(st.sampled_from([-100, 5]), max_size=6) | junk,
    "completion_mask": flags | junk,
    "assistant_masks": flags | junk,
    "seq_lengths": st.none() | flags,
}
SHAPES = [
    ("messages",),
    ("messages", "tools", "chat_template_kwargs"),
    ("prompt", "completion"),
    ("prompt", "completion", "messages", "text", "tools"),
    ("conversations", "text"),
    ("conversations", "messages", "prompt", "completion"),
    ("input_ids",),
    ("input_ids", "labels", "completion_mask", "assistant_masks", "seq_lengths"),
]
batches = st.sampled_from(SHAPES).flatmap(
    lambda names: st.lists(st.tuples(*(VALUES[name] for name in names)), min_size=1, max_size=5).map(
        lambda rows: dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    )
)


@settings(max_examples=250, deadline=None)
@given(name=st.sampled_from(sorted(RENDERERS)), batch=batches, shuffle=st.randoms(use_true_random=False))
@pytest.mark.smoke
def test_any_batch(name: str, batch: dict[str, list[Any]], shuffle: random.Random) -> None:
    renderer = RENDERERS[name]
    untouched = copy.deepcopy(batch)
    renderings = renderer(batch)
    assert repr(batch) == repr(untouched)
    n = len(next(iter(batch.values())))
    assert len(renderings) == n
    for row in renderings:
        bounds = [bound for span in row.spans for bound in span]
        assert bounds == sorted(bounds)
        assert all(0 <= start < end <= len(row.input_ids) <= 60 for start, end in row.spans)
        assert (row.status is RowStatus.OK) == bool(row.spans) == bool(len(row.input_ids))
    order = list(range(n))
    shuffle.shuffle(order)
    moved = renderer({column: [values[i] for i in order] for column, values in batch.items()})
    assert all(same(moved[at], renderings[i]) for at, i in enumerate(order))
    assert all(
        same(renderer({column: [values[i]] for column, values in batch.items()})[0], renderings[i]) for i in order
    )


def test_what_map_gives_is_what_a_list_gives() -> None:
    rows = [{"messages": dialogue(random.Random(seed), turns=seed % 3 + 1)} for seed in range(20)]
    renderer = RENDERERS["unmarked"]
    direct = renderer({"messages": [row["messages"] for row in rows]})
    mapped = Dataset.from_list(rows).map(
        lambda batch: {"ids": [r.input_ids for r in renderer(batch)]}, batched=True, batch_size=7
    )
    assert mapped["ids"][:] == [r.input_ids.tolist() for r in direct]


# ---- the tokenizer ---------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_tokenizer_is_not_changed() -> None:
    tokenizer = make_tokenizer()
    core = tokenizer.backend_tokenizer.to_str()
    before = repr(tokenizer), tokenizer.chat_template, dict(tokenizer.special_tokens_map)
    renderer = Renderer(tokenizer, RenderConfig(max_length=4), chat_template=INST, formatting_func=str)
    renderer({"messages": [[ASK, ANSWER], None]})
    assert renderer.template_digest(ALL)
    assert (repr(tokenizer), tokenizer.chat_template, dict(tokenizer.special_tokens_map)) == before
    assert tokenizer.backend_tokenizer.to_str() == core


def test_pickle() -> None:
    renderer = RENDERERS["unmarked"]
    copied = pickle.loads(pickle.dumps(renderer))
    batch = {"messages": [[ASK, ANSWER], None]}
    assert all(same(one, other) for one, other in zip(renderer(batch), copied(batch), strict=True))
    assert copied.template_digest(ALL) == renderer.template_digest(ALL)


@pytest.mark.parametrize("readouts", [JUST_START, ALL])
def test_template_digest_tells_tokens_apart(readouts: tuple[str, ...], tmp_path: Path) -> None:
    def digest(tokenizer: Any, **options: Any) -> str:
        return Renderer(tokenizer, **options).template_digest(readouts)

    own = digest(make_tokenizer())
    assert len(own) == 64
    ending, longer, plain, wordy = (make_tokenizer() for _ in range(4))
    ending.eos_token = "<|im_end|>"
    longer.add_tokens(["harbour"])
    plain.chat_template = None
    wordy.chat_template = CHATML.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}Well: ")
    others = [digest(t) for t in (make_tokenizer(INST), make_tokenizer(bos=True), longer, plain, wordy)]
    others += [digest(make_tokenizer(t)) for t in UNMARKED.values() if t not in (INST, without_markers(CHATML))]
    if readouts == ALL:
        others.append(digest(ending))  # it ends plain text, which `response_start` does not read
    assert len({own, *others}) == len(others) + 1
    assert digest(make_tokenizer(), chat_template=INST) == digest(make_tokenizer(INST))

    padding = make_tokenizer()
    padding.pad_token = padding.eos_token
    padding.padding_side = "left"
    padding(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert digest(padding, config=RenderConfig(max_length=5), formatting_func=str) == own
    make_tokenizer().save_pretrained(tmp_path)
    assert digest(AutoTokenizer.from_pretrained(tmp_path)) == own


# Where a template of another writer may differ from CHATML, and nowhere else: (test in the template, its words).
DIFFERENCES = {
    "tool results": "{% if m.role == 'tool' %}Result: {% endif %}",
    "tool results of no tool in use": "{% if m.role == 'tool' and not tools %}Result: {% endif %}",
    "several tool results": "{% if m.role == 'tool' and loop.previtem.role == 'tool' %}also {% endif %}",
    "tool results in parts": "{% if m.role == 'tool' and m.content is not string %}parts {% endif %}",
    "tool results that are objects": "{% if m.role == 'tool' and m.content is mapping %}an object {% endif %}",
    "tool calls": "{% if m.tool_calls %}calls {% endif %}",
    "several tool calls": "{% if m.tool_calls | length > 1 %}calls {% endif %}",
    "arguments of tool calls as text": (
        "{% if m.tool_calls and m.tool_calls[0].function.arguments is string %}text {% endif %}"
    ),
    "tool calls with words": "{% if m.tool_calls and m.content %}says {% endif %}",
    "answers after tool results": "{% if m.role == 'assistant' and loop.previtem.role == 'tool' %}so {% endif %}",
    "parts of users": "{% if m.role == 'user' and m.content is not string %}parts {% endif %}",
    "parts of the system": "{% if m.role == 'system' and m.content is not string %}parts {% endif %}",
    "parts of answers": "{% if m.role == 'assistant' and m.content and m.content is not string %}p {% endif %}",
    "several parts": "{% if m.content is not string and m.content | length > 1 %}parts {% endif %}",
    "pictures": "{% if m.content is not string and m.content and m.content[0].type == 'image' %}<image>{% endif %}",
    "dialogues of 8 messages": "{% if loop.first and messages | length > 8 %}long {% endif %}",
    "dialogues of 100 messages": "{% if loop.first and messages | length > 100 %}long {% endif %}",
    "the hundredth message": "{% if loop.index == 100 %}long {% endif %}",
    "long messages": "{% if m.role == 'user' and m.content | length > 5000 %}long {% endif %}",
    "long answers": "{% if m.role == 'assistant' and m.content and m.content | length > 5000 %}long {% endif %}",
    "reasoning": "{% if m.reasoning_content %}{{ m.reasoning_content }}{% endif %}",
    "developers": "{% if m.role == 'developer' %}dev {% endif %}",
    "options": "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}",
}


@pytest.mark.parametrize("named", DIFFERENCES)
def test_template_digest_sees_templates_that_differ_in_one_thing(named: str) -> None:
    # The differences stand before what the last response reads, so that both kinds of readout must see them.
    loop = "{% for m in messages %}"
    plain = (
        loop + "{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content | string }}{{ m.tool_calls | string }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    other = plain.replace(loop, loop + DIFFERENCES[named])
    for readouts in (JUST_START, ALL):
        one, two = (Renderer(make_tokenizer(template)).template_digest(readouts) for template in (plain, other))
        assert one != two, readouts


@pytest.mark.parametrize("name", MARKED)
def test_template_digest_does_not_see_what_changes_no_token(name: str) -> None:
    marked, unmarked = Renderer(make_tokenizer(MARKED[name])), Renderer(make_tokenizer(UNMARKED[name]))
    assert marked.template_digest(JUST_START) == unmarked.template_digest(JUST_START)
    # The tokens are the same; whether a response ends where its marker does, is not.
    row = {"messages": [[ASK, ANSWER]]}
    same_spans = marked(row)[0].spans == unmarked(row)[0].spans
    assert (marked.template_digest(ALL) == unmarked.template_digest(ALL)) is same_spans


@pytest.mark.parametrize("named", [False, True])
def test_template_digest_does_not_know_what_day_it_is(named: bool) -> None:
    def digest(words: str) -> str:
        template = CHATML.replace("{% for m", words + "{% for m", 1)
        tokenizer = make_tokenizer(template)
        if named:
            tokenizer.chat_template = {"default": template, "tool_use": template}
        return Renderer(tokenizer).template_digest(JUST_START)

    assert (
        digest("{% set day = strftime_now('%d %B %Y') %}{{ day }}") == digest("{{ '01 January 2000' }}") != digest("")
    )


def test_template_digest_is_equal_in_another_process(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    code = (
        "import sys; from transformers import AutoTokenizer; from saft_hf.render import READOUTS, Renderer;"
        "print(Renderer(AutoTokenizer.from_pretrained(sys.argv[1])).template_digest(list(READOUTS)))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == Renderer(make_tokenizer()).template_digest(ALL)


def test_render_knows_nothing_of_the_trainer() -> None:
    code = "import sys, saft_hf.render; print('trl' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_real_template_and_rows(lab_lm: str, shared_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lab_lm)
    path = str(shared_dir / "data" / "multiturn_benign.jsonl.gz")
    rows = Dataset.from_json(path).select(range(200))
    renderings = Renderer(tokenizer, RenderConfig(max_length=None))(rows[:])
    for row, rendering in zip(rows, renderings, strict=True):
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        texts = [tokenizer.decode(rendering.input_ids[slice(*span)]) for span in rendering.spans]
        assert texts == [f"{answer}<|end|>" for answer in answers]
