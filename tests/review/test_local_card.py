"""What `save` leaves on this machine: a card, a picture, the removed rows on request; and nothing of it is pushed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset, load_from_disk
from huggingface_hub import DatasetCard
from review_kit import make_result

from saft_hf.cli.main import main
from saft_hf.hub import Destination, push
from saft_hf.result import RESULT
from saft_hf.summary import DatasetSource

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_a_card_says_what_the_filter_did_and_the_folder_loads_as_a_dataset(tmp_path: Path, file_format: Any) -> None:
    result = make_result()
    result.summary = replace(result.summary, source=DatasetSource(dataset="me/rows", license="cc-by-4.0"))
    result.save(tmp_path / "out", file_format=file_format)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    data = card.data.to_dict()
    assert (data["license"], data["size_categories"], data["source_datasets"]) == ("cc-by-4.0", ["n<1K"], ["me/rows"])
    text = " ".join(card.text.split())
    removed, expected = result.summary.removed, result.summary.expected
    assert (
        f"{removed} were removed as likely harmful. About {expected.lost} of them are expected to be harmless." in text
    )
    assert "| share of the harmful rows removed (recall) | 90 % |" in text
    assert "| harmful share before | 25.0% \\(10.0% to 40.0%, confidence 95%\\) |" in text
    assert f"| harmful share after | about {100 * expected.after:.1f} % |" in text
    assert "(scores.png)" in text
    assert "`audit.parquet` has a line for each row" in text
    assert (tmp_path / "out" / "scores.png").read_bytes()[:4] == b"\x89PNG"
    # Of all the files in the folder, the rows alone are taken for the dataset.
    assert load_dataset(str(tmp_path / "out"), split="train").to_list() == result.kept.to_list()


def test_a_licence_that_is_no_word_does_not_reach_the_header(tmp_path: Path) -> None:
    result = make_result()
    result.summary = replace(result.summary, source=DatasetSource(dataset="me/rows", license="x\ntags: [evil]"))
    result.save(tmp_path / "out")
    assert "license" not in DatasetCard.load(tmp_path / "out" / "README.md").data.to_dict()


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_removed_rows_are_saved_on_request_and_join_with_the_audit(tmp_path: Path, file_format: Any) -> None:
    result = make_result()
    result.save(tmp_path / "out", file_format=file_format)
    assert not (tmp_path / "out" / "removed").exists()
    result.review(tmp_path / "out" / "review.html")
    result.save(tmp_path / "out", file_format=file_format, save_removed=True)
    assert not (tmp_path / "out" / "review.html").exists()  # it was of the former result
    folder = tmp_path / "out" / "removed"
    removed = load_from_disk(str(folder)) if file_format == "arrow" else load_dataset(str(folder), split="train")
    assert removed.remove_columns(["saft_row", "saft_score", "saft_reason"]).to_list() == result.removed.to_list()
    audit = pq.read_table(tmp_path / "out" / "audit.parquet").to_pandas().set_index("row_index")
    joined = removed.select_columns(["saft_row", "saft_reason"]).to_pandas().join(audit, on="saft_row")
    assert set(joined["decision"]) == {"removed"}
    assert joined["saft_score"].tolist() == removed["saft_score"][:]
    assert (joined["saft_reason"] == joined["reason"]).all()
    assert (
        "`removed/` holds the rows that were removed, with `saft_row`" in (tmp_path / "out" / "README.md").read_text()
    )


def test_a_result_on_this_machine_is_not_pushed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_result().save(tmp_path / "out", save_removed=True)
    assert main(["push", "--folder", str(tmp_path / "out"), "--push_to_hub", "me/rows"]) == 2
    assert "may hold rows that were removed" in capsys.readouterr().err


def test_no_push_takes_a_review_along(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("README.md", "review.html", "data/review.html", "data/train-00000-of-00001.parquet"):
        (tmp_path / name).write_text("x")
    for public in (True, False):
        files = push._files(tmp_path, Destination("me/rows", "dataset"), public=public)
        assert sorted(files) == ["README.md", "data/train-00000-of-00001.parquet"]
    assert "review.html" in RESULT
