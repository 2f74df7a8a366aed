"""Datasets by name: the Hub, folders and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from saft_hf.cli.arguments import DatasetArguments
from saft_hf.errors import SAFTInputError
from saft_hf.hub import Repository, redact, with_retries
from saft_hf.summary import DatasetSource

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_COMPRESSED = {".gz", ".zst", ".bz2", ".xz"}


def load_rows(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Dataset:
    """Load one split.

    Args:
        name: a Hub id; a folder that `save_to_disk` wrote; a folder of data files; or a json, jsonl, csv or parquet
            file, packed or not, or a pattern that matches several.
        split: which split; files are all one split.
        config: configuration of a Hub dataset.
        revision: of a Hub dataset.
        streaming: read a Hub dataset row by row, in place of fetching its files first.

    Raises:
        SAFTInputError: nothing of that name is there, or it lacks the configuration or the split.
    """
    path = Path(name)
    if path.is_dir():
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return _split_of(load_from_disk(str(path)), split, name)
        return _split_of(_load(name, str(path), config), split, name)
    reader = _reader_of(path)
    if reader is not None:
        if not path.exists() and not any(sign in name for sign in "*?["):
            raise SAFTInputError(f"there is no file {name}.")
        return _load(name, reader, data_files=name, split="train")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SAFTInputError(
            f"{name} is neither a folder nor a file of a known kind ({', '.join(_READERS)}), nor a Hub id."
        )
    return _load_from_hub(name, config, split=split, revision=revision, streaming=streaming)


def pin(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a Hub dataset is now, so that what was read can be read again.

    Args:
        name: as for `load_rows`.
        revision: commit, branch or tag; None for the main branch.

    Returns:
        The commit; offline, and for folders and files, `revision` as it is.

    Raises:
        SAFTHubError: there is no such dataset or revision, no access to it, or no way to the Hub.
    """
    if not is_on_hub(name) or datasets.config.HF_HUB_OFFLINE:
        return revision
    where = Repository(name, "dataset", revision)
    found: str | None = with_retries(lambda: where.api.dataset_info(name, revision=revision), where, seconds=30.0).sha
    return found


def is_on_hub(name: str) -> bool:
    """Whether `load_rows` takes the name for a Hub id."""
    path = Path(name)
    local = path.exists() or _reader_of(path) is not None or name.startswith((".", "/", "~")) or name.count("/") > 1
    return not local


def source_of(arguments: DatasetArguments) -> DatasetSource | None:
    """Where the rows come from, for summaries and cards; None for folders and files, whose names are nobody else's."""
    name = arguments.dataset_name
    if name is None or not is_on_hub(name):
        return None
    return DatasetSource(
        dataset=name,
        revision=arguments.dataset_revision,
        config=arguments.dataset_config,
        split=arguments.dataset_train_split,
    )


def is_one_table(name: str) -> bool:
    """Whether `load_rows` gives the same rows for this name whatever the split: a file, or one saved dataset."""
    path = Path(name)
    return (path / "state.json").exists() if path.is_dir() else _reader_of(path) is not None


def load_pool_and_labels(arguments: DatasetArguments) -> tuple[Dataset, Dataset | None]:
    """The rows to score and, where there are any, the labelled ones.

    The revision of a Hub dataset is pinned: `arguments.dataset_revision` is the commit that was read.

    Raises:
        SAFTInputError: no dataset is named, or the labels are asked for in two ways.
    """
    if arguments.dataset_name is None:
        raise SAFTInputError("`--dataset_name` is needed: a Hub id, a folder or a file.")
    if arguments.labelled_name and arguments.labelled_rows:
        raise SAFTInputError("give `--labelled_name` or `--labelled_rows`, not both.")
    arguments.dataset_revision = pin(arguments.dataset_name, arguments.dataset_revision)
    pool = load_rows(
        arguments.dataset_name,
        split=arguments.dataset_train_split,
        config=arguments.dataset_config,
        revision=arguments.dataset_revision,
        streaming=arguments.dataset_streaming,
    )
    if arguments.labelled_name:
        return pool, load_rows(arguments.labelled_name, split=arguments.dataset_train_split)
    if arguments.labelled_rows:
        if not 0 < arguments.labelled_rows <= len(pool):
            raise SAFTInputError(
                f"`--labelled_rows` must be 1 to {len(pool)}, the rows of the dataset, not {arguments.labelled_rows}."
            )
        return pool, pool.shuffle(seed=arguments.seed).select(range(arguments.labelled_rows))
    return pool, None


def _load(name: str, *args: Any, **options: Any) -> Dataset | DatasetDict:
    try:
        return load_dataset(*args, **options)
    except (OSError, ValueError, DatasetsError) as error:
        raise SAFTInputError(
            f"{name}: no dataset could be read. Give a Hub id, a folder, or a json, jsonl, csv or parquet file. "
            f"datasets said: {type(error).__name__}: {error}"
        ) from error


def _load_from_hub(name: str, config: str | None, *, split: str, revision: str | None, streaming: bool) -> Dataset:
    try:
        loaded = load_dataset(name, config, split=split, revision=revision, streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:
        # A ValueError names the configurations or splits that there are.
        kind = "" if isinstance(error, ValueError) else "no dataset could be read. "
        raise SAFTInputError(
            f"{name}: {kind}`--dataset_config` is {config!r}, `--dataset_train_split` {split!r}. datasets said: "
            f"{type(error).__name__}: {redact(str(error))}"
        ) from error
    if not streaming:
        return loaded
    # Rows are numbered, so that they have to be here; only their files are not.
    rows = Dataset.from_generator(_rows_of, gen_kwargs={"stream": loaded}, features=loaded.features, split=loaded.split)
    rows.info.config_name = loaded.info.config_name
    return rows


def _rows_of(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream


def _reader_of(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSED]
    return _READERS.get(suffixes[-1]) if suffixes else None


def _split_of(loaded: Dataset | DatasetDict, split: str, name: str) -> Dataset:
    if isinstance(loaded, Dataset):
        return loaded
    if split not in loaded:
        raise SAFTInputError(
            f"{name} has no split {split!r}; it has {list(loaded)}. Name one with `--dataset_train_split`."
        )
    return loaded[split]
