"""Reference sets as users name them: datasets, Hub ids, files, lists of these, or a scorer fitted on some."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import numpy as np
from datasets import Dataset
from huggingface_hub import constants, try_to_load_from_cache
from numpy.typing import NDArray

from saft_hf.columns import Layout
from saft_hf.decide import resolve_label_column, row_digest
from saft_hf.distributed import World
from saft_hf.embed import Embedded, rows_digest
from saft_hf.errors import SAFTInputError
from saft_hf.hub import Repository, with_retries
from saft_hf.named import NamedDataset
from saft_hf.names import did_you_mean
from saft_hf.render.rows import CHAT_COLUMNS, FORMATTED_COLUMN, OPTION_COLUMNS, TOKEN_COLUMNS, check_columns
from saft_hf.scorer.artifact import TENSORS_FILE
from saft_hf.scorer.inputs import check_dataset
from saft_hf.scorer.labels import labelled_rows, read_column
from saft_hf.summary import LICENCE, SourceInfo

T = TypeVar("T")
R = TypeVar("R")

_CONTENT = (*CHAT_COLUMNS, *TOKEN_COLUMNS, *OPTION_COLUMNS, FORMATTED_COLUMN)
_MAPPED = ("prompt", "completion", "messages", "text")
_HUB_SECONDS = 30.0
_COMMIT = r"[0-9a-f]{40}"
_UNSHOWN = re.compile(r"[^\w ./,()+-]")


@dataclass(frozen=True)
class ReferenceSource:
    """Labelled rows of one source, for `reference=`.

    In the shell, and wherever a string will do, it is `PATH,key=value,...`, such as
    `PKU-Alignment/BeaverTails,split=30k_train` or `tatsu-lab/alpaca,prompt=instruction+input,completion=output,
    harmful=false`, where columns of the source stand on the right.

    Attributes:
        path (`str` or `Dataset`): Hub id, folder or file, or the rows themselves.
        name (`str`, *optional*): for cards and summaries; by default the Hub id, or the name of the file.
        config (`str`, *optional*): configuration of a Hub dataset.
        split (`str`, *optional*, defaults to `train`): which split.
        revision (`str`, *optional*): commit, branch or tag of a Hub dataset, or of a fitted scorer.
        label_column (`str`, *optional*): as in `SAFTScorer.fit`.
        harmful_value (*optional*): as in `SAFTScorer.fit`.
        harmful (`bool`, *optional*): what every row is, where no column says so.
        columns (`dict`, *optional*): columns of the source -> `prompt`, `completion`, `messages` or `text`; several of
            one name are joined by an empty line. Other columns that rows are read from are dropped then. Without it a
            `response` beside a `prompt` is the completion.
        licence (`str`, *optional*): for cards.

    Examples:
        >>> ReferenceSource("PKU-Alignment/BeaverTails", split="30k_train", licence="cc-by-nc-4.0").split
        '30k_train'
    """

    path: str | Path | Dataset
    name: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    label_column: str | None = None
    harmful_value: str | int | bool | None = None
    harmful: bool | None = None
    columns: Mapping[str, str] | None = None
    licence: str | None = None

    @classmethod
    def of(cls, given: Any) -> Self:
        """A source from what a user may give.

        Raises:
            SAFTInputError: it is nothing that rows can be read from, or an option is unknown.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, Dataset | Path):
            return cls(given)
        if isinstance(given, str):
            given = _options(given)
        if not isinstance(given, Mapping) or not isinstance(given.get("path"), str | Path | Dataset):
            raise SAFTInputError(
                "`reference` must be a Dataset, a Hub id, a folder, a file, a `ReferenceSource`, a mapping with `path`,"
                f" or a list of these; found {type(given).__name__}. Make a Dataset of it, such as with "
                "`Dataset.from_list(rows)` or `Dataset.from_pandas(frame)`, or name one split of a `DatasetDict`."
            )
        known = [each.name for each in fields(cls)]
        if unknown := [str(key) for key in given if key not in (*known, *_MAPPED)]:
            hint = did_you_mean(unknown[0], {"a source of `reference`": [*known, *_MAPPED]})
            raise SAFTInputError(
                f"`reference` {given['path']}: there is no option {unknown[0]!r}; there are {known}, and {_MAPPED} for "
                f"columns. {hint}".strip()
            )
        options = {key: value for key, value in given.items() if key in known}
        mapped = {name: ours for ours in _MAPPED if ours in given for name in str(given[ours]).split("+")}
        if mapped:
            options["columns"] = {**(options.get("columns") or {}), **mapped}
        if isinstance(harmful := options.get("harmful"), str):
            if harmful not in ("true", "false"):
                raise SAFTInputError(f"`reference` {given['path']}: `harmful` must be true or false, not {harmful!r}.")
            options["harmful"] = harmful == "true"
        return cls(**options)

    def __str__(self) -> str:
        return self.name or ("a Dataset" if isinstance(self.path, Dataset) else str(self.path))


ReferenceInput: TypeAlias = Dataset | str | Path | Mapping[str, Any] | ReferenceSource
"""One source, as users may give it."""


@dataclass(frozen=True)
class FittedReference:
    """A saved scorer that was named as the reference, at the commit that it is now where it is on the Hub."""

    path: str
    revision: str | None


@dataclass(frozen=True)
class ReferenceRows:
    """Labelled rows of other sources, in the user's order; unlabelled and repeated ones are left out.

    Attributes:
        sources: what may be told of each source.
        parts: the rows of each, as they are, without the label column.
        harmful: `bool [m]` for each.
        own: how many of them are the user's: the built-in ones come after.
        few: whether the user's are too few for a probe of their own.
    """

    sources: tuple[SourceInfo, ...]
    parts: tuple[Dataset, ...]
    harmful: tuple[NDArray[np.bool_], ...]
    own: int = 0
    few: bool = False


def read_reference(
    reference: ReferenceInput | Sequence[ReferenceInput], world: World, *, token: str | None = None
) -> ReferenceRows | FittedReference:
    """Read a reference set. Collective: every process must be given the same, and reads the same.

    Args:
        reference: a `Dataset`, a Hub id, a folder or file, a `ReferenceSource` (or a mapping or string of its options),
            or a list of these; or a folder or Hub id of a fitted scorer.
        world: the processes.
        token: for private repositories.

    Raises:
        SAFTInputError: a source cannot be read, or its labels cannot; or by them all rows are harmful, or all benign.
            The message names the source.
        SAFTHubError: there is no such repository, no access to it, or no way to the Hub.
    """
    with world.sync_errors("reading the reference"):
        given = reference if isinstance(reference, list | tuple) else [reference]
        if not given:
            raise SAFTInputError("`reference` is an empty list: name a source, or leave it out.")
        sources = _each(ReferenceSource.of, given)
        fitted = [found for source in sources if (found := _as_scorer(source, token))]
        if fitted and len(sources) > 1:
            raise SAFTInputError(
                f"`reference` {fitted[0].path} is a fitted scorer: it stands alone, without other sources."
            )
        read = fitted[0] if fitted else _read(sources, token)
    digests = [source.digest for source in read.sources] if isinstance(read, ReferenceRows) else [read.revision]
    world.same_on_all_ranks(lambda: {"reference": digests})
    return read


def _each(function: Callable[[T], R], sources: Sequence[T]) -> list[R]:
    """Apply a function to each source; an error says which of several it is about."""
    found = []
    for number, source in enumerate(sources, 1):
        try:
            found.append(function(source))
        except SAFTInputError as error:
            which = f" This is source {number} of {len(sources)}." if len(sources) > 1 else ""
            raise SAFTInputError(f"{error}{which}") from error
    return found


def outside(reference: Embedded, pool: Embedded) -> NDArray[np.bool_]:
    """Reference rows whose tokens, responses too, are those of no row of the pool, `bool [m]`."""
    seen = {key.tobytes() for key in pool.survey.identities[pool.survey.usable]}
    own = reference.survey
    return np.array([not (ok and key.tobytes() in seen) for key, ok in zip(own.identities, own.usable, strict=True)])


class _Named(NamedDataset):
    shown: ClassVar[Mapping[str, str]] = {name: f"`{name}`" for name in ("config", "revision", "split")}


def _options(text: str) -> dict[str, Any]:
    """The options in `PATH,key=value,...`; the name of a file may have commas."""
    if Path(text).expanduser().exists():
        return {"path": text}
    path, *options = text.split(",")
    pairs = [option.partition("=") for option in options]
    if wrong := [option for option, pair in zip(options, pairs, strict=True) if not pair[1]]:
        raise SAFTInputError(
            f"`reference` {path}: options are `key=value`, with commas between them, found {wrong[0]!r}"
        )
    return {"path": path, **{key.strip(): value for key, _, value in pairs}}


def _as_scorer(source: ReferenceSource, token: str | None) -> FittedReference | None:
    """The saved scorer that is there; None where rows are."""
    if isinstance(source.path, Dataset):
        return None
    named = _Named(str(source.path))
    if named.path.is_dir():
        return FittedReference(str(source.path), None) if (named.path / TENSORS_FILE).is_file() else None
    if not named.is_on_hub:
        return None
    if constants.HF_HUB_OFFLINE:
        file = try_to_load_from_cache(named.name, TENSORS_FILE, revision=source.revision)
        return FittedReference(named.name, Path(file).parent.name) if isinstance(file, str) else None
    where = Repository(named.name, "model", source.revision, token)

    def look() -> str | None:
        if not where.api.file_exists(named.name, TENSORS_FILE, revision=source.revision):
            return None
        return where.api.model_info(named.name, revision=source.revision).sha

    commit = with_retries(look, where, seconds=_HUB_SECONDS)
    return FittedReference(named.name, commit) if commit else None


def _read(sources: Sequence[ReferenceSource], token: str | None) -> ReferenceRows:
    loaded = _each(lambda source: _load(source, token), sources)
    votes: dict[str, Counter[bool]] = {}
    for part in loaded:
        for key, harmful in zip(part.keys, part.harmful.tolist(), strict=True):
            votes.setdefault(key, Counter())[harmful] += 1
    infos, rows, labels = [], [], []
    for part, name in zip(loaded, _unique([part.name for part in loaded]), strict=True):
        kept, harmful = [], []
        for row, key in enumerate(part.keys):
            vote = votes.pop(key, Counter())
            if vote[True] != vote[False]:  # the first of equal rows stands for all; none where labels are at odds
                kept.append(row)
                harmful.append(vote[True] > vote[False])
        if not kept:
            raise SAFTInputError(
                f"`reference` {name}: each of its {part.read} rows has no label, or stands in a source before it, or "
                "equal rows are labelled the other way as often. Leave it out."
            )
        rows.append(part.rows.select(kept))
        labels.append(np.array(harmful, dtype=np.bool_))
        infos.append(
            SourceInfo(
                name=name,
                digest=hashlib.sha256(rows_digest(rows[-1]).encode() + labels[-1].tobytes()).hexdigest(),
                rows=part.read,
                harmful=sum(harmful),
                benign=len(harmful) - sum(harmful),
                unlabelled=part.read - len(part.rows),
                duplicates=len(part.rows) - len(kept),
                revision=part.revision,
                licence=part.licence,
            )
        )
    said = any(source.harmful is not None for source in sources)
    if not said and not all(sum(getattr(info, kind) for info in infos) for kind in ("harmful", "benign")):
        found = "; ".join(f"{info.name}: {info.harmful} harmful, {info.benign} benign" for info in infos)
        raise SAFTInputError(
            f"`reference` needs harmful rows and benign ones ({found}): see whether its labels are read the right way "
            "round (`label_column`, `harmful_value`), add a source of the other kind, or say `harmful=true` or "
            "`harmful=false` of a source where all of it is."
        )
    return ReferenceRows(tuple(infos), tuple(rows), tuple(labels), len(rows))


@dataclass(frozen=True)
class _Loaded:
    """The labelled rows of one source, repeated ones too, with digests of what they hold."""

    name: str
    revision: str | None
    licence: str | None
    read: int
    rows: Dataset
    harmful: NDArray[np.bool_]
    keys: list[str]


def _load(source: ReferenceSource, token: str | None) -> _Loaded:
    rows, revision, name = source.path, None, "rows"
    if isinstance(rows, Dataset):
        if idle := [key for key in ("config", "split", "revision") if getattr(source, key) is not None]:
            raise SAFTInputError(f"`reference` {source}: `{idle[0]}`: without effect on rows that are loaded already.")
    else:
        named = _Named(str(rows), source.split or "train", source.config, source.revision, token=token).pinned()
        rows, revision = named.load(), named.revision
        if named.is_on_hub and constants.HF_HUB_OFFLINE:
            revision = _commit_of_copy(rows, source)
        name = named.name if named.is_on_hub else named.path.name  # its folder is nobody else's
    try:
        if source.licence is not None and not re.fullmatch(LICENCE, source.licence):
            raise SAFTInputError(
                f"`licence` is at most 80 letters, digits, spaces and . / , ( ) + -, such as 'CC BY 4.0'; found "
                f"{source.licence[:100]!r}."
            )
        check_dataset(rows)
        read, rows = len(rows), rows.with_format(None)
        if source.harmful is None:
            column = resolve_label_column(rows.column_names, source.label_column)
            rows = rows.select(labelled_rows(rows, column))
            if not len(rows):
                raise SAFTInputError(
                    f"none of its {read} rows has a label in column {column!r}: fill it in, or name another "
                    "`label_column`; or say with `harmful` what all of them are."
                )
            harmful = read_column(rows, column, source.harmful_value)
            rows = rows.remove_columns(column)
        elif source.label_column is None and source.harmful_value is None:
            harmful = np.full(read, source.harmful)
        else:
            raise SAFTInputError("`harmful` is for all rows, beside it no column is read: leave one of them out.")
        rows = _mapped(rows, source.columns)
        try:
            check_columns(rows.column_names, FORMATTED_COLUMN, formatted=False)
        except SAFTInputError as error:
            how = "`prompt=COLUMN` and `completion=COLUMN`, in Python `columns={COLUMN: 'prompt', ...}`"
            raise SAFTInputError(f"{error} Or say which columns they are: {how}.") from error
        keys = [row_digest(row) for row in rows.select_columns([n for n in rows.column_names if n in _CONTENT])]
    except SAFTInputError as error:
        raise SAFTInputError(f"`reference` {source}: {error}") from error
    return _Loaded(source.name or name, revision, source.licence, read, rows, harmful, keys)


def _commit_of_copy(rows: Dataset, source: ReferenceSource) -> str | None:
    """The commit of the copy of a Hub dataset on this machine, by which `datasets` names its folder.

    Offline it takes the newest copy, whatever the revision.

    Raises:
        SAFTInputError: another commit was asked for.
    """
    names = {Path(file["filename"]).parent.name for file in rows.cache_files}
    commit = next((name for name in names if re.fullmatch(_COMMIT, name)), None)
    if source.revision is not None and re.fullmatch(_COMMIT, source.revision) and source.revision != commit:
        raise SAFTInputError(
            f"`reference` {source}: `revision` is {source.revision}, and the copy on this machine is of commit "
            f"{commit}: unset HF_HUB_OFFLINE to fetch the other, or leave `revision` out."
        )
    return commit


def _mapped(rows: Dataset, columns: Mapping[str, str] | None) -> Dataset:
    """The rows with their columns named as SFTTrainer names them."""
    names = rows.column_names
    if not columns:
        response = "prompt" in names and "completion" not in names and "response" in names
        return rows.rename_column("response", "completion") if response else rows
    if missing := [name for name in columns if name not in names]:
        raise SAFTInputError(f"there is no column {missing[0]!r}; found {names}.")
    if wrong := [ours for ours in columns.values() if ours not in _MAPPED]:
        raise SAFTInputError(f"columns can be named {', '.join(_MAPPED)}, not {wrong[0]!r}.")
    rows = rows.remove_columns([name for name in names if name in _CONTENT and name not in columns])
    theirs = {ours: ",".join(name for name, each in columns.items() if each == ours) for ours in _MAPPED}
    rows = Layout(theirs["prompt"] or None, theirs["completion"] or None).apply(rows)
    return rows.rename_columns({theirs[ours]: ours for ours in ("messages", "text") if theirs[ours]})


def _unique(names: Sequence[str]) -> list[str]:
    """Names that a card can show, different ones."""
    shown = [re.sub(_UNSHOWN, "_", name)[-80:] for name in names]
    return [
        name if shown.count(name) == 1 else f"{name} ({shown[: at + 1].count(name)})" for at, name in enumerate(shown)
    ]
