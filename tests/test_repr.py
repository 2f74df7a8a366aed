"""No `repr` of anything that holds rows shows their text: it ends in logs, notebooks and tracebacks."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer

import saft_hf
from saft_hf import FilterResult, SAFTScorer
from saft_hf.decide import decide
from saft_hf.evaluate.pools import Dialogue, DrawnPool, ExperimentRows, HeldOut
from saft_hf.render import RenderConfig, Renderer
from saft_hf.render.rows import Chat, Plain
from saft_hf.scorer.labels import LabelSet
from saft_hf.summary import Summary
from saft_hf.train.inputs import FilterArgs
from saft_hf.train.record import Record

WORD = "poison"
TURNS = [{"role": "user", "content": WORD}, {"role": "assistant", "content": WORD}]


def holders(demo_model: str) -> list[Any]:
    rows = Dataset.from_list([{"messages": TURNS, "is_harmful": bool(i % 2), "text": WORD} for i in range(4)])
    decisions = decide(np.arange(4.0), ["ok"] * 4, 2.0)
    result = FilterResult(rows, np.arange(4, dtype=np.float32), ["ok"] * 4, decisions, Summary())
    dialogue = Dialogue(TURNS[:1], WORD, True)
    yes = np.ones(1, dtype=np.bool_)
    return [
        result,
        result.kept,
        result.removed,
        Record(rows, Summary(), result, eval_dataset=rows, eval_results={"eval": result}),
        FilterArgs(model=demo_model, args=None, train_dataset=rows, labelled=rows),
        LabelSet.read(rows, None, None, "uniform"),
        Chat(TURNS, (1,), False, {"documents": [WORD]}),
        Plain(WORD, WORD),
        dialogue,
        DrawnPool([dialogue], yes, yes, np.zeros(1, dtype=np.int64)),
        HeldOut([TURNS], [(TURNS, TURNS)], [dialogue], [TURNS]),
        ExperimentRows([dialogue], [[dialogue]], [dialogue], [dialogue]),
        *Renderer(AutoTokenizer.from_pretrained(demo_model), RenderConfig())(rows[:]),
    ]


def test_no_holder_of_rows_shows_their_text(demo_model: str) -> None:
    for holder in holders(demo_model):
        assert WORD not in f"{holder!r} {holder}", type(holder)


def test_a_fitted_scorer_and_its_summary_show_no_text(scorer: SAFTScorer, demo_pool: Dataset) -> None:
    result = scorer.filter(demo_pool)
    shown = f"{scorer!r} {result!r} {result.summary!r} {scorer.fit_!r} {scorer._scored!r}"
    assert not [row for row in demo_pool["messages"] if row[-1]["content"] in shown]


def test_every_class_that_holds_messages_is_looked_at(demo_model: str) -> None:
    """A new one must be added to the holders above."""
    known = {type(holder) for holder in holders(demo_model)}
    for module in pkgutil.walk_packages(saft_hf.__path__, "saft_hf."):
        if module.name.endswith(("__main__", ".axolotl")):  # axolotl pins other versions than ours
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.name:
                hints = get_type_hints(value)
                texts = [
                    each for each in fields(value) if any(w in str(hints[each.name]) for w in ("Dialogue", "Message"))
                ]
                if any(each.repr for each in texts):
                    assert value in known, value
