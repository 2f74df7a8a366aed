"""A reference of several sources and a pool, from the demo's rows: enough rows of each class for a probe."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from saft_hf.assets import demo_rows_path

ENDS = ("", " Please.", " Thanks.")
SOURCES = ("first.jsonl,licence=mit", "second.jsonl", "general.jsonl,harmful=false")
HARMFUL, POOL = 40, 220


def _varied(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row three times, the last request with other endings."""
    made = []
    for end in ENDS:
        for row in rows:
            turns = [dict(turn) for turn in row["messages"]]
            [turn for turn in turns if turn["role"] == "user"][-1]["content"] += end
            made.append({"messages": turns, "is_safe": row["is_safe"]})
    return made


def write_probe_rows(folder: Path) -> None:
    """Write the sources, and a pool without labels whose column `kind` says which rows are harmful."""
    rows = [json.loads(line) for line in demo_rows_path().read_text().splitlines()]
    random.Random(0).shuffle(rows)
    bad, good = ([row for row in rows if row["is_safe"] == safe] for safe in (False, True))
    pool = [*bad[80:], *good[300:]]
    assert (len(bad[80:]), len(pool)) == (HARMFUL, POOL)
    parts = {
        "first": _varied(bad[:40]) + _varied(good[:60]),
        "second": _varied(bad[40:80]) + _varied(good[60:120]),
        "general": [{"messages": row["messages"]} for row in good[120:300]],
        "pool": [{"messages": row["messages"], "kind": "good" if row["is_safe"] else "bad"} for row in pool],
    }
    for name, lines in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
