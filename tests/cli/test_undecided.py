"""Where no decision can honestly be taken: an exit code of its own, a summary that says so, and the scores."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from saft_hf import SAFTScorer
from saft_hf.cli.main import main

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture
def words(demo_model: str, demo_pool: Dataset, store_dir: Path, tmp_path: Path) -> list[str]:
    """Labels that a score cannot be told from chance on: every second row is called harmful."""
    rows = demo_pool.remove_columns("is_safe")
    rows.to_json(tmp_path / "rows.jsonl")
    labelled = rows.select(range(60)).add_column("is_harmful", [row % 2 == 0 for row in range(60)])
    labelled.to_json(tmp_path / "labelled.jsonl")
    given = {"model_name_or_path": demo_model, "cache_dir": store_dir, "method": "directed", "layer": 2}
    given |= {"dataset_name": tmp_path / "rows.jsonl", "labelled_name": tmp_path / "labelled.jsonl"}
    return [str(word) for name, value in given.items() for word in (f"--{name}", value)]


def test_filter_writes_the_scores_and_no_rows_and_leaves_with_3(
    words: list[str], demo_pool: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["filter", *words, "--on_undecided", "keep", "--output_dir", str(out)]) == 0
    assert (out / "kept").exists()
    capsys.readouterr()
    assert main(["filter", *words, "--output_dir", str(out)]) == 3
    said = capsys.readouterr()
    assert "SAFTUndecidedError" in said.err
    assert f"The scores are in {out / 'audit.parquet'}" in said.err
    assert "removed" not in said.out
    # What the former run kept is gone: nothing there can be taken for the outcome of this one.
    assert sorted(path.name for path in out.iterdir()) == ["audit.parquet", "saft_summary.json", "scorer"]
    summary = json.loads((out / "saft_summary.json").read_text())
    assert summary["undecided"]
    assert (summary["filtered"], summary["threshold"], summary["removed"]) == (False, None, 0)
    audit = pq.read_table(out / "audit.parquet").to_pydict()
    assert (set(audit["decision"]), set(audit["reason"])) == ({"kept"}, {"no_decision"})
    assert None not in audit["saft_score"]
    assert main(["review", str(out), "--dataset_name", str(tmp_path / "rows.jsonl")]) == 0
    assert "Nothing was filtered" in (out / "review.html").read_text()
    # The scorer is as undecided as the fit, for the shell and for Python.
    assert SAFTScorer.from_pretrained(out / "scorer").threshold_ is None
    again = ["--scorer", str(out / "scorer"), "--dataset_name", str(tmp_path / "rows.jsonl")]
    assert main(["filter", *again, "--output_dir", str(tmp_path / "again")]) == 3


def test_score_never_refuses_to_score(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", *words, "--output_dir", str(tmp_path / "scored")]) == 0
    assert "undecided" in capsys.readouterr().out
    scored = load_dataset(str(tmp_path / "scored" / "scored"), split="train")
    assert set(scored["saft_status"]) == {"ok"}


def test_a_certificate_without_a_decision_to_stand_on_leaves_with_3(words: list[str], tmp_path: Path) -> None:
    fresh = ["--fresh_labels", str(tmp_path / "labelled.jsonl"), "--output_dir", str(tmp_path / "certified")]
    assert main(["certify", *words, *fresh]) == 3
    assert not list((tmp_path / "certified").iterdir())
