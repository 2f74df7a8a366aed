"""Columns of other names or kinds -> those that SFTTrainer reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from datasets import Dataset, Features, IterableDataset, Json, List

from saft_hf.errors import SAFTInputError
from saft_hf.render.rows import CHAT_COLUMNS

Rows = TypeVar("Rows", Dataset, IterableDataset)

_LOOKED_AT = 100


@dataclass(frozen=True)
class Layout:
    """What columns of the input are.

    Attributes:
        prompt: column that becomes `prompt`, or several with commas between: their texts are joined by an empty line.
        response: column that becomes `completion`.
        parse_json: dialogues are JSON text.
    """

    prompt: str | None = None
    response: str | None = None
    parse_json: bool = False

    def apply(self, rows: Rows) -> Rows:
        """The same rows with the columns that SFTTrainer reads; a result of ours, which has them, stays as it is.

        Raises:
            SAFTInputError: a column is not there, or its new name is taken.
        """
        if self.prompt is not None:
            rows = self._renamed(rows, self.prompt, "prompt")
        if self.response is not None:
            rows = self._renamed(rows, self.response, "completion")
        return _parsed(rows) if self.parse_json else rows

    def _renamed(self, rows: Rows, given: str, new: str) -> Rows:
        found = rows.column_names or list(next(iter(rows), {}))
        parts = [given] if given in found else [name.strip() for name in given.split(",")]
        argument = "prompt_column" if new == "prompt" else "response_column"
        if parts == [new] or ({"prompt", "completion"} <= set(found) and not set(parts) & set(found)):
            return rows
        if missing := [name for name in parts if name not in found]:
            raise SAFTInputError(f"`{argument}`: {missing} is not among the columns {found}.")
        if new in found and new not in parts:
            raise SAFTInputError(
                f"`{argument}={given!r}`: the rows have a column {new!r} too, which SFTTrainer would read."
            )
        if len(parts) == 1:
            return rows.rename_column(parts[0], new)

        def joined(*texts: Any) -> dict[str, str]:
            return {new: "\n\n".join(str(text) for text in texts if text not in (None, ""))}

        others = [name for name in parts if name != new]
        return rows.map(joined, input_columns=parts, remove_columns=others)


AS_IS = Layout()


def _parsed(rows: Rows) -> Rows:
    """Rows with dialogues in place of JSON text; null where it is none, which gives the row a status."""
    plain = rows.with_format(None)
    first = list(plain.take(_LOOKED_AT))
    names = [name for name in CHAT_COLUMNS if any(_is_list(row.get(name)) for row in first)]
    if not names:
        if any(isinstance(row.get(name), list) for row in first for name in CHAT_COLUMNS):
            return rows  # what a command of ours wrote is read again
        raise SAFTInputError(
            f"`parse_json`: none of the columns {list(CHAT_COLUMNS)} holds JSON text of a dialogue in the first "
            f"{len(first)} rows; found columns {list(first[0]) if first else []}."
        )

    def parse(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: [_dialogue(value) for value in batch[name]] for name in names}

    features = rows.features and Features({**rows.features, **{name: List(Json()) for name in names}})
    return rows.map(parse, batched=True, features=features)


def _is_list(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("[")


def _dialogue(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        dialogue = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return dialogue if isinstance(dialogue, list) else None
