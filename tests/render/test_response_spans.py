"""Responses in conversations whose template does not mark them."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from render_kit import (
    INST,
    MARKED,
    TURNS,
    UNMARKED,
    dialogue,
    make_tokenizer,
    same,
    tool_dialogue,
    without_markers,
)
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from saft_hf.render import MEAN, READOUTS, START, RenderConfig, Renderer
from saft_hf.render import chat as chat_module
from saft_hf.render.chat import common_prefix
from saft_hf.render.rows import runs
from saft_hf.status import RowStatus

MARKED_RENDERERS = {name: Renderer(make_tokenizer(template)) for name, template in MARKED.items()}
PLAIN_RENDERERS = {name: Renderer(make_tokenizer(without_markers(template))) for name, template in MARKED.items()}
TRAILING = {"chatml": 1, "tags": 0, "think": 1}  # tokens after the end of a turn that no marker covers


def chat(name: str, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    if name != "tags" and seed % 3 == 0:
        return tool_dialogue(rng, calls=rng.randint(1, 3))
    messages: list[dict[str, Any]] = list(dialogue(rng, turns=rng.randint(1, 4), system=rng.random() < 0.5, think=True))
    return messages if rng.random() < 0.7 else [*messages, {"role": "user", "content": "And then?"}]


@pytest.mark.parametrize("name", MARKED)
@settings(max_examples=60, deadline=None)
@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
@pytest.mark.smoke
def test_found_spans_are_the_marked_ones(name: str, seeds: list[int]) -> None:
    """The markers say where responses are; without them the same places are found, also where reasoning goes."""
    batch = {"messages": [chat(name, seed) for seed in seeds]}
    for marked, found in zip(MARKED_RENDERERS[name](batch), PLAIN_RENDERERS[name](batch), strict=True):
        assert marked.status is found.status is RowStatus.OK
        assert marked.input_ids.tolist() == found.input_ids.tolist()
        assert len(marked.spans) == len(found.spans)
        for (start, end), (found_start, found_end) in zip(marked.spans, found.spans, strict=True):
            assert found_start == start
            assert end <= found_end <= end + TRAILING[name]


@pytest.mark.parametrize("template", [INST, TURNS], ids=["inst", "turns"])
@given(turns=st.integers(1, 4), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_spans_hold_the_answers(template: str, turns: int, seed: int) -> None:
    tokenizer = make_tokenizer(template)
    messages = dialogue(random.Random(seed), turns=turns)
    rendering = Renderer(tokenizer)({"messages": [messages]})[0]
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    texts = [tokenizer.decode(rendering.input_ids[slice(*span)], skip_special_tokens=True) for span in rendering.spans]
    assert [text.strip() for text in texts] == answers


def test_last_turn_ends_with_the_row_and_reads_its_whole_prompt() -> None:
    messages = dialogue(random.Random(0), turns=2)
    tokenizer = PLAIN_RENDERERS["chatml"].tokenizer
    rendering = PLAIN_RENDERERS["chatml"]({"messages": [messages]})[0]
    start, end = rendering.spans[-1]
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert rendering.input_ids[:start].tolist() == prompt
    assert end == len(rendering.input_ids)


def test_equals_prompt_completion_for_one_turn() -> None:
    chats = [dialogue(random.Random(seed), system=seed % 2 == 0) for seed in range(10)]
    for renderer in PLAIN_RENDERERS.values():
        whole = renderer({"messages": chats})
        split = renderer({"prompt": [c[:-1] for c in chats], "completion": [c[-1:] for c in chats]})
        assert [r.spans for r in whole] == [r.spans for r in split]
        assert [r.key(list(READOUTS)) for r in whole] == [r.key(list(READOUTS)) for r in split]


def test_a_conversation_that_opens_with_the_assistant_has_no_start() -> None:
    row = [{"role": "assistant", "content": "The bell rang."}]
    rendering = PLAIN_RENDERERS["chatml"]({"messages": [row]})[0]
    assert rendering.spans == ((0, len(rendering.input_ids)),)
    assert rendering.status_for(START) is RowStatus.NO_RESPONSE_START
    assert rendering.status_for(MEAN) is RowStatus.OK


def test_generation_prompt_that_the_row_does_not_repeat() -> None:
    """With reasoning switched off, the prompt alone ends in an empty thought; the answer starts where they part."""
    template = without_markers(MARKED["think"]).replace("loop.index0 > ns.asked", "false")
    renderer = Renderer(make_tokenizer(template))
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It rains."}]
    batch = {"messages": [messages], "chat_template_kwargs": [{"enable_thinking": False}]}
    rendering = renderer(batch)[0]
    assert renderer.tokenizer.decode(rendering.input_ids[slice(*rendering.spans[-1])]).startswith("It rains.")


@given(st.lists(st.booleans()))
def test_runs(mask: list[bool]) -> None:
    spans = runs(np.array(mask, bool))
    covered = [any(start <= i < end for start, end in spans) for i in range(len(mask))]
    assert covered == mask
    assert all(end < start for (_, end), (start, _) in pairwise(spans))


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_prefix(one: list[int], other: list[int]) -> None:
    n = common_prefix(np.array(one, np.int32), np.array(other, np.int32))
    assert one[:n] == other[:n]
    assert n in (len(one), len(other)) or one[n] != other[n]


@pytest.mark.parametrize("name", UNMARKED)
@settings(max_examples=25, deadline=None)
@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
def test_long_dialogues_have_the_spans_that_each_turn_gives(name: str, seeds: list[int]) -> None:
    def long(seed: int) -> list[dict[str, Any]]:
        rng = random.Random(seed)
        answers = {"system": rng.random() < 0.5, "think": rng.random() < 0.3}
        messages: list[dict[str, Any]] = list(dialogue(rng, turns=rng.randint(4, 7), **answers))
        if rng.random() < 0.3:
            messages[-1]["content"] = f"  {messages[-1]['content']}\n"
        return messages if rng.random() < 0.7 else [*messages, {"role": "user", "content": "And then?"}]

    renderer, batch = Renderer(make_tokenizer(UNMARKED[name])), {"messages": [long(seed) for seed in seeds]}
    found = renderer(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_module, "_LONG", 1000)
        each = renderer(batch)
    for one, other in zip(found, each, strict=True):
        assert same(one, other)


def test_a_dialogue_of_many_turns_costs_few_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer(without_markers(MARKED["chatml"]))
    rendered: list[int] = []
    apply = tokenizer.apply_chat_template

    def counted(conversations: Any, **options: Any) -> Any:
        rendered.extend(map(len, conversations))
        return apply(conversations, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    for turns in (20, 80):
        rendered.clear()
        messages = dialogue(random.Random(0), turns=turns)
        renderer = Renderer(tokenizer, RenderConfig(max_length=None))
        assert len(renderer({"messages": [messages]})[0].spans) == turns
        assert sum(rendered) <= 4.2 * len(messages)


# A generation prompt whose last token joins what follows, and reasoning that stands in one turn alone.
JOINED = (
    "{% for m in messages %}{{ '### ' + m.role + ':\\n\\n' + m.content + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\\n\\n' }}{% endif %}"
)
REASONS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "first", "third"),
    [
        (JOINED, {}, {}),
        (REASONS, {}, {"reasoning_content": "Think."}),
        (REASONS, {"content": "<|im_end|>\n"}, {}),
    ],
    ids=["joined", "reasons", "repeats"],
)
def test_hard_long_dialogues_have_the_spans_that_each_turn_gives(
    template: str, first: dict[str, str], third: dict[str, str]
) -> None:
    messages = dialogue(random.Random(0), turns=5)
    messages[1] |= first
    messages[5] |= third
    tokenizer = make_tokenizer(template)
    if template == JOINED:
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        core["model"]["vocab"]["ĊĊ"] = 600
        core["model"]["merges"].append(["Ċ", "Ċ"])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(core)), eos_token="<eos>", chat_template=template
        )
    renderer, batch = Renderer(tokenizer, RenderConfig(max_length=None)), {"messages": [messages]}
    (found,) = renderer(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_module, "_LONG", 1000)
        (each,) = renderer(batch)
    assert same(found, each)


@pytest.mark.parametrize("name", UNMARKED)
def test_turns_behind_the_cut_are_not_looked_for_and_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer(UNMARKED[name])
    monkeypatch.setattr(chat_module, "_LONG", 1000)
    rendered: list[int] = []
    apply = tokenizer.apply_chat_template

    def counted(conversations: Any, **options: Any) -> Any:
        rendered.append(len(conversations))
        return apply(conversations, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    messages = dialogue(random.Random(1), turns=60, think=True)
    whole = Renderer(tokenizer, RenderConfig(max_length=None))({"messages": [messages]})[0]
    rendered.clear()
    cut = Renderer(tokenizer, RenderConfig(max_length=200))({"messages": [messages]})[0]
    assert sum(rendered) <= 1 + 2 * 3 * 8
    assert cut.input_ids.tolist() == whole.input_ids[:200].tolist()
    assert cut.spans == tuple((start, min(end, 200)) for start, end in whole.spans if start < 200)
