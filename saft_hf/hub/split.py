"""One split of a dataset as the Hub holds it: parquet shards, and what its card says about them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import CommitInfo, DatasetCardData
from numpy.typing import ArrayLike

from saft_hf.errors import SAFTInputError
from saft_hf.files import write_json
from saft_hf.hub.cards import data_folder, dataset_card
from saft_hf.hub.plots import score_histogram
from saft_hf.hub.push import AUDIT, CARD, PRIVATE, REPORT, Destination, push_files
from saft_hf.summary import DatasetSource, Summary

PICTURE = "scores.png"
"""Beside the card of rows on this machine."""
_SHARD_BYTES = 500_000_000
_NAME = re.compile(r"\w+(?:[.-]\w+)*")


@dataclass(frozen=True)
class PushedSplit:
    """Which split of which configuration rows are, and where they come from.

    Attributes:
        repo_id: where it goes.
        config: name of the configuration.
        split: name of the split.
        source: where the rows come from, if that is known.
    """

    repo_id: str
    config: str
    split: str
    source: DatasetSource | None

    @classmethod
    def of(
        cls, rows: Dataset, repo_id: str, config: str | None, split: str | None, source: str | DatasetSource | None
    ) -> PushedSplit:
        """By default the names that the rows came with.

        Raises:
            SAFTInputError: a name that a configuration or split cannot have.
        """
        config = config or rows.info.config_name or "default"
        split = split or (str(rows.split) if rows.split is not None else "train")
        split = split.partition("[")[0]  # `train[:10%]` is rows of `train`
        if not _NAME.fullmatch(config) or config in ("data", PRIVATE, REPORT):
            raise SAFTInputError(f"`config_name` must be a plain word and not 'data', not {config!r}.")
        if not re.fullmatch(r"\w+(\.\w+)*", split):
            raise SAFTInputError(
                f"`split` must be letters, digits, '_' and '.', not {split!r}: name one with `split=`."
            )
        if isinstance(source, str):
            name, _, revision = source.partition("@")
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
                raise SAFTInputError(f"`source` must be a Hub id, 'user/name' or 'user/name@revision', not {source!r}.")
            source = DatasetSource(dataset=name, revision=revision or None)
        return cls(repo_id, config, split, source)

    @property
    def name(self) -> str:
        """Of its files beside the rows."""
        return f"{self.config}-{self.split}"

    def write(
        self,
        folder: Path,
        rows: Dataset,
        num_shards: int | None,
        scores: ArrayLike,
        summary: Summary,
        *,
        removed_rows: bool = False,
    ) -> None:
        """Write shards, card, counts and picture.

        Args:
            folder: to push; an audit and removed rows are there already, where they go too.
            rows: of the split.
            num_shards: parquet files; by default one for each 500 MB.
            scores: of all rows of the input, [N], for the picture.
            summary: of the filter, or of rows that were scored only.
            removed_rows: the removed rows go too.

        Raises:
            OSError: a file cannot be written.
        """
        report = folder / REPORT
        report.mkdir()
        info = self._write_rows(folder / data_folder(self.config), rows, num_shards)
        shown = replace(summary.public(), source=self.source)
        write_json(report / f"summary-{self.name}.json", shown.to_dict())
        audit = f"{PRIVATE}/audit-{self.name}.parquet"
        _write_card(
            folder,
            f"{REPORT}/scores-{self.name}.png",
            scores,
            shown,
            repo_id=self.repo_id,
            config=self.config,
            split=self.split,
            data_files=f"{data_folder(self.config)}/{self.split}-*",
            dataset_info=info,
            audit=audit if (folder / audit).exists() else None,
            removed_rows=f"{PRIVATE}/removed-{self.name}.parquet" if removed_rows else None,
        )

    def _write_rows(self, folder: Path, rows: Dataset, num_shards: int | None) -> Mapping[str, Any]:
        """Write the shards as `Dataset.push_to_hub` names them; what the card says of them in `dataset_info`."""
        folder.mkdir()
        shards = num_shards or max(1, math.ceil(_nbytes(rows) / _SHARD_BYTES))
        sizes: Counter[str] = Counter()
        for number in range(shards):
            path = folder / f"{self.split}-{number:05d}-of-{shards:05d}.parquet"
            rows.with_format(None).shard(shards, number, contiguous=True).to_parquet(path)
            groups = pq.ParquetFile(path).metadata
            sizes["rows"] += sum(groups.row_group(i).total_byte_size for i in range(groups.num_row_groups))
            sizes["files"] += path.stat().st_size
        return _described(self.config, self.split, rows, sizes["rows"], sizes["files"])


def write_local_card(
    folder: Path,
    rows: Dataset,
    data_files: str,
    scores: ArrayLike,
    summary: Summary,
    *,
    removed_rows: str | None,
) -> None:
    """Write card and picture beside rows that are saved on this machine; `load_dataset` of the folder reads the rows.

    Args:
        folder: that the rows are in.
        rows: that are saved.
        data_files: pattern of their files.
        scores: of all rows of the input, [N], for the picture.
        summary: of the filter.
        removed_rows: folder of the removed rows; None where they are not saved.

    Raises:
        OSError: a file cannot be written.
    """
    _write_card(
        folder,
        PICTURE,
        scores,
        summary,
        repo_id=None,
        config="default",
        split="train",
        data_files=data_files,
        dataset_info=_described("default", "train", rows, _nbytes(rows), _nbytes(rows)),
        audit=AUDIT,
        removed_rows=removed_rows,
    )


def _write_card(folder: Path, picture: str, scores: ArrayLike, summary: Summary, **about: Any) -> None:
    """Write the card of rows, and the picture that it shows, where one can be drawn."""
    if drawn := score_histogram(scores, summary.threshold):
        (folder / picture).write_bytes(drawn)
    card = dataset_card(summary, picture=picture if drawn else None, **about)
    (folder / CARD).write_text(card, encoding="utf-8")


def _described(config: str, split: str, rows: Dataset, size: int, download_size: int) -> Mapping[str, Any]:
    """What a card says of rows in `dataset_info`."""
    info = DatasetInfo(
        config_name=config,
        features=rows.features,
        splits=SplitDict({split: SplitInfo(name=split, num_bytes=size, num_examples=len(rows))}),
        download_size=download_size,
        dataset_size=size,
    )
    data = DatasetCardData()
    DatasetInfosDict({config: info}).to_dataset_card_data(data)
    described: Mapping[str, Any] = data["dataset_info"]
    return described


def push_scored(rows: Dataset, to: Destination, split: str, scores: ArrayLike, summary: Summary) -> CommitInfo:
    """Push rows with their scores, none of them removed: to a private repository.

    Args:
        rows: with `saft_score` and `saft_status`.
        to: where, and how.
        split: their split.
        scores: of the rows, [N], for the picture.
        summary: counts for the card, `statuses` among them.

    Raises:
        SAFTHubError, SAFTInputError, OSError: as `FilterResult.push_to_hub`.
    """
    place = PushedSplit.of(rows, to.repo_id, None, split, summary.source)
    return push_files(lambda folder: place.write(folder, rows, None, scores, summary), to, place.name)


def _nbytes(rows: Dataset) -> int:
    """About how much the rows take in memory: a selection has its share of the whole table."""
    table = rows.data
    return int(table.nbytes * len(rows) / max(1, len(table)))
