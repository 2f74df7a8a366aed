"""A batch of rows -> renderings."""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from saft_hf.errors import SAFTInputError
from saft_hf.render.batches import Columns, LazyRow, Rows
from saft_hf.render.chat import ROW_ERRORS, ChatEncoder, common_prefix, describe, encode_each
from saft_hf.render.probes import DIALOGUES, NO_CLOCK, PROBES
from saft_hf.render.readouts import Spans
from saft_hf.render.rendering import RenderConfig, Rendering, TokenIds
from saft_hf.render.rows import (
    CHAT_COLUMNS,
    FORMATTED_COLUMN,
    OPTION_COLUMNS,
    TOKEN_COLUMNS,
    Chat,
    Plain,
    Rejected,
    Row,
    Tokens,
    check_columns,
    read_row,
)
from saft_hf.status import RowStatus


class Renderer:
    """Turns rows of any shape that SFTTrainer takes into the tokens that SFTTrainer trains on.

    Shapes: `messages`; `conversations` (from/value or role/content); `prompt` and `completion`, plain or
    conversational; a column of text; `input_ids` with `labels`, `completion_mask`, `assistant_masks` or
    nothing. `tools` and `chat_template_kwargs` are read from each row; a chat template of a row's own, which SFTTrainer
    would run, is refused. Where a row fits several shapes,
    SFTTrainer's order of precedence holds: it reads `messages` before what `formatting_func` returns. A row
    that cannot be rendered gets a status, and changes no other row.

    Two things are wider than in SFTTrainer: role/content messages under `conversations` are read, and a null
    value counts as a missing column. TRL 1.10 ends plain text with the end token only where the column is
    named `text`; later versions, and this class, do so whatever its name.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): never changed. Of a processor, pass `processor.tokenizer`.
        config (`RenderConfig`, *optional*): maximum length in tokens, truncation mode and text column.
        chat_template (`str`, *optional*): a Jinja template, or the name of one of the tokenizer's, in place
            of the tokenizer's own.
        formatting_func (`Callable`, *optional*): row -> text, as SFTTrainer takes it.

    Raises:
        SAFTInputError: `tokenizer` is not a tokenizer.

    Examples:
        ```python
        renderer = Renderer(AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B"))
        row = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
        rendering = renderer({"messages": [row]})[0]
        start, end = rendering.spans[-1]
        ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: RenderConfig | None = None,
        *,
        chat_template: str | None = None,
        formatting_func: Callable[[Any], str] | None = None,
    ) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise SAFTInputError(
                f"tokenizer is a {type(tokenizer).__name__}; expected a transformers tokenizer. "
                "If it is a processor, pass processor.tokenizer."
            )
        self.tokenizer = tokenizer
        self.config = config or RenderConfig()
        self.chat_template = chat_template
        self.formatting_func = formatting_func

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> list[Rendering]:
        """Render a batch.

        Args:
            batch: column -> values, one for each row, as `Dataset.map(batched=True)` gives it in any format. Not
                changed.

        Returns:
            One `Rendering` for each row, in order. What a row becomes does not depend on the other rows.

        Raises:
            SAFTInputError: the columns fit no shape or hold images; or the tokenizer lacks the chat template,
                or the end token, that the rows need.
        """
        rows = self._rows(batch if isinstance(batch, Columns) else Columns(batch))
        encoded: dict[int, Tokens | Rejected] = {}
        chats = {i: row for i, row in enumerate(rows) if isinstance(row, Chat)}
        plain = {i: row for i, row in enumerate(rows) if isinstance(row, Plain)}
        limit = self.config.max_length if self.config.truncation_mode == "keep_start" else None
        encoder = ChatEncoder(self.tokenizer, self.chat_template, limit)
        encoded |= zip(chats, encoder(list(chats.values())), strict=True)
        encoded |= zip(plain, self._encode_plain(list(plain.values())), strict=True)
        encoded |= {i: row for i, row in enumerate(rows) if isinstance(row, Tokens | Rejected)}
        return [self._finish(encoded[i]) for i in range(len(rows))]

    def template_digest(self, readouts: Sequence[str]) -> str:
        """SHA-256 (hex) of the tokens that template and tokenizer make of a few fixed rows, as `readouts` see them.

        Of dialogues with calls of tools, content in parts or many turns it is the whole text that the template makes.
        Templates that differ in text alone, such as one with `{% generation %}` markers added for training, count as
        the same. Equal in every process and on every day. The padding token, which SFTTrainer sets where it is
        missing, is left out.

        Args:
            readouts: what is read of each row: `response_start` sees the tokens before the last response, the others
                all of them, and where the responses are.
        """
        tokenizer = self.tokenizer
        if tokenizer.is_fast:
            model = json.loads(tokenizer.backend_tokenizer.to_str())
            for changed_by_calls in ("truncation", "padding"):
                model.pop(changed_by_calls, None)
        else:
            added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
            model = [type(tokenizer).__name__, tokenizer.get_vocab(), added]
        parts = [model, bool(getattr(tokenizer, "split_special_tokens", False)), self._probe(readouts)]
        return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def _probe(self, readouts: Sequence[str]) -> list[str]:
        """What each of the fixed rows becomes: its status, and what decides its vectors; then the text of dialogues."""
        results = []
        for row in PROBES:
            template = self._timeless(row.get("tools"))
            renderer = Renderer(self.tokenizer, RenderConfig(max_length=None), chat_template=template)
            try:
                (rendering,) = renderer({name: [value] for name, value in row.items()})
            except SAFTInputError:  # no template, or no end token: rows that need one say so when they come
                results.append("refused")
            else:
                results.append(f"{rendering.status} {rendering.key(readouts).hex()}")
        for messages, options in DIALOGUES:
            template = self._timeless(options.get("tools"))
            for some, prompted in ((messages, False), (messages[:-1], True)) if template else ():
                try:
                    text = self.tokenizer.apply_chat_template(
                        some, chat_template=template, tokenize=False, add_generation_prompt=prompted, **options
                    )
                except ROW_ERRORS:
                    text = "refused"
                results.append(str(text))
        return results

    def _timeless(self, tools: Any) -> str | None:
        """The template for rows with or without tools, on the same day forever; None where there is none."""
        try:
            return NO_CLOCK + str(self.tokenizer.get_chat_template(self.chat_template, tools))
        except ValueError:  # conversations are refused, plain rows need none
            return None

    def columns(self, names: Iterable[str]) -> list[str]:
        """Those of a dataset's columns that decide what its rows become: all of them with a `formatting_func`."""
        return list(names) if self.formatting_func is not None else self._own_columns(names)

    def reads(self, dataset: Dataset) -> Rows:
        """What to render of a dataset, batch by batch: other columns than those that decide are not loaded.

        Raises:
            SAFTInputError: the columns fit no shape or hold images.
        """
        names = dataset.column_names
        check_columns(names, self.config.text_field, formatted=self.formatting_func is not None)
        return Rows(dataset.select_columns(self.columns(names)))

    @cached_property
    def _vocab_size(self) -> int:
        return int(max(self.tokenizer.get_vocab().values(), default=-1)) + 1

    def _own_columns(self, names: Iterable[str]) -> list[str]:
        read = {*CHAT_COLUMNS, *TOKEN_COLUMNS, *OPTION_COLUMNS, self.config.text_field}
        return [name for name in names if name in read]

    def _rows(self, batch: Columns) -> list[Row]:
        check_columns(batch, self.config.text_field, formatted=self.formatting_func is not None)
        names = self._own_columns(batch)
        columns = [batch[name] for name in names]
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        if self.formatting_func is None or "input_ids" in names:
            return [self._read(row) for row in rows]
        return [self._format(batch, i, rows[i] if names else {}) for i in range(batch.num_rows)]

    def _format(self, batch: Columns, number: int, row: dict[str, Any]) -> Row:
        assert self.formatting_func is not None  # noqa: S101 - asked before
        try:
            # Values that it does not ask for are not decoded; what it writes stays with it.
            text = self.formatting_func(ChainMap({}, LazyRow(batch, number)))  # type: ignore[arg-type] # not written to
        except ROW_ERRORS as error:
            return Rejected(RowStatus.BAD_ROW, f"formatting_func raised {describe(error)}")
        read = self._read({**row, FORMATTED_COLUMN: text})
        if isinstance(read, Rejected) and not isinstance(text, str):
            found = f"formatting_func returned a {type(text).__name__}; it takes one row, and must return one string"
            return Rejected(RowStatus.BAD_ROW, found)
        return read

    def _read(self, row: dict[str, Any]) -> Row:
        vocab_size = self._vocab_size if "input_ids" in row else 0  # to count it takes longer than many a row
        return read_row(row, self.config.text_field, self.tokenizer.eos_token, vocab_size)

    def _encode_plain(self, rows: list[Plain]) -> list[Tokens | Rejected]:
        prompts = {i: row.prompt for i, row in enumerate(rows) if row.prompt is not None}
        fulls = self._tokenize([row.text for row in rows])
        heads = dict(zip(prompts, self._tokenize(list(prompts.values())), strict=True))
        return [_place(full, heads.get(i)) for i, full in enumerate(fulls)]

    def _tokenize(self, texts: list[str]) -> list[TokenIds | Rejected]:
        def encode(some: list[str]) -> list[TokenIds]:
            return [np.array(ids, np.int32) for ids in self.tokenizer(text=some)["input_ids"]]

        return encode_each(encode, texts, RowStatus.BAD_ROW)

    def _finish(self, row: Tokens | Rejected) -> Rendering:
        if isinstance(row, Rejected):
            return Rendering.failed(row.status, row.detail)
        ids, spans = _truncate(row.input_ids, row.spans, self.config)
        if not spans:
            return Rendering.failed(
                RowStatus.TRUNCATED,
                f"{len(row.input_ids)} tokens, cut to {self.config.max_length} "
                f"({self.config.truncation_mode}): no token of the response is left",
            )
        return Rendering(ids, spans, row.boundary, RowStatus.OK)


def _place(full: TokenIds | Rejected, head: TokenIds | Rejected | None) -> Tokens | Rejected:
    if isinstance(full, Rejected):
        return full
    if isinstance(head, Rejected):
        return head
    start = 0 if head is None else common_prefix(head, full)
    if start == len(full):
        return Rejected(RowStatus.NO_RESPONSE, "the tokenizer makes no token of the response")
    return Tokens(full, ((start, len(full)),), boundary=head is not None)


def _truncate(ids: TokenIds, spans: Spans, config: RenderConfig) -> tuple[TokenIds, Spans]:
    if config.max_length is None or len(ids) <= config.max_length:
        return ids, spans
    first = len(ids) - config.max_length if config.truncation_mode == "keep_end" else 0
    last = first + config.max_length
    clipped = [(max(start, first) - first, min(end, last) - first) for start, end in spans]
    # A copy, so that a long row's tokens do not stay in memory with the few that are kept.
    return ids[first:last].copy(), tuple(span for span in clipped if span[0] < span[1])
