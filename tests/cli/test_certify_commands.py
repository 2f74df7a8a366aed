"""`saft-hf suggest-labels` and `saft-hf certify` do what the Python API does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from saft_hf import SAFTScorer
from saft_hf.assets import demo_rows_path
from saft_hf.cli.main import main
from saft_hf.named import NamedDataset

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture
def basics(scorer: SAFTScorer, store_dir: Path, tmp_path: Path) -> list[str]:
    scorer.save_pretrained(tmp_path / "fitted")
    words = {
        "scorer": tmp_path / "fitted",
        "dataset_name": demo_rows_path(),
        "cache_dir": store_dir,
        "output_dir": tmp_path / "out",
    }
    return [str(word) for name, value in words.items() for word in (f"--{name}", value)]


def test_suggest_then_certify(
    basics: list[str], scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suggest-labels", *basics, "--uniform", "150", "--informative", "20", "--seed", "5"]) == 0
    path = tmp_path / "out" / "labels.jsonl"
    assert str(path) in capsys.readouterr().out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == scorer.suggest_labels(demo_pool, uniform=150, informative=20, seed=5).to_list()

    labelled = [{**row, "is_harmful": not demo_pool["is_safe"][row["saft_row"]]} for row in rows]
    labelled[-1]["is_harmful"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    words = ["--fresh_labels", str(path), "--alpha", "0.2", "--delta", "0.2"]
    assert main(["certify", *basics, *words]) == 0
    expected = scorer.certify(demo_pool, NamedDataset(str(path)).load(), alpha=0.2, delta=0.2)
    assert json.loads((tmp_path / "out" / "certificate.json").read_text()) == json.loads(json.dumps(expected.to_dict()))
    assert expected.says() in capsys.readouterr().out
    out = tmp_path / "out"
    kept = NamedDataset(str(out / "kept")).load()
    assert kept.to_list() == scorer.filter(demo_pool, certificate=expected).train_rows().to_list()
    assert main(["filter", "--scorer", str(out / "scorer"), *basics[2:-1], str(tmp_path / "again")]) == 0
    assert NamedDataset(str(tmp_path / "again" / "kept")).load().to_list() == kept.to_list()
    told = json.loads((out / "saft_summary.json").read_text())
    assert (told["threshold"], told["threshold_from"]) == (expected.threshold, "certificate")
    assert told["certificate"]["trained_on"] is True
    assert told["certificate"]["text"].startswith(f"Set in use: {len(kept)} rows kept at threshold")
    assert (SAFTScorer.from_pretrained(out / "scorer").threshold_, scorer.threshold_) != (scorer.threshold_,) * 2


def test_labels_of_the_kept_part_and_an_alpha_for_each_stratum(
    basics: list[str], scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suggest-labels", *basics, "--uniform", "150", "--kept_only"]) == 0
    path = tmp_path / "out" / "labels.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["saft_purpose"] for row in rows} == {f"uniform up to {scorer.threshold_!r}"}
    labelled = [{**row, "is_harmful": not demo_pool["is_safe"][row["saft_row"]]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    words = ["certify", *basics, "--fresh_labels", str(path), "--looks", "2"]
    assert main([*words, "--threshold", "0.1"]) == 2
    assert "the threshold in use is 0.1: they tell of no other set" in capsys.readouterr().err
    kinds = sorted(set(demo_pool["category"]))
    alpha = ",".join(f"{kind}={0.3 if at else 0.2}" for at, kind in enumerate(kinds))
    assert main([*words, "--alpha", alpha, "--stratify_by", "category"]) == 0
    shares = {kind: 0.3 if at else 0.2 for at, kind in enumerate(kinds)}
    fresh = NamedDataset(str(path)).load()
    expected = scorer.certify(demo_pool, fresh, alpha=shares, looks=2, stratify_by="category")
    assert expected.says() in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert told["parts"].keys() == set(kinds)
    assert (told["looks"], told["drawn_from"]) == (2, scorer.threshold_)


def test_a_fit_that_cannot_tell_does_not_stop_the_draw(
    basics: list[str], demo_model: str, demo_pool: Dataset, tmp_path: Path
) -> None:
    words = [*basics[2:], "--model_name_or_path", demo_model, "--method", "saft", "--layer", "2", "--threshold", "-1"]
    assert main(["filter", *words, "--output_dir", str(tmp_path / "filtered")]) == 3
    assert main(["suggest-labels", *words, "--uniform", "5", "--labels_file", "some.jsonl"]) == 0
    rows = NamedDataset(str(tmp_path / "out" / "some.jsonl")).load()
    assert rows["messages"][:] == demo_pool.select(rows["saft_row"])["messages"][:]
    assert not (tmp_path / "out" / "scorer").exists()


def test_a_file_of_labels_is_never_written_over(
    basics: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels.jsonl").write_text("{}")
    assert main(["suggest-labels", *basics]) == 2
    assert "is there already and may hold labels" in capsys.readouterr().err
    assert (tmp_path / "out" / "labels.jsonl").read_text() == "{}"


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("certify", [], "`--fresh_labels` is needed"),
        ("certify", ["--fresh_labels", "/no/such.jsonl"], "no file /no/such.jsonl"),
        ("certify", ["--fresh_labels", "DEMO"], "100 of 600 fresh labels"),
        ("suggest-labels", ["--labels_file", "../labels.jsonl"], "must be a name that ends in .jsonl or .csv"),
        ("suggest-labels", ["--labels_file", "labels.xlsx"], "must be a name that ends in .jsonl or .csv"),
        ("suggest-labels", ["--labels_file", "labels.csv"], "columns ['messages'] are no plain values"),
        ("certify", ["--fresh_labels", "DEMO", "--alpha", "much"], "`--alpha` must be a share such as 0.05"),
        ("certify", ["--fresh_labels", "DEMO", "--alpha", "a=0.1,b"], "`--alpha` must be a share such as 0.05"),
        ("certify", ["--fresh_labels", "DEMO", "--alpha", "a=0.1,b=0.2"], "name the column that holds them"),
        ("suggest-labels", ["--threshold", "0.5"], "`--threshold`=0.5 is for `--kept_only`"),
        ("suggest-labels", ["--uniform", "9999"], "9999 uniform and 0 informative rows were asked for"),
    ],
)
def test_what_cannot_be_done_is_said(
    command: str, words: list[str], message: str, basics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(demo_rows_path()) if word == "DEMO" else word for word in words]
    assert main([command, *basics, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", ["certify", "suggest-labels"])
@pytest.mark.parametrize("option", ["hub_scorer", "push_to_hub"])
def test_what_pushes_nothing_says_so(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--output_dir", "out", f"--{option}", "me/scorer"]) == 2
    assert f"`saft-hf {command}` does not take --{option} me/scorer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words", "unused"),
    [
        ("certify", ["--k", "1", "--label_column", "is_safe", "--threshold", "1"], "`--k`"),
        ("suggest-labels", ["--k", "2", "--on_undecided", "raise", "--threshold", "1"], "`--k`"),
    ],
)
def test_what_has_no_effect_beside_a_scorer_is_named(
    command: str, words: list[str], unused: str, basics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--fresh_labels", str(demo_rows_path())] if command == "certify" else []
    assert main([command, *basics, *more, *words]) == 2
    assert f"{unused}: without effect beside `--scorer`" in capsys.readouterr().err
