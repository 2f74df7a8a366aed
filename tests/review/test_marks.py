"""Marks of a review: read or refused, they decide their rows, and only those on rows drawn at random certify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from saft_hf import SAFTScorer
from saft_hf.cli.data import labels_in
from saft_hf.cli.main import main
from saft_hf.decide import decide, row_digest
from saft_hf.decide.marks import is_marks_file, read_marks
from saft_hf.errors import SAFTInputError
from saft_hf.scorer.labels import marked_rows

WORDS = ("keep", "remove", "harmful", "harmless")


def line(rows: Dataset, row: int, word: str | None, purpose: str = "informative") -> dict[str, Any]:
    return {"saft_row": row, "saft_sha256": row_digest(rows[row]), "saft_purpose": purpose, "saft_mark": word}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


@given(data=st.data(), n=st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_marks_decide_their_rows_and_no_others(data: st.DataObject, n: int) -> None:
    scores = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=n, max_size=n)))
    status = ["packed" if np.isnan(score) else "ok" for score in scores]
    rows = st.dictionaries(st.integers(0, n - 1), st.booleans())
    labels, marks = data.draw(rows), data.draw(rows)
    limit = data.draw(st.sampled_from([None, 0.5]))
    got, plain = (decide(scores, status, limit, labels=labels, marks=each) for each in (marks, {}))
    for row in range(n):
        if row in marks:
            assert (got.words(row, row + 1), got.reasons[row]) == ([["kept", "removed"][marks[row]]], "mark")
        elif limit is not None or labels:
            assert (got.codes[row], got.reasons[row]) == (plain.codes[row], plain.reasons[row])
    assert sum(got.counts().values()) == n


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"saft_mark": "maybe"}, "line 2: no mark of a review"),
        ({"saft_purpose": "random"}, "line 2: no mark"),
        ({"saft_row": "1"}, "line 2: no mark"),
        ({"text": "more"}, "line 2: no mark"),
        ({"saft_row": 0}, "line 2: row 0 has a line already"),
    ],
)
def test_a_file_that_is_no_marks_file_is_refused(tmp_path: Path, spoil: dict[str, Any], message: str) -> None:
    rows = Dataset.from_list([{"text": "a"}, {"text": "b"}])
    path = write(tmp_path / "marks.jsonl", [line(rows, 0, "keep"), line(rows, 1, "keep") | spoil])
    with pytest.raises(SAFTInputError, match=message):
        read_marks(path)
    assert is_marks_file(path)
    assert not is_marks_file(write(tmp_path / "rows.jsonl", [{"text": "a", "is_safe": True}]))


@pytest.mark.parametrize("other", ["order", "content", "length"])
def test_marks_of_other_rows_are_refused(scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path, other: str) -> None:
    path = write(tmp_path / "marks.jsonl", [line(demo_pool, row, "remove") for row in (3, 599)])
    rows = {
        "order": lambda: demo_pool.select([599, *range(1, 599), 0]),
        "content": lambda: demo_pool.remove_columns("category"),
        "length": lambda: demo_pool.select(range(599)),
    }[other]()
    with pytest.raises(
        SAFTInputError, match=r"of 2 marks are of other rows than these \d+ \(rows .*599, by their digest"
    ):
        scorer.filter(rows, marks=path)


def test_a_filter_follows_marks_and_the_audit_says_so(scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path) -> None:
    plain = scorer.filter(demo_pool)
    fitted = set(plain.labels)
    kept, removed = (
        [row for row in rows.tolist() if row not in fitted] for rows in (plain.kept_indices, plain.removed_indices)
    )
    words = {kept[0]: "remove", kept[1]: "harmful", kept[2]: "keep", removed[0]: "keep", removed[1]: "harmless"}
    lines = [line(demo_pool, row, word) for row, word in words.items()] + [line(demo_pool, kept[3], None)]
    result = scorer.filter(demo_pool, marks=write(tmp_path / "marks.jsonl", lines))
    result.save(tmp_path / "out")
    audit = pq.read_table(tmp_path / "out" / "audit.parquet").to_pydict()
    assert [audit["decision"][row] for row in words] == ["removed", "removed", "kept", "kept", "kept"]
    assert [audit["reason"][row] for row in words] == ["mark", "label", "mark", "mark", "label"]
    assert [(audit["label"][row], audit["label_from"][row]) for row in words] == [
        *[(None, None), ("harmful", "mark"), (None, None), (None, None), ("harmless", "mark")]
    ]
    same = [row for row in range(600) if row not in words]
    assert result.decisions.codes[same].tolist() == plain.decisions.codes[same].tolist()
    assert result.summary.provenance.options["marks"].endswith("marks.jsonl")


def test_a_certificate_takes_no_marks(scorer: SAFTScorer, demo_pool: Dataset, tmp_path: Path) -> None:
    path = write(tmp_path / "marks.jsonl", [line(demo_pool, 3, "keep")])
    labels = scorer.suggest_labels(demo_pool, uniform=300).remove_columns("is_harmful")
    rows = demo_pool.select(labels["saft_row"]).add_column("saft_purpose", labels["saft_purpose"])
    certificate = scorer.certify(demo_pool, rows, alpha=0.5)
    assert certificate.issued
    with pytest.raises(SAFTInputError, match=r"a certificate decides alone: leave .*`marks`"):
        scorer.filter(demo_pool, certificate=certificate, marks=path)


def test_marks_on_rows_drawn_at_random_certify_and_the_others_are_set_aside(demo_pool: Dataset, tmp_path: Path) -> None:
    uniform = [
        line(demo_pool, row, word, "uniform up to 0.25") for row, word in ((5, "harmless"), (9, None), (2, "keep"))
    ]
    picked = [line(demo_pool, row, word) for row, word in ((7, "harmful"), (8, "remove"))]
    path = write(tmp_path / "marks.jsonl", [*uniform, *picked])
    fresh = marked_rows(path, demo_pool, certify=True)
    # Rows that were drawn and passed over are among them, without a label: a certificate counts them.
    assert fresh["saft_row"][:] == [5, 9, 2]
    assert fresh["is_harmful"][:] == [False, None, None]
    assert set(fresh["saft_purpose"]) == {"uniform up to 0.25"}
    to_fit = marked_rows(path, demo_pool, certify=False)
    assert (to_fit["saft_row"][:], to_fit["is_harmful"][:]) == ([5, 7], [False, True])
    assert to_fit["messages"][0] == demo_pool["messages"][5]
    assert "is_safe" not in to_fit.column_names
    for lines, certify in ((picked, True), ([uniform[1]], True), ([picked[1]], False)):
        with pytest.raises(SAFTInputError, match=f"has {len(lines)} lines, and none .* says harmful or harmless"):
            marked_rows(write(tmp_path / "none.jsonl", lines), demo_pool, certify=certify)


@pytest.mark.filterwarnings("ignore")
def test_filter_review_marks_filter_and_certify_by_shell(
    demo_model: str, demo_pool: Dataset, store_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    demo_pool.to_json(rows)
    out = str(tmp_path / "out")
    words = ["--dataset_name", str(rows)]
    fit = [*words, "--model_name_or_path", demo_model, "--cache_dir", str(store_dir), "--labelled_rows", "100"]
    fit += ["--method", "directed", "--layer", "2"]
    assert main(["filter", *fit, "--output_dir", out]) == 0
    assert main(["review", out, *words]) == 0
    page = (tmp_path / "out" / "review.html").read_text()
    assert "It holds the text of rows that may be harmful" in capsys.readouterr().out
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    shown = {row["row"]: row for row in data["rows"]}
    drawn = sorted((row for row in shown.values() if row["order"] is not None), key=lambda row: row["order"])
    marks = [
        {name: row[key] for name, key in (("saft_row", "row"), ("saft_sha256", "sha256"), ("saft_purpose", "purpose"))}
        | {"saft_mark": "harmless" if demo_pool[row["row"]]["is_safe"] else "harmful"}
        for row in drawn
    ]
    highest = data["rows"][data["tables"][0]["rows"][0]]
    marks.append(line(demo_pool, highest["row"], "keep"))
    path = str(write(tmp_path / "marks.jsonl", marks))
    again = str(tmp_path / "again")
    assert main(["filter", *words, "--scorer", f"{out}/scorer", "--marks", path, "--output_dir", again]) == 0
    audit = pq.read_table(tmp_path / "again" / "audit.parquet").to_pydict()
    assert (audit["decision"][highest["row"]], audit["reason"][highest["row"]]) == ("kept", "mark")
    for mark in marks[:-1]:
        decision = "removed" if mark["saft_mark"] == "harmful" else "kept"
        assert (audit["decision"][mark["saft_row"]], audit["reason"][mark["saft_row"]]) == (decision, "label")
    assert main(["review", out, *words, "--marks", path]) == 0
    assert f"confidence 90%, {len(drawn)} marks" in (tmp_path / "out" / "review.html").read_text()
    certified = str(tmp_path / "certified")
    assert (
        main(
            [
                "certify",
                *words,
                "--scorer",
                f"{out}/scorer",
                "--fresh_labels",
                path,
                "--alpha",
                "0.3",
                "--output_dir",
                certified,
            ]
        )
        == 0
    )
    certificate = json.loads((tmp_path / "certified" / "certificate.json").read_text())
    assert (certificate["labels"], certificate["informative"], certificate["unanswered"]) == (len(drawn), 0, 0)
    assert certificate["drawn_from"] == json.loads((tmp_path / "out" / "saft_summary.json").read_text())["threshold"]
    assert certificate["certified"]["kept"] <= len(load_dataset(f"{certified}/kept", split="train")) < 600
    refit = [*words, "--model_name_or_path", demo_model, "--cache_dir", str(store_dir), "--labelled_name", path]
    refit += ["--method", "directed", "--layer", "2", "--on_undecided", "keep", "--output_dir", str(tmp_path / "refit")]
    assert main(["filter", *refit]) == 0
    counts = json.loads((tmp_path / "refit" / "saft_summary.json").read_text())["fit"]["labels"]
    assert (counts["rows"], counts["uniform"]) == (len(drawn), False)


def test_marks_of_a_stream_are_refused(demo_pool: Dataset, tmp_path: Path) -> None:
    path = write(tmp_path / "marks.jsonl", [line(demo_pool, 3, "harmful")])
    with pytest.raises(SAFTInputError, match="holds marks, which go with rows that were reviewed"):
        labels_in(str(path), "train", pool=demo_pool.to_iterable_dataset(), certify=True)
