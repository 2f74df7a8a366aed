"""Pushing a folder to the Hub: one commit, that lands once."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError

from saft_hf.errors import SAFTHubError, SAFTInputError
from saft_hf.files import replacing_folder
from saft_hf.hub.merge import merge_cards, metadata_of, without_private
from saft_hf.hub.network import LOG_IN, Repository, with_retries

logger = logging.getLogger(__name__)

CARD = "README.md"
PRIVATE = "saft_private"
"""Folder for what tells of single rows: left out of a public repository."""
REMOVED = f"{PRIVATE}/removed"
"""What the names of files with removed rows start with: never in a public repository."""
AUDIT = "audit.parquet"
"""Of a saved result: indices and digests of its rows, likewise."""
REVIEW = "review.html"
"""Page with the text of rows that may be harmful: never pushed."""
REPORT = "saft_report"
"""Folder for counts and pictures, which everybody may see."""

_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.parquet")
_DATA = (".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".gz", ".zst", ".zip")


@dataclass(frozen=True)
class Destination(Repository):
    """Where a folder goes, and how.

    Attributes:
        private: None: a new repository is private, an existing one stays what it is. True: it must be private. False:
            a new one is public.
        commit_message: by default one that says what is pushed.
        create_pr: open a pull request instead of writing to the branch.
        audit: digests and indices of removed rows go to a public repository too.
    """

    private: bool | None = None
    commit_message: str | None = None
    create_pr: bool = False
    audit: bool = False

    @property
    def again(self) -> str:
        """The options of `saft-hf push` that say the same; never the token."""
        words = [f"--push_to_hub {self.repo_id}", f"--hub_repo_type {self.repo_type}"]
        words += [] if self.private is None else [f"--hub_private {self.private}"]
        words += [] if self.revision is None else [f"--hub_revision {self.revision}"]
        words += ["--hub_create_pr"] * self.create_pr + ["--hub_include_indices"] * self.audit
        return " ".join(words)


def push_folder(folder: str | Path, to: Destination) -> CommitInfo:
    """Push every file of a folder in one commit.

    The card in the folder is merged into an existing one (`merge_cards`); shards of a split that is pushed again are
    replaced all together; every other file stays. Pushing the same again makes no commit. The commit names the one it
    was made for, so that two pushes at once both land, one after the other.

    Args:
        folder: what to push. It is left as it is.
        to: where, and how.

    Returns:
        The commit; with `create_pr` also the pull request.

    Raises:
        SAFTHubError: the Hub refuses, or is not reached in time. The message says where the folder is and how to push
            it again.
        SAFTInputError: the repository is public and must be private, or the existing card cannot be merged.

    Examples:
        >>> push_folder("filtered", Destination("me/rows", "dataset"))  # doctest: +SKIP
    """
    folder = Path(folder)
    try:
        if constants.HF_HUB_OFFLINE:
            raise SAFTHubError("HF_HUB_OFFLINE is set, so nothing was pushed: unset it")
        with_retries(lambda: _make_sure_it_is_there(to), to)
        known = with_retries(lambda: _own_pull_requests(to), to) if to.create_pr else {}
        pushed = with_retries(lambda: _push_once(folder, to, known), to)
    except (SAFTHubError, SAFTInputError) as error:
        raise type(error)(
            f"{error}. Everything is kept in {folder}; push it again with: saft-hf push --folder {folder} {to.again}"
        ) from None
    logger.info("Pushed %s to %s.", folder, pushed.pr_url or pushed.commit_url)
    return pushed


def check_push(to: Destination, *, removed: bool = False) -> None:
    """Refuse, before the work, a push that would be refused after it. Nothing is made or written.

    Args:
        to: where, and how.
        removed: whether removed rows go there.

    Raises:
        SAFTHubError: the Hub is not reached, there is no token, or it may not write.
        SAFTInputError: the repository is public, and may not be.
    """
    if constants.HF_HUB_OFFLINE:
        raise SAFTHubError(f"HF_HUB_OFFLINE is set, so nothing can be pushed to {to}: unset it, or push nothing")
    with_retries(lambda: _check_once(to, removed), to, seconds=30.0)


def _check_once(to: Destination, removed: bool) -> None:
    info = _existing(to)
    me = to.api.whoami()
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise SAFTHubError(f"{to} cannot be written: the token of {me['name']} is read-only. Make one that may write")
    public = to.private is False if info is None else not info.private
    if removed and public:
        raise SAFTInputError(f"{to} is public: rows that were removed go to a private repository only")
    owner = to.repo_id.rpartition("/")[0]
    mine = {"", me["name"], *(each["name"] for each in me.get("orgs", []))}
    if info is None and owner not in mine:
        raise SAFTHubError(f"{to} is not there, and cannot be made: {me['name']} is not a member of {owner!r}")


def push_files(write: Callable[[Path], None], to: Destination, part: str = "") -> CommitInfo:
    """Write files, and push them. They stay on this machine until they are pushed.

    Args:
        write: is given a new folder, and writes the files into it.
        to: where, and how.
        part: names what of the repository this is, where others may be pushed beside it.

    Returns:
        The commit, as `push_folder`.

    Raises:
        SAFTHubError: as `push_folder`: the files are kept.
        OSError: the files cannot be written: nothing was pushed.
    """
    name = "--".join([f"{to.repo_type}s", *to.repo_id.split("/"), *([part] if part else [])])
    folder = Path(constants.HF_HOME) / "saft" / "pushes" / re.sub(r"[^\w.-]", "-", name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(folder) as draft:
        write(draft)
    pushed = push_folder(folder, to)
    shutil.rmtree(folder, ignore_errors=True)
    return pushed


def is_public(to: Destination) -> bool:
    """Whether everybody can read what is pushed there; True too where the Hub cannot tell now."""
    if to.private:
        return False

    def ask() -> bool:
        try:
            return not to.api.repo_info(to.repo_id, repo_type=to.repo_type).private
        except RepositoryNotFoundError:
            return to.private is False

    try:
        return with_retries(ask, to, seconds=10.0)
    except SAFTHubError:
        return True


def _existing(to: Destination) -> Any:
    """What the Hub says of the repository, where this push may go there; None where it has to be made."""
    if to.token is False or not (to.token or get_token()):
        raise SAFTHubError(f"there is no token: {LOG_IN}")
    try:
        info = to.api.repo_info(to.repo_id, repo_type=to.repo_type)
    except RepositoryNotFoundError:
        return None
    if to.private and not info.private:
        raise SAFTInputError(
            f"{to} is public, and `private=True` was asked for: make it private in its settings, name another "
            "repository, or leave `private` out to push what everybody may see"
        )
    return info


def _make_sure_it_is_there(to: Destination) -> None:
    if _existing(to) is None:
        to.api.create_repo(to.repo_id, repo_type=to.repo_type, private=to.private is not False, exist_ok=True)
    if to.revision is not None and not to.revision.startswith("refs/"):
        to.api.create_branch(to.repo_id, branch=to.revision, repo_type=to.repo_type, exist_ok=True)


def _push_once(folder: Path, to: Destination, known: dict[str, str]) -> CommitInfo:
    api, opened = to.api, None
    if to.create_pr and (new := _own_pull_requests(to).items() - known.items()):
        # Opened by a try before this one, whose answer was lost.
        revision, opened = min(new)
        to = replace(to, revision=revision, create_pr=False)
    info = api.repo_info(to.repo_id, repo_type=to.repo_type, revision=to.revision)
    pushed = api.create_commit(
        to.repo_id,
        _operations(folder, to, info),
        commit_message=_message(to),
        repo_type=to.repo_type,
        revision=to.revision,
        create_pr=to.create_pr,
        parent_commit=info.sha,
    )
    if opened is not None:
        pushed.pr_url = opened
        pushed.__post_init__()  # type: ignore[no-untyped-call] # its other fields follow from this one
    return pushed


def _message(to: Destination) -> str:
    return to.commit_message or f"Push a {to.repo_type} with saft_hf"


def _own_pull_requests(to: Destination) -> dict[str, str]:
    """Revision -> page of the open pull requests of this user that have this push's title."""
    me = to.api.whoami()["name"]
    discussions = to.api.get_repo_discussions(to.repo_id, repo_type=to.repo_type)
    return {
        f"refs/pr/{one.num}": one.url
        for one in discussions
        if one.is_pull_request and one.status == "open" and one.title == _message(to) and one.author == me
    }


def _operations(folder: Path, to: Destination, info: Any) -> list[CommitOperationAdd | CommitOperationDelete]:
    files = _files(folder, to, public=not info.private)
    existing = {sibling.rfilename for sibling in info.siblings or ()}
    stems = {found["stem"] for name in files if (found := _SHARD.fullmatch(name))}
    stale = {name for name in existing - set(files) if (found := _SHARD.fullmatch(name)) and found["stem"] in stems}
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for name, path in files.items():
        content = _card(path, to, info, existing, {*files, *stale}) if name == CARD else path
        # Made again for each try: the client notes in them what it has done, and no longer asks what is there.
        operations.append(CommitOperationAdd(name, content))
    return [*operations, *(CommitOperationDelete(name) for name in sorted(stale))]


def _files(folder: Path, to: Destination, *, public: bool) -> dict[str, Path]:
    """Path in the repository -> file; nothing hidden, and nothing that this repository may not have."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {
        name.as_posix(): path
        for name, path in paths.items()
        # `_saft` is where a trainer keeps what tells of single rows, and a page for people has their text.
        if not any(part.startswith(".") or part in ("_saft", REVIEW) for part in name.parts)
    }
    if public and (rows := [name for name in files if name.startswith((REMOVED, "removed/"))]):  # as a result has them
        raise SAFTInputError(f"{to} is public: rows that were removed ({rows[0]}) go to a private repository only")
    if public and not to.audit:
        return {n: path for n, path in files.items() if not n.startswith(f"{PRIVATE}/") and path.name != AUDIT}
    return files


def _card(path: Path, to: Destination, info: Any, existing: set[str], ours: set[str]) -> bytes:
    text = path.read_text(encoding="utf-8")
    if not (info.private or to.audit):
        text = without_private(text)
    before = None
    if CARD in existing:
        there = to.api.hf_hub_download(to.repo_id, CARD, repo_type=to.repo_type, revision=info.sha)
        before = Path(there).read_bytes().decode("utf-8")
    if "configs" in metadata_of(text) and "configs" not in metadata_of(before or ""):
        hidden = sorted(name for name in existing - ours if _is_data(name))
        if hidden:
            raise SAFTInputError(
                f"{to} has data files that no `configs` in its card names ({', '.join(hidden[:3])}): rows that are "
                "pushed beside them would hide them. Push to another repository, or name those files in that card"
            )
    return merge_cards(before, text).encode()


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in _DATA and path.parts[0] not in (REPORT, PRIVATE) and not name.startswith(".")
