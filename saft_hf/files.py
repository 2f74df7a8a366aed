"""Writing files and folders so that they are either whole or not there."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Open one new file for each path; put them in place together when the block ends without an error.

    Until then they lie under hidden names in the same folders. On any error, Ctrl-C included, they are
    deleted and what was at the paths stays.

    Args:
        paths: files to write or replace. Their folders must exist.

    Yields:
        The open files, in the order of `paths`.

    Raises:
        OSError: a file cannot be written (no permission, disk full, ...): the same subclass and number as the
            system's, with the path.
    """
    drafts = [path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") for path in paths]
    try:
        with ExitStack() as stack:
            files: list[BinaryIO] = [stack.enter_context(draft.open("xb")) for draft in drafts]
            yield files
            for file in files:
                file.flush()
                # A full disk must show before anything is replaced; some file systems tell only here.
                os.fsync(file.fileno())
        for draft, path in zip(drafts, paths, strict=True):
            draft.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        names = ", ".join(str(path) for path in paths)
        # An OSError made from a number takes that number's class, such as PermissionError.
        raise OSError(error.errno, f"{error.strerror}, while writing {names}") from error
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Name a new folder to fill; put it in place of `path` when the block ends without an error.

    Until then it lies under a hidden name beside it. On any error, Ctrl-C included, it is deleted and what was
    at `path` stays.

    Args:
        path: folder to write or replace. Its parent must exist.

    Yields:
        The name of the new folder, which the block makes.
    """
    stem = f".{path.name}.{secrets.token_hex(4)}"
    draft, former = path.with_name(f"{stem}.tmp"), path.with_name(f"{stem}.old")
    try:
        yield draft
        if path.exists():
            path.rename(former)
        draft.rename(path)
    finally:
        if former.exists() and not path.exists():
            former.rename(path)
        for folder in (draft, former):
            shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file: the whole of it, or nothing. The same content gives the same bytes.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    with replacing(path) as (file,):
        file.write((json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())
