"""Filtering: nothing vanishes, the audit says why, and an accident leaves no half of anything."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk
from datasets.arrow_writer import ArrowWriter
from datasets.io.parquet import ParquetDatasetWriter
from scorer_kit import Forwards

from saft_hf import FilterResult, SAFTScorer
from saft_hf.decide.audit import row_digest
from saft_hf.embed.store import Store
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.hub import model_section


@pytest.fixture(scope="module")
def mixed(demo_pool: Dataset) -> Dataset:
    """200 rows, every 20th without a response."""

    def spoil(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"messages": row["messages"][:1]} if index % 20 == 3 else {}

    return demo_pool.select(range(200)).map(spoil, with_indices=True)


@pytest.fixture(scope="module")
def result(scorer: SAFTScorer, mixed: Dataset) -> FilterResult:
    return scorer.filter(mixed)


@pytest.mark.smoke
def test_kept_removed_and_errored_are_the_input(result: FilterResult, mixed: Dataset, scorer: SAFTScorer) -> None:
    parts = (result.kept_indices, result.removed_indices, result.errored_indices)
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    assert result.errored_indices.tolist() == list(range(3, 200, 20))
    assert all(np.all(np.diff(part) > 0) for part in parts)
    for indices, rows in zip(parts, (result.kept, result.removed, result.errored), strict=True):
        assert rows.to_list() == mixed.select(indices).to_list()
        assert rows.features == mixed.features
    flag = result.scores.astype(np.float64) > scorer.threshold_
    assert result.removed_indices.tolist() == np.flatnonzero(flag).tolist() != []
    assert result.summary.rows == 200
    assert [getattr(result.summary, word) for word in ("kept", "removed", "errored")] == [len(part) for part in parts]
    assert result.summary.reasons["errored"] == {"no_response": 10}
    assert repr(result) == f"FilterResult(rows=200, kept={len(parts[0])}, removed={len(parts[1])}, errored=10)"


def test_on_error(scorer: SAFTScorer, mixed: Dataset, result: FilterResult) -> None:
    keep = scorer.filter(mixed, on_error="keep")
    assert keep.decisions.words() == result.decisions.words()
    both = np.sort(np.concatenate([result.kept_indices, result.errored_indices]))
    assert keep.train_rows().to_list() == mixed.select(both).to_list()
    assert result.train_rows().to_list() == result.kept.to_list()
    with pytest.raises(SAFTInputError, match=r"10 of 200 rows could not be scored.*no_response"):
        scorer.filter(mixed, on_error="raise")
    with pytest.raises(SAFTInputError, match="on_error must be"):
        scorer.filter(mixed, on_error="ignore")  # type: ignore[arg-type]


def test_the_order_and_the_company_of_rows_do_not_matter(
    scorer: SAFTScorer, mixed: Dataset, result: FilterResult
) -> None:
    order = np.random.default_rng(1).permutation(200)
    moved = scorer.filter(concatenate_datasets([mixed.select(order), mixed.select([0, 0])]))
    words = np.asarray(result.decisions.words())
    assert moved.decisions.words() == [*words[order], words[0], words[0]]


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
def test_what_is_saved_comes_back(
    result: FilterResult, mixed: Dataset, tmp_path: Path, file_format: Any, scorer: SAFTScorer
) -> None:
    folder = result.save(tmp_path / "a" / "b", file_format=file_format)
    written = {path.name for path in folder.iterdir()} - {"scores.png"}  # where matplotlib is installed
    assert written == {"README.md", "audit.parquet", "kept", "saft_summary.json"}
    if file_format == "arrow":
        kept = load_from_disk(str(folder / "kept"))
    else:  # as `trl sft` loads it
        kept = load_dataset(str(folder / "kept"), split="train", cache_dir=str(tmp_path / "cache"))
    assert kept.to_list() == result.kept.to_list()
    assert kept.column_names == mixed.column_names
    assert json.loads((folder / "saft_summary.json").read_text()) == result.summary.to_dict()

    audit = pq.read_table(folder / "audit.parquet").to_pylist()
    assert [row["row_index"] for row in audit] == list(range(200))
    assert [row["sha256"] for row in audit] == [row_digest(row) for row in mixed]
    assert [row["decision"] for row in audit] == result.decisions.words()
    for row, score, status in zip(audit, result.scores.tolist(), result.statuses, strict=True):
        assert row["saft_status"] == status
        assert (row["saft_score"] is None) == (status != "ok")
        assert row["reason"] == ("score" if status == "ok" else status)
        assert row["saft_score"] is None or row["saft_score"] == score
    text = mixed[0]["messages"][-1]["content"]
    assert text.encode() not in (folder / "audit.parquet").read_bytes()


def test_the_digest_of_a_row_does_not_see_the_columns_that_scoring_adds(
    scorer: SAFTScorer, mixed: Dataset, result: FilterResult, tmp_path: Path
) -> None:
    scored = scorer.score_dataset(mixed)
    first = result.save(tmp_path / "a") / "audit.parquet"
    second = scorer.filter(scored).save(tmp_path / "b") / "audit.parquet"
    assert pq.read_table(second).equals(pq.read_table(first))


def test_an_unknown_format_is_refused_before_anything_is_written(result: FilterResult, tmp_path: Path) -> None:
    with pytest.raises(SAFTInputError, match="`file_format` must be 'arrow' or 'parquet', not 'csv'"):
        result.save(tmp_path / "out", file_format="csv")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_would_be_kept_every_row_is_and_the_summary_says_so(
    demo_model: str, demo_pool: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    pool = demo_pool.select(range(60))
    options = {"layer": 2, "k": 1, "contamination": 0.25, "cache_dir": store_dir}
    scorer = SAFTScorer(demo_model, method="saft", **options).fit(pool)
    worst = scorer.filter(pool).removed
    assert len(worst) == 15
    with pytest.raises(SAFTUndecidedError, match="nothing is kept"):
        scorer.filter(worst)
    scorer.filter(worst, on_undecided="keep").save(tmp_path, file_format="parquet")
    summary = json.loads((tmp_path / "saft_summary.json").read_text())
    assert (summary["filtered"], summary["removed"], summary["kept"]) == (False, 0, 15)
    assert "would keep none of 15 rows" in summary["undecided"]
    assert pq.read_table(tmp_path / "kept").num_rows == 15


def test_a_given_threshold_that_labels_speak_against_decides_nothing(
    demo_model: str, demo_pool: Dataset, demo_labelled: Dataset, store_dir: Path
) -> None:
    scorer = SAFTScorer(demo_model, method="saft", layer=2, k=1, threshold=1e9, cache_dir=store_dir)
    with pytest.raises(SAFTUndecidedError, match="removes no row, although"):
        scorer.fit(demo_pool, demo_labelled)
    assert scorer.threshold_ is None
    assert len(scorer.filter(demo_pool, on_undecided="keep").kept) == len(demo_pool)


def test_people_decide_the_rows_that_they_labelled_where_that_is_switched_on(
    scorer: SAFTScorer, demo_pool: Dataset
) -> None:
    plain = scorer.filter(demo_pool)
    # Against the score: the first removed row is called safe, the first kept one harmful; the others have no label.
    safe, harmful = int(plain.removed_indices[0]), int(plain.kept_indices[0])
    verdicts = [{safe: False, harmful: True}.get(row) for row in range(len(demo_pool))]
    asked = scorer.filter(demo_pool.add_column("unsafe", verdicts), label_column="unsafe")
    assert set(asked.kept_indices) == {*plain.kept_indices, safe} - {harmful}
    assert set(asked.removed_indices) == {*plain.removed_indices, harmful} - {safe}
    assert [asked.decisions.reasons[row] for row in (safe, harmful)] == ["label", "label"]


def test_labels_that_decide_alone_are_no_filter_that_did_nothing(
    demo_model: str, demo_pool: Dataset, store_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verdicts = [{3: True, 5: True, 8: False}.get(row) for row in range(60)]
    rows = demo_pool.select(range(60)).add_column("unsafe", verdicts)
    rows = concatenate_datasets([rows, rows.select([0]).map(lambda row: {"messages": row["messages"][:1]})])
    scorer = SAFTScorer(demo_model, method="saft", layer=2, k=1, cache_dir=store_dir).fit(rows)
    plain = scorer.filter(rows, on_undecided="keep")
    assert (plain.summary.filtered, plain.summary.threshold_from) == (False, "none")
    assert (plain.summary.warnings, len(plain.train_rows())) == ((), 61)
    result = scorer.filter(rows, label_column="unsafe", on_undecided="keep")
    summary = result.summary
    assert (summary.removed, summary.filtered, summary.threshold, summary.threshold_from) == (2, True, None, "labels")
    assert (summary.errored, len(result.train_rows())) == (1, 58)
    assert [text for text in caplog.messages if "Labels alone decide" in text] == list(summary.warnings) != []
    section = model_section(summary)
    assert "not filtered" not in section
    assert "| removed: a person labelled them harmful | 2 |" in section
    assert "people's labels alone decided" in section


def test_labels_decide_where_the_threshold_would_keep_nothing(
    demo_model: str, demo_pool: Dataset, demo_labelled: Dataset, store_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = SAFTScorer(demo_model, layer=2, method="directed", cache_dir=store_dir).fit(demo_pool, demo_labelled)
    worst = demo_labelled.filter(lambda row: not row["is_safe"])
    result = scorer.filter(worst, on_undecided="keep")
    assert (len(result.kept), result.summary.filtered, result.summary.threshold_from) == (0, True, "labels")
    assert not [text for text in caplog.messages if "Every row is kept" in text]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class FullDisk:
    """Lets some bytes through, then fails as a full disk does."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Every file that saft_hf or datasets writes from now on meets a full disk after `room` bytes."""
    open_file, write_table = Path.open, ArrowWriter.write_table

    def open_full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = open_file(path, mode, *args, **kwargs)
        return FullDisk(file, room) if set(mode) & set("wxa") else file

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_some(writer: ArrowWriter, table: Any, *args: Any, **kwargs: Any) -> None:
        write_table(writer, table, *args, **kwargs)
        refuse()

    monkeypatch.setattr(Path, "open", open_full)
    monkeypatch.setattr(ArrowWriter, "write_table", write_some)
    monkeypatch.setattr(ParquetDatasetWriter, "_write", refuse)


@pytest.mark.parametrize("file_format", ["arrow", "parquet"])
@pytest.mark.parametrize("room", [0, 100, 10**9])
def test_a_full_disk_leaves_the_old_files_whole(
    scorer: SAFTScorer, demo_pool: Dataset, result: FilterResult, tmp_path: Path, file_format: Any, room: int
) -> None:
    out = tmp_path / "out"
    scorer.filter(demo_pool.select(range(50, 90))).save(out, file_format=file_format)
    before = contents(out)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, room)
        with pytest.raises(OSError, match="No space left on device"):
            result.save(out, file_format=file_format)
    assert contents(out) == before
    result.save(out, file_format=file_format)
    assert not [name for name in contents(out) if ".tmp" in name or ".old" in name]


def test_a_full_disk_leaves_a_saved_scorer_whole(
    scorer: SAFTScorer, demo_model: str, demo_pool: Dataset, store_dir: Path, tmp_path: Path
) -> None:
    other = SAFTScorer(demo_model, method="saft", layer=2, k=1, cache_dir=store_dir).fit(demo_pool)
    other.save_pretrained(tmp_path)
    before = contents(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, 500)
        with pytest.raises(OSError, match="No space left on device"):
            scorer.save_pretrained(tmp_path)
    assert contents(tmp_path) == before
    assert SAFTScorer.from_pretrained(tmp_path).k_ == 1


def test_a_full_disk_while_embedding_can_be_made_up_for(
    demo_model: str, demo_pool: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = demo_pool.select(range(120))
    write, calls = Store.write, []

    def fails_third(store: Store, *args: Any) -> None:
        calls.append(1)
        with pytest.MonkeyPatch.context() as patch:
            if len(calls) == 3:
                fill_disk(patch, 200)
            write(store, *args)

    monkeypatch.setattr(Store, "write", fails_third)
    scorer = SAFTScorer(demo_model, method="saft", layer=2, k=1, cache_dir=tmp_path / "s")
    with pytest.raises(OSError, match="No space left on device"):
        scorer.fit(pool)
    assert len([path for path in (tmp_path / "s").rglob("*") if path.is_file()]) == 2
    whole = SAFTScorer(demo_model, method="saft", layer=2, k=1, cache_dir=tmp_path / "t").fit(pool)
    assert scorer.fit(pool)(pool[:])["saft_score"].tolist() == whole(pool[:])["saft_score"].tolist()


def test_no_write_permission_is_told_with_the_path(
    scorer: SAFTScorer, result: FilterResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = Path.open

    def refuse(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wxa"):  # root may write anywhere, so no real folder would do
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    for save in (result.save, scorer.save_pretrained):
        with pytest.raises(PermissionError, match=str(tmp_path)):
            save(tmp_path / "out")
    assert contents(tmp_path) == {}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads read batches side by side, so that which one is interrupted is not known."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_ctrl_c_while_fitting_keeps_what_was_done_and_goes_on_from_there(
    demo_model: str, demo_pool: Dataset, tmp_path: Path, one_thread: None
) -> None:
    pool, store = demo_pool.select(range(300)), tmp_path / "store"

    def new() -> SAFTScorer:
        return SAFTScorer(demo_model, method="saft", layer=2, k=2, cache_dir=store)

    with pytest.MonkeyPatch.context() as patch:
        stopped = Forwards(patch, fail_at=3, error=KeyboardInterrupt)
        scorer = new()
        with pytest.raises(KeyboardInterrupt):
            scorer.fit(pool)
        assert stopped.count == 3
        with pytest.raises(SAFTInputError, match="not fitted"):
            scorer.score_dataset(pool)
    names = [path.name for path in store.rglob("*") if path.is_file()]
    assert 0 < len(names) <= 2
    assert not [name for name in names if not name.endswith(".safetensors")]
    with pytest.MonkeyPatch.context() as patch:
        rest = Forwards(patch)
        scores = scorer.fit(pool).score_dataset(pool)["saft_score"][:]
    with pytest.MonkeyPatch.context() as patch:
        all_of_it = Forwards(patch)
        whole = SAFTScorer(demo_model, method="saft", layer=2, k=2, cache_dir=tmp_path / "other").fit(pool)
        assert rest.count < all_of_it.count <= rest.count + 2
    assert whole.score_dataset(pool)["saft_score"][:] == scores


def test_the_provenance_is_enough_for_a_sign_off(result: FilterResult, mixed: Dataset, tmp_path: Path) -> None:
    folder = result.save(tmp_path, file_format="parquet")
    known = json.loads((folder / "saft_summary.json").read_text())["provenance"]
    digests = [row_digest(row) for row in mixed]
    kept = [digests[row] for row in result.decisions.train_rows()]
    assert known["input_rows"] == len(mixed)
    assert known["input_sha256"] == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert known["kept_sha256"] == hashlib.sha256("".join(kept).encode()).hexdigest()
    assert known["audit_sha256"] == hashlib.sha256((folder / "audit.parquet").read_bytes()).hexdigest()
    assert known["model_fingerprint"] == result.summary.model_fingerprint
    assert known["options"]["layer"] == 2
    assert set(known["versions"]) == {"saft_hf", "torch", "transformers", "trl", "datasets"}
    assert datetime.fromisoformat(known["created"]).utcoffset() == timedelta(0)
    inside = json.loads(pq.read_schema(folder / "audit.parquet").metadata[b"saft_hf"])
    assert {**inside, "audit_sha256": known["audit_sha256"]} == known


def test_the_provenance_tells_all_that_the_call_was_told(scorer: SAFTScorer, mixed: Dataset) -> None:
    assert scorer.filter(mixed).summary.provenance.options.keys() & {"label_column", "on_undecided"} == set()
    told = {"label_column": "is_safe", "harmful_value": "false", "on_undecided": "keep", "threshold": 1.5}
    known = scorer.filter(mixed, **told).summary.provenance.options
    assert {name: known[name] for name in told} == told


def test_a_threshold_of_the_call_decides_in_place_of_the_fitted_one(scorer: SAFTScorer, demo_pool: Dataset) -> None:
    plain = scorer.filter(demo_pool)
    cut = float(np.median(plain.scores))
    other = scorer.filter(demo_pool, threshold=cut)
    assert np.array_equal(other.removed_indices, np.flatnonzero(plain.scores > cut))
    assert (other.summary.threshold, other.summary.threshold_from) == (cut, "given")
    assert (scorer.threshold_, plain.summary.threshold) == (plain.summary.threshold, scorer.threshold_)
