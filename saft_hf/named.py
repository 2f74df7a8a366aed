"""Datasets by name: the Hub, folders and files."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import datasets
import fsspec  # type: ignore[import-untyped]
import pandas
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from datasets.load import infer_module_for_data_files_list

from saft_hf.columns import AS_IS, Layout
from saft_hf.decide.labelling import LABEL, PURPOSE, ROW
from saft_hf.errors import SAFTInputError
from saft_hf.hub import Repository, redact, with_retries
from saft_hf.summary import DatasetSource


@dataclass(frozen=True)
class NamedDataset:
    """One split of a dataset that is named.

    Attributes:
        name: a Hub id; a folder that `save_to_disk` wrote; a folder of data files; or a file of a kind that `datasets`
            reads (json, jsonl, csv, tsv, parquet, txt, ...), compressed or not, or a pattern that matches several. What
            is on disk is never taken for a Hub id.
        split: which split; files are all `train`.
        config: configuration of a Hub dataset.
        revision: of a Hub dataset.
        streaming: read row by row, in place of fetching files first.
        token: for private datasets of the Hub.
        columns: what columns of other names or kinds are.
        license: of a Hub dataset, once it is pinned.

    Raises:
        SAFTInputError: the name is a URL.
    """

    name: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    streaming: bool = False
    token: str | None = field(default=None, repr=False)
    columns: Layout = AS_IS
    license: str | None = None

    shown: ClassVar[Mapping[str, str]] = {
        "config": "`--dataset_config`",
        "revision": "`--dataset_revision`",
        "split": "`--dataset_train_split`",
    }
    """What users call these, in errors."""

    def __post_init__(self) -> None:
        if "://" in self.name:
            raise SAFTInputError(
                f"{redact(self.name)} is a URL, and rows are read from no server but the Hub: fetch the file first, or "
                "give a Hub id."
            )

    @property
    def path(self) -> Path:
        """Where it is, if it is on this machine."""
        return Path(self.name).expanduser()

    @property
    def is_on_hub(self) -> bool:
        """Whether the name is taken for a Hub id."""
        is_path = self.name.startswith((".", "/", "~")) or self.name.count("/") > 1 or set("*?[") & set(self.name)
        return not (is_path or self.path.exists() or self.path.suffix.lower() == ".zip" or _reader([self.name])[0])

    @property
    def is_one_table(self) -> bool:
        """Whether there is one split: files, or one saved dataset."""
        return not self.is_on_hub and (self.path / "state.json" if self.path.is_dir() else self.path).exists()

    @property
    def source(self) -> DatasetSource | None:
        """Where the rows come from, for cards; None for folders and files, whose names are nobody else's."""
        if not self.is_on_hub:
            return None
        return DatasetSource(
            dataset=self.name, revision=self.revision, config=self.config, split=self.split, license=self.license
        )

    def pinned(self) -> NamedDataset:
        """The same at the commit that the revision is now, so that what was read can be read again.

        Offline, and for folders and files, it is the same.

        Raises:
            SAFTHubError: there is no such dataset or revision, no access to it, or no way to the Hub.
        """
        if not self.is_on_hub or datasets.config.HF_HUB_OFFLINE:
            return self
        where = Repository(self.name, "dataset", self.revision, self.token)
        info = with_retries(lambda: where.api.dataset_info(self.name, revision=self.revision), where, seconds=30.0)
        said = info.card_data.get("license") if info.card_data else None
        return replace(self, revision=info.sha, license=said if isinstance(said, str) else None)

    def load(self) -> Dataset:
        """Load the rows.

        Raises:
            SAFTInputError: nothing of that name is there, a file is empty or damaged, or it lacks the configuration or
                the split.
        """
        with self._explained():
            rows = self.columns.apply(self._open())
            loaded = rows
            if not isinstance(rows, Dataset):
                loaded = Dataset.from_generator(
                    _rows_of, gen_kwargs={"stream": rows}, features=rows.features, split=rows.split
                )
                loaded.info.config_name = rows.info.config_name
            loaded.info.dataset_name = self.name if self.is_on_hub else self.path.name  # `datasets` says "json"
            return loaded

    def stream(self) -> IterableDataset:
        """The rows one by one, as they are read.

        Raises:
            SAFTInputError: as `load`; what is damaged further on is found when it is read.
        """
        with self._explained():
            rows = self.columns.apply(replace(self, streaming=True)._open())
            return rows.to_iterable_dataset() if isinstance(rows, Dataset) else rows

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SAFTInputError:
            raise
        except Exception as error:  # files break in many ways
            raise self._unreadable(error) from error

    def _open(self) -> Any:
        options: dict[str, Any] = {"split": self.split, "streaming": self.streaming}
        if self.is_on_hub:
            return load_dataset(self.name, self.config, revision=self.revision, token=self.token, **options)
        saved = any((self.path / name).exists() for name in ("state.json", "dataset_dict.json"))
        of_hub = {"revision": self.revision}
        if saved or not self.path.is_dir():  # a folder of data files may have configurations
            of_hub["config"] = self.config
        if idle := [self.shown[name] for name, value in of_hub.items() if value is not None]:
            raise SAFTInputError(f"{', '.join(idle)}: without effect on {self.name}, which is on this machine.")
        if not self.path.is_dir():
            files = self._files()
            reader, how = _reader(files)
            if reader is None:
                raise SAFTInputError(
                    f"{self.name} is neither a folder nor a file of a known kind (.json, .jsonl, .csv, .tsv, .parquet, "
                    ".txt, ..., compressed or not), nor a Hub id."
                )
            if reader == "csv" and self.split == "train" and (rows := _laid_out(files[0], how.get("sep", ","))):
                return rows
            return load_dataset(reader, data_files=[glob.escape(file) for file in files], **how, **options)
        if not saved:
            self._check_kinds()
            return load_dataset(str(self.path), self.config, **options)
        loaded = load_from_disk(str(self.path))
        if isinstance(loaded, Dataset):
            loaded = dict.fromkeys(("train", str(loaded.split or "train")), loaded)
        if self.split not in loaded:
            raise SAFTInputError(
                f"{self.name} has no split {self.split!r}; it has {list(loaded)}. Name one with {self.shown['split']}."
            )
        return loaded[self.split]

    def _check_kinds(self) -> None:
        """Refuse tables of several kinds in a folder: `datasets` reads those of one, and leaves the others out unsaid.

        Raises:
            SAFTInputError: there are such, and no card that may say which are meant.
        """
        files = [] if (self.path / "README.md").exists() else sorted(self.path.rglob("*"))
        kinds = {_reader([file.name])[0]: file.name for file in files if not file.name.startswith(_ABOUT)}
        found = [f"{name} ({kind})" for kind, name in kinds.items() if kind in _TABLES]
        if len(found) > 1:
            raise SAFTInputError(
                f"{self.name} holds tables of {len(found)} kinds, such as {', '.join(found)}: name those of one with a "
                f"pattern, such as {self.path / '*.jsonl'}, or move the others elsewhere."
            )

    def _files(self) -> list[str]:
        name = str(self.path)
        files = [name] if self.path.exists() else sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - from the root
        if not files and _reader([self.name])[0]:
            raise SAFTInputError(f"there is no file {self.name}.")
        if empty := [file for file in files if Path(file).stat().st_size == 0]:
            raise SAFTInputError(f"{empty[0]} is empty (0 bytes): was what wrote it cut off?")
        return files

    def _unreadable(self, error: Exception) -> SAFTInputError:
        """What is wrong with it: `datasets` chains the cause of an error, and does not tell the line."""
        cause: BaseException = error
        while not self.is_on_hub and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(error, ValueError) and not isinstance(error, DatasetsError):
            cause = error  # names the configurations or splits that there are
        said = f"{type(cause).__name__}: {redact(str(cause)).strip()}"
        if isinstance(cause, StopIteration) or "corresponds to no data" in str(cause):
            said = "it is empty, there is no row in it"
        if self.is_on_hub:
            missing = "" if cause is error and isinstance(error, ValueError) else "no dataset could be read. "
            advice = f"{self.shown['config']} is {self.config!r}, {self.shown['split']} {self.split!r}"
            return SAFTInputError(f"{self.name}: {missing}{advice}. datasets said: {said}")
        broken = "" if self.path.is_dir() else _broken_line(self._files())
        return SAFTInputError(
            f"{self.name}: no dataset could be read ({self.shown['split']} is {self.split!r}). {broken}"
            f"datasets said: {said}"
        )


_TABLES = ("json", "csv", "parquet", "arrow")
_ABOUT = (".", "dataset_info", "metadata")  # what `datasets` itself writes, and files about images


def _reader(files: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """What of `datasets` reads files with these endings, and how; None where nothing does."""
    found: tuple[str | None, dict[str, Any]] = infer_module_for_data_files_list(list(files))
    return found


def _broken_line(files: Sequence[str]) -> str:
    """The first line that is no JSON, where there should be one on each; no text of it."""
    for file in files:
        number = filled = 0
        try:
            if _reader([file])[0] != "json":
                continue
            with fsspec.open(file, "rb", compression="infer") as lines:
                for number, line in enumerate(lines, 1):
                    filled += bool(line.strip())
                    if number == 1 and line.lstrip().startswith(b"["):
                        json.loads(line + lines.read())
                    elif line.strip():
                        json.loads(line)
        except json.JSONDecodeError as error:
            return f"{file} breaks off or is no JSON in line {number + error.lineno - 1}: {error.msg}. "
        except Exception as error:  # it is about to be raised that the file cannot be read
            return f"{file} cannot be read beyond line {number}: {type(error).__name__}. "
        if not filled:
            return f"{file} holds no row. "
    return ""


# A spreadsheet runs a cell that begins so. Where there are apostrophes before it, one more tells ours from the text's.
_FORMULA = re.compile(r"'*([=+\-@\t\r]|$)")


def neutral(cell: str | None) -> str | None:
    """A cell of a table that people open in a spreadsheet, so that it is text there; `restored` is its inverse.

    Examples:
        >>> neutral("=1+1"), neutral("1+1"), restored(neutral("'=1"))
        ("'=1+1", '1+1', "'=1")
    """
    return cell if cell is None or not _FORMULA.match(cell) else f"'{cell}"


def restored(cell: str) -> str:
    """What `neutral` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _laid_out(file: str, separator: str) -> Dataset | None:
    """A table that `suggest-labels` wrote: text as it was, neither numbers nor nulls made of it; None for others."""
    how: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig"}
    names = [str(name) for name in pandas.read_csv(file, nrows=0, **how)]
    if PURPOSE not in names:
        return None
    text = [name for name in names if name not in (ROW, LABEL)]
    nulls = {"keep_default_na": False, "na_values": {name: [""] for name in (ROW, LABEL)}}
    table = pandas.read_csv(file, dtype=dict.fromkeys(text, str), **nulls, **how)
    for name in text:
        table[name] = [restored(cell) if cell else None for cell in table[name]]
    return Dataset.from_pandas(table.rename(columns=restored), preserve_index=False)


def _rows_of(stream: IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream
