"""A user's script, for `mypy --strict` (`files` in pyproject.toml): what is public is typed, and is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from datasets import Dataset, load_dataset

from saft_hf import Certificate, FilterResult, SAFTScorer, SAFTSFTConfig, SAFTSFTTrainer, SAFTUndecidedError, Summary


def clean(model: str, folder: Path) -> Dataset:
    """Fit, filter, certify, save, and load again."""
    rows = load_dataset("json", data_files="rows.jsonl", split="train")
    labelled = load_dataset("json", data_files="labelled.jsonl", split="train")
    scorer = SAFTScorer(model, layer=2, cache_dir=folder)
    try:
        assert_type(scorer.fit(rows, labelled, aim="fpr=0.05"), SAFTScorer)
    except SAFTUndecidedError as error:
        print(error)
    result = scorer.filter(rows)
    assert_type(result, FilterResult)
    assert_type(result.summary, Summary)
    assert_type(result.summary.kept, int | None)
    certificate = scorer.certify(rows, labelled, alpha=0.05)
    assert_type(certificate, Certificate)
    assert_type(certificate.issued, bool)
    assert_type(result.save(folder), Path)
    assert_type(SAFTScorer.from_pretrained(folder), SAFTScorer)
    return result.kept


def train(model: str, rows: Dataset) -> Summary | None:
    """Train on what is kept."""
    trainer = SAFTSFTTrainer(model, SAFTSFTConfig(output_dir="out", saft_contamination=0.1), train_dataset=rows)
    trainer.train()
    return trainer.saft_summary
