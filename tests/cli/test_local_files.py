"""Datasets by name: what is on disk is read as it is, or the error says what is wrong with it."""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib.util
import json
import lzma
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Value
from hypothesis import given
from hypothesis import strategies as st

from saft_hf import SAFTScorer
from saft_hf.cli.data import labels_in
from saft_hf.cli.main import main
from saft_hf.cli.sft import run as sft
from saft_hf.cli.suggest_labels import _write
from saft_hf.errors import SAFTInputError
from saft_hf.named import NamedDataset, neutral, restored

ROWS = [{"text": f"row {number}", "number": number} for number in range(30)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
NOISE = random.Random(0).randbytes(300)
TABLE = [f"{row['text']}|{row['number']}\n" for row in ROWS]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def zipped(text: str, name: str) -> bytes:
    with zipfile.ZipFile("made.zip", "w") as archive:
        archive.writestr(name, text)
    return Path("made.zip").read_bytes()


def zstd(data: bytes) -> bytes:
    import zstandard

    return bytes(zstandard.compress(data))


FILES: dict[str, Any] = {
    "rows.jsonl": lambda: LINES.encode(),
    "ROWS.JSONL": lambda: LINES.encode(),
    "rows.ndjson": lambda: LINES.encode(),
    "rows.v1.2.json": lambda: json.dumps(ROWS).encode(),
    "rows[1] of*.jsonl": lambda: LINES.encode(),
    "rows.csv": lambda: ("text,number\n" + "".join(TABLE).replace("|", ",")).encode(),
    "rows.tsv": lambda: ("text\tnumber\n" + "".join(TABLE).replace("|", "\t")).encode(),
    "rows.TXT": lambda: "".join(row["text"] + "\n" for row in ROWS).encode(),
    "rows.jsonl.gz": lambda: gzip.compress(LINES.encode()),
    "rows.json.bz2": lambda: bz2.compress(LINES.encode()),
    "ROWS.JSONL.XZ": lambda: lzma.compress(LINES.encode()),
    "rows.zip": lambda: zipped(LINES, "rows.jsonl"),
    "rows.jsonl.zst": lambda: zstd(LINES.encode()),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_every_ending_is_read(name: str, streaming: bool) -> None:
    if name.endswith("zst") and not importlib.util.find_spec("zstandard"):
        pytest.skip("needs zstandard")
    Path(name).write_bytes(FILES[name]())
    expected = [{"text": row["text"]} for row in ROWS] if name == "rows.TXT" else ROWS
    for where in (name, f"./{name}", str(Path(name).resolve())):
        named = NamedDataset(where, streaming=streaming)
        assert not named.is_on_hub
        assert named.source is None
        assert named.load().to_list() == expected
    assert list(named.stream()) == expected
    assert NamedDataset(name, "train[:3]").load().to_list() == expected[:3]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows", LINES, "a folder nor a file of a known kind"),
        ("rows.v1.2", LINES, "a folder nor a file of a known kind"),
        ("some/name", LINES, "a folder nor a file of a known kind"),
        ("empty.jsonl", "", r"empty\.jsonl is empty \(0 bytes\)"),
        ("empty.csv", "", r"empty\.csv is empty \(0 bytes\)"),
        ("blank.jsonl", "\n \n", "blank.jsonl holds no row"),
        ("blank.jsonl.gz", gzip.compress(b""), "blank.jsonl.gz holds no row"),
        ("cut.jsonl", LINES[:-10], "breaks off or is no JSON in line 30: .*datasets said: "),
        ("cut.json", json.dumps(ROWS, indent=1)[:-9], "breaks off or is no JSON in line 1[0-9][0-9]: "),
        ("inside.jsonl", LINES + "{oops\n" + LINES, "no JSON in line 31: Expecting"),
        ("cut.jsonl.gz", gzip.compress(LINES.encode())[:-20], "cannot be read beyond line [1-9][0-9]?: EOFError"),
        ("cut.jsonl.xz", lzma.compress(LINES.encode())[:-20], "cannot be read beyond line"),
        ("noise.jsonl", NOISE, "cannot be read beyond line|no JSON in line"),
        ("noise.parquet", NOISE, "Parquet magic bytes not found"),
        ("ragged.csv", "a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("cut.zip", b"PK" + NOISE, "BadZipFile"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,  # some hold the time
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_cannot_be_read_says_why(name: str, data: str | bytes, message: str, streaming: bool) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(SAFTInputError) as raised:
        NamedDataset(name, streaming=streaming).load()
    assert re.search(message, str(raised.value)), raised.value
    assert name in str(raised.value)
    assert "Hub id, " not in str(raised.value)
    assert "row 2" not in re.sub(r"in row \d+", "", str(raised.value))  # nothing of the rows


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_that_is_not_there_is_an_error_that_lists_those_that_are(streaming: bool) -> None:
    rows = Dataset.from_list(ROWS)
    Path("rows.jsonl").write_text(LINES)
    rows.to_parquet("rows.parquet")
    rows.save_to_disk("saved")
    DatasetDict(train=rows, dev=rows).save_to_disk("saved-splits")
    Path("folder").mkdir()
    Path("folder/train.jsonl").write_text(LINES)
    Path("folder/validation.jsonl").write_text(LINES)
    for name in ("rows.jsonl", "rows.parquet", "saved", "saved-splits", "folder"):
        with pytest.raises(SAFTInputError, match=rf"{name}.*'train'") as raised:
            NamedDataset(name, "test", streaming=streaming).load()
        assert "'test'" in str(raised.value).replace('"', "'")
    assert len(NamedDataset("folder", "validation", streaming=streaming).load()) == 30
    # Labels in a file are not of the pool's split.
    assert len(labels_in("rows.jsonl", "validation")) == len(labels_in("folder", "validation")) == 30
    with pytest.raises(SAFTInputError, match="'dev'"):
        labels_in("saved-splits", "validation")


def test_trl_sft_streams_a_local_file_and_knows_its_splits(demo_model: str, demo_pool: Dataset) -> None:
    demo_pool.select(range(40)).to_json("ROWS.JSONL")
    words = ["--model_name_or_path", demo_model, "--dataset_name", "ROWS.JSONL", "--output_dir", "out"]
    words += [
        "--use_cpu",
        "true",
        "--dataset_streaming",
        "true",
        "--max_steps",
        "1",
        "--report_to",
        "none",
        "--saft_cache_dir",
        "cache",
    ]
    with pytest.raises(SAFTInputError, match=r"ROWS\.JSONL.*\['train'\]"):
        sft([*words, "--dataset_train_split", "validation"])
    sft([*words, "--saft_enabled", "false"])
    assert Path("out/model.safetensors").exists()


@pytest.mark.parametrize("url", ["https://example.org/a.jsonl", "hf://datasets/a/b", "zip://a.csv::s3://b/c.zip"])
def test_urls_are_refused(url: str, demo_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model_name_or_path", demo_model, "--output_dir", "out"]
    Path("mixture.yaml").write_text(f"datasets:\n- path: {url}\n")
    Path("rows.jsonl").write_text(LINES)
    for command in (
        ["filter", *words, "--dataset_name", url],
        ["score", *words, "--dataset_name", "rows.jsonl", "--labelled_name", url],
        ["certify", *words, "--dataset_name", "rows.jsonl", "--fresh_labels", url],
        ["sft", *words, "--use_cpu", "true", "--dataset_name", url, "--dataset_streaming", "true"],
        ["sft", *words, "--use_cpu", "true", "--config", "mixture.yaml"],
    ):
        assert main(command) == 2
        assert "is a URL" in capsys.readouterr().err


CELLS = st.text(st.sampled_from("=+-@\t\r\n'\",;a1 é"), max_size=5) | st.sampled_from(
    ["NA", "null", "007", "1.0", "True"]
)


@given(CELLS)
def test_a_neutral_cell_is_text_and_comes_back(cell: str) -> None:
    safe = neutral(cell)
    assert safe is not None
    assert safe[:1] not in ("=", "+", "-", "@", "\t", "\r")
    assert safe != ""
    assert restored(safe) == cell


@given(st.lists(CELLS | st.none(), min_size=1, max_size=6), st.sampled_from(["source", "=source", "'source"]))
def test_a_table_of_suggestions_comes_back_as_it_was(cells: list[str | None], column: str) -> None:
    Path("labels.csv").unlink(missing_ok=True)
    laid_out = {"text": cells, column: cells, "saft_row": range(len(cells)), "saft_purpose": ["uniform"] * len(cells)}
    rows = Dataset.from_dict(laid_out).cast_column("text", Value("string")).cast_column(column, Value("string"))
    _write(rows, Path("labels.csv"))
    with Path("labels.csv").open(newline="") as file:
        written = [cell for line in csv.reader(file) for cell in line]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in written)
    assert NamedDataset("labels.csv").load().to_list() == rows.to_list()


def test_formulas_in_suggestions_are_certified(scorer: SAFTScorer, demo_pool: Dataset) -> None:
    starts = ["=1+1 ", "+", "-", "@", "\t", "\r\n", "'=", "007", "NA"]
    rows = [
        {"prompt": f"{starts[number % 9]} {row['messages'][0]['content']}", "completion": starts[number % 7] + " So."}
        for number, row in enumerate(demo_pool.select(range(60)).to_list())
    ]
    pool = Dataset.from_list(rows)
    _write(scorer.suggest_labels(pool, uniform=40), Path("labels.csv"))
    text = Path("labels.csv").read_text()
    assert "'=1+1" in text
    assert not re.search(r'(^|[,"\n])=', text)
    labelled = NamedDataset("labels.csv").load()
    fresh = labelled.remove_columns("is_harmful").add_column("is_harmful", [number % 9 == 0 for number in range(40)])
    assert scorer.certify(pool, fresh, alpha=0.5).labels == 40
