"""The commands do what the Python API does, and say in one line what they cannot do."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict

from saft_hf import FilterResult, SAFTScorer, __version__
from saft_hf.assets import demo_rows_path
from saft_hf.cli.data import labelled_of
from saft_hf.cli.main import main
from saft_hf.errors import SAFTInputError
from saft_hf.named import NamedDataset
from saft_hf.scorer.labels import LabelSet

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture
def basics(demo_model: str, store_dir: Path, tmp_path: Path) -> list[str]:
    """The words of a small `score` or `filter`, on all of the demo's rows."""
    words = {
        "model_name_or_path": demo_model,
        "dataset_name": demo_rows_path(),
        "labelled_rows": 100,
        "method": "saft",
        "layer": 2,
        "cache_dir": store_dir,
        "output_dir": tmp_path / "out",
    }
    return [str(word) for name, value in words.items() for word in (f"--{name}", value)]


@pytest.mark.smoke
def test_filter_is_the_filter_of_the_python_api(
    basics: list[str], scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["filter", *basics]) == 0
    result = scorer.filter(demo_pool)  # fitted on the same 100 rows: seed 0
    assert NamedDataset(str(tmp_path / "out" / "kept")).load().to_list() == result.kept.to_list()
    ours = pq.read_table(tmp_path / "out" / "audit.parquet")
    assert ours.equals(pq.read_table(result.save(tmp_path / "api") / "audit.parquet"))
    ours, theirs = (json.loads((tmp_path / name / "saft_summary.json").read_text()) for name in ("out", "api"))
    known, same = ours.pop("provenance"), theirs.pop("provenance")
    assert ours == theirs
    assert (known["input"], known["seed"], known["input_rows"]) == (str(demo_rows_path()), 0, 600)
    assert {name for name in known if known[name] != same[name]} <= {"created", "input", "seed", "audit_sha256"}
    said = capsys.readouterr().out
    assert re.search(rf"kept +{len(result.kept_indices)} of 600 \(", said)
    assert re.search(rf"removed +{len(result.removed_indices)} of 600 \(", said)
    loaded = SAFTScorer.from_pretrained(tmp_path / "out" / "scorer")
    assert (loaded.threshold_, loaded.k_) == (scorer.threshold_, scorer.k_)


def test_filter_mixes_demonstrations_in(
    basics: list[str], scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safe = Dataset.from_list([{"prompt": f"bad wish {n}", "completion": f"no: {n}"} for n in range(7)])
    safe.to_json(tmp_path / "safe.jsonl")
    words = ["--demonstrations", str(tmp_path / "safe.jsonl"), "--demonstrations_share", "0.1"]
    assert main(["filter", *basics, *words]) == 0
    result = scorer.filter(demo_pool)
    count = round(0.1 * len(result.kept))
    result.demonstrate(safe, 0.1)
    assert NamedDataset(str(tmp_path / "out" / "kept")).load().to_list() == result.train_rows().to_list()
    assert len(result.train_rows()) == len(result.kept) + count
    assert re.search(rf"demonstrations +{count} mixed in, 10\.", capsys.readouterr().out)
    summary = json.loads((tmp_path / "out" / "saft_summary.json").read_text())
    assert summary["kept"] == len(result.kept)
    assert summary["demonstrations"] == {
        "rows": count,
        "different": 7,
        "share": count / len(result.kept),
        "source": None,
    }
    assert summary["provenance"]["demonstrations_sha256"]
    again = FilterResult.load(tmp_path / "out", demo_pool)
    assert (again.decisions.words(), again.demonstrations) == (result.decisions.words(), None)


@pytest.mark.parametrize("output_format", ["arrow", "parquet"])
def test_score_is_the_score_of_the_python_api(
    basics: list[str], scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path, output_format: str
) -> None:
    assert main(["score", *basics, "--output_format", output_format]) == 0
    assert (tmp_path / "out" / "scored" / "train.parquet").exists() == (output_format == "parquet")
    scored = NamedDataset(str(tmp_path / "out" / "scored")).load()
    assert scored.to_list() == scorer.score_dataset(demo_pool).to_list()


def test_a_fitted_scorer_is_used_as_it_is(
    basics: list[str], scorer: SAFTScorer, demo_pool: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    scorer.save_pretrained(tmp_path / "scorer")
    some = demo_pool.select(range(40, 80))
    some.to_json(tmp_path / "some.jsonl")
    words = ["--scorer", str(tmp_path / "scorer"), "--dataset_name", str(tmp_path / "some.jsonl")]
    words += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(store_dir)]
    assert main(["filter", *words]) == 0
    expected = scorer.filter(some)
    audit = pq.read_table(tmp_path / "out" / "audit.parquet")
    assert audit["decision"].to_pylist() == expected.decisions.words()
    assert np.array_equal(audit["saft_score"].to_numpy(), expected.scores)
    assert pq.read_table(tmp_path / "out" / "kept").num_rows == len(expected.kept_indices)
    for name in ("config.json", "saft_scorer.safetensors"):
        assert (tmp_path / "out" / "scorer" / name).read_bytes() == (tmp_path / "scorer" / name).read_bytes()


@pytest.mark.parametrize("trusted", [False, True])
def test_labels_in_the_file_of_a_scorer_decide_where_that_is_asked_for(
    demo_model: str, demo_pool: Dataset, demo_labelled: Dataset, store_dir: Path, tmp_path: Path, trusted: bool
) -> None:
    fitted = SAFTScorer(demo_model, layer=2, method="directed", cache_dir=store_dir).fit(demo_pool, demo_labelled)
    fitted.save_pretrained(tmp_path / "scorer")
    words = ["--dataset_name", str(demo_rows_path()), "--cache_dir", str(store_dir), "--trust_labels", str(trusted)]
    words += ["--output_dir", str(tmp_path / "out")]
    assert main(["filter", *words, "--scorer", str(tmp_path / "scorer")]) == 0
    reasons = json.loads((tmp_path / "out" / "saft_summary.json").read_text())["reasons"]
    assert reasons == fitted.filter(demo_pool).summary.reasons if trusted else "label" not in str(reasons)


def test_a_threshold_beside_a_scorer_decides(
    scorer: SAFTScorer, demo_pool: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    scorer.save_pretrained(tmp_path / "scorer")
    threshold = float(np.nanmedian(scorer.score_dataset(demo_pool)["saft_score"]))
    assert threshold != scorer.threshold_
    words = ["--scorer", str(tmp_path / "scorer"), "--dataset_name", str(demo_rows_path())]
    words += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(store_dir), "--threshold", str(threshold)]
    assert main(["filter", *words]) == 0
    expected = scorer.filter(demo_pool, threshold=threshold)
    audit = pq.read_table(tmp_path / "out" / "audit.parquet")
    assert audit["decision"].to_pylist() == expected.decisions.words()
    summary = json.loads((tmp_path / "out" / "saft_summary.json").read_text())
    assert (summary["threshold"], summary["threshold_from"]) == (threshold, "given")
    loaded = SAFTScorer.from_pretrained(tmp_path / "out" / "scorer")
    assert loaded.threshold_ == scorer.threshold_


def test_the_screen_calls_figures_of_the_fit_so_and_warns_where_the_rows_are_others(
    demo_model: str,
    demo_pool: Dataset,
    demo_labelled: Dataset,
    store_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scorer = SAFTScorer(demo_model, method="directed", cache_dir=store_dir).fit(demo_pool, demo_labelled)
    scorer.save_pretrained(tmp_path / "scorer")
    above = np.flatnonzero(scorer.filter(demo_pool).scores > scorer.threshold_)
    demo_pool.select([*above, *above, *range(20)]).to_json(tmp_path / "rows.jsonl")
    words = ["--scorer", str(tmp_path / "scorer"), "--dataset_name", str(tmp_path / "rows.jsonl")]
    words += ["--cache_dir", str(store_dir), "--output_dir", str(tmp_path / "out")]
    assert main(["filter", *words]) == 0
    lines = dict(line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line.strip())
    assert lines["fit: rows"].strip() == "600"
    assert lines["rows"].strip() == str(2 * len(above) + 20)
    assert {"fit: labels", "fit: AUROC, out of fold", "fit: to be expected"} <= set(lines)
    assert not {"labels", "AUROC, out of fold", "to be expected"} & set(lines)
    assert "that the scorer was fitted on were above its own" in caplog.text
    assert main(["filter", *words, "--threshold", "1000000"]) == 0
    assert "to be expected" not in capsys.readouterr().out


def test_yaml_sets_options_and_words_win(basics: list[str], tmp_path: Path) -> None:
    options = dict(zip((word[2:] for word in basics[::2]), basics[1::2], strict=True))
    options |= {"labelled_rows": None, "contamination": 0.3, "k": 2, "readout": "response_mean"}
    config = tmp_path / "filter.yaml"
    config.write_text(yaml.safe_dump(options))
    assert main(["filter", "--config", str(config), "--k", "3"]) == 0
    loaded = SAFTScorer.from_pretrained(tmp_path / "out" / "scorer")
    assert (loaded.k_, loaded.readouts_, loaded.contamination) == (3, ("response_mean",), 0.3)
    assert loaded.fit_ is not None
    assert loaded.fit_.metrics.labels is None


def test_the_demo_runs_and_shows_its_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--output_dir", str(tmp_path / "demo"), "--cache_dir", str(tmp_path / "store"), "--by", "category"]
    assert main(["demo", *words]) == 0
    said = capsys.readouterr().out
    by = {name: (int(a), int(b)) for name, a, b in re.findall(r"removed, category='(\w+)' +(\d+) of (\d+) \(", said)}
    counts = Counter(json.loads(line)["category"] for line in demo_rows_path().read_text().splitlines())
    assert {name: rows for name, (_, rows) in by.items()} == counts
    shown = {name: float(value) for name, value in re.findall(r"(precision|recall|AUROC) +([\d.]+)", said)}
    assert len(shown) == 3
    assert shown["AUROC"] > 0.8
    assert str(tmp_path / "demo") in said
    summary = json.loads((tmp_path / "demo" / "saft_summary.json").read_text())
    assert summary["kept"] + summary["removed"] + summary["errored"] == summary["rows"] == 600
    assert sum(removed for removed, _ in by.values()) == summary["removed"]
    assert re.search(rf"removed +{summary['removed']} of 600 ", said)


def test_every_kind_of_file_and_folder_is_read(demo_pool: Dataset, tmp_path: Path) -> None:
    rows = demo_pool.select(range(12)).map(lambda row: {"text": row["messages"][-1]["content"]})
    rows = rows.select_columns(["text", "is_safe"])
    rows.to_json(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows.to_list()))
    rows.to_csv(tmp_path / "d.csv")
    rows.to_parquet(tmp_path / "e.parquet")
    rows.save_to_disk(str(tmp_path / "f"))
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk(str(tmp_path / "g"))
    (tmp_path / "h").mkdir()
    rows.to_json(tmp_path / "h" / "train.jsonl")
    expected = rows.to_list()
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.csv", "e.parquet", "f", "g", "h"):
        assert NamedDataset(str(tmp_path / name)).load().to_list() == expected, name
    assert len(NamedDataset(str(tmp_path / "g"), split="test").load()) == 1
    for part in range(2):
        rows.select(range(6 * part, 6 * part + 6)).to_parquet(tmp_path / "h" / f"part-{part}.parquet")
    assert NamedDataset(str(tmp_path / "h" / "part-*.parquet")).load().to_list() == expected


@pytest.mark.parametrize("missing", [None, "", -1])
def test_labelled_rows_are_drawn_among_those_that_have_a_label(
    demo_pool: Dataset, missing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole, names = demo_pool.select(range(60)), ["unsafe", "safe"]
    assert (
        labelled_of(whole, None, 20, seed=3).to_list() == whole.shuffle(seed=3).select(range(20)).to_list()  # type: ignore[union-attr]
    )
    known = set(range(0, 60, 2))
    values = [names[safe] if row in known else missing for row, safe in enumerate(whole["is_safe"])]
    if missing == -1:
        values = [names.index(value) if value in names else -1 for value in values]
    rows = whole.remove_columns("is_safe").add_column("verdict", values).add_column("at", range(60))
    if missing == -1:
        rows = rows.cast_column("verdict", ClassLabel(names=names))
    drawn = labelled_of(rows, None, 30, seed=3, label_column="verdict")
    assert drawn is not None
    assert set(drawn["at"]) == known
    labels = LabelSet.read(drawn, "verdict", "unsafe", "uniform")
    assert labels.harmful.tolist() == [not whole[row]["is_safe"] for row in drawn["at"]]
    assert "Only 30 of 60 rows have a label" in caplog.text
    with pytest.raises(SAFTInputError, match=r"must be 1 to 30, .* have a label, not 31"):
        labelled_of(rows, None, 31, seed=3, label_column="verdict")


def words_without(basics: list[str], name: str) -> list[str]:
    at = basics.index(f"--{name}")
    return basics[:at] + basics[at + 2 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words: words_without(words, "dataset_name"), "`--dataset_name` is needed"),
        (lambda words: words_without(words, "output_dir"), "`--output_dir` is needed"),
        (lambda words: words_without(words, "model_name_or_path"), "`--model_name_or_path`.*`--scorer`"),
        (lambda words: [*words, "--dataset_name", "/no/such/file.jsonl"], "no file /no/such/file.jsonl"),
        (lambda words: [*words, "--dataset_name", "/no/such/folder"], "neither a folder nor a file"),
        (lambda words: [*words, "--dataset_name", "no-such/dataset"], "no-such/dataset: no dataset could be read"),
        (lambda words: [*words, "--dataset_name", "BROKEN"], "broken.jsonl: no dataset could be read"),
        (lambda words: [*words, "--dataset_name", "EMPTY"], "no dataset could be read"),
        (lambda words: [*words, "--dataset_name", "DICT", "--dataset_train_split", "dev"], r"no split 'dev'.*'train'"),
        (lambda words: [*words, "--labelled_rows", "10000"], "`--labelled_rows` must be 1 to 600"),
        (lambda words: [*words, "--labelled_name", "x.csv"], "not both"),
        (lambda words: [*words, "--model_name_or_path", "/no/such/model"], "/no/such/model"),
        (lambda words: [*words, "--label_column", "verdict"], "--label_column verdict is not in"),
        (
            lambda words: [*words, "--dataset_revision", "v1", "--dataset_config", "x"],
            "`--dataset_revision`, `--dataset_config`: without effect on",
        ),
        (
            lambda words: [*words, "--dataset_name", "DICT", "--dataset_config", "x"],
            "`--dataset_config`: without effect",
        ),
        (lambda words: [*words, "--readout", "middle"], "`--readout` must be one of"),
        (lambda words: [*words, "--layer", "99"], "--layer 99"),
        (lambda words: [*words, "--on_error", "shrug"], "on_error must be"),
        (lambda words: [*words, "--output_format", "csv"], "`--output_format` must be"),
        (lambda words: [*words[2:4], *words[10:], "--scorer", "/no/such/scorer"], "/no/such/scorer/config.json"),
        (
            lambda words: [*words, "--scorer", "/no/such/scorer", "--aim", "f1", "--threshold", "1"],
            "`--layer`, `--method`, `--aim`, `--labelled_rows`: without effect beside `--scorer`",
        ),
        (lambda words: [*words, "--fresh_labels", "x.csv"], "`saft-hf filter` does not take --fresh_labels"),
        (lambda words: [*words, "--no_such_option", "1"], "no_such_option.*--help"),
        (lambda words: [*words, "--config", "/no/such.yaml"], "/no/such.yaml"),
        (lambda words: [*words, "--config", "UNKNOWN"], "colour"),
        (lambda words: [*words, "--output_dir", "FILE"], "blocked"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    basics: list[str], change: Any, message: str, tmp_path: Path, demo_pool: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_ins = {
        "BROKEN": tmp_path / "broken.jsonl",
        "EMPTY": tmp_path / "empty",
        "DICT": tmp_path / "dict",
        "UNKNOWN": tmp_path / "unknown.yaml",
        "FILE": tmp_path / "blocked",
    }
    stand_ins["BROKEN"].write_text('{"messages": [}\n')
    stand_ins["EMPTY"].mkdir()
    DatasetDict(train=demo_pool.select([0])).save_to_disk(str(stand_ins["DICT"]))
    stand_ins["UNKNOWN"].write_text("colour: green\n")
    stand_ins["FILE"].write_text("a file, not a folder")
    capsys.readouterr()
    assert main(["filter", *(str(stand_ins.get(word, word)) for word in change(basics))]) == 2
    captured = capsys.readouterr()
    error = captured.err[captured.err.index("saft-hf filter: ") :]
    assert re.search(message, error)
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out" / "kept").exists()


def test_a_word_of_the_wrong_type_is_refused_by_the_parser(
    basics: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["filter", *basics, "--k", "many"])
    assert stopped.value.code == 2
    assert "argument --k: invalid int value: 'many'" in capsys.readouterr().err


def test_help_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert re.search(r"score .*filter .*demo ", capsys.readouterr().out, re.DOTALL)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"saft-hf {__version__}\n"
    assert main([]) == 2
    capsys.readouterr()
    assert main(["bake"]) == 2
    assert "there is no command 'bake'" in capsys.readouterr().err


def test_ctrl_c_ends_quietly(
    basics: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SAFTScorer, "fit", stop)
    assert main(["filter", *basics]) == 130
    assert "Start it again to go on where it was" in capsys.readouterr().err


@pytest.mark.timeout(200)
def test_two_launched_processes_filter_like_one(basics: list[str], tmp_path: Path) -> None:
    def run(*words: str, out: str, **environment: str) -> Path:
        where = ["--output_dir", str(tmp_path / out), "--cache_dir", str(tmp_path / f"{out}-store")]
        done = subprocess.run(
            [*words, "-m", "saft_hf", "filter", *basics, *where],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(re.findall("^ *(?:.*: *)?kept  ", done.stdout, re.MULTILINE)) == 1  # only one of them speaks
        return tmp_path / out

    one = run(sys.executable, out="one")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--tee", "3", "--log_dir", str(tmp_path / "logs")]
    launch += ["--main_process_port", "0"]  # any that is free
    two = run(*launch, out="two", ACCELERATE_USE_CPU="true")
    logs = {path.parent.name: path for path in (tmp_path / "logs").rglob("stderr.log")}
    assert set(logs) == {"0", "1"}
    assert [logs["1"].with_name(name).read_text() for name in ("stdout.log", "stderr.log")] == ["", ""]
    assert "Embedding rows" in logs["0"].read_text()
    assert pq.read_table(two / "audit.parquet").equals(pq.read_table(one / "audit.parquet"))
    summaries = [json.loads((out / "saft_summary.json").read_text()) for out in (one, two)]
    for summary in summaries:
        del summary["provenance"]["created"], summary["provenance"]["audit_sha256"]  # the audit holds the time too
    assert summaries[0] == summaries[1]
    for name in ("scorer/config.json", "scorer/saft_scorer.safetensors"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert pq.read_table(two / "kept").equals(pq.read_table(one / "kept"))
    shards = [{path.name for path in (tmp_path / f"{name}-store").rglob("*.safetensors")} for name in ("one", "two")]
    assert shards[0] == shards[1]


def test_the_demo_reads_every_label_as_the_fit_does(basics: list[str], demo_pool: Dataset, tmp_path: Path) -> None:
    verdicts = ["fine" if safe else "bad" for safe in demo_pool["is_safe"]]
    demo_pool.remove_columns("is_safe").add_column("verdict", verdicts).to_json(tmp_path / "rows.jsonl")
    words = ["--dataset_name", str(tmp_path / "rows.jsonl"), "--label_column", "verdict", "--harmful_value", "bad"]
    assert main(["demo", *basics, *words]) == 0
