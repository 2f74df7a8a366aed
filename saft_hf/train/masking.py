"""`saft_action="mask"`: removed rows stay in the data, and their responses out of the loss."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset, List, Value

from saft_hf.errors import SAFTInputError
from saft_hf.render import Renderer
from saft_hf.result import FilterResult
from saft_hf.status import RowStatus

logger = logging.getLogger(__name__)

MASKED = "saft_masked"
"""Column of the tokens of a row to mask, -100 where they belong to a response; null for a row that is trained on."""

_NOT_TRAINED = -100
_BATCH_ROWS = 1000


def with_masks(result: FilterResult, renderer: Renderer) -> Dataset:
    """The rows to train on, with the removed ones in their places, marked for `masked_labels`.

    A removed row whose response cannot be found, which a person's label decided, is left out. The summary says how many
    rows are masked.

    Args:
        result: of the filter, without demonstrations.
        renderer: turns rows into the tokens that they are trained on.
    """
    rows, removed = result.dataset, result.removed_indices
    read, tokens = renderer.reads(rows), {}
    for first in range(0, len(removed), _BATCH_ROWS):
        batch = removed[first : first + _BATCH_ROWS].tolist()
        for row, each in zip(batch, renderer(read[batch]), strict=True):
            if each.status is RowStatus.OK:
                tokens[row] = _tokens(each.input_ids, each.spans)
    if left_out := len(removed) - len(tokens):
        logger.warning("%d rows have no response that could be masked: they are left out.", left_out)
    result.summary = replace(result.summary, action="mask", masked=len(tokens))
    trained = np.union1d(result.decisions.train_rows(), np.fromiter(tokens, dtype=np.int64))
    marks = [tokens.get(int(row)) for row in trained]
    return rows.select(trained).add_column(MASKED, marks, feature=List(Value("int32")))


def _tokens(input_ids: Any, spans: Any) -> list[int]:
    marked = input_ids.copy()
    for start, end in spans:
        marked[start:end] = _NOT_TRAINED
    return list(marked.tolist())


def masked_labels(example: Mapping[str, Any]) -> dict[str, list[int]]:
    """Labels of a row that TRL prepared, without the response of one that is marked.

    Raises:
        SAFTInputError: TRL made other tokens of it than were scored, so it is not known where its response stands.
    """
    labels, tokens = list(example["labels"]), example[MASKED]
    if tokens is None:
        return {"labels": labels}
    ids = example["input_ids"]
    same = all(token in (found, _NOT_TRAINED) for found, token in zip(ids, tokens, strict=False))
    if len(ids) < len(tokens) or not same:
        raise SAFTInputError(
            "`saft_action='mask'`: SFTTrainer makes other tokens of a row than the ones that were scored, so that its "
            "response cannot be masked. Use `saft_action='remove'`, and please report this."
        )
    # Behind what was scored, which packing may cut or not, there is nothing but the end of the response.
    tokens = [*tokens, *[_NOT_TRAINED] * (len(ids) - len(tokens))]
    pairs = zip(labels, tokens, strict=True)
    return {"labels": [_NOT_TRAINED if token == _NOT_TRAINED else label for label, token in pairs]}


def prepare_masked(prepare: Callable[..., Any], rows: Dataset, how: list[Any]) -> Dataset:
    """TRL's preparation in two steps: tokens and labels, which are masked; then packing, and what comes after.

    A row that is masked as a whole is not dropped, as TRL drops those that are cut to their prompts.

    Args:
        prepare: TRL's `_prepare_dataset`.
        rows: with the column `MASKED`.
        how: its other arguments: tokenizer, options, whether to pack, `formatting_func`, name.
    """
    tokenizer, args, packing, formatting_func, name = how
    first, second = copy.copy(args), copy.copy(args)
    first.shuffle_dataset = first.use_liger_kernel = False  # the latter drops columns
    (first if packing else second).max_length = None  # packing cuts; else rows are cut before they are masked
    labelled = prepare(rows, tokenizer, first, False, formatting_func, name)
    masked = labelled.map(masked_labels, remove_columns=MASKED, num_proc=args.dataset_num_proc)
    return prepare(masked, tokenizer, second, packing, None, name)
