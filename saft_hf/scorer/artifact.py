"""A fitted scorer on disk: safetensors and JSON, written whole and read with suspicion."""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_tensors
from safetensors.numpy import save as tensor_bytes

from saft_hf.errors import SAFTArtifactError, SAFTInputError

CONFIG_FILE = "config.json"
TENSORS_FILE = "saft_scorer.safetensors"
FORMAT_VERSION = 1

_FIELDS = {"format_version": int, "sha256": str, "bytes": int, "tensors": dict, "scorer": dict}
_DTYPES = ("float32", "float64", "int64")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_MAX_CONFIG_BYTES = 4 << 20
_MAX_TENSOR_BYTES = 256 << 20
_ORTHONORMAL = 1e-8


def save_artifact(folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write `config.json` and `saft_scorer.safetensors`; the same input gives the same bytes.

    Args:
        folder: A new one: `replacing_folder` puts it in place when all of it is written.
        config: The scorer's configuration: string keys and JSON values only (lists, no tuples; no NaN).
        tensors: Name -> array, float32, float64 or int64. Names that are, or after a dot end in, `mean`,
            `directions` and `energies` are checked as such; see `load_artifact`.

    Raises:
        SAFTInputError: `config` does not come back from JSON as it went in.
        SAFTArtifactError: A tensor that `load_artifact` would refuse.
        OSError: No permission, disk full.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_artifact(folder, {"k": 1}, {"weights": np.ones(2)})
        ...     load_artifact(folder)
        ({'k': 1}, {'weights': array([1., 1.])})
    """
    folder = Path(folder)
    plain = _json_only(config)
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    _check_tensors(folder / TENSORS_FILE, arrays)
    payload = tensor_bytes(arrays)
    envelope: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "bytes": len(payload),
        "tensors": {name: _shape_and_dtype(array) for name, array in arrays.items()},
        "scorer": plain,
    }
    envelope["sha256"] = digest_of(envelope, payload)
    text = json.dumps(envelope, indent=2, sort_keys=True, allow_nan=False) + "\n"
    if len(payload) > _MAX_TENSOR_BYTES or len(text) > _MAX_CONFIG_BYTES:
        raise SAFTInputError(
            f"the scorer is too large to be saved: tensors {len(payload)} bytes (at most "
            f"{_MAX_TENSOR_BYTES}), configuration {len(text)} (at most {_MAX_CONFIG_BYTES})"
        )
    (folder / TENSORS_FILE).write_bytes(payload)
    (folder / CONFIG_FILE).write_bytes(text.encode())


def load_artifact(folder: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what `save_artifact` wrote, and refuse everything else.

    The digest in `config.json` covers all of both files, so that no changed bit passes; it does not say who wrote them.
    Nothing in the files is run, no path in them is followed, and no more is read than `config.json`
    announces. Each group of `mean` [d], `directions` [k, d] and `energies` [k] is complete and fits together;
    the directions are orthonormal rows, the energies are not negative.

    Args:
        folder: Holds the two files, as real files or as links of the Hugging Face cache into its blobs.

    Returns:
        The scorer's configuration and its tensors.

    Raises:
        SAFTArtifactError: A file is missing, truncated, altered, hostile or of another format version; the
            error names the file and the field.
    """
    folder = Path(folder)
    config_path, tensors_path = folder / CONFIG_FILE, folder / TENSORS_FILE
    envelope = _read_envelope(config_path)
    payload = _read(tensors_path, envelope["bytes"])
    if len(payload) != envelope["bytes"]:
        raise _refuse(tensors_path, "size", f"{len(payload)} bytes, {CONFIG_FILE} announces {envelope['bytes']}")
    if digest_of(envelope, payload) != envelope["sha256"]:
        raise _refuse(tensors_path, "sha256", f"the digest of both files is not the one in {CONFIG_FILE}")
    try:
        # Copies: the parsed arrays are views of the file's bytes, read-only and of any alignment.
        tensors = {name: array.copy() for name, array in parse_tensors(payload).items()}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _refuse(tensors_path, "header", f"not a readable safetensors file ({type(error).__name__})") from error
    _check_tensors(tensors_path, tensors)
    held = {name: _shape_and_dtype(array) for name, array in tensors.items()}
    announced = envelope["tensors"]
    for name in sorted(held.keys() | announced.keys()):
        if held.get(name) != announced.get(name):
            other = "another" if name in announced else "none"
            raise _refuse(tensors_path, name, f"{held.get(name, 'missing')}, {CONFIG_FILE} announces {other}")
    return envelope["scorer"], tensors


def digest_of(envelope: Mapping[str, Any], payload: bytes) -> str:
    """SHA-256 (hex) of all that a saved scorer holds: what its JSON says, however it is laid out, and its tensors."""
    said = {name: value for name, value in envelope.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, allow_nan=False).encode() + payload).hexdigest()


def refuse(path: Path, what: str) -> SAFTArtifactError:
    """The error for a saved scorer that cannot be used; `what` names the field, what was found and expected."""
    return SAFTArtifactError(
        f"{path}: {what[:400]}. The saved scorer is damaged or not made by saft_hf: fetch it again, or fit and save it "
        "again"
    )


def _refuse(path: Path, field: str, found: str) -> SAFTArtifactError:
    return refuse(path, f"{field[:100]!r}: {found[:300]}")  # cut: both may come from the file


def _read(path: Path, limit: int) -> bytes:
    """The file's bytes, at most limit + 1, if it is a regular file of this folder or of the Hub's cache."""
    try:
        target = path.resolve(strict=True)
    except PermissionError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise _refuse(path, "file", "not there, or a link that leads nowhere") from error
    folder = path.parent.resolve()
    in_cache = target.parent.name == "blobs" and folder.is_relative_to(target.parent.parent / "snapshots")
    if target != folder / path.name and not in_cache:
        raise _refuse(path, "file", "a link to a file outside the folder")
    if not stat.S_ISREG(target.stat().st_mode):
        raise _refuse(path, "file", "not a regular file")
    with target.open("rb") as file:
        return file.read(limit + 1)


def _read_envelope(path: Path) -> dict[str, Any]:
    raw = _read(path, _MAX_CONFIG_BYTES)
    if len(raw) > _MAX_CONFIG_BYTES:
        raise _refuse(path, "size", f"more than {_MAX_CONFIG_BYTES} bytes")
    try:
        envelope = json.loads(
            raw.decode(), object_pairs_hook=_no_twins, parse_constant=_no_constants, parse_float=_finite
        )
        json.dumps(envelope)  # which is less patient with what stands deep inside
    except (ValueError, RecursionError) as error:
        raise _refuse(path, "file", f"not valid JSON ({type(error).__name__})") from error
    if not isinstance(envelope, dict):
        raise _refuse(path, "file", f"a JSON {type(envelope).__name__}, not an object")
    version = envelope.get("format_version")
    if type(version) is int and version != FORMAT_VERSION:
        raise SAFTArtifactError(
            f"{path}: 'format_version': {version}, this version of saft_hf reads {FORMAT_VERSION}: "
            "install the version that wrote it"
        )
    for name in sorted(_FIELDS.keys() | envelope.keys()):
        if name not in _FIELDS:
            raise _refuse(path, name, "an unknown field")
        if type(envelope.get(name)) is not _FIELDS[name]:
            found = type(envelope[name]).__name__ if name in envelope else "missing"
            raise _refuse(path, name, f"{found}, expected {_FIELDS[name].__name__}")
    if not 0 < envelope["bytes"] <= _MAX_TENSOR_BYTES:
        raise _refuse(path, "bytes", f"{envelope['bytes']}, expected 1 to {_MAX_TENSOR_BYTES}")
    return envelope


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _finite(number: str) -> float:
    if math.isinf(float(number)):
        raise ValueError(f"{number[:20]} is too large")
    return float(number)


def _no_constants(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _json_only(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SAFTInputError(f"the scorer's configuration must be plain JSON: {error}") from error
    for key, value in config.items():
        if key not in plain or plain[key] != value:
            raise SAFTInputError(
                f"the scorer's configuration must be plain JSON; {key!r} does not come back as it went in: "
                "use string keys, and lists in place of tuples"
            )
    return plain


def _shape_and_dtype(array: NDArray[Any]) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": array.dtype.name}


def _check_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Refuse names, types and numbers that no fitted scorer can have."""
    for name, array in tensors.items():
        if not _NAME.fullmatch(name):
            raise _refuse(path, name, "a name that is not made of letters, digits, '_', '-' and '.'")
        if array.dtype.name not in _DTYPES or not array.dtype.isnative:
            raise _refuse(path, name, f"dtype {array.dtype.str}, expected one of {', '.join(_DTYPES)}")
        if not np.isfinite(array).all():
            raise _refuse(path, name, "NaN or infinity")
    groups = {name.rpartition(part)[0] for part in _GROUP for name in tensors if _is_part(name, part)}
    for prefix in sorted(groups):
        _check_group(path, prefix, tensors)


_GROUP = ("mean", "directions", "energies")


def _is_part(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


def _check_group(path: Path, prefix: str, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Refuse an incomplete or impossible group of mean, directions and energies."""
    for part in _GROUP:
        if prefix + part not in tensors:
            raise _refuse(path, prefix + part, "missing")
    mean, directions, energies = (tensors[prefix + part] for part in _GROUP)
    if directions.ndim != 2 or not 1 <= directions.shape[0] <= directions.shape[1]:
        raise _refuse(path, f"{prefix}directions", f"shape {list(directions.shape)}, expected [k, d] with 1 <= k <= d")
    k, d = directions.shape
    for part, array, shape in (("mean", mean, (d,)), ("energies", energies, (k,))):
        if array.shape != shape:
            raise _refuse(path, prefix + part, f"shape {list(array.shape)}, expected {list(shape)}")
    for part in _GROUP:
        if tensors[prefix + part].dtype != np.float64:
            raise _refuse(path, prefix + part, f"dtype {tensors[prefix + part].dtype}, expected float64")
    with np.errstate(over="ignore"):
        error = float(np.abs(directions @ directions.T - np.eye(k)).max())
    if not math.isfinite(error) or error > _ORTHONORMAL:
        raise _refuse(path, f"{prefix}directions", f"rows are not orthonormal (off by {error:.1e})")
    if (energies < 0).any():
        raise _refuse(path, f"{prefix}energies", "a negative energy")
