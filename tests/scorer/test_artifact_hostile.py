"""A living list of hostile scorers: each is refused, and the error names the file and the field."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save
from scorer_kit import save_artifact

from saft_hf.errors import SAFTArtifactError
from saft_hf.scorer.artifact import CONFIG_FILE, TENSORS_FILE, digest_of, load_artifact


def tensors(d: int = 5) -> dict[str, NDArray[Any]]:
    return {"mean": np.arange(d, dtype=np.float64), "directions": np.eye(2, d), "energies": np.array([2.0, 1.0])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "scorer"
    save_artifact(target, {"k": 2}, tensors())
    return target


def resign(folder: Path, payload: bytes, **fields: Any) -> None:
    """Put a payload in place with a config.json that vouches for it."""
    config = json.loads((folder / CONFIG_FILE).read_text())
    config |= {"bytes": len(payload)} | fields
    config["sha256"] = digest_of(config, payload)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    (folder / TENSORS_FILE).write_bytes(payload)


def hostile(**changed: NDArray[Any] | None) -> Callable[[Path], None]:
    """Tensors other than fitted ones, with digest and table that agree."""

    def spoil(folder: Path) -> None:
        arrays = {name: array for name, array in (tensors() | changed).items() if array is not None}
        table = {name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in arrays.items()}
        resign(folder, save(arrays), tensors=table)

    return spoil


def raw(payload: bytes) -> Callable[[Path], None]:
    return lambda folder: resign(folder, payload)


def header(text: str, data: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text.encode() + data


def config_text(text: str | bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / CONFIG_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())

    return spoil


def field(**changed: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG_FILE).read_text()) | changed
        (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in config.items() if v != "DROP"}))

    return spoil


def field_text(old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / CONFIG_FILE
        path.write_text(path.read_text().replace(old, new))

    return spoil


def edit(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / TENSORS_FILE
        path.write_bytes(change(path.read_bytes()))

    return spoil


def link(name: str, target: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder.parent / "secret").write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def fifo(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def one_less(folder: Path) -> None:
    hostile(extra=np.ones(1))(folder)
    resign(folder, save(tensors()))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("trap sprung",))


DIRECTIONS, MEAN = tensors()["directions"], tensors()["mean"]
with_nan, with_inf = MEAN.copy(), DIRECTIONS.copy()
with_nan[0], with_inf[0, 0] = np.nan, np.inf

HOSTILE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    # what was done, the file that must be named, the field that must be named
    "no config": (remove(CONFIG_FILE), CONFIG_FILE, "file"),
    "no tensors": (remove(TENSORS_FILE), TENSORS_FILE, "file"),
    "truncated": (edit(lambda raw: raw[:-8]), TENSORS_FILE, "size"),
    "emptied": (edit(lambda raw: b""), TENSORS_FILE, "size"),
    "longer": (edit(lambda raw: raw + b"x"), TENSORS_FILE, "size"),
    "one bit": (edit(lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])), TENSORS_FILE, "sha256"),
    "header of 1e12 bytes": (raw(header("{}", size=10**12)), TENSORS_FILE, "header"),
    "header of 2^64-1 bytes": (raw(header("{}", size=2**64 - 1)), TENSORS_FILE, "header"),
    "header is no json": (raw(header("{" * 99)), TENSORS_FILE, "header"),
    "data beyond the file": (
        raw(header('{"mean":{"dtype":"F64","shape":[9],"data_offsets":[0,72]}}', b"12345678")),
        TENSORS_FILE,
        "header",
    ),
    "shape and data disagree": (
        raw(header('{"mean":{"dtype":"F64","shape":[1000000000000],"data_offsets":[0,8]}}', b"12345678")),
        TENSORS_FILE,
        "header",
    ),
    "overlapping tensors": (
        raw(
            header(
                '{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},'
                '"b":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
                b"12345678",
            )
        ),
        TENSORS_FILE,
        "header",
    ),
    "bfloat16": (
        raw(header('{"mean":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}', b"12")),
        TENSORS_FILE,
        "header",
    ),
    "a few bytes": (raw(b"abc"), TENSORS_FILE, "header"),
    "a pickle": (raw(pickle.dumps(Trap())), TENSORS_FILE, "header"),
    "float16": (hostile(extra=np.zeros(2, np.float16)), TENSORS_FILE, "extra"),
    "float32 directions": (hostile(directions=np.eye(2, 5, dtype=np.float32)), TENSORS_FILE, "directions"),
    "boolean": (hostile(extra=np.zeros(2, bool)), TENSORS_FILE, "extra"),
    "NaN": (hostile(mean=with_nan), TENSORS_FILE, "mean"),
    "infinity": (hostile(directions=with_inf), TENSORS_FILE, "directions"),
    "scaled directions": (hostile(directions=DIRECTIONS * 1.001), TENSORS_FILE, "directions"),
    "huge directions": (hostile(directions=DIRECTIONS * 1e300), TENSORS_FILE, "directions"),
    "twice the same direction": (hostile(directions=DIRECTIONS[[0, 0]]), TENSORS_FILE, "directions"),
    "flat directions": (hostile(directions=DIRECTIONS[0]), TENSORS_FILE, "directions"),
    "no direction": (hostile(directions=np.empty((0, 5))), TENSORS_FILE, "directions"),
    "more directions than dimensions": (hostile(directions=np.ones((6, 5))), TENSORS_FILE, "directions"),
    "negative energy": (hostile(energies=np.array([1.0, -1.0])), TENSORS_FILE, "energies"),
    "energies of another k": (hostile(energies=np.ones(3)), TENSORS_FILE, "energies"),
    "mean of another d": (hostile(mean=np.ones(4)), TENSORS_FILE, "mean"),
    "mean missing on both sides": (hostile(mean=None), TENSORS_FILE, "mean"),
    "name with a path": (hostile(**{"../x": np.ones(1)}), TENSORS_FILE, "../x"),
    "tensor too many": (raw(save(tensors() | {"extra": np.ones(1)})), TENSORS_FILE, "extra"),
    "tensor too few": (
        one_less,
        TENSORS_FILE,
        "extra",
    ),
    "another shape than announced": (raw(save(tensors(6))), TENSORS_FILE, "directions"),
    "config is empty": (config_text(""), CONFIG_FILE, "file"),
    "config is no JSON": (config_text("model: x"), CONFIG_FILE, "file"),
    "config is no UTF-8": (config_text(b"\xff\xfe{}"), CONFIG_FILE, "file"),
    "config is a list": (config_text("[]"), CONFIG_FILE, "file"),
    "config is deep": (config_text("[" * 200_000 + "]" * 200_000), CONFIG_FILE, "file"),
    "config has a key twice": (config_text('{"bytes": 1, "bytes": 2}'), CONFIG_FILE, "file"),
    "config has NaN": (config_text('{"bytes": NaN}'), CONFIG_FILE, "file"),
    "config has an endless number": (config_text('{"bytes": ' + "9" * 9999 + "}"), CONFIG_FILE, "file"),
    "config is huge": (config_text(" " * (5 << 20)), CONFIG_FILE, "size"),
    "config of a model": (config_text('{"model_type": "llama"}'), CONFIG_FILE, "bytes"),
    "unknown version": (field(format_version=2), CONFIG_FILE, "format_version"),
    "no version": (field(format_version="DROP"), CONFIG_FILE, "format_version"),
    "version is true": (field(format_version=True), CONFIG_FILE, "format_version"),
    "digest is a number": (field(sha256=1), CONFIG_FILE, "sha256"),
    "another digest": (field(sha256="0" * 64), TENSORS_FILE, "sha256"),
    "no digest": (field(sha256="DROP"), CONFIG_FILE, "sha256"),
    "negative size": (field(bytes=-1), CONFIG_FILE, "bytes"),
    "size of 1e12": (field(bytes=10**12), CONFIG_FILE, "bytes"),
    "size is text": (field(bytes="9"), CONFIG_FILE, "bytes"),
    "scorer is a list": (field(scorer=[]), CONFIG_FILE, "scorer"),
    "tensors is null": (field(tensors=None), CONFIG_FILE, "tensors"),
    "tensor table lies": (
        lambda folder: resign(folder, (folder / TENSORS_FILE).read_bytes(), tensors={"mean": 1}),
        TENSORS_FILE,
        "directions",
    ),
    "another number": (field(scorer={"k": 3}), TENSORS_FILE, "sha256"),
    "a number without end": (field_text('"k": 2', '"k": 1e999'), CONFIG_FILE, "file"),
    "a path to follow": (field(file="../../etc/passwd"), CONFIG_FILE, "file"),
    "a field without end": (field(**{"x" * 1_000_000: 1}), CONFIG_FILE, "x" * 100),
    "link to another file": (link(TENSORS_FILE, "../secret"), TENSORS_FILE, "file"),
    "config links to another file": (link(CONFIG_FILE, "../secret"), CONFIG_FILE, "file"),
    "link to a device": (link(TENSORS_FILE, "/dev/zero"), TENSORS_FILE, "file"),
    "link to itself": (link(TENSORS_FILE, TENSORS_FILE), TENSORS_FILE, "file"),
    "link to nothing": (link(CONFIG_FILE, "nothing"), CONFIG_FILE, "file"),
    "a pipe": (fifo(TENSORS_FILE), TENSORS_FILE, "file"),
    "config is a pipe": (fifo(CONFIG_FILE), CONFIG_FILE, "file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    spoil, named_file, named_field = HOSTILE[case]
    spoil(folder)
    monkeypatch.chdir(folder.parent)
    with pytest.raises(SAFTArtifactError) as caught:
        load_artifact(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder / named_file}: {named_field!r}: "), text
    assert len(text) < 700 + len(str(folder))
    assert not Path("trap sprung").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SAFTArtifactError, match=r"nowhere/config\.json: 'file': not there"):
        load_artifact(tmp_path / "nowhere")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_damaged_byte_passes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage")
    save_artifact(folder, {"k": 2}, tensors())
    path = folder / TENSORS_FILE
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    bad = bytearray(whole)
    bad[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(bad))
    with pytest.raises(SAFTArtifactError):
        load_artifact(folder)
    # With a digest that vouches for it, it may load, but then only as a fitted scorer could be.
    resign(folder, bytes(bad))
    try:
        _, found = load_artifact(folder)
    except SAFTArtifactError:
        return
    np.testing.assert_allclose(found["directions"] @ found["directions"].T, np.eye(2), atol=1e-7)
