"""`saft-hf fit-reference`: a probe in a folder, which filters as its rows do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from probe_kit import POOL, SOURCES, write_probe_rows

from saft_hf.cli.main import main


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    write_probe_rows(tmp_path)


def test_a_fitted_probe_filters_as_its_rows_do(
    rows: None, demo_model: str, store_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", demo_model, "--cache_dir", str(store_dir)]
    assert main(["fit-reference", *words, "--reference", *SOURCES, "--output_dir", "probe"]) == 0
    printed = capsys.readouterr().out
    assert "probe: AUROC " in printed
    assert "general.jsonl, benign " in printed
    assert "from first.jsonl " in printed
    assert "120 of 300 rows are harmful" in printed
    assert "--reference probe --dataset_name ROWS" in printed
    found = []
    for name, reference in {"probe": ["probe"], "rows": SOURCES}.items():
        pool = ["--dataset_name", "pool.jsonl", "--output_dir", name + "-out"]
        assert main(["filter", *words, "--reference", *reference, *pool]) == 0
        assert "pool: harmful " in capsys.readouterr().out
        summary = json.loads(Path(f"{name}-out", "saft_summary.json").read_text())
        assert summary["kept"] + summary["removed"] == POOL
        found.append([summary["kept"], summary["threshold"]])
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`--model_name_or_path` is needed"),
        (["--model_name_or_path", "M", "--reference", "first.jsonl"], "`--output_dir` is needed"),
        (["--model_name_or_path", "M", "--reference", "x.csv", "--output_dir", "out"], "there is no file x.csv"),
        (["--dataset_name", "rows.jsonl"], "does not take --dataset_name"),
    ],
)
def test_what_is_missing_is_said(
    rows: None, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit-reference", *words]) == 2
    assert message in capsys.readouterr().err
