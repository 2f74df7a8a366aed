"""A cache folder: what is listed, what goes first, what never goes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from saft_hf import SAFTScorer
from saft_hf.cli.main import main
from saft_hf.distributed import World
from saft_hf.embed.cache import cached_plans, limit_from_environment, shrink
from saft_hf.embed.store import Store
from saft_hf.errors import SAFTError, SAFTInputError
from saft_hf.files import replacing

CELL = "2.response_start"
ROWS, WIDTH = 5, 4


def plan_folder(cache: Path, model: str, plan: str) -> Path:
    return cache / (model * 32) / (plan * 32)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three plans, used one, two and three days ago, and files of somebody else."""
    for days, (model, plan) in enumerate((("a", "1"), ("a", "2"), ("b", "3")), start=1):
        store = Store(plan_folder(tmp_path, model, plan), (CELL,))
        for shard in range(2):
            store.write(shard, np.full((ROWS, 16), shard, np.uint8), {CELL: np.zeros((ROWS, WIDTH), np.float32)})
        stamp = time.time() - days * 86400
        os.utime(store.folder, (stamp, stamp))
    (tmp_path / "datasets" / "mine").mkdir(parents=True)
    (tmp_path / "datasets" / "mine" / "00001.safetensors").write_bytes(b"precious")
    return tmp_path


def names(cache: Path) -> list[str]:
    return [plan.folder.name[0] for plan in cached_plans(cache)]


def test_plans_are_listed_oldest_first_and_others_files_are_not(cache: Path) -> None:
    plans = cached_plans(cache)
    assert [plan.folder.name[0] for plan in plans] == ["3", "2", "1"]
    assert plans[0].describe() == ((CELL,), 2 * ROWS)
    assert plans[0].size == sum(path.stat().st_size for path in plan_folder(cache, "b", "3").iterdir())


@pytest.mark.parametrize(("room", "left"), [(3, ["3", "2", "1"]), (2, ["2", "1"]), (1, ["1"]), (0, [])])
def test_what_was_not_used_for_longest_goes_first(cache: Path, room: int, left: list[str]) -> None:
    limit = room * cached_plans(cache)[0].size
    shrink(cache, limit)
    assert names(cache) == left
    assert (cache / "datasets" / "mine" / "00001.safetensors").exists()
    assert plan_folder(cache, "b", "3").parent.exists() == ("3" in left)


def test_a_plan_that_goes_while_they_are_listed_is_left_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, is_dir = plan_folder(cache, "b", "3"), Path.is_dir

    def removed_after(path: Path) -> bool:
        there = is_dir(path)
        if path == gone and there:
            shutil.rmtree(path)
        return there

    monkeypatch.setattr(Path, "is_dir", removed_after)
    assert gone not in [plan.folder for plan in cached_plans(cache)]


def test_the_plan_in_use_never_goes(cache: Path) -> None:
    os.utime(plan_folder(cache, "a", "2"))  # another run is at it
    shrink(cache, 0, keep=[plan_folder(cache, "b", "3")])
    assert names(cache) == ["3", "2"]


def test_a_limit_holds_while_scoring(
    cache: Path, demo_model: str, demo_pool: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFT_CACHE_GB", "0")
    scorer = SAFTScorer(demo_model, method="saft", layer=1, contamination=0.1, cache_dir=cache)
    pool = demo_pool.select(range(100))
    scores = scorer.fit(pool).score_dataset(pool)["saft_score"][:]
    [own] = cached_plans(cache)
    assert own.describe()[0] == ("1.response_start",)
    monkeypatch.delenv("SAFT_CACHE_GB")
    assert scorer.score_dataset(pool)["saft_score"][:] == scores


@pytest.mark.parametrize("text", ["ten", "-1", "nan"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SAFT_CACHE_GB", text)
    with pytest.raises(SAFTInputError, match="SAFT_CACHE_GB"):
        limit_from_environment()
    monkeypatch.setenv("SAFT_CACHE_GB", "1.5")
    assert limit_from_environment() == 1_500_000_000


def test_the_command_lists_and_removes(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--cache_dir", str(cache)]
    assert main(["cache", "ls", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["bbbbbbbb-33333333", "aaaaaaaa-22222222", "aaaaaaaa-11111111"]
    assert CELL in lines[0]
    assert lines[3].startswith("3 plans")
    assert main(["cache", "rm", "bbbb", *where]) == 0
    assert names(cache) == ["2", "1"]
    for wrong in ([], ["aaaa"], ["cccc"], ["--all", "--max_gb", "1"], ["--max_gb", "-1"]):
        assert main(["cache", "rm", *wrong, *where]) == 2
    assert names(cache) == ["2", "1"]
    assert main(["cache", "rm", "--max_gb", "0", *where]) == 0
    assert names(cache) == []
    assert (cache / "datasets" / "mine" / "00001.safetensors").exists()


def test_a_time_that_is_to_come_is_no_use(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A clock that was set back, or that of another machine: such a plan was in use for ever."""
    soon, year = plan_folder(cache, "a", "1"), plan_folder(cache, "b", "3")
    os.utime(year, (time.time() + 365 * 86400,) * 2)
    os.utime(soon, (time.time() + 60,) * 2)
    assert names(cache) == ["3", "2", "1"]
    assert main(["cache", "ls", "--cache_dir", str(cache)]) == 0
    assert "unknown" in capsys.readouterr().out.splitlines()[0]
    shrink(cache, 0)
    assert names(cache) == ["1"]  # another machine, whose clock is a minute ahead, is at it
    shrink(cache, 0, grace_s=0)
    assert names(cache) == []


def remove_all(cache: Path) -> None:
    assert main(["cache", "rm", "--all", "--cache_dir", str(cache)]) == 0


@pytest.mark.parametrize("method", ["write", "read", "has", "shards"])
def test_removed_beside_a_running_fit_ends_it_with_a_clear_error_or_not_at_all(
    demo_model: str, demo_pool: Dataset, tmp_path: Path, method: str
) -> None:
    pool, cache = demo_pool.select(range(90)), tmp_path / "cache"

    def fit(where: Path) -> list[float]:
        scorer = SAFTScorer(demo_model, method="saft", layer=1, contamination=0.1, cache_dir=where)
        return scorer.fit(pool).score_dataset(pool)["saft_score"][:]

    known, calls, original = fit(tmp_path / "alone"), {"n": 0}, getattr(Store, method)

    def removed_meanwhile(store: Store, *args: Any, **kwargs: Any) -> Any:
        calls["n"] -= 1
        if calls["n"] == 0:
            remove_all(cache)
        return original(store, *args, **kwargs)

    outcomes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, method, removed_meanwhile)
        for at in (1, 2, 3, 5):
            calls["n"] = at
            try:
                outcomes.append(fit(cache) == known)
            except SAFTError as error:
                outcomes.append("was removed while it was in use (by `saft-hf cache rm`?). Start again" in str(error))
            assert not list(cache.rglob(".*"))
            if calls["n"] > 0:
                break
            remove_all(cache)
    assert all(outcomes)
    assert len(outcomes) > 2
    assert fit(cache) == known


def test_removed_while_a_shard_is_being_written(cache: Path) -> None:
    store = Store(plan_folder(cache, "a", "1"), (CELL,))
    with store.run(World()), replacing(store.path(7)) as [file]:
        remove_all(cache)
        file.write(b"whole")
    assert [path.name for path in store.folder.iterdir()] == ["00007.safetensors"]


def test_removed_between_two_calls(demo_model: str, demo_pool: Dataset, tmp_path: Path) -> None:
    pool = demo_pool.select(range(60))
    scorer = SAFTScorer(demo_model, method="saft", layer=1, contamination=0.1, cache_dir=tmp_path).fit(pool)
    scores = np.array(scorer.score_dataset(pool)["saft_score"][:])
    one_by_one = scorer(pool[:5])["saft_score"]
    remove_all(tmp_path)
    assert np.allclose(one_by_one, scores[:5])
    assert np.allclose(scorer(pool[:20])["saft_score"], scores[:20], atol=1e-5)
    again = SAFTScorer(demo_model, method="saft", layer=1, contamination=0.1, cache_dir=tmp_path).fit(pool)
    remove_all(tmp_path)
    assert np.allclose(again(pool[:20])["saft_score"], scores[:20], atol=1e-5)
    assert np.array_equal(scorer.filter(pool).scores, scores)


def test_a_plan_says_whose_vectors_it_holds(
    demo_model: str, demo_pool: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_pool.select(range(90)).to_json(tmp_path / "my rows.jsonl")
    cache = ["--cache_dir", str(tmp_path / "cache")]
    words = ["--model_name_or_path", demo_model, "--dataset_name", str(tmp_path / "my rows.jsonl"), *cache]
    assert main(["score", *words, "--output_dir", str(tmp_path / "out"), "--on_undecided", "keep"]) == 0
    capsys.readouterr()
    assert main(["cache", "ls", *cache]) == 0
    lines = capsys.readouterr().out.splitlines()
    pool, reference = ("my rows.jsonl", "reference rows")
    assert {name for name in (pool, reference) if any(name in line for line in lines)} == {pool, reference}
    (line,) = [line for line in lines if pool in line]
    assert demo_model[-10:] in line
    assert " 90 rows " in line
    assert " now " in line
    assert main(["cache", "rm", "--all", *cache]) == 0
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
