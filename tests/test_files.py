"""Killed at any moment: a folder holds what was there or what is new, whole, and the next run leaves nothing hidden."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, disable_progress_bars, enable_progress_bars, load_from_disk

from saft_hf import FilterResult
from saft_hf.decide import decide, row_digest
from saft_hf.errors import SAFTInputError
from saft_hf.files import replacing, replacing_folder
from saft_hf.summary import Provenance, Summary

WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.utime", "ctypes.dlsym")


def filtered(threshold: float) -> FilterResult:
    rows = Dataset.from_dict({"text": [f"row {number}" for number in range(40)]})
    scores = np.arange(40, dtype=np.float32)
    statuses = ["ok"] * 40
    decisions = decide(scores, statuses, threshold)
    return FilterResult(rows, scores, statuses, decisions, Summary(provenance=Provenance(created="now")))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def kept_rows(folder: Path) -> list[str]:
    """The kept rows, which stand there in one format."""
    if (folder / "kept" / "state.json").exists():
        assert not list((folder / "kept").glob("*.parquet"))
        return list(load_from_disk(str(folder / "kept"))["text"])
    assert [path.name for path in (folder / "kept").iterdir()] == ["train.parquet"]
    return pq.read_table(folder / "kept")["text"].to_pylist()


def whole(folder: Path) -> int:
    """How many rows the result in a folder keeps, after a check of everything by the digests in the summary."""
    summary = json.loads((folder / "saft_summary.json").read_text())
    known, rows = summary["provenance"], kept_rows(folder)
    assert known["audit_sha256"] == digest((folder / "audit.parquet").read_bytes())
    assert known["kept_sha256"] == digest("".join(row_digest({"text": text}) for text in rows).encode())
    assert len(rows) == summary["kept"]
    assert (folder / "notes.txt").read_text() == "mine"
    return len(rows)


def killed(work: Callable[[], Any], at: int) -> bool:
    """Do it in a child process that is killed at the n-th change of the file system; False where it ended before."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            if event in WRITES or (
                event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            ):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(hook)
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.mark.smoke
@pytest.mark.parametrize(("old_format", "new_format"), [("arrow", "parquet"), ("parquet", "arrow"), ("arrow", "arrow")])
def test_a_killed_save_leaves_the_old_result_or_the_new_one(tmp_path: Path, old_format: Any, new_format: Any) -> None:
    out, old, new = tmp_path / "out", filtered(9.0), filtered(29.0)
    old.save(out, file_format=old_format)
    (out / "notes.txt").write_text("mine")
    (out / "mine").mkdir()
    (out / "mine" / "more.txt").write_text("mine")
    found, at = [], 1
    while killed(lambda: new.save(out, file_format=new_format), at):
        found.append(whole(out))
        at += 1
        if found[-1] == 30:
            old.save(out, file_format=old_format)  # takes away what the killed one left
            assert [path.name for path in tmp_path.iterdir()] == ["out"]
            assert (out / "mine" / "more.txt").read_text() == "mine"
            assert whole(out) == 10
    assert found[0] == 10
    assert found[-1] == 30
    assert len(found) > 10
    assert whole(out) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = {"audit.parquet", "kept", "saft_summary.json", "README.md", "notes.txt", "mine"}
    assert {path.name for path in out.iterdir()} - {"scores.png"} == names  # which takes matplotlib


def test_a_folder_that_cannot_be_exchanged_is_never_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory: where there is a summary, everything is what it says."""
    out, old, new = tmp_path / "out", filtered(9.0), filtered(29.0)
    old.save(out)
    (out / "notes.txt").write_text("mine")
    monkeypatch.chdir(out)
    found, at = [], 1
    while killed(lambda: new.save("."), at):
        found.append(whole(out) if (out / "saft_summary.json").exists() else 0)
        old.save(out, overwrite=True)
        assert whole(out) == 10
        assert not list(out.glob(".*"))
        at += 1
    assert set(found) == {10, 0, 30} or set(found) == {10, 0}
    assert whole(out) == 30
    assert Path.cwd() == out.resolve()


def test_an_error_at_any_step_leaves_the_old_result_and_nothing_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, new = tmp_path / "out", filtered(29.0)
    filtered(9.0).save(out)
    (out / "notes.txt").write_text("mine")
    steps = {"n": 0}
    fsync = os.fsync

    def fails(descriptor: int) -> None:
        steps["n"] -= 1
        if steps["n"] == 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    for at in range(1, 100):
        steps["n"] = at
        try:
            new.save(out)
        except OSError:
            assert whole(out) == 10
            assert [path.name for path in tmp_path.iterdir()] == ["out"]
        else:
            break
    assert at > 4
    assert whole(out) == 30


@pytest.mark.parametrize("there", ["kept/thesis.txt", "thesis.txt", "scorer/thesis.txt"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, there: str) -> None:
    file = tmp_path / "out" / there
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    with pytest.raises(SAFTInputError, match=r"holds files that are no result.*`overwrite=True`"):
        filtered(9.0).save(tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [file]
    filtered(9.0).save(tmp_path / "out", overwrite=True)
    assert file.exists() == ("kept" not in there)


def test_a_folder_in_a_former_result_is_left_alone_too(tmp_path: Path) -> None:
    filtered(9.0).save(tmp_path)
    (tmp_path / "kept" / "thesis.txt").write_text("years of work")
    with pytest.raises(SAFTInputError, match=r"kept/thesis\.txt"):
        filtered(29.0).save(tmp_path)
    assert len(pq.read_table(tmp_path / "kept" / "train.parquet")) == 10


def test_a_cache_of_map_beside_the_rows_does_not_make_them_anothers(tmp_path: Path) -> None:
    filtered(9.0).save(tmp_path, file_format="arrow")
    load_from_disk(str(tmp_path / "kept")).map(lambda row: {"length": len(row["text"])})
    assert list((tmp_path / "kept").glob("cache-*.arrow"))
    filtered(29.0).save(tmp_path, file_format="arrow")
    assert len(load_from_disk(str(tmp_path / "kept"))) == 30


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    for threshold, rows in ((9.0, 10), (29.0, 30)):
        filtered(threshold).save(tmp_path / "out")
        assert (tmp_path / "out").is_symlink()
        assert len(pq.read_table(tmp_path / "real" / "kept")) == rows


def test_a_file_is_not_exchanged_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(NotADirectoryError):
        filtered(9.0).save(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "years of work"


def test_several_processes_may_save_to_one_folder(tmp_path: Path) -> None:
    out, result = tmp_path / "out", filtered(9.0)
    (tmp_path / "out").mkdir()
    (out / "notes.txt").write_text("mine")
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            try:
                for _ in range(5):
                    result.save(out, overwrite=True)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert whole(out) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_another_is_writing_is_left_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as [first]:
        first.write(b"first")
        with replacing(tmp_path / "file") as [second]:
            second.write(b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    (tmp_path / ".file.0123abcd.tmp").write_bytes(b"of a killed one")
    with replacing(tmp_path / "file") as [third]:
        third.write(b"third")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_there_are_no_locks_it_works_and_deletes_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".file.0123abcd.tmp").write_bytes(b"of anybody")
    with replacing(tmp_path / "file") as [file]:
        file.write(b"whole")
    with replacing_folder(tmp_path / "folder") as folder:
        (folder / "file").write_bytes(b"whole")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".file.0123abcd.tmp", "file", "file", "folder"]


def test_killed_in_a_folder_within_a_folder_leaves_nothing_hidden_after_the_next(tmp_path: Path) -> None:
    """As where a scorer is saved into the folder of a result."""
    out = tmp_path / "out"

    def save(text: str) -> None:
        with replacing_folder(out, ("a", "scorer")) as draft:
            (draft / "a").write_text(text)
            with replacing_folder(draft / "scorer", ("x",)) as inner, replacing(inner / "x") as [file]:
                file.write(text.encode())

    def found() -> dict[str, str]:
        return {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}

    save("old")
    (out / "mine").mkdir()
    (out / "mine" / "x").write_text("mine")
    at = 1
    while killed(lambda: save("new"), at):
        save("old")
        assert found() == {"out/a": "old", "out/scorer/x": "old", "out/mine/x": "mine"}
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        at += 1
    assert at > 8
    assert found() == {"out/a": "new", "out/scorer/x": "new", "out/mine/x": "mine"}
