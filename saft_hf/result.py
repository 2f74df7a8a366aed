"""`FilterResult`: what was kept, removed and errored, and how to keep it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from datasets import Dataset, concatenate_datasets
from huggingface_hub import CommitInfo
from numpy.typing import NDArray

from saft_hf.decide import AuditDigests, Decisions, RowLabel, read_audit, row_digest, write_audit
from saft_hf.decide.marks import read_marks
from saft_hf.demonstrations import demonstrations_for, interleaved
from saft_hf.errors import SAFTInputError
from saft_hf.files import replacing, replacing_folder, write_json
from saft_hf.hub import AUDIT, CARD, PICTURE, PRIVATE, REVIEW, Destination, PushedSplit, push_files, write_local_card
from saft_hf.records import from_plain, to_plain
from saft_hf.review import Reviewed, review_page
from saft_hf.summary import DEMONSTRATIONS_SHARE, Demonstrations, Provenance, Summary

logger = logging.getLogger(__name__)

SUMMARY_FILE = "saft_summary.json"
KEPT = "kept"
SCORER = "scorer"
REMOVED = "removed"
RESULT = (SUMMARY_FILE, AUDIT, KEPT, REMOVED, CARD, PICTURE, REVIEW)
"""What a saved result may consist of."""

_AUDIT_ROWS = 1000
_WRITTEN = re.compile(
    r".*\.arrow|train\.parquet|state\.json|dataset_info\.json|config\.json|saft_scorer\.safetensors|README\.md"
)
"""What folders in an output folder hold: of a dataset, also those that `map` caches beside it, and of a scorer."""


class FilterResult:
    """A filtered dataset. Kept, removed and errored rows together are exactly the input.

    Args:
        dataset: the input, with its original columns, in its original order.
        scores: `float32 [N]`, NaN where a row has none.
        statuses: the status of each row, [N].
        decisions: the decision and the reason for each row.
        summary: of the fit; what became of the rows is added to it.
        labels: row -> what people said of it, whether that decided it or not.

    Examples:
        >>> result = scorer.filter(train)  # doctest: +SKIP
        >>> len(result.kept) + len(result.removed) + len(result.errored) == len(train)  # doctest: +SKIP
        True
    """

    def __init__(
        self,
        dataset: Dataset,
        scores: NDArray[np.float32],
        statuses: list[str],
        decisions: Decisions,
        summary: Summary,
        labels: Mapping[int, RowLabel] | None = None,
    ) -> None:
        self.dataset = dataset
        self.labels = labels or {}
        self.scores = scores
        self.statuses = statuses
        self.decisions = decisions
        self.demonstrations: Dataset | None = None
        self.summary = replace(
            summary,
            rows=len(dataset),
            kept=len(decisions.kept),
            removed=len(decisions.removed),
            errored=len(decisions.errored),
            reasons=decisions.reason_counts(),
        )

    @classmethod
    def load(cls, folder: str | Path, dataset: Dataset) -> Self:
        """Load what `save` saved, beside the rows that were filtered.

        Args:
            folder (`str` or `Path`): holds `audit.parquet` and `saft_summary.json`.
            dataset (`Dataset`): the rows, in the order in which they were filtered.

        Returns:
            The result, without demonstrations that were mixed in: `demonstrate` does so again.

        Raises:
            SAFTInputError: the files are damaged, or these are not the rows that were filtered.
            OSError: a file is missing, or cannot be read.
        """
        folder = Path(folder)
        audit, text = read_audit(folder / AUDIT), (folder / SUMMARY_FILE).read_text(encoding="utf-8")
        try:
            summary = from_plain(Summary, json.loads(text))
        except ValueError as error:
            raise SAFTInputError(f"{folder / SUMMARY_FILE} is damaged ({error}): filter again.") from error
        on_error = summary.provenance.options.get("on_error") if summary.provenance else None
        decisions = replace(audit.decisions, train_on_errored=on_error == "keep")
        summary = replace(summary, demonstrations=Demonstrations())
        result = cls(dataset, audit.scores, audit.statuses, decisions, summary, audit.labels)
        found = result._digests
        if found != audit.digests:
            other = next((i for i, (a, b) in enumerate(zip(found, audit.digests, strict=False)) if a != b), None)
            what = f"{len(found)} rows" if other is None else f"another row {other} (of {len(found)} rows)"
            raise SAFTInputError(
                f"{folder / AUDIT} is about {len(audit.digests)} rows, and the dataset has {what}: give the rows "
                "that were filtered, in the same order and with the same columns."
            )
        return result

    def __repr__(self) -> str:
        counts = ", ".join(f"{word}={count}" for word, count in self.decisions.counts().items())
        shown = self.summary.demonstrations
        mixed = f", demonstrations={shown.rows} ({shown.share:.1%} of the kept)" if shown.rows else ""
        return f"FilterResult(rows={len(self.dataset)}, {counts}{mixed})"

    @property
    def kept_indices(self) -> NDArray[np.int64]:
        """Rows of the input that are kept, ascending, `int64`."""
        return self.decisions.kept

    @property
    def removed_indices(self) -> NDArray[np.int64]:
        """Rows of the input that are removed, ascending, `int64`."""
        return self.decisions.removed

    @property
    def errored_indices(self) -> NDArray[np.int64]:
        """Rows of the input that could not be scored, ascending, `int64`."""
        return self.decisions.errored

    @cached_property
    def kept(self) -> Dataset:
        """The kept rows, in the order and with the columns of the input."""
        return self.dataset.select(self.kept_indices)

    @cached_property
    def removed(self) -> Dataset:
        """The removed rows. They are the ones taken for harmful: handle them with care."""
        return self.dataset.select(self.removed_indices)

    @cached_property
    def errored(self) -> Dataset:
        """The rows without a score; the audit says why."""
        return self.dataset.select(self.errored_indices)

    def train_rows(self) -> Dataset:
        """The rows to train on: `kept`, and with `on_error="keep"` the errored ones in their places.

        Where nothing is filtered this, like `kept`, is the input itself, rows without a score too. Demonstrations
        stand among them.
        """
        rows = self.decisions.train_rows()
        kept = self.dataset if len(rows) == len(self.dataset) else self.dataset.select(rows)
        return interleaved(kept, self.demonstrations)

    def demonstrate(
        self,
        demonstrations: Dataset | str,
        share: float = DEMONSTRATIONS_SHARE,
        *,
        text_field: str = "text",
        formatted: bool = False,
        token: str | None = None,
    ) -> None:
        """Mix safe answers to harmful requests into the rows to train on, spread evenly.

        They are no rows of the input: `kept` has none of them, and counts, shares and certificates are not about them.

        Args:
            demonstrations ([`~datasets.Dataset`] or `str`): rows with `prompt` and `completion`, or `messages`, or with
                the columns of the input; a Hub id, folder or file of such; or `built-in`, which ship with the package.
                They are laid out as the input's rows are.
            share (`float`, *optional*, defaults to 0.03): how many, as a share of the kept rows.
            text_field (`str`, *optional*, defaults to `text`): the input's column of plain text.
            formatted (`bool`, *optional*, defaults to `False`): whether a `formatting_func` makes text of the rows.
            token (`str`, *optional*): for a private dataset.

        Raises:
            SAFTInputError: there is none, they cannot be laid out so, or the share is none.

        Examples:
            >>> result.demonstrate("built-in", share=0.1)  # doctest: +SKIP
        """
        kept = len(self.decisions.train_rows())
        how: dict[str, Any] = {"text_field": text_field, "formatted": formatted, "token": token}
        self.demonstrations, told = demonstrations_for(self.dataset, kept, demonstrations, share, **how)
        self.summary = replace(self.summary, demonstrations=told)

    def log_warnings(self, rows: str = "rows") -> None:
        """Say what counts alone do not: which rows went unjudged and what became of them, what else the score follows.

        Args:
            rows: what they are called.
        """
        errored = self.decisions.reason_counts()["errored"]
        log_unscored(errored, len(self.decisions), rows, kept=self.decisions.train_on_errored)
        for warning in self.summary.warnings:
            logger.warning("%s", warning)

    def save(
        self,
        folder: str | Path,
        *,
        file_format: Literal["arrow", "parquet"] = "parquet",
        overwrite: bool = False,
        save_removed: bool = False,
    ) -> Path:
        """Save the rows to train on, audit, summary and card, in one step: all of them, or what was there stays.

        Args:
            folder (`str` or `Path`): made where it is missing. `kept/` holds the dataset for `load_dataset`
                (and `trl sft`), `audit.parquet` a line for each input row (see `saft_hf.decide.write_audit`; no text),
                `saft_summary.json` the counts and the digests of the others, `README.md` a card, and `scores.png`
                (with `saft-hf[plots]`) a picture of the scores. A `review.html` of a former result goes.
            file_format (`str`, *optional*, defaults to `parquet`): of `kept/`; `arrow` is for `load_from_disk`.
            overwrite (`bool`, *optional*, defaults to `False`): replace these in a folder that is not empty and holds
                no result. A former result is replaced in any case, and other files stay.
            save_removed (`bool`, *optional*, defaults to `False`): save the removed rows too, in `removed/`, with
                `saft_row` (the audit's `row_index`), `saft_score` and `saft_reason`. Handle them with care.

        Returns:
            The folder.

        Raises:
            SAFTInputError: `file_format` is unknown, or the folder is somebody else's.
            OSError: the folder cannot be written, or the disk is full; existing files stay whole.
        """
        with saving(Path(folder), RESULT, file_format, overwrite=overwrite) as draft:
            self.write(draft, file_format, save_removed=save_removed)
        return Path(folder)

    def write(
        self, folder: Path, file_format: Literal["arrow", "parquet"] = "parquet", *, save_removed: bool = False
    ) -> None:
        """Write what `save` saves into a new folder, file by file."""
        self.write_scores(folder)
        rows = self.train_rows()
        save_rows(rows, folder / KEPT, file_format)
        if save_removed:
            save_rows(self._removed_with_reasons(), folder / REMOVED, file_format)
        write_local_card(
            folder,
            rows,
            f"{KEPT}/*.{file_format}",
            self.scores,
            self.summary,
            removed_rows=f"{REMOVED}/" if save_removed else None,
        )

    def write_scores(self, folder: Path) -> None:
        """Write audit and summary alone, where no decision was taken: no rows to train on."""
        self.save_audit(folder / AUDIT)
        write_json(folder / SUMMARY_FILE, self.summary.to_dict())

    def _removed_with_reasons(self) -> Dataset:
        chosen = self.removed_indices
        reasons = [self.decisions.reasons[row] for row in chosen]
        added = {"saft_row": chosen, "saft_score": self.scores[chosen], "saft_reason": reasons}
        plain = self.removed.remove_columns([name for name in self.dataset.column_names if name in added])
        joined: Dataset = concatenate_datasets([plain, Dataset.from_dict(added)], axis=1)
        return joined

    def save_audit(self, path: str | Path) -> AuditDigests:
        """Write the audit alone: a line for each input row, see `saft_hf.decide.write_audit`; no text.

        Its digest and those of the rows go into `summary.provenance`, and the provenance into the file's metadata.

        Args:
            path: the parquet file; its folder must exist.

        Returns:
            Digests of the rows that came in, of those that are kept, and of the decisions.
        """
        digests, self.summary = self._write_audit(Path(path), self.summary)
        return digests

    def review(
        self,
        path: str | Path,
        *,
        marks: str | Path | None = None,
        by: str | None = None,
        rows: int = 100,
        every_row: bool = False,
        seed: int = 0,
    ) -> Path:
        """Write a page on which people look at what was removed and kept, and mark rows.

        The page is one HTML file that works from disk and loads nothing: scores, numbers at other thresholds, the
        highest rows, the nearest to the threshold, random ones, errored ones. A row's text is hidden until it is
        clicked. Marks are saved by the page as JSON lines, for `filter(marks=...)` and, in the shell, as labels of a
        fit or of a certificate.

        Args:
            path (`str` or `Path`): of the HTML file. It holds the text of rows that may be harmful: in the `output_dir`
                of a trainer, which is pushed whole, put it into `_saft/`.
            marks (`str` or `Path`, *optional*): a file that an earlier page saved: shown, and what it says of rows
                drawn at random bounds the harmful share of what is kept.
            by (`str`, *optional*): the column that rows are filtered by at first; by default that of the filter, or
                `source`.
            rows (`int`, *optional*, defaults to 100): rows of each table, at most.
            every_row (`bool`, *optional*, defaults to `False`): put all rows into the page.
            seed (`int`, *optional*, defaults to 0): of the rows drawn at random.

        Returns:
            The path.

        Raises:
            SAFTInputError: the marks are of other rows, or an argument is not what it must be.
            OSError: the file cannot be written; what was there stays.

        Examples:
            >>> result.review("review.html")  # doctest: +SKIP
        """
        page = review_page(
            Reviewed(
                rows=partial(rows_at, self.dataset),
                scores=self.scores,
                statuses=self.statuses,
                decisions=self.decisions,
                labels=self.labels,
                summary=self.summary,
                input_sha256=sha256("".join(self._digests).encode()).hexdigest(),
            ),
            marks=() if marks is None else read_marks(marks),
            by=by,
            size=rows,
            every_row=every_row,
            seed=seed,
        )
        with replacing(Path(path)) as (file,):
            file.write(page.encode())
        return Path(path)

    @cached_property
    def _digests(self) -> list[str]:
        return [row_digest(row) for batch in self._batches() for row in batch]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        config_name: str | None = None,
        split: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        num_shards: int | None = None,
        source: str | None = None,
        include_indices: bool = False,
        include_removed: bool = False,
    ) -> CommitInfo:
        """Push the rows to train on, with a card that says what was filtered and how.

        All of it is one commit: rows as parquet, the card merged into an existing one, counts, a picture of the
        scores (with `saft-hf[plots]`), and in a private repository the audit. Other splits and configurations stay,
        pushing the same again changes nothing, and what a failed push left out is kept on this machine.

        Args:
            repo_id (`str`): `user/name`, made where it is missing.
            config_name (`str`, *optional*): configuration; by default that of the input.
            split (`str`, *optional*): by default that of the input, else `train`.
            private (`bool`, *optional*): by default a new repository is private, an existing one stays what it is.
                True: it must be private. False: a new one is public.
            revision (`str`, *optional*): branch; made where it is missing.
            token (`str`, *optional*): by default the one that is logged in.
            commit_message (`str`, *optional*): of the commit.
            create_pr (`bool`, defaults to `False`): open a pull request instead.
            num_shards (`int`, *optional*): parquet files; by default one for each 500 MB.
            source (`str`, *optional*): Hub id of the dataset that was filtered, `user/name` or `user/name@revision`.
            include_indices (`bool`, defaults to `False`): the audit goes to a public repository too: indices, digests
                and scores of all rows.
            include_removed (`bool`, defaults to `False`): the removed rows go too, into a folder of their own; only to
                a private repository.

        Returns:
            The commit; with `create_pr` also the pull request.

        Raises:
            SAFTInputError: the repository is public and may not have this, or its card cannot be merged.
            SAFTHubError: the Hub refuses, or is not reached. The message says where the files are and how to push them.
            OSError: the files cannot be written; nothing was pushed.

        Examples:
            >>> result.push_to_hub("me/filtered", source="me/rows")  # doctest: +SKIP
        """
        rows = self.train_rows()
        place = PushedSplit.of(rows, repo_id, config_name, split, source or self.summary.source)
        shown = replace(self.summary, source=place.source, dataset_repo=repo_id)

        def write(folder: Path) -> None:
            private_folder = folder / PRIVATE
            private_folder.mkdir()
            # The audit's metadata is read by others too: no name of a folder here.
            _, summary = self._write_audit(private_folder / f"audit-{place.name}.parquet", shown.public())
            if include_removed:
                self.removed.with_format(None).to_parquet(private_folder / f"removed-{place.name}.parquet")
            place.write(folder, rows, num_shards, self.scores, summary, removed_rows=include_removed)

        to = Destination(repo_id, "dataset", revision, token, private, commit_message, create_pr, audit=include_indices)
        pushed = push_files(write, to, place.name)
        self.summary = shown
        return pushed

    def _write_audit(self, path: Path, summary: Summary) -> tuple[AuditDigests, Summary]:
        """Write the audit; return the summary with the digests in its provenance."""
        known = summary.provenance

        def described(digests: AuditDigests, audit: str | None = None) -> Provenance | None:
            return known and replace(
                known,
                input_rows=len(self.dataset),
                input_sha256=digests.input_sha256,
                kept_sha256=digests.kept_sha256,
                demonstrations_sha256=digests.demonstrations_sha256,
                audit_sha256=audit,
            )

        def metadata(digests: AuditDigests) -> Mapping[str, str]:
            # The file's own digest cannot be in it.
            return {"saft_hf": json.dumps(to_plain(described(digests)), sort_keys=True)} if known else {}

        shown = [] if self.demonstrations is None else self.demonstrations.to_list()
        columns = (self.scores, self.statuses, self.decisions, self.labels)
        digests = write_audit(path, self._batches(), *columns, demonstrations=shown, metadata=metadata)
        with path.open("rb") as file:
            audit = file_digest(file, "sha256").hexdigest()
        return digests, replace(summary, provenance=described(digests, audit))

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        total = len(self.dataset)
        for first in range(0, total, _AUDIT_ROWS):
            yield rows_at(self.dataset, range(first, min(first + _AUDIT_ROWS, total)))


def rows_at(dataset: Dataset, positions: Sequence[int]) -> list[dict[str, Any]]:
    """Rows as the audit's digests are made of: column -> value, nothing decoded."""
    found: list[dict[str, Any]] = dataset.with_format(None).select(list(positions)).to_list()
    return found


def log_unscored(statuses: Mapping[str, int], total: int, rows: str, *, kept: bool) -> None:
    """Say how many rows have no score, why, and whether they are trained on; nothing where all have one.

    Args:
        statuses: why not -> how many.
        total: all rows.
        rows: what they are called.
        kept: whether they are trained on.
    """
    if statuses:
        logger.warning(
            "%d of %d %s could not be scored (%s) and are %s; `on_error=%r` (`saft_on_error` of a trainer) %s.",
            sum(statuses.values()),
            total,
            rows,
            ", ".join(f"{status}: {count}" for status, count in statuses.items()),
            "trained on all the same" if kept else "left out",
            "exclude" if kept else "keep",
            "leaves them out" if kept else "keeps them",
        )


@contextmanager
def saving(folder: Path, names: Sequence[str], file_format: str, *, overwrite: bool) -> Iterator[Path]:
    """Make a new folder to fill, for `replacing_folder`, where the folder is ours to write in.

    Raises:
        SAFTInputError: as `check_folder`.
    """
    check_folder(folder, names, file_format, overwrite=overwrite)
    with replacing_folder(folder, names) as draft:
        yield draft


def check_folder(folder: Path, names: Sequence[str], file_format: str, *, overwrite: bool) -> None:
    """Refuse a folder in which somebody else's files would be replaced.

    Args:
        folder: for a result.
        names: what will be replaced in it.
        file_format: in which rows are to be saved.
        overwrite: whether files of others may be replaced.

    Raises:
        SAFTInputError: the folder is not empty and holds no result, a folder in it holds more than we wrote, or the
            format is unknown.
    """
    if file_format not in ("arrow", "parquet"):
        raise SAFTInputError(f"`file_format` must be 'arrow' or 'parquet', not {file_format!r}.")
    found = sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))
    if overwrite or not found:
        return
    ours = any((folder / mark).is_file() for mark in (SUMMARY_FILE, f"{SCORER}/saft_scorer.safetensors"))
    inside = [path for name in names for path in (folder / name).rglob("*")]
    strange = [str(path.relative_to(folder)) for path in inside if not _WRITTEN.fullmatch(path.name)]
    if strange or not ours:
        raise SAFTInputError(
            f"{folder} holds files that are no result of saft_hf ({', '.join((strange or found)[:3])}): name another "
            f"folder, or say `overwrite=True`, which replaces {', '.join(names)} and leaves the rest."
        )


def save_rows(rows: Dataset, folder: Path, file_format: Literal["arrow", "parquet"]) -> None:
    """Write a dataset into a new folder.

    Args:
        rows: the dataset.
        folder: is made; the one above it must exist.
        file_format: `parquet`: for `datasets.load_dataset`, as the split `train`; `arrow`: for `load_from_disk`.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    if file_format == "arrow":
        rows.save_to_disk(str(folder))
        return
    folder.mkdir()
    with (folder / "train.parquet").open("wb") as file:
        rows.with_format(None).to_parquet(file)
