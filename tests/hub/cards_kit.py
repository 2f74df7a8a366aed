"""A summary as a fit and a filter of the published kind make it, and the cards that show it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from saft_hf.hub import cards, merge_cards, model_section, scorer_card
from saft_hf.hub.cards import dataset_card
from saft_hf.summary import (
    ComponentMetrics,
    DatasetSource,
    FitMetrics,
    LabelCounts,
    MixtureMetrics,
    PoolCounts,
    ProbeMetrics,
    PublishedMetrics,
    SourceInfo,
    Summary,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "model_cards" / "examples"
VERSIONS = {"saft_hf": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0", "datasets": "5.2.0"}
NOTE = "`response_start` reads the start of the last assistant turn and sees only what stands before it."

FIT = FitMetrics(
    pool=PoolCounts(rows=3000, scored=2997, unique=2990, unscored={"truncated": 2, "bad_row": 1}, flagged=600),
    labels=LabelCounts(rows=100, harmful=25, column="is_safe"),
    published=PublishedMetrics(rank=64, spectral_gap=0.25, variance_share=0.125, f1=0.5, separating_points=60),
    notes=(NOTE,),
)
FITTED = Summary(
    method="saft",
    model="meta-llama/Llama-2-7b-chat-hf",
    model_revision="2" * 40,
    model_fingerprint="0" * 64,
    template_digest="1" * 64,
    num_layers=32,
    layers=(15,),
    readouts=("response_start",),
    k=2,
    threshold=41.25,
    threshold_from="f1",
    fit=FIT,
)
FILTERED = replace(
    FITTED,
    filtered=True,
    rows=3000,
    kept=2397,
    removed=600,
    errored=3,
    reasons={
        "kept": {"score": 2390, "label": 7},
        "removed": {"score": 590, "label": 10},
        "errored": {"truncated": 2, "bad_row": 1},
    },
    scorer_repo="me/llama-2-saft",
    dataset_repo="me/filtered-rows",
    source=DatasetSource(dataset="me/rows", revision="3" * 40, split="train", license="mit"),
)
PROBE = ProbeMetrics(
    sources=(
        SourceInfo(
            name="PKU-Alignment/BeaverTails",
            digest="4" * 64,
            rows=27186,
            harmful=12000,
            benign=9000,
            unlabelled=0,
            duplicates=6186,
            revision="5" * 40,
            licence="CC BY-NC 4.0",
        ),
        SourceInfo(name="ours.jsonl", digest="6" * 64, rows=400, harmful=0, benign=380, unlabelled=15, duplicates=5),
    ),
    components=(
        ComponentMetrics(source="PKU-Alignment/BeaverTails", harmful=False, rows=9000, above=0.0625, left_out=False),
        ComponentMetrics(source="PKU-Alignment/BeaverTails", harmful=True, rows=12000, above=0.4375, left_out=False),
        ComponentMetrics(source="ours.jsonl", harmful=False, rows=380, above=0.025, left_out=True),
    ),
    in_pool=3,
    auroc=0.875,
    held_out_auroc=None,
    general=True,
)
MIXTURE = MixtureMetrics(
    share=0.125,
    low=0.1,
    high=0.15,
    misfit=0.05,
    outside=7,
    rows=2997,
    unexplained=0,
    recall=0.75,
    lost=0.02,
    weights=(0.25, 0.125, 0.625),
    above=(0.03125, 0.75, 0.0),
)
PROBED = replace(
    FITTED,
    method="reference",
    layers=(16, 24),
    readouts=("response_mean",),
    k=None,
    threshold=None,
    threshold_from="none",
    fit=FitMetrics(pool=PoolCounts(rows=0, scored=0, unique=0), probe=PROBE, notes=()),
)
_ALL = (*PROBE.components, ComponentMetrics(source="ours.jsonl", harmful=True, rows=20, above=0.5, left_out=True))
_SEVERAL = replace(PROBE, components=tuple(replace(part, left_out=True) for part in _ALL), held_out_auroc=0.8125)
SEVERAL = replace(PROBED, fit=FitMetrics(pool=PoolCounts(rows=0, scored=0, unique=0), probe=_SEVERAL, notes=()))
EXPLAINED = replace(
    PROBED,
    threshold=0.5,
    threshold_from="reference",
    fit=replace(FIT, published=None, labels=None, probe=replace(PROBE, repo="me/llama-2-probe"), mixture=MIXTURE),
)
DATASET_INFO = {
    "features": [{"name": "prompt", "dtype": "string"}, {"name": "completion", "dtype": "string"}],
    "splits": [{"name": "train", "num_bytes": 2_400_000, "num_examples": 2397}],
    "download_size": 1_100_000,
    "dataset_size": 2_400_000,
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


def card_of_scorer(summary: Summary = FITTED, repo_id: str | None = "me/llama-2-saft") -> str:
    return scorer_card(summary, repo_id=repo_id)


def card_of_rows(summary: Summary = FILTERED, **options: Any) -> str:
    files = {"picture": "saft_report/scores-default-train.png", "audit": "saft_private/audit-default-train.parquet"}
    given = {"config": "default", "split": "train", "dataset_info": DATASET_INFO, **files, **options}
    folder = "data" if given["config"] == "default" else given["config"]
    given = {"data_files": f"{folder}/{given['split']}-*", **given}
    return dataset_card(summary, "me/filtered-rows", **given)


def card_of_model(summary: Summary = FILTERED) -> str:
    return merge_cards(TRL_CARD, model_section(summary))


def card_of_probe(summary: Summary = PROBED) -> str:
    return scorer_card(summary, repo_id="me/llama-2-probe")


CARDS = {"scorer.md": card_of_scorer, "dataset.md": card_of_rows, "model.md": card_of_model, "probe.md": card_of_probe}

if __name__ == "__main__":
    cards.versions = lambda: VERSIONS
    for name, make in CARDS.items():
        (EXAMPLES / name).write_text(make(), encoding="utf-8")
