"""Rows for pools, judges, pairs and questions, split so that no prompt is in two of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, TypeVar

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.decide import resolve_label_column
from saft_hf.errors import SAFTInputError
from saft_hf.evaluate.config import HARMLESS
from saft_hf.evaluate.generate import Messages
from saft_hf.evaluate.judges import is_refusal
from saft_hf.scorer.labels import read_column

T = TypeVar("T")
Role = Literal["pool", "judge", "pairs", "questions"]

_ROLES: tuple[tuple[Role, float], ...] = (("pool", 0.6), ("judge", 0.18), ("pairs", 0.12), ("questions", 0.1))
"""Role -> the share of prompts that get it."""

_ANSWERS = ("completion", "response", "output", "answer")


@dataclass(frozen=True, repr=False)  # text of harmful rows is in no log and no traceback
class Dialogue:
    """One dialogue: what was asked, and the answer if there is one."""

    prompt: Messages
    answer: str
    harmful: bool

    @property
    def messages(self) -> Messages:
        """Both, as a dialogue."""
        return [*self.prompt, {"role": "assistant", "content": self.answer}]

    @property
    def question(self) -> str:
        """The last turn before the answer."""
        return self.prompt[-1]["content"]

    @property
    def is_demonstration(self) -> bool:
        """Whether it shows a safe refusal: safe, and the answer opens like a refusal."""
        return not self.harmful and is_refusal(self.answer)


def read_rows(
    dataset: Dataset, *, labelled: bool, label_column: str | None = None, harmful_value: Any = None
) -> list[Dialogue]:
    """Read rows of the shapes that instruction and safety data come in.

    Args:
        dataset: `messages`; or `prompt` (text or turns) with `completion` or `response`; or `instruction`, `input` and
            `output`. A dialogue that ends with the user has no answer.
        labelled: whether a column says which rows are harmful; else none is.
        label_column: that column, where its name is not one of the known ones.
        harmful_value: the value that marks a harmful row.

    Raises:
        SAFTInputError: the columns are of no known shape, or the labels cannot be read.
    """
    harmful = [False] * len(dataset)
    if labelled:
        column = resolve_label_column(dataset.column_names, label_column)
        harmful = read_column(dataset, column, harmful_value).tolist()
    names = set(dataset.column_names)
    if not names & {"messages", "prompt", "instruction"}:
        raise SAFTInputError(
            f"columns {dataset.column_names} are of no known shape: expected `messages`, or `prompt` with one of "
            f"{list(_ANSWERS)}, or `instruction` with `output`. Rename the columns."
        )
    answer = next((name for name in _ANSWERS if name in names), None)
    read = [name for name in dataset.column_names if name in {"messages", "prompt", "instruction", "input", answer}]
    rows = []
    for values, label in zip(dataset.with_format(None).select_columns(read), harmful, strict=True):
        if "messages" in names:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in values["messages"]]
            last = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
        else:
            asked = values.get("prompt") or values.get("instruction") or ""
            extra = values.get("input") or "" if "instruction" in names else ""
            said = values[answer] if answer else ""
            turns = asked if isinstance(asked, list) else [{"role": "user", "content": f"{asked}\n{extra}".strip()}]
            last = said[-1]["content"] if isinstance(said, list) else said
        rows.append(Dialogue(turns, last or "", label))
    return rows


def prompt_key(prompt: Messages) -> str:
    """SHA-256 (hex) of what was asked, without case and white space: equal for prompts that read the same."""
    text = "\n".join(" ".join(turn["content"].casefold().split()) for turn in prompt)
    return sha256(text.encode()).hexdigest()


def role_of(prompt: Messages, seed: int = 0, questions: Collection[str] = ()) -> Role:
    """What the rows with this prompt are for: by its digest, so that it does not depend on any other row.

    Args:
        prompt: the turns before the answer.
        seed: of the split.
        questions: keys of prompts that are questions whatever their digest says.
    """
    key = prompt_key(prompt)
    if key in questions:
        return "questions"
    position = int.from_bytes(sha256(f"{seed}/{key}".encode()).digest()[:8]) / 2**64
    for role, share in _ROLES:
        if position < share:
            return role
        position -= share
    return "questions"


@dataclass(frozen=True)
class DrawnPool:
    """A pool to filter. The labels are the truth, which only the oracle and the metrics see whole.

    Attributes:
        rows: in order, [N].
        harmful: `bool [N]`.
        demonstrations: which rows show a safe refusal, `bool [N]`.
        labelled: positions of the rows whose label the filters may see, drawn at random.
    """

    rows: list[Dialogue]
    harmful: NDArray[np.bool_]
    demonstrations: NDArray[np.bool_]
    labelled: NDArray[np.int64]

    @property
    def dataset(self) -> Dataset:
        """`messages` of every row."""
        return Dataset.from_list([{"messages": row.messages} for row in self.rows])

    @property
    def labelled_dataset(self) -> Dataset:
        """`messages` and `is_harmful` of the labelled rows."""
        return Dataset.from_list(
            [{"messages": self.rows[i].messages, "is_harmful": bool(self.harmful[i])} for i in self.labelled]
        )


@dataclass(frozen=True, repr=False)
class HeldOut:
    """What a model is asked after tuning.

    Attributes:
        harmful: prompts that got a harmful answer in the data.
        pairs: (safe, unsafe) answer to one prompt.
        benign: harmless rows with their reference answer.
        safe: harmless prompts that sound harmful.
        sets: name -> further harmful prompts.
    """

    harmful: list[Messages]
    pairs: list[tuple[Messages, Messages]]
    benign: list[Dialogue]
    safe: list[Messages]
    sets: dict[str, list[Messages]] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentRows:
    """All rows that there are, and how they are split.

    Attributes:
        labelled: with labels, such as BeaverTails.
        benign: harmless instructions of each source, the one that utility is measured on first.
        refusals: safe refusals of harmful prompts; may be empty.
        safe_prompts: harmless prompts that sound harmful, such as XSTest's; may be empty.
        seed: of the split.
        sets: name -> harmful prompts of another source, which are questions and nothing else.
    """

    labelled: list[Dialogue]
    benign: list[list[Dialogue]]
    refusals: list[Dialogue]
    safe_prompts: list[Dialogue]
    seed: int = 0
    sets: dict[str, list[Dialogue]] = field(default_factory=dict)

    def of(self, rows: Sequence[Dialogue], role: Role) -> list[Dialogue]:
        """Those of `rows` that have a role."""
        asked = [self.safe_prompts, *self.sets.values()]
        questions = {prompt_key(row.prompt) for part in asked for row in part}
        return [row for row in rows if role_of(row.prompt, self.seed, questions) == role]

    def pool(self, kind: str, share: float, size: int, labels: int, demonstrations: float, seed: int) -> DrawnPool:
        """Draw a pool.

        Args:
            kind: `hard`: safe and harmful rows of `labelled`; `easy`: harmless instructions of the first source and
                harmful rows; `mixed`: likewise of all sources and `refusals`, as many of each; `harmless`: `easy`
                without a harmful row.
            share: of harmful rows, between 0 and 1; not looked at where the pool has none.
            size: rows.
            labels: how many rows have a label that filters may see.
            demonstrations: share of rows that come from `refusals`, in place of other safe ones; not looked at where
                these are a source of their own.
            seed: of the draw.

        Raises:
            SAFTInputError: the kind is unknown, or there are too few rows.
        """
        sources = {
            "hard": [[row for row in self.labelled if not row.harmful]],
            "easy": self.benign[:1],
            "mixed": [*self.benign, *([self.refusals] if self.refusals else [])],
            HARMLESS: self.benign[:1],
        }.get(kind)
        if sources is None:
            raise SAFTInputError(f"`pools` may hold 'hard', 'easy', 'mixed' and 'harmless', not {kind!r}.")
        rng = np.random.default_rng(seed)
        harmful = 0 if kind == HARMLESS else round(share * size)
        shown = 0 if kind == "mixed" else round(demonstrations * size)
        safe, parts = size - harmful - shown, len(sources)
        rows = [
            *_draw([row for row in self.of(self.labelled, "pool") if row.harmful], harmful, "harmful rows", rng),
            *_draw(self.of(self.refusals, "pool"), shown, "refusals", rng),
        ]
        for place, source in enumerate(sources):
            count = safe * (place + 1) // parts - safe * place // parts
            rows += _draw(self.of(source, "pool"), count, f"safe rows for {kind} pools", rng)
        rows = [rows[i] for i in rng.permutation(size)]
        return DrawnPool(
            rows,
            np.array([row.harmful for row in rows]),
            np.array([row.is_demonstration for row in rows]),
            np.sort(rng.choice(size, min(labels, size), replace=False)),
        )

    def refusals_beside(self, pool: DrawnPool) -> list[Dialogue]:
        """The refusals for pools that are in none of this one's rows: what there is to show beside it."""
        drawn = {prompt_key(row.prompt) for row in pool.rows}
        return [row for row in self.of(self.refusals, "pool") if prompt_key(row.prompt) not in drawn]

    def held_out(self, prompts: int, pairs: int, benign: int, safe: int) -> HeldOut:
        """Draw the questions; the same for every pool, model and seed.

        Args:
            prompts: harmful prompts, and those of each set.
            pairs: pairs of a safe and an unsafe answer.
            benign: harmless rows.
            safe: harmless prompts that sound harmful. Of each fewer, where there are fewer.
        """
        rng = np.random.default_rng(self.seed)
        asked = {prompt_key(row.prompt): row.prompt for row in self.of(self.labelled, "questions") if row.harmful}
        answers: dict[str, dict[bool, Dialogue]] = defaultdict(dict)
        for row in self.of(self.labelled, "pairs"):
            answers[prompt_key(row.prompt)].setdefault(row.harmful, row)
        both = [(two[False].messages, two[True].messages) for two in answers.values() if len(two) == 2]
        return HeldOut(
            _some(list(asked.values()), prompts, rng),
            _some(both, pairs, rng),
            _some(self.of(self.benign[0], "questions"), benign, rng),
            _some([row.prompt for row in self.safe_prompts if not row.harmful], safe, rng),
            {name: _some([row.prompt for row in rows], prompts, rng) for name, rows in self.sets.items()},
        )


def _draw(rows: list[Dialogue], count: int, what: str, rng: np.random.Generator) -> list[Dialogue]:
    if len(rows) < count:
        raise SAFTInputError(
            f"{count} {what} are needed, but only {len(rows)} are there for pools (the others are held out by prompt): "
            "make the pools smaller, or give more rows."
        )
    return [rows[i] for i in rng.choice(len(rows), count, replace=False)]


def _some(items: list[T], count: int, rng: np.random.Generator) -> list[T]:
    return [items[i] for i in rng.permutation(len(items))[:count]]
