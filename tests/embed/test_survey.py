"""A survey's columns are what each rendering says for itself, and its keys are plain digests of tokens."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saft_hf.embed.survey import survey_renderings
from saft_hf.render import END, MEAN, READOUTS, START, Rendering
from saft_hf.render.readouts import Spans
from saft_hf.status import RowStatus


@st.composite
def rendering(draw: st.DrawFn) -> Rendering:
    """A row that failed, plain text, or a dialogue; few different tokens, so that rows share them."""
    if draw(st.booleans()):
        return Rendering.failed(draw(st.sampled_from([RowStatus.BAD_ROW, RowStatus.TRUNCATED])), "a reason")
    ids = np.array(draw(st.lists(st.integers(0, 2), min_size=1, max_size=9)), np.int32)
    if draw(st.booleans()):
        return Rendering(ids, ((0, len(ids)),), False, RowStatus.OK)
    edges = sorted(draw(st.sets(st.integers(0, len(ids)), min_size=2, max_size=5)))
    return Rendering(ids, tuple(zip(edges[::2], edges[1::2], strict=False)), True, RowStatus.OK)


def digest(spans: Spans, ids: np.ndarray) -> bytes:
    """The key of a row that is read to its end, written out plainly."""
    numbers = np.array([len(spans), *(edge for span in spans for edge in span)], np.int32)
    return blake2b(numbers.tobytes() + ids.tobytes(), digest_size=16).digest()


@given(rows=st.lists(rendering(), max_size=6), readouts=st.sampled_from([(START,), (MEAN,), (START, END), (END,)]))
def test_columns_are_what_each_row_says(rows: list[Rendering], readouts: tuple[str, ...]) -> None:
    survey = survey_renderings(rows, readouts, prompts=True)
    assert survey.prompts is not None
    for row, each in enumerate(rows):
        is_ok = each.status is RowStatus.OK
        assert survey.keys[row].tobytes() == (each.key(readouts) if is_ok else bytes(16))
        assert survey.identities[row].tobytes() == (each.key(READOUTS) if is_ok else bytes(16))
        assert survey.prompts[row].tobytes() == each.prompt_key()
        assert survey.lengths[row] == each.needed(readouts)
        for readout in readouts:
            assert survey.statuses((readout,))[row] is each.status_for(readout)
    heads = [rows[row].input_ids[: max(0, rows[row].spans[0][0] - 1)].tolist() for row in np.flatnonzero(survey.usable)]
    if survey.prefix is None:
        assert not heads
    else:
        shared = survey.prefix.tolist()
        assert all(head[: len(shared)] == shared for head in heads)
        assert len({tuple(head[: len(shared) + 1]) for head in heads}) > 1 or shared in heads


@given(row=rendering())
@pytest.mark.parametrize("readouts", [(MEAN,), (END,), tuple(READOUTS)])
def test_keys_are_digests_of_spans_and_tokens(row: Rendering, readouts: tuple[str, ...]) -> None:
    """Stores are looked up by them: a change of their bytes would lose every vector that is there."""
    start, end = row.spans[-1] if row.spans else (0, 0)
    assert row.key(iter(readouts)) == digest(row.spans, row.input_ids[:end])
    assert row.key([START]) == blake2b(row.input_ids[:start].tobytes(), digest_size=16).digest()
