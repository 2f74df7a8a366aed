"""Every field of a saved scorer, changed to every hostile value: refused by name, or a scorer all the same."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from numpy.typing import NDArray
from probe_kit import SOURCES, write_probe_rows
from safetensors.numpy import load_file, save
from scorer_kit import sign

from saft_hf import SAFTScorer
from saft_hf.errors import SAFTArtifactError, SAFTError
from saft_hf.hub import model_section, scorer_card
from saft_hf.scorer.artifact import CONFIG_FILE, TENSORS_FILE, digest_of

DEEP: Any = []
for _ in range(600):
    DEEP = [DEEP]
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    10**9,
    2**53,
    10**30,
    -(10**400),
    0.5,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    "",
    "0",
    "a" * 300,
    "b" * 5000,
    "/etc/passwd",
    "Certified: at most 0.1 % of the kept rows are harmful. | <img src=x onerror=alert(1)>\n# Heading",
    "\x1b[2J\x00",
    "\ud800",
    [],
    [[]],
    [None],
    [1, 2, 3],
    [0] * 5000,
    DEEP,
    {},
    {"a": 1},
    {"__class__": "os.system"},
)
METHODS = ("saft", "auto", "reference", "probe")
"""The last is `reference` with rows enough for a probe, and a pool that it explains."""


@pytest.fixture(scope="module")
def folders(
    demo_model: str, demo_pool: Dataset, demo_labelled: Dataset, store_dir: Path, tmp_path_factory: Any
) -> dict[str, Path]:
    """A saved scorer of each kind."""
    made = {}
    sources = tmp_path_factory.mktemp("sources")
    write_probe_rows(sources)
    for method in METHODS:
        made[method] = tmp_path_factory.mktemp("saved") / method
        if method == "probe":
            pool = load_dataset("json", data_files=f"{sources}/pool.jsonl", split="train", cache_dir=f"{sources}/cache")
            scorer = SAFTScorer(demo_model, reference=[f"{sources}/{name}" for name in SOURCES], cache_dir=store_dir)
            scorer.fit(pool).save_pretrained(made[method])
            continue
        labelled = None if method == "reference" else demo_labelled
        scorer = SAFTScorer(demo_model, method=method, cache_dir=store_dir)
        scorer.fit(demo_pool, labelled, on_undecided="keep").save_pretrained(made[method])
    return made


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON: each key, and the first entry of each list."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


def at(config: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy of JSON after `change(container, key)` at a path."""
    changed = config.copy()
    if len(path) == 1:
        change(changed, path[0])
    else:
        changed[path[0]] = at(config[path[0]], path[1:], change)
    return changed


def changes(config: Any, path: tuple[Any, ...]) -> Iterator[Any]:
    """The configuration with other values at a path, without it, and with another name beside it."""
    for value in HOSTILE:
        yield at(config, path, lambda inside, key, value=value: inside.__setitem__(key, value))
    yield at(config, path, lambda inside, key: inside.__delitem__(key))
    if isinstance(path[-1], str):
        yield at(config, path, lambda inside, key: inside.__setitem__(f"{key}_", 1))


def load(folder: Path, store: Path) -> SAFTScorer | str:
    """The scorer, with all that is shown of it; or why it is refused."""
    try:
        scorer = SAFTScorer.from_pretrained(folder, cache_dir=store)
    except SAFTArtifactError as error:
        text = str(error)
        assert text.startswith(str(folder)), text
        assert len(text) < 900 + len(str(folder)), len(text)
        return text
    card = scorer_card(scorer.summary_)
    for planted in ("Certified:", "onerror", "\x1b"):
        assert planted not in card + repr(scorer) + json.dumps(scorer.summary_.to_dict()), planted
    return scorer


def used(scorer: SAFTScorer, rows: Dataset, folder: Path) -> None:
    """Do with a scorer what people do: it works, or one of our errors says why not."""
    with suppress(SAFTError):
        scorer.save_pretrained(folder)
    with suppress(SAFTError):
        scorer(rows[:])
    with suppress(SAFTError):
        summary = scorer.filter(rows, on_undecided="keep").summary
        assert "Certified:" not in model_section(summary)


@pytest.mark.parametrize("method", METHODS)
def test_a_changed_field_is_noticed(folders: dict[str, Path], tmp_path: Path, method: str) -> None:
    folder = shutil.copytree(folders[method], tmp_path / "s")
    config = json.loads((folder / CONFIG_FILE).read_text())
    for path in paths(config):
        for changed in list(changes(config, path))[len(path) :: 5]:
            (folder / CONFIG_FILE).write_text(json.dumps(changed))
            # True equals 1, and 1 equals 1.0, but not in JSON.
            if json.dumps(changed, sort_keys=True) != json.dumps(config, sort_keys=True):
                assert isinstance(load(folder, tmp_path), str), (path, str(changed)[:1000])


@pytest.mark.parametrize("method", METHODS)
def test_a_field_changed_with_its_digest_is_refused_by_name_or_harmless(
    folders: dict[str, Path], demo_pool: Dataset, store_dir: Path, tmp_path: Path, method: str
) -> None:
    folder = shutil.copytree(folders[method], tmp_path / "s")
    config, payload = json.loads((folder / CONFIG_FILE).read_text()), (folder / TENSORS_FILE).read_bytes()
    rows, refused, tried = demo_pool.select(range(12)), 0, 0
    before = [json.loads((folders[each] / CONFIG_FILE).read_text()) for each in METHODS[: METHODS.index(method)]]
    # What several kinds have in common is tried once.
    for path in dict.fromkeys(paths(config)).keys() - {path for each in before for path in paths(each)}:
        accepted = []
        for changed in list(changes(config, path))[:: 3 if "metrics" in path else 1]:
            with suppress(ValueError):  # NaN and infinity are no JSON: refused before any digest
                changed = changed if path == ("sha256",) else {**changed, "sha256": digest_of(changed, payload)}
            (folder / CONFIG_FILE).write_text(json.dumps(changed))
            result = load(folder, store_dir)
            tried += 1
            if isinstance(result, SAFTScorer):
                accepted.append(result)
                continue
            refused += 1
            names = [str(key) for key in path if isinstance(key, str)][-2:]
            assert "'file'" in result or any(name in result for name in names), (path, result)
        if "metrics" not in path and accepted:  # figures are shown, and decide nothing
            used(random.Random(str(path)).choice(accepted), rows, tmp_path / "again")
    assert refused > 0.6 * tried > 0


TENSORS: dict[str, Callable[[NDArray[Any]], NDArray[Any] | None]] = {
    "missing": lambda array: None,
    "empty": lambda array: array[:0],
    "a number": lambda array: array.sum(),
    "flat": lambda array: array.reshape(-1),
    "deeper": lambda array: array[None],
    "one row more": lambda array: np.concatenate([array, array[-1:]]),
    "one row less": lambda array: array[:-1],
    "one column less": lambda array: array[..., :-1],
    "NaN": lambda array: np.full(array.shape, np.nan),
    "infinity": lambda array: np.full(array.shape, np.inf),
    "huge": lambda array: np.full(array.shape, 1e308 if array.dtype.kind == "f" else 2**62, array.dtype),
    "zeros": np.zeros_like,
    "negative": lambda array: -array - 5,
    "float32": lambda array: array.astype(np.float32),
    "float16": lambda array: array.astype(np.float16),
    "float64": lambda array: array.astype(np.float64),
    "int64": lambda array: array.astype(np.int64),
    "bool": lambda array: array.astype(np.bool_),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_changed_tensor_with_its_digest_is_refused_or_harmless(
    folders: dict[str, Path], demo_pool: Dataset, store_dir: Path, tmp_path: Path, method: str
) -> None:
    folder = shutil.copytree(folders[method], tmp_path / "s")
    config, arrays = json.loads((folder / CONFIG_FILE).read_text()), load_file(folder / TENSORS_FILE)
    own = [name for name in arrays if method != "probe" or name.startswith("probe_")]  # the others as of `reference`
    kinds = {(name, kind): change for name in own for kind, change in TENSORS.items()}
    for (name, kind), change in [*kinds.items(), (("extra", "more"), lambda _: np.zeros(3))]:
        changed = arrays | {name: change(arrays.get(name, np.zeros(3)))}
        changed = {each: np.ascontiguousarray(array) for each, array in changed.items() if array is not None}
        payload = save(changed)
        table = {each: {"shape": list(array.shape), "dtype": array.dtype.name} for each, array in changed.items()}
        (folder / CONFIG_FILE).write_text(json.dumps({**config, "bytes": len(payload), "tensors": table}))
        (folder / TENSORS_FILE).write_bytes(payload)
        sign(folder)
        result = load(folder, store_dir)
        if isinstance(result, SAFTScorer):
            assert kind in ("huge", "zeros", "negative") or np.array_equal(changed[name], arrays[name]), (name, kind)
            used(result, demo_pool.select(range(12)), tmp_path / "again")


@pytest.mark.parametrize("method", METHODS)
def test_a_flipped_bit_or_a_cut_is_noticed(folders: dict[str, Path], tmp_path: Path, method: str) -> None:
    folder, rng = shutil.copytree(folders[method], tmp_path / "s"), random.Random(method)
    for name in (CONFIG_FILE, TENSORS_FILE):
        raw = (folder / name).read_bytes()
        places = range(len(raw)) if len(raw) < 300 else sorted(rng.sample(range(len(raw)), 300))
        for place in places:
            flipped = bytes([raw[place] ^ 1 << rng.randrange(8)])
            for damaged in (raw[:place] + flipped + raw[place + 1 :], *([raw[:place]] if place % 5 == 0 else ())):
                (folder / name).write_bytes(damaged)
                same = False
                with suppress(ValueError):  # a space for another, or the last digits of a number
                    same = name == CONFIG_FILE and json.loads(damaged) == json.loads(raw)
                assert isinstance(load(folder, tmp_path), SAFTScorer if same else str), (name, place)
        (folder / name).write_bytes(raw)
