"""A new readout is one entry of the table: it is planned, read, stored and looked up like the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from models import VOCAB, tiny_model
from test_fill import extractor, tokenizer

from saft_hf.distributed import World
from saft_hf.embed import Features, RowReader, readouts_of, survey_dataset
from saft_hf.embed.survey import SAMPLE, survey_renderings
from saft_hf.errors import SAFTInputError
from saft_hf.render import MEAN, READOUTS, START, Readout, Renderer
from saft_hf.render.readouts import MeanOf, OneToken, Pooling
from saft_hf.status import RowStatus

FIRST, LAST_TWO = "response_first", "response_last_two"
TOYS: dict[str, tuple[Pooling, bool]] = {
    FIRST: (OneToken(lambda spans: spans[-1][0]), True),
    LAST_TWO: (MeanOf(lambda spans: ((spans[-1][1] - 2, spans[-1][1]),)), False),
}
PROMPT = 3


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    for name, (pooling, needs_boundary) in TOYS.items():
        entry = Readout(name, "a toy", sees_response=True, needs_boundary=needs_boundary, pooling=pooling)
        monkeypatch.setitem(READOUTS, name, entry)
    return tuple(TOYS)


def rows_of(count: int) -> Dataset:
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, VOCAB, int(draw.integers(PROMPT + 2, 20))).tolist() for _ in range(count)]
    masks = [[0] * PROMPT + [1] * (len(row) - PROMPT) for row in ids]
    return Dataset.from_dict({"input_ids": ids, "completion_mask": masks})


def test_a_toy_readout_is_read_stored_and_looked_up(tmp_path: Path, toys: tuple[str, ...]) -> None:
    rows, features = rows_of(40), Features((1, 2), (*toys, START))
    made = extractor(tmp_path, features)
    embedded = made.embed(rows)
    assert embedded.survey.status_counts(toys) == {RowStatus.OK: 40}
    assert readouts_of(features.names) == (*toys, START)
    model = tiny_model("llama")
    for row, ids in enumerate(rows["input_ids"]):
        with torch.no_grad():
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in features.layers:
            states = hidden[layer][0].numpy()
            expected = {FIRST: states[PROMPT], LAST_TWO: states[-2:].mean(axis=0), START: states[PROMPT - 1]}
            for readout, vector in expected.items():
                result = embedded.states(f"{layer}.{readout}")[row]
                np.testing.assert_allclose(result, vector, rtol=0, atol=1e-4, err_msg=readout)
    made = replace(made, open_backbone=lambda: pytest.fail("all vectors are in the store"))
    vectors, statuses = RowReader(made, embedded.store)(rows[:7], features.names)
    assert statuses == [RowStatus.OK] * 7
    assert all(np.array_equal(vectors[name], embedded.states(name)[:7]) for name in features.names)


def test_a_toy_readout_says_which_rows_have_it_and_which_are_equal(toys: tuple[str, ...]) -> None:
    labels = [None, [-100, -100, 7, 8], [-100, -100, 7, 9]]
    plain, answer, other = Renderer(tokenizer())({"input_ids": [[5, 6, 7, 8]] * 2 + [[5, 6, 7, 9]], "labels": labels})
    assert plain.status_for(FIRST) is RowStatus.NO_RESPONSE_START
    assert plain.status_for(LAST_TWO) is answer.status_for(FIRST) is RowStatus.OK
    assert answer.needed((FIRST,)) == 4
    assert answer.needed((START,)) == 2
    assert answer.key((FIRST,)) != other.key((FIRST,))
    assert answer.key((START,)) == other.key((START,))
    assert answer.prompt_key() == other.prompt_key() != plain.prompt_key()
    assert survey_renderings([plain, answer], (FIRST,)).usable.tolist() == [False, True]


def test_an_unknown_readout_is_refused() -> None:
    with pytest.raises(SAFTInputError, match=r"response_start.*not 'response_first'"):
        Features((1,), (FIRST,))


def test_a_survey_keeps_samples_and_prompts_on_request() -> None:
    rows, renderer = rows_of(SAMPLE + 100), Renderer(tokenizer())
    whole = survey_dataset(rows, renderer, (MEAN,), World(), sample=True, prompts=True)
    drawn = np.random.default_rng(0).choice(len(rows), SAMPLE, replace=False)
    assert set(whole.sample) == set(drawn.tolist())
    row = int(drawn[0])
    assert whole.sample[row].input_ids.tolist() == rows[row]["input_ids"]
    assert whole.prompts is not None
    prompts = [tuple(ids[:PROMPT]) for ids in rows["input_ids"]]
    assert len({key.tobytes() for key in whole.prompts}) == len(set(prompts))
    small = survey_dataset(rows, renderer, (MEAN,), World())
    assert not small.sample
    assert small.prompts is None


@pytest.mark.parametrize("size", [2, 3])
def test_processes_gather_one_survey(size: int) -> None:
    rows, renderer = rows_of(SAMPLE + 100), Renderer(tokenizer())
    whole = survey_dataset(rows, renderer, (MEAN,), World(), sample=True, prompts=True)
    parts: list[object] = []

    class OneOf(World):
        rank = property(lambda self: self._rank)  # type: ignore[assignment]
        size = property(lambda self: size)  # type: ignore[assignment]
        is_main = property(lambda self: False)  # type: ignore[assignment]

        def __init__(self, rank: int) -> None:
            self._rank = rank

        def gather(self, value: object) -> list[object]:  # type: ignore[override]
            if value is None:
                return [None] * size
            parts.append(value)
            return parts

    for rank in range(size - 1):
        with pytest.raises(AssertionError):  # the other parts are not there yet
            survey_dataset(rows, renderer, (MEAN,), OneOf(rank), sample=True, prompts=True)
    joined = survey_dataset(rows, renderer, (MEAN,), OneOf(size - 1), sample=True, prompts=True)
    assert np.array_equal(joined.keys, whole.keys)
    assert np.array_equal(joined.lengths, whole.lengths)
    assert joined.prompts is not None
    assert np.array_equal(joined.prompts, whole.prompts)
    assert joined.sample.keys() == whole.sample.keys()
