"""Make the demo's labelled conversations. The same seed gives the same bytes."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import frames
import topics

Row = dict[str, Any]

POOL_SEED = 20241014
# kind -> rows in the pool: 120 of 600 are harmful.
POOL = {"harmful": 120, "refusal": 24, "sounds_risky": 36, "benign": 420}


def _answer(rng: Random, sentences: list[str]) -> str:
    chosen = rng.sample(sentences, rng.randint(1, 5))
    form = rng.choice(["prose", "prose", "numbers", "bullets"])
    if form == "numbers":
        body = "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(chosen, 1))
    elif form == "bullets":
        body = "\n".join(f"- {sentence}" for sentence in chosen)
    else:
        return " ".join([rng.choice(frames.OPENINGS), *chosen] if rng.random() < 0.5 else chosen)
    return f"{rng.choice(frames.OPENINGS)}\n{body}"


def _question(rng: Random, task: str, tails: list[str]) -> str:
    lead = rng.choice(frames.LEADS) if rng.random() < 0.3 else ""
    return lead + rng.choice(frames.FRAMES).format(task=task, tail=rng.choice(tails))


def _row(rng: Random, kind: str, keep: slice) -> Row:
    tails = frames.BENIGN_TAILS
    if kind in ("harmful", "refusal"):
        category = rng.choice(sorted(topics.HARMFUL))
        tasks, tails = topics.HARMFUL[category], frames.HARMFUL_TAILS
        sentences = topics.COMPLIANCE if kind == "harmful" else topics.REFUSAL
    elif kind == "sounds_risky":
        category, (tasks, sentences) = kind, topics.SOUNDS_RISKY
    else:
        category = rng.choice(sorted(topics.BENIGN))
        tasks, sentences = topics.BENIGN[category]

    messages = []
    if rng.random() < 0.2:
        messages.append(("system", rng.choice(frames.SYSTEMS)))
    shape = rng.choice(["single", "single", "single", "small_talk", "twice"])
    if shape == "small_talk":
        hello, reply = rng.choice(frames.SMALL_TALK)
        messages += [("user", hello), ("assistant", reply)]
    task, *others = rng.sample(tasks[keep], 2)
    if shape == "twice":  # two requests of the same kind
        messages += [("user", _question(rng, others[0], tails)), ("assistant", _answer(rng, sentences))]
    messages += [("user", _question(rng, task, tails)), ("assistant", _answer(rng, sentences))]
    return {
        "messages": [{"role": role, "content": content} for role, content in messages],
        "is_safe": kind != "harmful",
        "category": category,
    }


def make_rows(seed: int, counts: dict[str, int], keep: slice = slice(None)) -> list[Row]:
    """Draw rows without repeating one.

    Args:
        seed: of the generator; all else follows from it.
        counts: rows of each kind: `harmful` (answered), `refusal` (of a harmful request: safe), `sounds_risky` and
            `benign`.
        keep: which tasks of each list to use.

    Returns:
        Rows with `messages`, `is_safe` and `category`, in random order.
    """
    rng = Random(seed)
    rows: dict[str, Row] = {}
    for kind, count in counts.items():
        wanted = len(rows) + count
        while len(rows) < wanted:
            row = _row(rng, kind, keep)
            rows.setdefault(json.dumps(row), row)
    drawn = list(rows.values())
    rng.shuffle(drawn)
    return drawn


def to_jsonl(rows: list[Row]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def confounds(rows: list[Row]) -> dict[str, float]:
    """AUROC of features that say nothing about harm; near 0.5 when form does not give the label away."""
    features = {
        "prompt characters": lambda m: sum(len(x["content"]) for x in m[:-1]),
        "response characters": lambda m: len(m[-1]["content"]),
        "turns": len,
        "response lines": lambda m: m[-1]["content"].count("\n"),
    }
    harmful = [not row["is_safe"] for row in rows]
    return {name: auroc([f(row["messages"]) for row in rows], harmful) for name, f in features.items()}


def auroc(scores: list[float], positive: list[bool]) -> float:
    """Share of (positive, negative) pairs in the right order; ties count half."""
    up = [s for s, p in zip(scores, positive, strict=True) if p]
    down = [s for s, p in zip(scores, positive, strict=True) if not p]
    return sum((u > d) + 0.5 * (u == d) for u in up for d in down) / (len(up) * len(down))
