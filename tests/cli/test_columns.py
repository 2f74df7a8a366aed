"""Rows of other column names, or with JSON text, are those that Python would have made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from saft_hf import SAFTScorer
from saft_hf.cli.main import main
from saft_hf.columns import Layout
from saft_hf.errors import SAFTInputError

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def written(rows: list[dict[str, Any]], path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def plain(demo_pool: Dataset) -> list[dict[str, Any]]:
    """Prompts and responses as text, with labels."""
    return [
        {"prompt": row["messages"][0]["content"], "completion": row["messages"][-1]["content"], "safe": row["is_safe"]}
        for row in demo_pool.select(range(120))
    ]


def alpaca(row: dict[str, Any], number: int) -> dict[str, Any]:
    prompt, more = row["prompt"], f"Case {number}." if number % 2 else ""
    return {"instruction": prompt, "input": more, "output": row["completion"], "safe": row["safe"]}


BEAVERTAILS = ["--response_column", "response"]
ALPACA = ["--prompt_column", "instruction,input", "--response_column", "output"]


@pytest.mark.parametrize("shape", ["beavertails", "alpaca"])
def test_columns_of_other_names_give_the_scores_of_renamed_ones(
    shape: str, plain: list[dict[str, Any]], demo_model: str, store_dir: Path, tmp_path: Path
) -> None:
    if shape == "alpaca":
        rows, words = [alpaca(row, number) for number, row in enumerate(plain)], ALPACA
        both = [f"{row['instruction']}\n\n{row['input']}".strip() for row in rows]
        expected = [
            {"prompt": p, "completion": row["output"], "safe": row["safe"]} for p, row in zip(both, rows, strict=True)
        ]
    else:
        rows, words, expected = [{**row, "response": row["completion"]} for row in plain], BEAVERTAILS, plain
        for row in rows:
            del row["completion"]
    words = [*words, "--dataset_name", written(rows, tmp_path / "rows.jsonl"), "--model_name_or_path", demo_model]
    words += ["--labelled_name", written(rows[:60], tmp_path / "labelled.jsonl"), "--method", "saft", "--layer", "2"]
    words += ["--cache_dir", str(store_dir), "--output_dir", str(tmp_path / "out")]
    assert main(["filter", *words]) == 0
    pool = Dataset.from_list(expected)
    scorer = SAFTScorer(demo_model, method="saft", layer=2, cache_dir=store_dir).fit(pool, pool.select(range(60)))
    result = scorer.filter(pool)
    assert len(result.removed_indices)
    audit = pq.read_table(tmp_path / "out" / "audit.parquet")
    assert audit["saft_score"].to_pylist() == result.scores.tolist()
    kept = Dataset.from_parquet(str(tmp_path / "out" / "kept" / "train.parquet"))
    assert [{name: row[name] for name in expected[0]} for row in kept] == result.kept.to_list()
    # The result can be read again with the same words.
    assert main(["filter", *words, "--dataset_name", str(tmp_path / "out" / "kept")]) == 0


def test_json_text_is_parsed_and_a_broken_row_gets_a_status(
    demo_pool: Dataset, demo_model: str, store_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": json.dumps(row["messages"]), "is_safe": row["is_safe"]} for row in demo_pool]
    words = ["score", "--dataset_name", written(rows, tmp_path / "rows.jsonl"), "--model_name_or_path", demo_model]
    words += ["--labelled_rows", "100", "--method", "saft", "--layer", "2", "--cache_dir", str(store_dir)]
    words += ["--output_dir", str(tmp_path / "out")]
    assert main(words) == 2
    assert "--parse_json" in capsys.readouterr().err
    rows[7]["messages"] = rows[7]["messages"][:-1]
    written(rows, tmp_path / "rows.jsonl")
    assert main([*words, "--parse_json", "true"]) == 0
    scored = Dataset.from_parquet(str(tmp_path / "out" / "scored" / "train.parquet"))
    assert scored["saft_status"][7] == "bad_row"
    dialogues = scored["messages"][:]
    assert dialogues[7] is None
    assert [each for row, each in enumerate(dialogues) if row != 7] == [
        each for row, each in enumerate(demo_pool["messages"]) if row != 7
    ]


def test_a_round_of_labels_takes_the_same_words(
    demo_pool: Dataset, demo_model: str, store_dir: Path, tmp_path: Path
) -> None:
    """What a command wrote of JSON dialogues, or of renamed columns, is named with the options of the input."""
    harmful = [not safe for safe in demo_pool["is_safe"]]
    for shape in ("json", "columns"):
        rows = [
            {"messages": json.dumps(row["messages"])}
            if shape == "json"
            else {"ask": row["messages"][0]["content"], "say": row["messages"][-1]["content"]}
            for row in demo_pool
        ]
        words = ["--dataset_name", written(rows, tmp_path / "rows.jsonl"), "--cache_dir", str(store_dir)]
        words += ["--parse_json", "true"] if shape == "json" else ["--prompt_column", "ask", "--response_column", "say"]
        fit = ["--model_name_or_path", demo_model, "--method", "saft", "--layer", "2", "--contamination", "0.2"]
        out = tmp_path / shape
        assert main(["filter", *words, *fit, "--output_dir", str(out)]) == 0
        words += ["--scorer", str(out / "scorer")]
        assert main(["suggest-labels", *words, "--uniform", "60", "--output_dir", str(out / "labels")]) == 0
        path = out / "labels" / "labels.jsonl"
        drawn = [json.loads(line) for line in path.read_text().splitlines()]
        written([{**row, "is_harmful": harmful[row["saft_row"]]} for row in drawn], path)
        words += ["--fresh_labels", str(path), "--alpha", "0.5", "--output_dir", str(out / "certified")]
        assert main(["certify", *words]) == 0


@pytest.mark.parametrize("streamed", [False, True])
@given(
    st.lists(
        st.fixed_dictionaries({"a": st.none() | st.text(max_size=3), "b": st.text(max_size=3)}), min_size=1, max_size=4
    )
)
def test_renaming_keeps_the_other_columns_and_the_order(streamed: bool, rows: list[dict[str, Any]]) -> None:
    dataset = Dataset.from_list([{**row, "n": number} for number, row in enumerate(rows)])
    given_rows = dataset.to_iterable_dataset() if streamed else dataset
    found = list(Layout(prompt="a,b", response="n").apply(given_rows))
    assert [row["completion"] for row in found] == list(range(len(rows)))
    assert [row["prompt"] for row in found] == ["\n\n".join(filter(None, (row["a"], row["b"]))) for row in rows]
    assert set(found[0]) == {"prompt", "completion"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Layout(prompt="question"),
            r"`prompt_column`: \['question'\] is not among the columns \['text', 'prompt'",
        ),
        (Layout(prompt="text,more"), r"`prompt_column`: \['more'\] is not"),
        (Layout(prompt="text"), "`prompt_column='text'`: the rows have a column 'prompt' too"),
        (Layout(response="answer"), r"`response_column`: \['answer'\] is not"),
        (Layout(parse_json=True), "`parse_json`: none of the columns"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_the_columns_cannot_be_is_named(columns: Layout, message: str, streamed: bool) -> None:
    rows = Dataset.from_list([{"text": "a", "prompt": "b"}])
    with pytest.raises(SAFTInputError, match=message):
        columns.apply(rows.to_iterable_dataset() if streamed else rows)
