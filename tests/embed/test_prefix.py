"""Tokens that every row starts with are read once, and every vector stays what it is."""

from __future__ import annotations

from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from models import CONFIGS, LAYERS, VOCAB, dynamic_rope, tiny_model, token_ids
from test_fill import tokenizer

from saft_hf.distributed import World
from saft_hf.embed import prefix as prefixes
from saft_hf.embed.architecture import describe_model, text_config
from saft_hf.embed.backbone import Backbone
from saft_hf.embed.extract import Extractor
from saft_hf.embed.features import Features, read_batch
from saft_hf.embed.plan import make_plan
from saft_hf.embed.prefix import can_share, is_worth_it
from saft_hf.embed.source import ModelSource
from saft_hf.embed.survey import survey_renderings
from saft_hf.render import MEAN, READOUTS, Renderer, Rendering
from saft_hf.status import RowStatus

SHARING = [name for name, config in CONFIGS.items() if can_share(text_config(config()))]
FEATURES = Features((0, 2, LAYERS), tuple(READOUTS))


def rows_after(length: int, count: int = 60) -> Dataset:
    """Rows of two turns that start with the same tokens; some occur twice."""
    draw = np.random.default_rng(0)
    start = draw.integers(3, VOCAB, length).tolist()
    rows = []
    for _ in range(count):
        parts = [draw.integers(3, VOCAB, int(size)).tolist() for size in draw.integers(2, 9, 4)]
        mask = [flag for i, part in enumerate(parts) for flag in [i % 2] * len(part)]
        rows.append({"input_ids": start + list(chain.from_iterable(parts)), "completion_mask": [0] * length + mask})
    return Dataset.from_list([*rows, *rows[:5]])


def extractor(model: Any, folder: Path, *, shares: bool, budget: int = 64) -> Extractor:
    source = ModelSource(model, processing_class=tokenizer())
    renderer, shares_prefix = Renderer(source.tokenizer), None if shares else False
    return source.extractor(
        renderer, FEATURES, folder=folder, world=World(), token_budget=budget, shares_prefix=shares_prefix
    )


def test_every_family_that_shares_is_tried_here() -> None:
    assert {text_config(CONFIGS[name]()).model_type for name in SHARING} == prefixes._FAMILIES
    assert describe_model(tiny_model("llama")).shares_prefix


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3", "gemma3n_text", "gpt_oss", "jamba", "bloom"])
def test_models_that_forget_or_are_not_known_do_not_share(name: str) -> None:
    assert not can_share(text_config(CONFIGS[name]()))


def test_frequencies_that_follow_the_length_do_not_share() -> None:
    assert not can_share(dynamic_rope(CONFIGS["llama"]()))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.smoke if n == "llama" else ()) for n in SHARING])
def test_states_after_a_kept_prefix_are_those_of_the_whole_row(name: str) -> None:
    backbone = Backbone.wrap(tiny_model(name), layers=range(LAYERS + 1))
    ids = token_ids(rows=3, length=30)
    ids[:, :20] = ids[0, :20]
    whole = backbone.read(ids, backbone.layers)
    prefix = ids[0, :20].numpy().astype(np.int32)
    with backbone.reading():
        # The fewer layers come first and last: what is kept of the prefix must reach far enough each time.
        for layers in ([0], [1, 2], range(LAYERS + 1), [0, 1]):
            found = backbone.read(ids[:, 20:], layers, prefix)
            again = backbone.read(ids[:1, 20:], layers, prefix)
            for layer in layers:
                torch.testing.assert_close(found[layer], whole[layer][:, 20:], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(again[layer], whole[layer][:1, 20:], rtol=1e-4, atol=1e-5)
        assert backbone._forward._past is not None
    assert backbone._forward._past is None


@pytest.mark.parametrize("threads", [1, 2])
def test_vectors_are_those_without_sharing(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MIN_SAVED", 100)
    before, model, rows = torch.get_num_threads(), tiny_model("llama"), rows_after(24)
    torch.set_num_threads(threads)
    try:
        plain = extractor(model, tmp_path / "plain", shares=False).embed(rows)
        shared = extractor(model, tmp_path / "shared", shares=True).embed(rows)
    finally:
        torch.set_num_threads(before)
    assert len(plain.plan.prefix) == 0
    assert len(shared.plan.prefix) >= 24
    saved = len(shared.plan.prefix) * plain.plan.num_unique
    assert shared.plan.lengths.sum() == plain.plan.lengths.sum() - saved
    assert shared.plan.digest != plain.plan.digest
    for feature in FEATURES.names:
        one, other = plain.states(feature), shared.states(feature)
        assert np.isfinite(one).all()
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())


def test_a_few_renderings_are_read_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MIN_SAVED", 0)
    rows, model = rows_after(24, 6), tiny_model("llama")
    shared = extractor(model, tmp_path, shares=True)
    renderings = shared.renderer(rows[:])
    found = shared.embed_renderings(renderings)
    with shared.open_backbone() as backbone:
        whole = read_batch(backbone, renderings, FEATURES)
    for feature in FEATURES.names:
        np.testing.assert_allclose(found[feature], whole[feature].numpy(), rtol=1e-4, atol=1e-5)


def test_a_batch_does_not_grow_without_limit_beside_a_long_prefix() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (400, 16), dtype=np.uint8)
    lengths, prefix = np.full(400, 1010, np.int32), np.zeros(1000, np.int32)
    plan = make_plan(keys, lengths, np.ones(400, bool), token_budget=1024, bytes_per_row=64, prefix=prefix)
    assert set(plan.lengths) == {10}
    assert np.diff(plan.batches).max() == 4096 // 1010


TOKENS = st.lists(st.integers(0, 2), max_size=12)


@given(st.lists(st.tuples(TOKENS, st.integers(0, 13), st.booleans()), max_size=6))
def test_the_prefix_is_what_all_rows_start_with_before_a_response(rows: list[tuple[list[int], int, bool]]) -> None:
    renderings, heads = [], []
    for tokens, start, fails in rows:
        start = min(start, len(tokens))
        if fails:
            renderings.append(Rendering.failed(RowStatus.EMPTY_RESPONSE, ""))
            continue
        ids = np.array([*tokens, 9], np.int32)
        renderings.append(Rendering(ids, ((start, len(ids)),), start > 0, RowStatus.OK))
        heads.append(tokens[: max(0, start - 1)])
    found = survey_renderings(renderings, (MEAN,)).prefix
    assert (found is None) == (not heads)
    if found is not None:
        assert found.tolist() == [t[0] for t in takewhile(lambda t: len(set(t)) == 1, zip(*heads, strict=False))]
    # In two parts, as two processes see them.
    whole = survey_renderings(renderings, (MEAN,))
    seen = [survey_renderings(part, (MEAN,)).prefix for part in (renderings[:3], renderings[3:])]
    parts = [part for part in seen if part is not None]
    joined = prefixes.shared_start(*parts) if len(parts) == 2 else parts[0] if parts else None
    assert (joined is None and whole.prefix is None) or np.array_equal(joined, whole.prefix)


def test_only_a_prefix_that_saves_time_is_kept() -> None:
    def worth(prefix: int, length: int, rows: int) -> bool:
        return is_worth_it(prefix, np.full(rows, length, np.int32))

    assert worth(16, 100, 2000)
    assert not worth(15, 20, 2000)
    assert not worth(16, 200, 2000)
    assert not worth(90, 100, 100)
    assert not worth(10**6, 10**6 + 1, 1)
    assert not worth(0, 0, 0)
