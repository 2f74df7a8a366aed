"""Reference sets in every form that a user may give, and what is wrong with those that cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from saft_hf import SAFTInputError, SAFTScorer
from saft_hf.distributed import World
from saft_hf.records import from_plain, to_plain
from saft_hf.scorer.reference_rows import FittedReference, ReferenceRows, ReferenceSource, outside, read_reference
from saft_hf.summary import SourceInfo

ROWS = [
    {"prompt": f"question {n}", "completion": f"answer {n}", "category": "a", "is_harmful": n % 3 == 0}
    for n in range(12)
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def read(reference: Any) -> ReferenceRows:
    rows = read_reference(reference, World())
    assert isinstance(rows, ReferenceRows)
    return rows


def written() -> dict[str, Any]:
    """The same rows in every form."""
    rows = Dataset.from_list(ROWS)
    rows.to_csv("rows.csv")
    rows.to_parquet("rows.parquet")
    rows.to_json("rows.jsonl")
    Path("rows.json").write_text(json.dumps(ROWS))
    Path("rows,1.jsonl.gz").write_bytes(gzip.compress(Path("rows.jsonl").read_bytes()))
    rows.save_to_disk("saved")
    Path("head.csv").write_text("text,unsafe\n")
    Path("[].json").write_text("[]")
    Path("kinds").mkdir()
    Path("kinds/rows.csv").write_bytes(Path("rows.csv").read_bytes())
    Path("kinds/rows.jsonl").write_bytes(Path("rows.jsonl").read_bytes())
    Path("folder").mkdir()
    Path("folder/train.jsonl").write_bytes(Path("rows.jsonl").read_bytes())
    names = ["rows.csv", "rows.parquet", "rows.jsonl", "rows.json", "rows,1.jsonl.gz", "saved", "folder"]
    table = Dataset.from_dict(
        {
            "ask": [row["prompt"] for row in ROWS],
            "say": [row["completion"] for row in ROWS],
            "verdict": ["bad" if row["is_harmful"] else "good" for row in ROWS],
        }
    )
    table.to_csv("theirs.csv")
    theirs = {"columns": {"ask": "prompt", "say": "completion"}, "label_column": "verdict", "harmful_value": "bad"}
    split = rows.rename_column("completion", "response")
    return {
        "dataset": rows,
        **{name: name for name in names},
        "path": Path("rows.csv"),
        "source": ReferenceSource("rows.csv", split="train"),
        "mapping": {"path": "rows.csv"},
        "list": [rows],
        "theirs": ReferenceSource(table, **theirs),
        "words": "theirs.csv,prompt=ask,completion=say,label_column=verdict,harmful_value=bad",
        "yaml": {"path": "theirs.csv", "prompt": "ask", "completion": "say", "label_column": "verdict"}
        | {"harmful_value": "bad"},
        "response": split,
        "classes": rows.cast_column("is_harmful", ClassLabel(names=["safe", "unsafe"])),
        "parts": [
            ReferenceSource(rows.filter(lambda row: not row["is_harmful"]).remove_columns("is_harmful"), harmful=False),
            {"path": rows.filter(lambda row: row["is_harmful"]).remove_columns("is_harmful"), "harmful": "true"},
        ],
    }


def test_every_form_gives_the_same_rows_and_labels() -> None:
    expected = sorted((row["prompt"], row["completion"], row["is_harmful"]) for row in ROWS)
    for form, reference in written().items():
        rows = read(reference)
        found = [
            (row["prompt"], row["completion"], harmful)
            for part, labels in zip(rows.parts, rows.harmful, strict=True)
            for row, harmful in zip(part, labels.tolist(), strict=True)
        ]
        assert sorted(found) == expected, form
        for part, info in zip(rows.parts, rows.sources, strict=True):
            assert not {"is_harmful", "verdict"} & set(part.column_names), form
            assert from_plain(SourceInfo, json.loads(json.dumps(to_plain(info)))) == info, form


def test_a_name_is_that_of_the_file_or_of_the_user_and_each_is_there_once() -> None:
    written()
    other = Dataset.from_list([{**row, "prompt": "other " + row["prompt"]} for row in ROWS])
    third = Dataset.from_list([{**row, "prompt": "third " + row["prompt"]} for row in ROWS])
    rows = read([str(Path("rows.csv").resolve()), other, ReferenceSource(third, name="mi|ne", licence="mit")])
    assert [info.name for info in rows.sources] == ["rows.csv", "rows", "mi_ne"]
    assert [info.licence for info in rows.sources] == [None, None, "mit"]
    assert [info.name for info in read([other, third]).sources] == ["rows (1)", "rows (2)"]


def test_columns_that_are_one_are_joined() -> None:
    table = {"instruction": ["Add.", "Sing."], "input": ["1 + 1", ""], "output": ["2", "la"], "text": ["x", "y"]}
    Dataset.from_dict({**table, "unsafe": [False, True]}).to_json("rows.jsonl")
    (rows,) = read("rows.jsonl,prompt=instruction+input,completion=output").parts
    assert rows.to_list() == [{"prompt": "Add.\n\n1 + 1", "completion": "2"}, {"prompt": "Sing.", "completion": "la"}]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.sampled_from([True, False, None])), min_size=1, max_size=12),
        min_size=1,
        max_size=3,
    )
)
def test_equal_rows_stand_once_with_the_label_of_most_and_every_row_is_counted(
    sources: list[list[tuple[int, bool | None]]],
) -> None:
    given = [
        Dataset.from_dict({"text": [f"t{n}" for n, _ in rows], "unsafe": [label for _, label in rows]})
        for rows in sources
    ]
    votes: dict[int, list[bool]] = {}
    for rows in sources:
        for n, label in rows:
            if label is not None:
                votes.setdefault(n, []).append(label)
    expected = {n: 2 * sum(each) > len(each) for n, each in votes.items() if 2 * sum(each) != len(each)}
    try:
        found = read(given)
    except SAFTInputError:
        firsts = [
            {n for n, label in rows if label is not None and n in expected}
            - {n for before in sources[:at] for n, label in before if label is not None}
            for at, rows in enumerate(sources)
        ]
        assert not all(firsts) or len(set(expected.values())) < 2
        return
    kept = [
        (text, label)
        for part, labels in zip(found.parts, found.harmful, strict=True)
        for text, label in zip(part["text"], labels.tolist(), strict=True)
    ]
    assert len(kept) == len(expected)
    assert dict(kept) == {f"t{n}": label for n, label in expected.items()}
    for rows, info in zip(sources, found.sources, strict=True):
        assert info.rows == len(rows) == info.harmful + info.benign + info.unlabelled + info.duplicates
        assert info.unlabelled == sum(label is None for _, label in rows)


def test_the_digest_tells_rows_and_labels() -> None:
    rows = Dataset.from_list(ROWS)
    flipped = rows.map(lambda row: {"is_harmful": not row["is_harmful"]})
    forms = (rows, flipped, rows.select(range(11)), Dataset.from_list(ROWS))
    digests = {read(each).sources[0].digest for each in forms}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (3, "must be a Dataset, a Hub id, .*; found int"),
        ({"name": "x"}, "must be a Dataset.* mapping with `path`"),
        ("rows.csv,splt=train", "`reference` rows.csv: there is no option 'splt'.*Did you mean `split`"),
        ("rows.csv,train", "`reference` rows.csv: options are `key=value`.*'train'"),
        ("rows.csv,harmful=maybe", "`harmful` must be true or false, not 'maybe'"),
        (
            Dataset.from_list(ROWS).filter(lambda row: row["is_harmful"]),
            "needs harmful rows and benign ones .rows: . harmful, 0 benign.: see whether its labels",
        ),
        ("rows.csv,harmful=true,label_column=is_harmful", "`reference` rows.csv: `harmful` is for all rows"),
        ("rows.csv,split=dev", r"rows.csv: .*`split` is 'dev'.*dev"),
        ("rows.csv,revision=v1", "`revision`: without effect on rows.csv"),
        ("rows.csv,label_column=nope", "`reference` rows.csv: label_column='nope' is not in"),
        ("rows.csv,label_column=category", "`reference` rows.csv: the name of label column 'category' does not tell"),
        ("rows.csv,prompt=nope,completion=completion", "`reference` rows.csv: there is no column 'nope'; found"),
        ({"path": "rows.csv", "columns": {"prompt": "question"}}, "columns can be named prompt, .* not 'question'"),
        ("rows.csv,prompt=prompt", "`reference` rows.csv: .*'prompt' but no 'completion'"),
        (["rows.csv", "rows.jsonl"], "`reference` rows.jsonl: each of its 12 rows .*Leave it out"),
        ("nothing.csv", "there is no file nothing.csv"),
        ("https://example.org/rows.csv", "is a URL"),
        (Dataset.from_dict({"text": [], "unsafe": []}), "`reference` a Dataset: the dataset is empty"),
        (ReferenceSource(Dataset.from_list(ROWS), split="train"), "`split`: without effect on rows that are loaded"),
        (Dataset.from_dict({"text": ["a"], "unsafe": [None]}), "none of its 1 rows has a label in column 'unsafe'"),
        (["rows.csv", None], "mapping with `path`.* found NoneType.*This is source 2 of 2"),
        (["rows.jsonl", "rows.csv,label_column=nope"], "label_column='nope'.*This is source 2 of 2"),
        ([], "`reference` is an empty list"),
        (DatasetDict({"train": Dataset.from_list(ROWS)}), "found DatasetDict.*name one split"),
        (ROWS, r"found dict.*`Dataset.from_list\(rows\)`.*This is source 1 of 12"),
        ("kinds", r"kinds holds tables of 2 kinds, such as .*rows\.csv \(csv\).*pattern"),
        ("head.csv", "head.csv: .*it is empty, there is no row in it"),
        ("[].json", "no row in it"),
        ("theirs.csv,harmful=true", "found .*'ask', 'say'.*Or say which columns they are: `prompt=COLUMN`"),
    ],
)
def test_what_cannot_be_read_says_which_source_and_why(reference: Any, message: str) -> None:
    written()
    with pytest.raises(SAFTInputError, match=message) as refused:
        read(reference)
    assert "question 1" not in str(refused.value)


def test_a_saved_scorer_is_told_from_rows_and_stands_alone(scorer: SAFTScorer, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path / "probe")
    assert read_reference("probe", World()) == FittedReference("probe", None)
    assert read_reference(["probe"], World()) == FittedReference("probe", None)
    with pytest.raises(SAFTInputError, match="`reference` probe is a fitted scorer: it stands alone"):
        read_reference(["probe", Dataset.from_list(ROWS)], World())


def test_processes_with_other_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(World, "same_on_all_ranks", lambda self, given: asked.append(given()))
    rows = read(Dataset.from_list(ROWS))
    assert asked == [{"reference": [rows.sources[0].digest]}]


def test_rows_of_the_pool_are_found_by_all_their_tokens() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (4, 16)).astype(np.uint8)
    pool = SimpleNamespace(survey=SimpleNamespace(identities=keys[:2], usable=np.array([True, False])))
    own = SimpleNamespace(survey=SimpleNamespace(identities=keys[:3], usable=np.array([True, True, False])))
    assert outside(own, pool).tolist() == [False, True, True]  # type: ignore[arg-type]
