"""Vectors on disk: one safetensors shard a shard of the plan, whole or not there.

A folder holds the vectors of one plan, read by one model in one way. Shards carry the digest of their content: a
truncated, damaged or foreign one is told apart and embedded again, never trusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import constants
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from saft_hf.distributed import World
from saft_hf.embed.cache import touch
from saft_hf.embed.plan import KEY_BYTES, find_keys
from saft_hf.errors import SAFTError
from saft_hf.files import new_draft, replacing

logger = logging.getLogger(__name__)

Vectors = Mapping[str, NDArray[np.float32]]
"""Feature name (`layer.readout`) -> `float32 [n, d]`."""

_FORMAT = "1"
_KEYS = "keys"


def default_cache_dir() -> Path:
    """Where vectors are kept unless the user says otherwise: `saft` in the Hugging Face home."""
    return Path(constants.HF_HOME) / "saft"


class Store:
    """The shards of one plan.

    Args:
        folder: where they are; made on the first write.
        features: names of the vectors that each shard holds.
        dtype: in which they are kept, `float32` or `float16`; they are always given as float32.
    """

    def __init__(self, folder: Path, features: tuple[str, ...], dtype: str = "float32") -> None:
        self.folder = folder
        self.features = features
        self.dtype = dtype
        self._verified: set[int] = set()
        self._index: tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]] | None = None

    def path(self, shard: int) -> Path:
        """File of a shard."""
        return self.folder / f"{shard:05d}.safetensors"

    def write(self, shard: int, keys: NDArray[np.uint8], vectors: Mapping[str, NDArray[np.floating]]) -> None:
        """Write a shard's vectors: all of them or, on any failure, nothing.

        Args:
            shard: index of the shard.
            keys: `uint8 [n, 16]`, keys of its renderings in plan order.
            vectors: for each feature `[n, d]` in the same order.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        tensors: dict[str, NDArray[Any]] = {_KEYS: np.ascontiguousarray(keys)}
        tensors.update({feature: np.ascontiguousarray(vectors[feature], dtype=self.dtype) for feature in self.features})
        metadata = {"format": _FORMAT, "sha256": _digest(tensors)}
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(self.path(shard), durable=False) as [file]:
                file.write(to_bytes(tensors, metadata=metadata))
        except FileNotFoundError as error:
            raise _gone(self.path(shard)) from error
        self._verified.add(shard)

    def has(self, shard: int, keys: NDArray[np.uint8]) -> bool:
        """Whether the shard is there, whole, and holds just these keys in this order."""
        path = self.path(shard)
        if not path.exists():
            return False
        if shard in self._verified:
            return True
        try:
            with safe_open(path, framework="numpy") as file:
                names = set(file.keys())
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT or names != {_KEYS, *self.features}:
                    raise ValueError("it holds other vectors")
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, ValueError, OSError) as error:
            logger.warning("The shard %s cannot be used (%s): its rows are embedded again.", path, error)
            return False
        kinds = {
            (tensors[feature].ndim, len(tensors[feature]), str(tensors[feature].dtype)) for feature in self.features
        }
        if kinds != {(2, len(keys), self.dtype)} or not np.array_equal(tensors[_KEYS], keys):
            logger.warning("The shard %s belongs to other rows: its rows are embedded again.", path)
            return False
        if metadata.get("sha256") != _digest(tensors):
            logger.warning("The shard %s is damaged: its rows are embedded again.", path)
            return False
        self._verified.add(shard)
        return True

    @contextmanager
    def run(self, world: World) -> Iterator[str]:
        """Name the processes that fill the store together, and sweep away what killed ones left there. Collective.

        Yields:
            The name, which stands in the folder meanwhile.
        """
        with ExitStack() as stack:

            def make_mark() -> str:
                self.folder.mkdir(parents=True, exist_ok=True)
                return stack.enter_context(new_draft(self.folder / "run", Path.touch, _forget)).name

            yield world.on_main("looking at the store", make_mark)

    def is_shared(self, world: World, run: str) -> bool:
        """Whether all processes see the same files: each looks for the one that names the run. Collective."""
        return all(world.gather(run in {path.name for path in self.folder.glob(".*.tmp")}))

    def shards(self) -> set[int]:
        """The shards of which there is a file, whole or not."""
        # Listed, not looked up: a network file system may remember for a while that a name was not there.
        return {int(path.stem) for path in self.folder.glob(f"{'[0-9]' * 5}.safetensors")}

    def claim(self, shard: int, run: str) -> bool:
        """Take a shard for this process; False where another one of the same run has taken it.

        Should a file system let two have it, both write the same shard.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            (self.folder / f"{run.removesuffix('.tmp')}-{shard:05d}.tmp").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def read(self, shard: int, feature: str) -> NDArray[np.float32]:
        """The vectors of a shard at one feature, `float32 [n, d]` in plan order."""
        try:
            with safe_open(self.path(shard), framework="numpy") as file:
                tensor: NDArray[np.float32] = file.get_tensor(feature).astype(np.float32, copy=False)
        except FileNotFoundError as error:
            raise _gone(self.path(shard)) from error
        return tensor

    def lookup(
        self, keys: NDArray[np.uint8], feature: str, width: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors of single renderings, wherever they are.

        Args:
            keys: `uint8 [m, 16]`.
            feature: which vectors.
            width: their length, d.

        Returns:
            `float32 [m, d]` (zeros where it is not there) and `bool [m]`, whether each is there.
        """
        if self._index is None:
            self._index = self._load_index()
        table, shards, positions = self._index
        vectors = np.zeros((len(keys), width), dtype=np.float32)
        at = find_keys(table, keys)
        hit = at >= 0
        for shard in np.unique(shards[at[hit]]).tolist():
            rows = np.flatnonzero(hit & (shards[np.maximum(at, 0)] == shard))
            if self.has(shard, table[shards == shard]):
                vectors[rows] = _mapped(self.path(shard), feature)[positions[at[rows]]]
            else:
                hit[rows] = False
        return vectors, hit

    def _load_index(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Every key with its shard and position; the content of a shard is checked when it is first read."""
        touch(self.folder)
        keys, shards, positions = [np.zeros((0, KEY_BYTES), np.uint8)], [np.zeros(0, int)], [np.zeros(0, int)]
        for shard in sorted(self.shards()):
            shard_keys = np.array(_mapped(self.path(shard), _KEYS))
            keys.append(shard_keys)
            shards.append(np.full(len(shard_keys), shard))
            positions.append(np.arange(len(shard_keys)))
        return np.concatenate(keys), np.concatenate(shards), np.concatenate(positions)


def _mapped(path: Path, name: str) -> NDArray[Any]:
    """One tensor of a shard without reading the others; no rows where the file is damaged."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(min(size, 2**20)))[name]
        begin, end = entry["data_offsets"]
        dtype = {"U8": np.uint8, "F32": np.float32, "F16": np.float16}[entry["dtype"]]
        flat = np.memmap(path, dtype, "r", 8 + size + begin, ((end - begin) // np.dtype(dtype).itemsize,))
        rows: NDArray[Any] = flat.reshape(entry["shape"])
        return rows
    except FileNotFoundError as error:
        raise _gone(path) from error
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("The shard %s cannot be read (%s): its rows are embedded again.", path, error)
        return np.zeros((0, KEY_BYTES), dtype=np.uint8)


def _gone(path: Path) -> SAFTError:
    return SAFTError(
        f"{path} was removed while it was in use (by `saft-hf cache rm`?). Start again: what is left is used again."
    )


def _forget(mark: Path) -> None:
    """Take away what names a run, and its claims."""
    for claim in [*mark.parent.glob(f"{mark.stem}-*.tmp"), mark]:
        claim.unlink(missing_ok=True)


def name_of(parts: Mapping[str, object]) -> str:
    """Content address of whatever decides the vectors: SHA-256 of its canonical JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(tensors: Mapping[str, NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
