"""What lies in a cache folder, and what goes first where it may not grow further."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from saft_hf.errors import SAFTInputError
from saft_hf.files import locked, write_json

logger = logging.getLogger(__name__)

LIMIT_VARIABLE = "SAFT_CACHE_GB"
"""Environment variable: gigabytes that a cache folder may hold; no limit where it is not set."""

_ABOUT = "about.json"
_NAME = re.compile(r"[0-9a-f]{32}")
_IN_USE_S = 3600


@dataclass(frozen=True)
class CachedPlan:
    """The vectors of one pool, read by one model in one way.

    Attributes:
        folder: where its shards are.
        size: bytes.
        used: when it was last written or read, seconds since the epoch; 0 where that cannot be: a time to come.
    """

    folder: Path
    size: int
    used: float

    @property
    def name(self) -> str:
        """What it is called in lists: the start of the names of its model and its plan."""
        return f"{self.folder.parent.name[:8]}-{self.folder.name[:8]}"

    def describe(self) -> tuple[tuple[str, ...], int]:
        """Its features, and how many vectors each has; a damaged shard counts as none."""
        features: set[str] = set()
        rows = 0
        for path in self.folder.glob("[0-9]*.safetensors"):
            try:
                with safe_open(path, framework="numpy") as file:
                    features |= set(file.keys()) - {"keys"}
                    rows += file.get_slice("keys").get_shape()[0]
            except (SafetensorError, OSError) as error:
                logger.warning("The shard %s cannot be read: %s.", path, error)
        return tuple(sorted(features)), rows

    def about(self) -> dict[str, Any]:
        """What `note` wrote: `model`, `dataset`, `rows`; nothing of a plan that nobody noted anything of."""
        try:
            found = json.loads((self.folder / _ABOUT).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def remove(self) -> None:
        """Delete it, but for what a run is writing now. Other files that somebody put there stay."""
        for path in self.folder.glob("[0-9]*.safetensors"):
            path.unlink(missing_ok=True)
        (self.folder / _ABOUT).unlink(missing_ok=True)
        for path in self.folder.glob(".*.tmp"):
            with suppress(OSError), locked(path, alone=True):
                path.unlink()
        for folder in (self.folder, self.folder.parent):
            with suppress(OSError):  # it holds more, or is gone
                folder.rmdir()


def cached_plans(cache_dir: Path) -> list[CachedPlan]:
    """All plans in a cache folder, the one that was not used for longest first."""
    plans, latest = [], time.time() + _IN_USE_S  # clocks of machines that share a disk may differ a little
    for folder in cache_dir.glob("*/*"):
        if _NAME.fullmatch(folder.name) and _NAME.fullmatch(folder.parent.name) and folder.is_dir():
            size = 0
            for path in folder.glob("[0-9]*.safetensors"):
                with suppress(FileNotFoundError):  # another process tidies up, too
                    size += path.stat().st_size
            try:
                used = folder.stat().st_mtime
            except FileNotFoundError:
                continue
            plans.append(CachedPlan(folder, size, used if used <= latest else 0.0))
    return sorted(plans, key=lambda plan: (plan.used, plan.folder))


def touch(folder: Path) -> None:
    """Remember that a plan is in use. A store that belongs to somebody else is only read."""
    if folder.is_dir() and os.access(folder, os.W_OK):
        os.utime(folder)


def note(folder: Path, model: str | None, dataset: str | None, rows: int) -> None:
    """Note for people whose vectors a plan holds, where somebody may write there and nobody has."""
    if os.access(folder, os.W_OK) and not (folder / _ABOUT).exists():
        with suppress(OSError):  # as where the plan is removed just now: no reason to stop a run
            write_json(folder / _ABOUT, {"model": model, "dataset": dataset, "rows": rows})


def limit_from_environment() -> int | None:
    """Bytes that a cache folder may hold, or `None`.

    Raises:
        SAFTInputError: the variable is no number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise SAFTInputError(f"{LIMIT_VARIABLE}={text!r}: give gigabytes as a number, 0 or more, or leave it unset.")
    return int(limit * 1e9)


def shrink(cache_dir: Path, limit: int, *, keep: Collection[Path] = (), grace_s: float = _IN_USE_S) -> list[CachedPlan]:
    """Delete the plans that were not used for longest until the rest takes no more than `limit` bytes.

    Args:
        cache_dir: the cache folder.
        limit: bytes.
        keep: folders of plans that stay.
        grace_s: plans used in the last so many seconds stay, too: another run may be at them.

    Returns:
        What was deleted.
    """
    plans, removed = cached_plans(cache_dir), []
    total, now = sum(plan.size for plan in plans), time.time()
    for plan in plans:
        if total <= limit:
            break
        if plan.folder not in keep and abs(now - plan.used) >= grace_s:
            plan.remove()
            total -= plan.size
            removed.append(plan)
    if removed:
        logger.info("Removed %d old plans from %s: it may hold %.1f GB.", len(removed), cache_dir, limit / 1e9)
    return removed
