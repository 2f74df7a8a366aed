"""The tokens are those that SFTTrainer itself prepares; so are the labels where it masks the prompt."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import trl.data_utils
from render_kit import (
    CHATML,
    MARKED,
    SENTENCES,
    TEMPLATES,
    TOOLS,
    batch_of,
    dialogue,
    make_tokenizer,
    prepare,
    spans_of,
    tool_dialogue,
)

from saft_hf.render import RenderConfig, Renderer, Rendering
from saft_hf.status import RowStatus

# TRL 1.10 starts the completion at len(prompt_ids); 1.16 where the prompt's and the whole row's tokens part.
CUTS_AT_COMMON_PREFIX = hasattr(trl.data_utils, "common_prefix_length")


def render(rows: list[dict[str, Any]], renderer: Renderer) -> list[Rendering]:
    return renderer(batch_of(rows))


def assert_same_ids(renderings: list[Rendering], prepared: dict[int, tuple[list[int], list[int]]]) -> None:
    assert {i for i, r in enumerate(renderings) if r.status is RowStatus.OK} == prepared.keys()
    for i, (ids, _) in prepared.items():
        assert renderings[i].input_ids.tolist() == ids


def assert_same_labels(renderings: list[Rendering], prepared: dict[int, tuple[list[int], list[int]]]) -> None:
    assert_same_ids(renderings, prepared)
    for i, (_, labels) in prepared.items():
        assert renderings[i].spans == spans_of(labels)


def conversations(rng: random.Random, template: str) -> list[list[dict[str, Any]]]:
    think = "think" in template
    chats = [dialogue(rng, turns=turns, think=think) for turns in (1, 1, 2, 3)]
    chats += [[{"role": "user", "content": " padded \n"}, {"role": "assistant", "content": "\n padded answer "}]]
    if "raise_exception" not in template:
        chats += [dialogue(rng, turns=turns, system=True, think=think) for turns in (1, 2)]
    return chats


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.smoke
def test_messages_of_every_template(name: str) -> None:
    tokenizer = make_tokenizer(TEMPLATES[name], bos="bos_token" in TEMPLATES[name])
    rows = [{"messages": chat} for chat in conversations(random.Random(0), TEMPLATES[name])]
    assert_same_ids(render(rows, Renderer(tokenizer)), prepare(rows, tokenizer))


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.smoke
def test_markers_give_the_labels_of_assistant_only_loss(name: str) -> None:
    tokenizer = make_tokenizer(MARKED[name])
    rng = random.Random(1)
    rows = [{"messages": chat} for chat in conversations(rng, MARKED[name])]
    if name != "tags":  # there, tool turns count as the assistant's
        rows += [{"messages": tool_dialogue(rng, calls=calls)} for calls in (1, 2)]
    assert_same_labels(render(rows, Renderer(tokenizer)), prepare(rows, tokenizer, assistant_only_loss=True))


@pytest.mark.parametrize("name", TEMPLATES)
def test_conversational_prompt_completion(name: str) -> None:
    tokenizer = make_tokenizer(TEMPLATES[name])
    chats = conversations(random.Random(2), TEMPLATES[name])
    rows = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]
    rows += [{"prompt": chat[:-3], "completion": chat[-3:]} for chat in chats if len(chat) > 3]
    renderings, prepared = render(rows, Renderer(tokenizer)), prepare(rows, tokenizer)
    assert_same_ids(renderings, prepared)
    if CUTS_AT_COMMON_PREFIX:
        assert_same_labels(renderings, prepared)


@pytest.mark.parametrize("bos", [False, True])
def test_plain_prompt_completion(bos: bool) -> None:
    tokenizer = make_tokenizer(None, bos=bos)
    rows = [{"prompt": one, "completion": f" {two}"} for one, two in zip(SENTENCES, SENTENCES[::-1], strict=True)]
    rows += [{"prompt": "", "completion": "Yes."}, {"prompt": "Is it?", "completion": " Yes.<eos>"}]
    renderings = render(rows, Renderer(tokenizer))
    assert_same_labels(renderings, prepare(rows, tokenizer))
    assert all(r.input_ids[-1] == tokenizer.eos_token_id for r in renderings)


def test_tokens_that_merge_across_the_boundary_belong_to_the_response() -> None:
    tokenizer = make_tokenizer(None)
    rows = [{"prompt": "The harb", "completion": "our bell"}, {"prompt": "a gard", "completion": "en spider"}]
    renderings = render(rows, Renderer(tokenizer))
    for row, rendering in zip(rows, renderings, strict=True):
        assert rendering.spans[0][0] < len(tokenizer(row["prompt"])["input_ids"])
        assert "".join(row.values()) + "<eos>" == tokenizer.decode(rendering.input_ids)
    if CUTS_AT_COMMON_PREFIX:
        assert_same_labels(renderings, prepare(rows, tokenizer))


def test_tools_and_template_arguments_of_each_row() -> None:
    tokenizer = make_tokenizer(CHATML)
    rng = random.Random(3)
    rows: list[dict[str, Any]] = []
    for number in range(12):
        chat = tool_dialogue(rng) if number % 2 else dialogue(rng, system=True)
        tools = [None, json.dumps(TOOLS), json.dumps([])][number % 3]
        mood = ["calm", "bright", None][number % 3]
        rows.append({"messages": chat, "tools": tools, "chat_template_kwargs": {"mood": mood}})
    renderings = render(rows, Renderer(tokenizer))
    assert_same_ids(renderings, prepare(rows, tokenizer))
    texts = [tokenizer.decode(r.input_ids) for r in renderings]
    assert [("lookup a thing" in t.lower() or "Look a thing" in t, "Mood: calm" in t) for t in texts[:3]] == [
        (False, True),
        (True, False),
        (False, False),
    ]


def test_tools_as_a_list_and_no_template_of_the_rows_own() -> None:
    tokenizer = make_tokenizer(CHATML)
    chats = conversations(random.Random(4), CHATML)
    rows: list[dict[str, Any]] = [{"prompt": c[:-1], "completion": c[-1:], "tools": TOOLS} for c in chats]
    assert_same_ids(render(rows, Renderer(tokenizer)), prepare(rows, tokenizer))
    both = [{"messages": c, "tools": "[]", "chat_template_kwargs": {"tools": TOOLS}} for c in chats]
    assert_same_ids(render(both, Renderer(tokenizer)), prepare(both, tokenizer))
    # A row's own template is run by SFTTrainer, and not by us: it may never end.
    own = [{"messages": c, "chat_template_kwargs": {"chat_template": MARKED["tags"]}} for c in chats]
    prepared = prepare(own, tokenizer)
    assert {r.status for r in render(own, Renderer(tokenizer))} == {RowStatus.BAD_ROW}
    given = Renderer(tokenizer, chat_template=MARKED["tags"])
    assert [r.input_ids.tolist() for r in given(batch_of([{"messages": c} for c in chats]))] == [
        ids for ids, _ in prepared.values()
    ]
    # Such a column of the row's own is read by nobody.
    beside = [{"messages": c, "chat_template": MARKED["tags"]} for c in chats]
    assert_same_ids(render(beside, Renderer(tokenizer)), prepare(beside, tokenizer))


def test_sharegpt() -> None:
    tokenizer = make_tokenizer(TEMPLATES["tags-marked"])
    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in chat]}
        for chat in conversations(random.Random(5), "")
    ]
    rows += [{"conversations": [{"from": "user", "value": "Why?"}, {"from": "gpt", "value": "It rains."}]}]
    renderings = render(rows, Renderer(tokenizer))
    assert_same_ids(renderings, prepare(rows, tokenizer))
    assert renderings[-1].spans == prepare_spans(rows, tokenizer)[-1]


def prepare_spans(rows: list[dict[str, Any]], tokenizer: Any) -> list[tuple[tuple[int, int], ...]]:
    """Spans of ShareGPT rows by assistant_only_loss on the renamed messages."""
    renamed = [{"messages": [{"role": m["from"], "content": m["value"]} for m in row["conversations"]]} for row in rows]
    return [spans_of(labels) for _, labels in prepare(renamed, tokenizer, assistant_only_loss=True).values()]


def test_chatml_under_conversations_is_read_as_messages() -> None:
    renderer = Renderer(make_tokenizer())
    chats = conversations(random.Random(6), CHATML)
    ours = render([{"conversations": chat} for chat in chats], renderer)
    theirs = prepare([{"messages": chat} for chat in chats], renderer.tokenizer)
    assert_same_ids(ours, theirs)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.smoke
def test_text(bos: bool) -> None:
    tokenizer = make_tokenizer(None, bos=bos)
    rows = [{"text": sentence} for sentence in SENTENCES] + [{"text": "Ended.<eos>"}]
    renderings = render(rows, Renderer(tokenizer))
    assert_same_labels(renderings, prepare(rows, tokenizer))
    assert all(not r.boundary and r.spans == ((0, len(r.input_ids)),) for r in renderings)


def test_text_under_another_name() -> None:
    tokenizer = make_tokenizer(None)
    rows = [{"body": sentence, "text": "not this"} for sentence in SENTENCES]
    renderings = render(rows, Renderer(tokenizer, RenderConfig(text_field="body")))
    prepared = prepare(rows, tokenizer, dataset_text_field="body")
    for rendering, (ids, _) in zip(renderings, prepared.values(), strict=True):
        # TRL 1.10 forgets the end token where the column is not called "text".
        assert rendering.input_ids.tolist() == (ids if CUTS_AT_COMMON_PREFIX else [*ids, tokenizer.eos_token_id])


@pytest.mark.parametrize(
    "masks", [(), ("completion_mask",), ("assistant_masks",), ("completion_mask", "assistant_masks")]
)
def test_tokens_with_masks(masks: tuple[str, ...]) -> None:
    rng = random.Random(7)
    rows = []
    for length in (3, 5, 8, 13):
        row: dict[str, Any] = {"input_ids": [rng.randrange(400) for _ in range(length)]}
        row |= {name: [0] + [rng.randrange(2) for _ in range(length - 2)] + [1] for name in masks}
        rows.append(row)
    tokenizer = make_tokenizer(None)
    renderings = render(rows, Renderer(tokenizer))
    assert_same_labels(renderings, prepare(rows, tokenizer, completion_only_loss=True))
    assert all(r.boundary == bool(masks) for r in renderings)


def test_tokens_with_labels_come_before_masks() -> None:
    rows = [{"input_ids": [7, 8, 9, 10], "labels": [-100, 8, -100, 10], "assistant_masks": [1, 1, 1, 1]}]
    tokenizer = make_tokenizer(None)
    renderings = render(rows, Renderer(tokenizer))
    assert_same_labels(renderings, prepare(rows, tokenizer))
    assert renderings[0].spans == ((1, 2), (3, 4))


def body(row: dict[str, Any]) -> str:
    return f"Note: {row['number']}. " + SENTENCES[row["number"] % len(SENTENCES)]


CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It rains."}]
SHARE = [{"from": "user", "value": "When?"}, {"from": "assistant", "value": "At seven."}]


@pytest.mark.parametrize(
    "columns",
    [
        {"number": 3},
        {"number": 3, "text": "replaced"},
        {"number": 3, "messages": CHAT},
        {"number": 3, "conversations": SHARE},
        {"number": 3, "input_ids": [5, 6, 7]},
        {"number": 3, "prompt": "Is it?", "completion": " Yes."},
    ],
    ids=lambda columns: "+".join(columns),
)
def test_precedence_with_a_formatting_function(columns: dict[str, Any]) -> None:
    tokenizer = make_tokenizer()
    renderings = render([columns], Renderer(tokenizer, formatting_func=body))
    assert_same_ids(renderings, prepare([columns], tokenizer, formatting_func=body, completion_only_loss=False))


@pytest.mark.parametrize(
    "columns",
    [
        {"text": "A note.", "messages": CHAT},
        {"text": "A note.", "messages": "no conversation"},
        {"text": "A note.", "conversations": SHARE},
        {"messages": CHAT, "conversations": SHARE},
        {"text": "A note.", "conversations": CHAT},
        {"text": "A note.", "prompt": "Is it?", "completion": " Yes."},
        {"text": "Ended.<eos>", "prompt": "Is it?", "completion": " Yes."},
        {"text": "A note.", "prompt": CHAT[:1], "completion": CHAT[1:]},
        {"prompt": SHARE[:1], "completion": SHARE[1:], "conversations": SHARE},
        {"messages": CHAT, "input_ids": [5, 6, 7], "assistant_masks": [0, 1, 1]},
    ],
    ids=lambda columns: "+".join(columns),
)
def test_precedence_of_shapes(columns: dict[str, Any]) -> None:
    tokenizer = make_tokenizer()
    assert_same_ids(render([columns], Renderer(tokenizer)), prepare([columns], tokenizer))


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("shape", ["chat", "plain", "text", "assistant_only", "labels"])
def test_truncation(shape: str, mode: Any) -> None:
    tokenizer = make_tokenizer()
    rng = random.Random(8)
    chats = [dialogue(rng, turns=turns) for turns in (1, 1, 1, 1, 2, 2, 3, 3)]
    rows: list[dict[str, Any]] = {
        "chat": [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats],
        "plain": [{"prompt": chat[0]["content"] + " ", "completion": chat[1]["content"]} for chat in chats],
        "text": [{"text": chat[0]["content"]} for chat in chats],
        "assistant_only": [{"messages": chat} for chat in chats],
        "labels": [{"input_ids": [7] * n, "labels": [-100] * (n - 5) + [7] * 2 + [-100] * 3} for n in range(5, 90, 9)],
    }[shape]
    statuses = set()
    for max_length in (1, 12, 30, 1000):
        renderer = Renderer(tokenizer, RenderConfig(max_length=max_length, truncation_mode=mode))
        options = {
            "max_length": max_length,
            "truncation_mode": mode,
            "assistant_only_loss": shape == "assistant_only",
        }
        renderings = render(rows, renderer)
        statuses |= {r.status for r in renderings}
        try:
            prepared = prepare(rows, tokenizer, **options)
        except (
            IndexError,
            ValueError,
            StopIteration,
        ):  # SFTTrainer cannot stand a dataset of which nothing is left
            prepared = {}
        assert_same_labels(renderings, prepared)
    has_dropped = shape != "text" and (mode == "keep_start" or shape in ("labels", "assistant_only"))
    assert (RowStatus.TRUNCATED in statuses) == has_dropped


def test_no_cut_where_max_length_is_none() -> None:
    tokenizer = make_tokenizer(None)
    rows = [{"text": " ".join(SENTENCES * 40)}]
    renderings = render(rows, Renderer(tokenizer, RenderConfig(max_length=None)))
    assert len(renderings[0].input_ids) > 1024
    assert_same_ids(renderings, prepare(rows, tokenizer, max_length=None))
