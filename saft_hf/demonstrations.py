"""Demonstrations: safe answers to harmful requests, mixed into the rows that are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Value, concatenate_datasets

from saft_hf.assets import pairs
from saft_hf.errors import SAFTInputError
from saft_hf.named import NamedDataset
from saft_hf.render.rows import CHAT_COLUMNS, IMAGE_COLUMNS, TOKEN_COLUMNS
from saft_hf.summary import DEMONSTRATIONS_SHARE, Demonstrations, public_name

BUILT_IN = "built-in"

_SHAREGPT_ROLES = {"user": "human", "assistant": "gpt"}


def demonstrations_for(
    pool: Dataset,
    kept: int,
    given: Dataset | str,
    share: float = DEMONSTRATIONS_SHARE,
    *,
    text_field: str = "text",
    formatted: bool = False,
    token: str | None = None,
) -> tuple[Dataset, Demonstrations]:
    """Demonstrations for a pool, in its columns and types: the same ones in every process.

    Args:
        pool: the rows that they will stand among.
        kept: how many of these are kept.
        given: rows with `prompt` and `completion`, or `messages`, or with the columns of the pool; the Hub id, folder
            or file of such; or `built-in`.
        share: how many to take, as a share of the kept rows, above 0 and at most 1; at least one is taken. Where there
            are fewer they are repeated, all equally often; where there are more, they are taken from all over the set.
        text_field: the pool's column of plain text.
        formatted: whether a `formatting_func` makes text of the pool's columns.
        token: for a private dataset.

    Returns:
        The rows, and what a summary says of them.

    Raises:
        SAFTInputError: the share is none, there is no demonstration, or they cannot be laid out as the pool is.
    """
    if isinstance(share, bool) or not 0 < share <= 1:
        raise SAFTInputError(f"the share of demonstrations is {share!r}: expected a number above 0 and at most 1.")
    rows = _read(given, token)
    count = max(1, round(share * kept))
    chosen = np.arange(count) * max(len(rows), count) // count % len(rows)
    laid_out = _lay_out(rows, pool, text_field, formatted=formatted)
    told = Demonstrations(
        rows=count,
        different=len(set(chosen.tolist())),
        share=count / max(1, kept),
        source=public_name(given) if isinstance(given, str) else None,
    )
    return laid_out.select(chosen), told


def interleaved(rows: Dataset, demonstrations: Dataset | None) -> Dataset:
    """The rows in their order, with demonstrations spread evenly among them."""
    if demonstrations is None:
        return rows
    count, total = len(demonstrations), len(rows) + len(demonstrations)
    order, shown = np.empty(total, dtype=np.int64), np.zeros(total, dtype=np.bool_)
    shown[((np.arange(count) + 0.5) * total / count).astype(np.int64)] = True
    order[~shown], order[shown] = np.arange(len(rows)), len(rows) + np.arange(count)
    both = concatenate_datasets([rows.with_format(None), demonstrations], info=rows.info, split=rows.split)
    form = rows.format
    return both.select(order).with_format(
        form["type"], form["columns"], form["output_all_columns"], **form["format_kwargs"]
    )


def _read(given: Dataset | str, token: str | None) -> Dataset:
    if isinstance(given, Dataset):
        rows = given
    elif given == BUILT_IN:
        rows = Dataset.from_list([{"prompt": pair.request, "completion": pair.declines} for pair in pairs()])
    else:
        rows = NamedDataset(given, token=token).pinned().load()
    if len(rows) == 0:
        raise SAFTInputError("there is no row in the demonstrations: leave them out, or give some.")
    return rows.with_format(None)


def _lay_out(rows: Dataset, pool: Dataset, text_field: str, *, formatted: bool) -> Dataset:
    """Rows in the columns and types of a pool; what says nothing to SFTTrainer is null.

    Raises:
        SAFTInputError: they cannot be laid out so.
    """
    names, features = pool.column_names, pool.features
    images = [name for name in IMAGE_COLUMNS if name in names]
    tokens = [name for name in TOKEN_COLUMNS if name in names] if "input_ids" in names else []
    as_they_are = names if formatted else tokens
    if images:
        raise SAFTInputError(f"demonstrations are text, and the rows have images (columns {names}): leave them out.")
    if set(as_they_are) - set(rows.column_names):
        why = "read by a `formatting_func`" if formatted else "tokenised already"
        raise SAFTInputError(
            f"the rows are {why}: demonstrations must bring the columns {as_they_are}, and have {rows.column_names}. "
            "Give such a dataset, or leave them out."
        )
    made = [name for name in (*CHAT_COLUMNS, text_field) if name in names and name not in as_they_are and not tokens]
    columns: dict[str, Any] = {name: rows[name][:] if name in as_they_are else [None] * len(rows) for name in names}
    if "chat_template_kwargs" in names:
        columns["chat_template_kwargs"] = [{} for _ in range(len(rows))]  # SFTTrainer unpacks it
    dialogues = [_turns(row) for row in rows] if made else []
    first = pool.with_format(None)[0] if len(pool) else {}
    for name in made:
        columns[name] = [_written(name, turns, features[name], first.get(name)) for turns in dialogues]
    try:
        return Dataset.from_dict(columns, features=features)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise SAFTInputError(
            f"demonstrations do not fit into the columns of the rows ({made or as_they_are}): {error}"
        ) from error


def _turns(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A demonstration as a dialogue, whose last turn is the safe answer."""
    prompt, completion, messages = row.get("prompt"), row.get("completion"), row.get("messages")
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    turns = [*prompt, *completion] if isinstance(prompt, list) and isinstance(completion, list) else messages
    if not (isinstance(turns, list) and turns and all(isinstance(turn.get("content"), str) for turn in turns)):
        raise SAFTInputError(
            f"demonstrations have the columns {list(row)}; expected `prompt` and `completion`, or `messages`, with a "
            "text in each turn."
        )
    return turns


def _written(name: str, turns: list[dict[str, Any]], feature: Any, first: Any) -> Any:
    """A dialogue as the value of a column, in its type and with the roles of its first row."""
    part = {"prompt": turns[:-1], "completion": turns[-1:]}.get(name, turns)
    if isinstance(feature, Value):
        return "\n".join(turn["content"] for turn in part)
    keys = getattr(feature, "feature", None)
    if not isinstance(keys, Mapping):  # dialogues of any form
        keys = ("role", "content")
    if "from" in keys:
        ours = {turn["from"] for turn in first or ()} & set(_SHAREGPT_ROLES)  # no chat template renames roles
        roles = {} if ours else _SHAREGPT_ROLES
        part = [{"from": roles.get(turn["role"], turn["role"]), "value": turn["content"]} for turn in part]
    return [{key: turn.get(key) for key in keys} for turn in part]
