"""Cards of filtered rows and of models trained on them: complete, valid for the Hub, and honest in every branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard

from saft_hf.hub import RowsCard, dataset_card, filtered_values, merge_cards, model_section
from saft_hf.status import RowStatus

EXAMPLES = Path(__file__).resolve().parents[2] / "model_cards" / "examples"

SUMMARY: dict[str, Any] = {
    "filtered": True,
    "rows": 3000,
    "kept": 2397,
    "removed": 600,
    "errored": 3,
    "reasons": {
        "kept": {"score": 2390, "label": 7},
        "removed": {"score": 590, "label": 10},
        "errored": {"truncated": 2, "bad_row": 1},
    },
    "labels": {"says": "25 of 100 labelled rows are harmful"},
    "threshold_from": "f1",
    "contamination": None,
    "undecided": None,
    "model": "meta-llama/Llama-2-7b-chat-hf",
    "model_revision": "2" * 40,
    "method": "saft",
    "layers": [15],
    "readouts": ["response_start"],
    "k": 2,
    "threshold": 41.25,
    "scorer_repo": "me/llama-2-saft",
    "source": {"dataset": "me/rows", "revision": "3" * 40, "config": None, "split": "train"},
}
ROWS: RowsCard = {
    "title": "filtered-rows",
    "repo_id": "me/filtered-rows",
    "config": "default",
    "split": "train",
    "scored_only": False,
    "audit": "saft_private/audit-default-train.parquet",
    "removed_rows": None,
    "version": "0.1.0",
    "dataset_info": {
        "features": [{"name": "prompt", "dtype": "string"}, {"name": "completion", "dtype": "string"}],
        "splits": [{"name": "train", "num_bytes": 2_400_000, "num_examples": 2397}],
        "download_size": 1_100_000,
        "dataset_size": 2_400_000,
    },
}
# As TRL writes it, shortened.
TRL_CARD = """---
base_model: meta-llama/Llama-2-7b-chat-hf
library_name: transformers
model_name: llama-2-filtered
tags:
- generated_from_trainer
- sft
- trl
licence: license
---

# Model Card for llama-2-filtered

This model is a fine-tuned version of [meta-llama/Llama-2-7b-chat-hf](https://huggingface.co/meta-llama/Llama-2-7b-chat-hf).
It has been trained using [TRL](https://github.com/huggingface/trl).
"""


def rows_card(summary: dict[str, Any] | None = None, **changes: Any) -> str:
    values = filtered_values({**SUMMARY, **(summary or {})}, picture="saft_report/scores-default-train.png")
    return dataset_card({**ROWS, **changes}, values)  # type: ignore[typeddict-item]


def model_card(**changes: Any) -> str:
    return merge_cards(
        TRL_CARD, model_section(filtered_values({**SUMMARY, **changes}, trained=True), "me/filtered-rows")
    )


CARDS = {"dataset.md": rows_card, "model.md": model_card}


@pytest.mark.parametrize("name", CARDS)
def test_the_examples_are_current(name: str) -> None:
    assert (EXAMPLES / name).read_text(encoding="utf-8") == CARDS[name](), (
        "a template or the example's values have changed: run `python tests/publish/test_filtered_cards.py`"
    )


@pytest.mark.smoke
def test_the_hub_reads_the_front_matter() -> None:
    data = DatasetCard(rows_card()).data.to_dict()
    assert data["tags"] == ["saft", "data-filtering"]
    assert data["source_datasets"] == ["me/rows"]
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]},
    ]
    assert data["dataset_info"] == ROWS["dataset_info"]
    model = ModelCard(model_card()).data.to_dict()
    assert model["tags"] == ["generated_from_trainer", "sft", "trl", "saft"]
    assert model["datasets"] == ["me/rows", "me/filtered-rows"]
    assert model["base_model"] == "meta-llama/Llama-2-7b-chat-hf"


@pytest.mark.parametrize(
    ("changes", "says", "never"),
    [
        ({"source": None}, "Of 3,000 rows, 600 were removed", "me/rows]"),
        ({"threshold_from": "given"}, "given by hand", "best F1"),
        ({"threshold_from": "contamination", "contamination": 0.2}, "share of 20.0%", "best F1"),
        ({"layers": [2, 4], "readouts": ["a", "b"]}, "layers 2, 4: `a`, `b`", "layer 15"),
        ({"threshold_from": "recall=0.9", "expected": {"recall": 0.9}}, "the aim `recall=0.9`, on labelled", "best F1"),
        ({"labels": None}, "best F1", "labelled rows are"),
        ({"scorer_repo": None}, "meta-llama", "| scorer |"),
        ({"model": None}, "`saft`", "| model that was read |"),
        ({"certificate": {"says": "at most 5 % with 90 %"}}, "| certificate | at most 5 % with 90 % |", "not bounded"),
        ({"certificate": "at most 5 %"}, "| certificate | at most 5 % |", "not bounded"),
        ({"layers": [], "readouts": [], "k": None}, "`saft` |", "read at"),
        (
            {"filtered": False, "threshold": None, "undecided": "a reason"},
            "**not filtered** by SAFT: a reason.",
            "| kept",
        ),
        ({"filtered": False, "undecided": None, "why": "because"}, "**not filtered** by SAFT: because.", "threshold |"),
    ],
)
def test_what_the_cards_say(changes: dict[str, Any], says: str, never: str) -> None:
    for card in (rows_card(changes), model_card(**changes)):
        body = card.split("---\n", 2)[2]
        assert says in body
        assert never not in body


def test_counts_of_a_stream_and_of_the_reasons_add_up() -> None:
    stream = {key: value for key, value in SUMMARY.items() if key not in ("rows", "kept", "removed", "reasons")}
    values = filtered_values({**stream, "stream_rows": {"kept": 5, "removed": 2, "errored": 0}}, trained=True)
    assert values["counts"] == [("kept", 5), ("removed", 2)]
    assert "a stream, filtered while the model trained" in model_section(values)
    assert sum(count for _, count in filtered_values(SUMMARY)["counts"]) == 3000


def test_every_status_is_explained() -> None:
    statuses = {str(status): 1 for status in RowStatus if status is not RowStatus.OK}
    counts = filtered_values({**SUMMARY, "reasons": {"errored": statuses}})["counts"]
    assert len({what for what, _ in counts}) == len(statuses)
    assert not [what for what, _ in counts if "_" in what or what.endswith(": truncated")]


def test_rows_that_were_only_scored() -> None:
    card = rows_card(scored_only=True, audit=None)
    assert "**none was removed**" in card
    assert "removed as harmful" not in card
    assert "saft_private" not in card


def test_another_configuration_is_named() -> None:
    card = rows_card(config="chat", split="test")
    assert 'load_dataset("me/filtered-rows", "chat", split="test")' in card
    assert "path: chat/test-*" in card
    assert "## What was filtered: configuration `chat`, split `test`" in card


def test_a_model_that_was_not_filtered_is_not_tagged() -> None:
    section = model_section(filtered_values({"filtered": False, "why": "no labels were given"}, trained=True))
    assert section.startswith("<!-- saft_hf:begin -->")
    assert ModelCard(merge_cards(TRL_CARD, section)).data.to_dict()["tags"] == ["generated_from_trainer", "sft", "trl"]


def test_names_from_outside_stay_inside_their_code() -> None:
    evil = "a`b](http://x) | c\n<!-- saft_hf:end -->"
    card = rows_card({"model": evil, "method": evil, "model_revision": evil})
    plain = rows_card()
    assert card.count("`") == plain.count("`")
    assert len(card.splitlines()) == len(plain.splitlines())


if __name__ == "__main__":
    for name, make in CARDS.items():
        (EXAMPLES / name).write_text(make(), encoding="utf-8")
