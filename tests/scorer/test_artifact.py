"""A saved scorer comes back as it was, and nothing else comes in."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scorer_kit import save_artifact

from saft_hf.errors import SAFTArtifactError, SAFTInputError
from saft_hf.scorer.artifact import CONFIG_FILE, TENSORS_FILE, load_artifact

CONFIG = {"model": "a/b", "layer": 4, "threshold": 0.1, "nested": {"ks": [1, 2], "none": None, "é": True}}


def tensors(d: int = 5, k: int = 2, prefix: str = "") -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(d)
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return {
        f"{prefix}mean": rng.standard_normal(d),
        f"{prefix}directions": np.ascontiguousarray(basis[:k]),
        f"{prefix}energies": np.arange(k, 0, -1.0),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "scorer"
    save_artifact(target, CONFIG, tensors())
    return target


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.smoke
def test_what_is_saved_comes_back(folder: Path) -> None:
    config, found = load_artifact(folder)
    assert config == CONFIG
    assert found.keys() == tensors().keys()
    for name, array in tensors().items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert found[name].flags.writeable
        assert found[name].flags.aligned
    assert sorted(contents(folder)) == [CONFIG_FILE, TENSORS_FILE]


numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False))
names = st.text("aé. /\\\ud800", max_size=4)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, names),
    lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(names, v, max_size=3)),
    max_leaves=5,
)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(names, json_values, max_size=3))
def test_any_json_comes_back(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("json")
    save_artifact(folder, config, {"scalar": np.float64(2.5), "empty": np.empty((0, 3), np.int64)})
    found, arrays = load_artifact(folder)
    assert found == config
    assert arrays["scalar"].shape == ()
    assert arrays["empty"].shape == (0, 3)


def test_the_same_scorer_gives_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    other = dict(reversed(tensors().items()))
    other["directions"] = np.asfortranarray(other["directions"])
    save_artifact(tmp_path / "again", dict(reversed(CONFIG.items())), other)
    assert contents(tmp_path / "again") == contents(folder)
    save_artifact(folder, CONFIG, tensors())
    assert contents(tmp_path / "again") == contents(folder)


def test_groups_of_other_sizes_stand_side_by_side(tmp_path: Path) -> None:
    both = tensors(5, 2, "layer_4.") | tensors(7, 3, "layer_8.")
    save_artifact(tmp_path, {}, both)
    assert load_artifact(tmp_path)[1].keys() == both.keys()


def test_links_of_the_hub_cache_are_followed(tmp_path: Path, folder: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b/snapshots/abc", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG_FILE, TENSORS_FILE):
        (folder / name).rename(blobs / f"digest of {name}")
        (snapshot / name).symlink_to(f"../../blobs/digest of {name}")
    assert load_artifact(snapshot)[0] == CONFIG
    # The same links from a folder that is not the cache's own.
    with pytest.raises(SAFTArtifactError, match="outside the folder"):
        load_artifact(_linked(tmp_path / "elsewhere", blobs))


def _linked(folder: Path, blobs: Path) -> Path:
    folder.mkdir()
    for name in (CONFIG_FILE, TENSORS_FILE):
        (folder / name).symlink_to(blobs / f"digest of {name}")
    return folder


# -- saving


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_full_disk_leaves_the_old_scorer_whole(folder: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    before, calls = contents(folder), 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("saft_hf.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device, while writing") as caught:
        save_artifact(folder, {"other": 1}, tensors(9))
    assert caught.value.errno == errno.ENOSPC
    assert contents(folder) == before
    assert load_artifact(folder)[0] == CONFIG


def test_no_permission_surfaces_as_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        for work in (lambda: save_artifact(folder, {}, tensors()), lambda: load_artifact(folder)):
            with pytest.raises(PermissionError, match="Permission denied"):
                work()
    assert load_artifact(folder)[0] == CONFIG


@pytest.mark.parametrize(
    "config",
    [{"a": (1, 2)}, {1: "a"}, {"a": {2: 3}}, {"a": float("nan")}, {"a": np.float32(1)}, {"a": {1, 2}}, {"a": object()}],
)
def test_what_is_no_json_is_not_saved(folder: Path, config: dict[Any, Any]) -> None:
    with pytest.raises(SAFTInputError, match="must be plain JSON"):
        save_artifact(folder, config, tensors())
    assert load_artifact(folder)[0] == CONFIG


def test_what_could_not_be_loaded_is_not_saved(folder: Path) -> None:
    for bad in (
        {"mean": np.full(5, np.nan)},
        {"directions": tensors()["directions"] * 2},
        {"x": np.ones(1, np.float16)},
        {"a b": np.ones(1)},
    ):
        with pytest.raises(SAFTArtifactError):
            save_artifact(folder, CONFIG, tensors() | bad)
    big = {"x": np.ones(2).astype(">f8")}
    with pytest.raises(SAFTArtifactError, match="'x': dtype >f8"):
        save_artifact(folder, CONFIG, big)
    with pytest.raises(SAFTInputError, match="too large"):
        save_artifact(folder, {"x": "a" * (5 << 20)}, tensors())
    assert load_artifact(folder)[0] == CONFIG
