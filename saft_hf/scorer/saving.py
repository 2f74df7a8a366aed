"""A fitted scorer in a folder or on the Hub: JSON, safetensors and a card, and back with suspicion."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from huggingface_hub import constants, snapshot_download
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from saft_hf.errors import SAFTArtifactError, SAFTInputError
from saft_hf.files import replacing_folder
from saft_hf.hub import CARD, Destination, Repository, is_public, scorer_card, with_retries
from saft_hf.records import Count, Matching, Name, Share, from_plain
from saft_hf.render import RenderConfig
from saft_hf.scorer.artifact import CONFIG_FILE, TENSORS_FILE, load_artifact, refuse, save_artifact
from saft_hf.scorer.fit import Fit, Layer, Revision
from saft_hf.scorer.labels import LabelledRows
from saft_hf.summary import public_name
from saft_hf.version import __version__

_FETCH_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class SavedOptions:
    """Constructor arguments as a saved scorer has them; the names are those of `TRAVELLING`."""

    revision: Revision | None
    layer: Layer | None
    readout: Name | None
    method: Name | None
    k: Count | None
    threshold: float | None
    contamination: Share | None
    dtype: Annotated[str, Matching(r"auto|b?float(16|32|64|8_\w{1,16})")]
    attn_implementation: Annotated[str, Matching(r"[\w.@:/|-]{1,128}")] | None
    vector_dtype: Name
    max_length: Count | None
    render: RenderConfig


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """A scorer in JSON. What a fit learned is read on its own, with its tensors."""

    saft_hf_version: str
    fit: Any
    score: Any
    options: SavedOptions
    probe: Any = None


def save(folder: Path, fit: Fit, options: dict[str, Any], repo_id: str | None = None) -> None:
    """Write a fitted scorer, in one step.

    Args:
        folder: made where it is missing; other files in it stay.
        fit: the learned state.
        options: constructor arguments, name -> JSON value, those of `TRAVELLING`.
        repo_id: where it is pushed to, for the card.

    Raises:
        SAFTInputError: the scorer holds what none may, such as a column's name with signs that cannot be printed.
        OSError: the folder cannot be written; files that were there stay whole.
    """
    config, tensors = fit.to_parts()
    try:  # now, where the scorer still is, and not where it is loaded
        Fit.from_parts(config, tensors)
        read_options(options)
    except ValueError as error:
        raise SAFTInputError(f"the scorer cannot be saved: {error}.") from error
    with replacing_folder(folder, (CONFIG_FILE, TENSORS_FILE, CARD)) as draft:
        save_artifact(draft, {"saft_hf_version": __version__, **config, "options": options}, tensors)
        (draft / CARD).write_bytes(scorer_card(fit.summary(), repo_id=repo_id).encode())


def load(name_or_path: str | Path, revision: str | None, token: str | None) -> tuple[Fit, dict[str, Any]]:
    """Read what `save` wrote, from a folder or the Hub.

    Returns:
        The learned state and the constructor arguments.

    Raises:
        SAFTArtifactError: a file is missing, damaged, hostile or of an unknown format.
        SAFTHubError: there is no such repository or revision, no access to it, or no way to the Hub.
    """
    folder = fetched(name_or_path, revision, token)
    config, tensors = load_artifact(folder)
    try:
        saved = from_plain(_Saved, config)
        attention = saved.options.attn_implementation or "eager"
        if "/" not in attention and attention not in ("eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()):
            raise ValueError(f"options.attn_implementation: transformers knows no {attention!r}")
        return Fit.from_parts({"fit": saved.fit, "score": saved.score, "probe": saved.probe}, tensors), {
            **vars(saved.options)
        }
    except ValueError as error:
        raise refuse(folder / CONFIG_FILE, str(error)) from error


def read_options(saved: Any) -> dict[str, Any]:
    """Constructor arguments from JSON that holds just these.

    Raises:
        ValueError: a name is missing or unknown, or a value has another type.
    """
    return vars(from_plain(SavedOptions, saved, "options"))


def for_repository(fit: Fit, to: Destination) -> Fit:
    """What of a fit may go to a repository: no folder of this machine, and to a public one no digest of a row."""
    fit = replace(fit, model=public_name(fit.model))
    return replace(fit, labelled=LabelledRows.none()) if is_public(to) else fit


def fetched(name_or_path: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a saved scorer: itself, or where the Hub's copy lies on this machine.

    Only the scorer's own files are fetched, whatever else the repository holds.

    Args:
        name_or_path: a folder, or a Hub id.
        revision: commit, branch or tag.
        token: by default the one that is logged in.

    Raises:
        SAFTArtifactError: the folder holds no scorer, but one inside it or around it does.
        SAFTHubError: there is no such repository or revision, no access to it, or no way to the Hub.
    """
    path = Path(name_or_path)
    if path.exists() and not (path / TENSORS_FILE).exists():
        # Of `saft-hf filter`, of a trainer, and of who names a file.
        for meant in (path / "scorer", path / "_saft" / "scorer", path.parent):
            if (meant / TENSORS_FILE).is_file():
                raise SAFTArtifactError(f"{path} holds no saved scorer, but {meant} does: name that folder.")
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name_or_path)) or path.parts[0] in (".", ".."):
        return path
    where = Repository(str(name_or_path), "model", revision, token)

    def fetch() -> str:
        return snapshot_download(
            where.repo_id,
            revision=revision,
            token=token,
            allow_patterns=[CONFIG_FILE, TENSORS_FILE, CARD],
            local_files_only=constants.HF_HUB_OFFLINE,
        )

    return Path(with_retries(fetch, where, seconds=_FETCH_SECONDS))
