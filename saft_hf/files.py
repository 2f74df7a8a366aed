"""Writing files and folders so that they are either whole or not there, and so that nothing hidden stays.

What is being written lies under a hidden name, locked as long as its writer lives: what a killed one left there is
deleted by the next that writes to the same place.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's fcntl.h
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


@contextmanager
def replacing(*paths: Path, durable: bool = True) -> Iterator[list[BinaryIO]]:
    """Open one new file for each path; put them in place together when the block ends without an error.

    Until then they lie under hidden names in the same folders. On any error, Ctrl-C included, they are
    deleted and what was at the paths stays.

    Args:
        paths: files to write or replace. Their folders must exist.
        durable: wait until they are on the disk; not for what carries a digest and can be made again.

    Yields:
        The open files, in the order of `paths`.

    Raises:
        OSError: a file cannot be written (no permission, disk full, ...): the same subclass and number as the
            system's, with the path.
    """
    with _named(*paths), ExitStack() as drafts_of_all:
        drafts = [drafts_of_all.enter_context(new_draft(path, Path.touch, _delete)) for path in paths]
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(draft.open("wb")) for draft in drafts]
            yield files
            for file in files:
                file.flush()
                # A full disk must show before anything is replaced; some file systems tell only here.
                if durable:
                    os.fsync(file.fileno())
        for draft, path in zip(drafts, paths, strict=True):
            draft.replace(path)


@contextmanager
def _named(*paths: Path) -> Iterator[None]:
    """Let errors of the system name what is being written."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        names = ", ".join(str(path) for path in paths)
        # An OSError made from a number takes that number's class, such as PermissionError.
        raise OSError(error.errno, f"{error.strerror}, while writing {names}") from error


@contextmanager
def replacing_folder(path: Path, names: Sequence[str] | None = None) -> Iterator[Path]:
    """Make a new folder to fill; its entries take the place of those at `path` when the block ends without an error.

    All in one step: `path` holds what was there or what is new, whenever the process is killed. On any error, Ctrl-C
    included, what was there stays. A folder that cannot be exchanged for another (a mount point, the working directory,
    some network file systems) is replaced entry by entry: the first of `names` goes first and comes last, so that a
    folder that has it is whole.

    Args:
        path: folder to write or replace; its parents are made.
        names: entries that are replaced, whether the new folder has them or not; others stay. By default all are.

    Yields:
        The new folder.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    path = path.resolve()  # a link stays a link
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = os.access(path.parent, os.W_OK) and not path.is_mount() and not Path.cwd().is_relative_to(path)

    def forget(draft: Path) -> None:
        """Delete a draft, or what it was exchanged for; folders that are not replaced go back to where they were."""
        for entry in draft.iterdir():
            of_others = names is not None and entry.name not in names and not _DRAFT.fullmatch(entry.name)
            if of_others and _is_folder(entry):
                entry.rename(path / entry.name)
        shutil.rmtree(draft, ignore_errors=True)  # what is in use now, the next one deletes

    with new_draft(path if beside else path / path.name, Path.mkdir, forget) as draft:
        yield draft
        for written in draft.rglob("*"):
            if not written.is_dir():
                with _named(path), written.open("rb") as file:
                    os.fsync(file.fileno())
        found = list(path.iterdir()) if path.is_dir() else []
        others = [entry for entry in found if names is not None and entry.name not in names and entry != draft]
        if not (beside and _take_along(others, draft) and _exchange(draft, path)):
            replaced = [entry.name for entry in (*found, *draft.iterdir()) if entry != draft and entry not in others]
            order = sorted(set(replaced), key=(names or [""]).index if names else None)
            for name in order:
                _delete(path / name)
            for name in reversed(order):
                if (draft / name).exists():
                    (draft / name).rename(path / name)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file: the whole of it, or nothing. The same content gives the same bytes.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    with replacing(path) as (file,):
        file.write((json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


@contextmanager
def new_draft(path: Path, make: Callable[[Path], None], forget: Callable[[Path], None]) -> Iterator[Path]:
    """A new file or folder under a hidden name beside `path`; whatever has that name in the end is deleted.

    It is locked as long as its writer lives. What killed ones left there is deleted first.

    Args:
        path: what it is to become.
        make: makes it.
        forget: deletes it, and what killed processes left.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError), locked(left, alone=True):
            forget(left)
    with ExitStack() as stack:
        while True:
            draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            make(draft)
            with suppress(FileNotFoundError):  # a neighbour took it for a killed writer's before it was locked
                stack.enter_context(locked(draft, alone=False))
                if draft.exists():
                    break
        try:
            yield draft
        finally:
            if draft.exists():
                forget(draft)


@contextmanager
def locked(path: Path, *, alone: bool) -> Iterator[None]:
    """Lock a file or folder: as its writer, which the system ends with the process, or to be `alone` with it.

    Raises:
        OSError: it is gone, or its writer lives.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if alone:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            with suppress(OSError):  # a file system without locks: nobody will delete it
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _take_along(entries: Sequence[Path], folder: Path) -> bool:
    """Link files into a folder that will stand where theirs stands; False where that cannot be done."""
    try:
        for entry in entries:
            if not _is_folder(entry):
                os.link(entry, folder / entry.name, follow_symlinks=False)
    except OSError:
        return False
    return True


def _exchange(draft: Path, path: Path) -> bool:
    """Put a folder where another stands, or nothing, in one step; False where the system cannot."""
    try:
        draft.rename(path)
    except OSError:  # a folder that is not empty
        exchange = getattr(ctypes.CDLL(None), "renameat2", None)
        both = (_AT_FDCWD, os.fsencode(draft), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE)
        return exchange is not None and exchange(*both) == 0
    return True


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _delete(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
