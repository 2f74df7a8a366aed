"""Tiny tokenizers, chat templates and dialogues of our own, and what SFTTrainer prepares from them."""

from __future__ import annotations

import copy
import json
import random
import re
import tempfile
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from saft_hf.render import Rendering

SENTENCES = [
    "The harbour bell rang twice before the fog lifted.",
    "Please sort the green apples into the wooden crate.",
    "A narrow bridge crosses the river near the old mill.",
    "How many legs does a garden spider have?",
    "She wrote down the recipe for lentil soup.",
    "The train to the coast leaves at seven in the morning.",
    "Why does bread rise when it is left in a warm room?",
    "It rains, so the cat sleeps on the windowsill.",
]
SPECIAL = ["<eos>", "<bos>", "<pad>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]

_HEAD = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% if mood is defined and mood %}{{ 'Mood: ' + mood + '\\n' }}{% endif %}"
)
_CALLS = "{% for call in m.tool_calls or [] %}{{ '<call>' + (call | tojson) + '</call>' }}{% endfor %}"

CHATML = (
    _HEAD + "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content or '' }}" + _CALLS + "{{ '<|im_end|>' }}"
    "{% endgeneration %}{{ '\\n' }}{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Roles it does not know are the assistant's, as in a small lab model's template.
TAGS = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] + '\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + '\\n' }}"
    "{% else %}{{ '<|assistant|>\\n' }}"
    "{% generation %}{{ m['content'] or '' }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + (m.content or '').strip() + ' ' + eos_token }}"
    "{% else %}{{ '<<SYS>>' + m.content + '<</SYS>>' }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}"
    "{{ (m.content or '') | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
# Reasoning stays only in the turns after the last question, where it is written even if empty.
THINK = (
    _HEAD + "{% set ns = namespace(asked=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% set content = m.content or '' %}{% set thought = '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\\n' }}{% generation %}"
    "{% if loop.index0 > ns.asked %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ content }}" + _CALLS + "{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
MARKED = {"chatml": CHATML, "tags": TAGS, "think": THINK}


def without_markers(template: str) -> str:
    """The same rendering, with the responses unmarked."""
    return re.sub(r"\{% (end)?generation %\}", "", template)


UNMARKED = {name: without_markers(template) for name, template in MARKED.items()} | {
    "inst": INST,
    "turns": TURNS,
}
TEMPLATES = {f"{name}-marked": template for name, template in MARKED.items()} | UNMARKED


def make_tokenizer(template: str | None = CHATML, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 500 tokens; with `bos`, plain text starts with `<bos>`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(SENTENCES, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", bos_token="<bos>", pad_token="<pad>", chat_template=template
    )


def dialogue(rng: random.Random, *, turns: int = 1, system: bool = False, think: bool = False) -> list[dict[str, str]]:
    """Question and answer, `turns` times."""

    def say() -> str:
        return " ".join(rng.choices(SENTENCES, k=rng.randint(1, 2)))

    def answer() -> str:
        return f"<think>\n{say()}\n</think>\n\n{say()}" if think and rng.random() < 0.7 else say()

    messages = [{"role": "system", "content": say()}] if system else []
    for _ in range(turns):
        messages += [{"role": "user", "content": say()}, {"role": "assistant", "content": answer()}]
    return messages


def tool_dialogue(rng: random.Random, *, calls: int = 1) -> list[dict[str, Any]]:
    """Question, tool calls with their results, answer; then another question and answer."""
    first, *rest = dialogue(rng, turns=2, think=True)
    steps: list[dict[str, Any]] = []
    for number in range(calls):
        steps += [
            {
                "role": "assistant",
                "content": rng.choice([None, f"<think>\nStep {number}: look it up.\n</think>\n\nOne moment."]),
                "tool_calls": [{"name": "lookup", "arguments": json.dumps({"what": rng.choice(SENTENCES)})}],
            },
            {"role": "tool", "content": rng.choice(SENTENCES)},
        ]
    return [first, *steps, *rest]


TOOLS = [{"type": "function", "function": {"name": "lookup", "description": "Look a thing up.", "parameters": {}}}]


def prepare(
    rows: list[dict[str, Any]] | Dataset,
    tokenizer: PreTrainedTokenizerFast,
    formatting_func: Any = None,
    **options: Any,
) -> dict[int, tuple[list[int], list[int]]]:
    """Row number -> input ids and labels that SFTTrainer trains on; rows that it drops are not there."""
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    dataset = dataset.add_column("row", range(len(dataset)))
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=8,
    )
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(output_dir=folder, use_cpu=True, bf16=False, report_to="none", **options)
        trainer = SFTTrainer(
            LlamaForCausalLM(config),
            args,
            train_dataset=dataset,
            processing_class=copy.deepcopy(tokenizer),
            formatting_func=formatting_func,
        )
        done = trainer.train_dataset
        return {
            row: (list(ids), list(labels))
            for row, ids, labels in zip(done["row"], done["input_ids"], done["labels"], strict=True)
        }


def batch_of(rows: list[dict[str, Any]] | Dataset) -> dict[str, list[Any]]:
    """The batch that `Dataset.map` would give."""
    dataset = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    return dataset[:]


def spans_of(labels: list[int]) -> tuple[tuple[int, int], ...]:
    """Runs of labels that count in the loss, found the slow way."""
    spans, start = [], None
    for i, label in enumerate([*labels, -100]):
        if label != -100 and start is None:
            start = i
        if label == -100 and start is not None:
            spans.append((start, i))
            start = None
    return tuple(spans)


def same(one: Rendering, other: Rendering) -> bool:
    """Whether two renderings are equal in everything."""
    return (
        one.input_ids.tolist() == other.input_ids.tolist()
        and one.input_ids.dtype == other.input_ids.dtype
        and (one.spans, one.boundary, one.status, one.detail)
        == (other.spans, other.boundary, other.status, other.detail)
    )
