"""Datasets by name: the Hub, folders and files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import datasets
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from saft_hf.decide import resolve_label_column
from saft_hf.errors import SAFTInputError
from saft_hf.hub import Repository, redact, with_retries
from saft_hf.scorer.labels import labelled_rows
from saft_hf.summary import DatasetSource

logger = logging.getLogger(__name__)

_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_COMPRESSED = {".gz", ".zst", ".bz2", ".xz"}


@dataclass(frozen=True)
class NamedDataset:
    """One split of a dataset that is named.

    Attributes:
        name: a Hub id; a folder that `save_to_disk` wrote; a folder of data files; or a json, jsonl, csv or parquet
            file, compressed or not, or a pattern that matches several.
        split: which split; files are all one split.
        config: configuration of a Hub dataset.
        revision: of a Hub dataset.
        streaming: read a Hub dataset row by row, in place of fetching its files first.
    """

    name: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    streaming: bool = False

    @property
    def reader(self) -> str | None:
        """What reads the files that are named; None for a name without a known suffix."""
        suffixes = [suffix for suffix in Path(self.name).suffixes if suffix not in _COMPRESSED]
        return _READERS.get(suffixes[-1]) if suffixes else None

    @property
    def is_on_hub(self) -> bool:
        """Whether the name is taken for a Hub id."""
        is_path = self.name.startswith((".", "/", "~")) or self.name.count("/") > 1
        return not (is_path or self.reader or Path(self.name).exists())

    @property
    def is_one_table(self) -> bool:
        """Whether the rows are the same whatever the split: a file, or one saved dataset."""
        path = Path(self.name)
        return (path / "state.json").exists() if path.is_dir() else self.reader is not None

    @property
    def source(self) -> DatasetSource | None:
        """Where the rows come from, for cards; None for folders and files, whose names are nobody else's."""
        if not self.is_on_hub:
            return None
        return DatasetSource(dataset=self.name, revision=self.revision, config=self.config, split=self.split)

    def pinned(self) -> NamedDataset:
        """The same at the commit that the revision is now, so that what was read can be read again.

        Offline, and for folders and files, it is the same.

        Raises:
            SAFTHubError: there is no such dataset or revision, no access to it, or no way to the Hub.
        """
        if not self.is_on_hub or datasets.config.HF_HUB_OFFLINE:
            return self
        where = Repository(self.name, "dataset", self.revision)
        info = with_retries(lambda: where.api.dataset_info(self.name, revision=self.revision), where, seconds=30.0)
        return replace(self, revision=info.sha)

    def load(self) -> Dataset:
        """Load the rows.

        Raises:
            SAFTInputError: nothing of that name is there, or it lacks the configuration or the split.
        """
        path = Path(self.name)
        if self.is_on_hub:
            rows = self._read(
                self.name, self.config, split=self.split, revision=self.revision, streaming=self.streaming
            )
            return _in_memory(rows) if self.streaming else rows
        if path.is_dir():
            is_saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
            loaded = load_from_disk(self.name) if is_saved else self._read(self.name, self.config)
            if not isinstance(loaded, Dataset) and self.split not in loaded:
                raise SAFTInputError(
                    f"{self.name} has no split {self.split!r}; it has {list(loaded)}. Name one with "
                    "`--dataset_train_split`."
                )
            return loaded if isinstance(loaded, Dataset) else loaded[self.split]
        if self.reader is None:
            raise SAFTInputError(
                f"{self.name} is neither a folder nor a file of a known kind ({', '.join(_READERS)}), nor a Hub id."
            )
        if not path.exists() and not any(sign in self.name for sign in "*?["):
            raise SAFTInputError(f"there is no file {self.name}.")
        return self._read(self.reader, data_files=self.name, split="train")

    def _read(self, *args: Any, **options: Any) -> Any:
        try:
            return load_dataset(*args, **options)
        except (OSError, ValueError, DatasetsError) as error:
            missing = "no dataset could be read. "
            advice = "Give a Hub id, a folder, or a json, jsonl, csv or parquet file"
            if self.is_on_hub:
                advice = f"`--dataset_config` is {self.config!r}, `--dataset_train_split` {self.split!r}"
                # A ValueError names the configurations or splits that there are.
                missing = "" if isinstance(error, ValueError) else missing
            raise SAFTInputError(
                f"{self.name}: {missing}{advice}. datasets said: {type(error).__name__}: {redact(str(error))}"
            ) from error


def labelled_of(
    rows: Any,
    name: str | None,
    count: int | None,
    *,
    seed: int,
    label_column: str | None = None,
    split: str = "train",
    prefix: str = "",
) -> Dataset | None:
    """The labelled rows: those of the dataset `name`, or `count` of all rows that have a label, drawn at random.

    Returns:
        The rows; None where neither is asked for.

    Raises:
        SAFTInputError: both are asked for, or more than there are; or no column holds labels.
    """
    if name and count:
        raise SAFTInputError(f"give `--{prefix}labelled_name` or `--{prefix}labelled_rows`, not both.")
    if name:
        return NamedDataset(name, split).load()
    if not count:
        return None
    if not isinstance(rows, Dataset):
        raise SAFTInputError(
            f"`--{prefix}labelled_rows`={count}: a stream has no rows to draw from. Name labelled rows with "
            f"`--{prefix}labelled_name`."
        )
    have = labelled_rows(rows, resolve_label_column(rows.column_names, label_column))
    if not 0 < count <= len(have):
        raise SAFTInputError(
            f"`--{prefix}labelled_rows` must be 1 to {len(have)}, the rows that have a label, not {count}."
        )
    if len(have) < len(rows):
        logger.warning(
            "Only %d of %d rows have a label to draw from. Unless they were drawn at random, say "
            "`--%slabel_sampling other`.",
            len(have),
            len(rows),
            prefix,
        )
    drawn = rows.select(have).shuffle(seed=seed).select(range(count))
    return cast(Dataset, drawn)


def _in_memory(stream: IterableDataset) -> Dataset:
    """The rows of a stream. Rows are numbered, so that they have to be here; only their files are not."""
    rows = Dataset.from_generator(_rows_of, gen_kwargs={"stream": stream}, features=stream.features, split=stream.split)
    rows.info.config_name = stream.info.config_name
    return rows


def _rows_of(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream
