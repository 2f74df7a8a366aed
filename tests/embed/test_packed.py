"""Without padding: where the attention tells rows apart that stand one after the other, nothing else is computed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from models import CONFIGS, LAYERS, VOCAB, tiny_model, token_ids
from test_fill import tokenizer
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from saft_hf.distributed import World
from saft_hf.embed.architecture import text_config
from saft_hf.embed.backbone import Backbone
from saft_hf.embed.features import Features
from saft_hf.embed.forward import Forward
from saft_hf.embed.prefix import can_share
from saft_hf.embed.source import ModelSource
from saft_hf.render import READOUTS, Renderer

FLASH = "flash_for_tests"
NAMES = [name for name, config in CONFIGS.items() if can_share(text_config(config())) and name != "falcon"]
"""Full attention that can be replaced: Falcon's cannot."""
PACKED = {"llama", "mistral_full", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt_neox"}
"""The others keep positions from their attention in some versions, or have experts whose last bits hang on other rows:
they may be given padding."""

LENGTHS = np.array([12, 3, 9, 1])


def attend(
    query: Any, key: Any, value: Any, *, apart: bool, cu_seq_lens_q: Any = None, scaling: float | None = None, **_: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention as flash attention does it: it is told where rows begin, and needs no mask."""
    bounds = cu_seq_lens_q.tolist() if apart and cu_seq_lens_q is not None else [0, query.shape[2]]
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(part[:, :, begin:end] for part in (query, key, value)), is_causal=True, scale=scaling, enable_gqa=True
        )
        for begin, end in pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


@pytest.fixture(params=[True], ids=["apart"])
def flash(request: Any) -> str:
    """The name of an attention that keeps packed rows apart, or does not."""

    def forward(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        return attend(query, key, value, apart=request.param, **options)

    AttentionInterface.register(FLASH, forward)
    AttentionMaskInterface.register(FLASH, lambda *args, **options: None)
    return FLASH


def model_with(attention: str, name: str = "llama") -> Any:
    model = tiny_model(name)
    text_config(model.config)._attn_implementation = attention
    return model


def padded_ids() -> torch.Tensor:
    ids = token_ids(rows=len(LENGTHS), length=int(LENGTHS.max()))
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = 0
    return ids


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.smoke if n == "llama" else ()) for n in NAMES])
def test_states_without_padding_are_those_with_it(name: str, flash: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, layers = padded_ids(), range(LAYERS + 1)
    plain = Backbone.wrap(tiny_model(name), layers=layers).read(ids, layers)
    backbone = Backbone.wrap(model_with(flash, name), layers=layers)
    fed: list[int] = []
    call = Forward.__call__

    def counted(self: Forward, input_ids: torch.Tensor, layers: Any, **options: Any) -> Any:
        fed.append(input_ids.numel())
        return call(self, input_ids, layers, **options)

    packs = backbone._forward.keeps_rows_apart
    monkeypatch.setattr(Forward, "__call__", counted)
    found = backbone.read(ids, layers, lengths=LENGTHS)
    assert packs or name not in PACKED
    assert fed == [LENGTHS.sum() if packs else ids.numel()]
    for layer in layers:
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(found[layer][row, :length], plain[layer][row, :length], rtol=1e-4, atol=1e-5)
            assert not packs or (found[layer][row, length:] == 0).all()


@pytest.mark.parametrize("flash", [False], indirect=True, ids=["mixed"])
def test_an_attention_that_mixes_rows_is_given_padding(flash: str) -> None:
    ids = padded_ids()
    backbone = Backbone.wrap(model_with(flash), layers=[2])
    assert not backbone._forward.keeps_rows_apart
    plain = Backbone.wrap(tiny_model("llama"), layers=[2]).read(ids, [2])[2]
    found = backbone.read(ids, [2], lengths=LENGTHS)[2]
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(found[row, :length], plain[row, :length], rtol=1e-4, atol=1e-5)


def test_positions_that_go_on_are_found_out(flash: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(flash, "gpt2")
    if not Backbone.wrap(model, layers=[2])._forward.keeps_rows_apart:
        pytest.skip("this version of transformers does not give positions to the attention of GPT-2")
    embed = model.transformer.wpe.forward
    monkeypatch.setattr(model.transformer.wpe, "forward", lambda p: embed(torch.arange(p.shape[-1])[None]))
    assert not Backbone.wrap(model, layers=[2])._forward.keeps_rows_apart


def test_other_attention_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forward, "__call__", lambda *args, **options: pytest.fail("no forward is needed"))
    assert not Backbone.wrap(tiny_model("llama"), layers=[2])._forward.keeps_rows_apart


def test_vectors_are_those_with_padding(flash: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[int] = []
    pack = Forward.packed
    monkeypatch.setattr(Forward, "packed", lambda self, *batch: packed.append(batch[2].sum()) or pack(self, *batch))
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, VOCAB, int(draw.integers(4, 40))).tolist() for _ in range(80)]
    rows = Dataset.from_dict({"input_ids": ids, "completion_mask": [[0, 0] + [1] * (len(row) - 2) for row in ids]})
    features = Features((1, LAYERS), tuple(READOUTS))

    def states(model: Any, folder: str) -> dict[str, np.ndarray]:
        source = ModelSource(model, processing_class=tokenizer())
        made = source.extractor(
            Renderer(source.tokenizer), features, folder=tmp_path / folder, world=World(), token_budget=64
        )
        embedded = made.embed(rows)
        assert embedded.plan.padding_share > 0
        assert bool(packed) == (folder == "packed")
        return {feature: embedded.states(feature) for feature in features.names}

    one, other = states(tiny_model("llama"), "plain"), states(model_with(flash), "packed")
    for feature in features.names:
        assert np.isfinite(one[feature]).all()
        np.testing.assert_allclose(other[feature], one[feature], rtol=0, atol=1e-5 * np.abs(one[feature]).max())
