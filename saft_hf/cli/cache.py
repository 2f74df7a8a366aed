"""`saft-hf cache ls|rm`: the vectors that are kept on disk."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from saft_hf.embed.cache import LIMIT_VARIABLE, CachedPlan, cached_plans, shrink
from saft_hf.embed.store import default_cache_dir
from saft_hf.errors import SAFTInputError

_LONGEST = 16


def run(argv: Sequence[str]) -> None:
    """List or remove plans: the vectors of one pool, read by one model in one way."""
    parser = argparse.ArgumentParser(
        prog="saft-hf cache",
        description=f"Vectors that are removed are embedded again when they are needed. {LIMIT_VARIABLE}=N in the "
        "environment keeps the folder under N gigabytes: what was not used for longest goes first.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser(
        "ls",
        help="list plans: model, dataset, rows, age, size; the one that was not used for longest first",
    )
    removing = commands.add_parser("rm", help="remove plans")
    removing.add_argument("names", nargs="*", help="as `ls` shows them, or the start of one")
    removing.add_argument("--all", action="store_true", help="remove every plan")
    removing.add_argument("--max_gb", type=float, help="remove what was not used for longest, down to this size")
    for command in (listing, removing):
        command.add_argument("--cache_dir", type=Path, default=default_cache_dir())
    options = parser.parse_args(argv)
    plans = cached_plans(options.cache_dir)
    if options.command == "ls":
        for plan in plans:
            (features, vectors), about = plan.describe(), plan.about()
            names = [_short(about.get(name)) for name in ("model", "dataset")]
            rows, age = about.get("rows", vectors), _age(time.time() - plan.used) if plan.used else "unknown"
            print(f"{plan.name} {names[0]:<16} {names[1]:<16} {rows:>9,} rows {age:>7} ", end="")
            print(f"{plan.size / 1e6:,.1f} MB at {', '.join(features) or '-'}")
        print(f"{len(plans)} plans, {sum(plan.size for plan in plans) / 1e6:,.1f} MB in {options.cache_dir}.")
        return
    if [bool(options.names), options.all, options.max_gb is not None].count(True) != 1:
        raise SAFTInputError("say what to remove: names as `saft-hf cache ls` shows them, `--all`, or `--max_gb N`.")
    if options.max_gb is not None:
        if options.max_gb < 0:
            raise SAFTInputError(f"`--max_gb` is {options.max_gb}; it must be 0 or more.")
        removed = shrink(options.cache_dir, int(options.max_gb * 1e9), grace_s=0)
    else:
        removed = plans if options.all else [_find(plans, name, options.cache_dir) for name in options.names]
        for plan in removed:
            plan.remove()
    print(f"{len(removed)} removed, {sum(plan.size for plan in removed) / 1e6:,.1f} MB.")


def _short(name: object) -> str:
    """The end of a name, which tells more than the folder that it begins with."""
    text = str(name or "-")
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"


def _age(seconds: float) -> str:
    """How long ago, in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"


def _find(plans: Sequence[CachedPlan], name: str, cache_dir: Path) -> CachedPlan:
    matching = [plan for plan in plans if plan.name.startswith(name)]
    if len(matching) != 1:
        raise SAFTInputError(
            f"{name!r} names {len(matching)} plans in {cache_dir}; `saft-hf cache ls` lists the {len(plans)} there."
        )
    return matching[0]
