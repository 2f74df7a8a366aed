"""Every architecture: a model cut and loaded by name, and one read in place, equal the whole one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CONFIGS, LAYERS, VOCAB, save_tiny, tiny_model, token_ids

from saft_hf.embed.architecture import describe_model
from saft_hf.embed.backbone import Backbone
from saft_hf.errors import SAFTInputError

SMOKE = {"llama", "gpt2", "gemma3_text"}
NAMES = [pytest.param(name, marks=pytest.mark.smoke if name in SMOKE else ()) for name in CONFIGS]
# transformers 4 saves a text-only Gemma 3n under names that its text model does not know; `load` refuses it.
UNLOADABLE = {"gemma3n_text"} if int(transformers.__version__.split(".")[0]) < 5 else set()


def whole_model_states(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """The plain way: `output_hidden_states`, and for L what the language-model head is given."""
    given: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    return [s if s.ndim == 3 else s[0] for s in states[:-1]] + given


@pytest.mark.parametrize("name", NAMES)
def test_cut_is_whole_for_every_layer(name: str, tmp_path: Path) -> None:
    model, ids = tiny_model(name), token_ids()
    folder = save_tiny(model, tmp_path)
    whole = whole_model_states(model, ids)
    shape = describe_model(folder)
    assert len(whole) == shape.num_layers + 1

    everything = Backbone.wrap(model, layers=range(len(whole)))
    in_place = everything.read(ids, everything.layers)
    for layer, expected in enumerate(whole):
        torch.testing.assert_close(in_place[layer], expected, rtol=0, atol=1e-6)
    for before, after in pairwise(whole):
        assert before.shape != after.shape or not torch.allclose(before, after, atol=1e-2), "blocks must matter"

    if name in UNLOADABLE:
        with pytest.raises(SAFTInputError, match="no weights"):
            Backbone.load(folder, layers=[1], device="cpu")
        return
    for layer, expected in enumerate(whole):
        cut = Backbone.load(folder, layers=[layer], device="cpu")
        torch.testing.assert_close(cut.read(ids, [layer])[layer], expected, rtol=0, atol=1e-6)
        assert len(cut._blocks) == max(1, layer)
        assert cut.fingerprints[layer] == everything.fingerprints[layer]


@pytest.mark.parametrize("name", NAMES)
def test_right_padding_changes_nothing(name: str) -> None:
    backbone = Backbone.wrap(tiny_model(name), layers=[1, LAYERS])
    lengths, ids = [9, 5, 1], token_ids(rows=3, length=9)
    padded = ids.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 0
    batch = backbone.read(padded, backbone.layers)
    for row, length in enumerate(lengths):
        single = backbone.read(ids[row : row + 1, :length], backbone.layers)
        for layer in backbone.layers:
            torch.testing.assert_close(batch[layer][row, :length], single[layer][0], rtol=1e-4, atol=1e-5)


_LLAMA = Backbone.wrap(tiny_model("llama"), layers=range(LAYERS + 1))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=4),
    padding=st.integers(0, VOCAB - 1),
    layers=st.sets(st.integers(0, LAYERS), min_size=1),
)
def test_rows_do_not_depend_on_their_batch(rows: list[list[int]], padding: int, layers: set[int]) -> None:
    longest = max(map(len, rows))
    batch = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    together = _LLAMA.read(batch, sorted(layers))
    assert set(together) == layers
    for index, row in enumerate(rows):
        alone = _LLAMA.read(torch.tensor([row]), range(LAYERS + 1))
        for layer in layers:
            torch.testing.assert_close(together[layer][index, : len(row)], alone[layer][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "positions"),
    [("gpt2", 128, 64), ("gemma3", 48, None), ("opt", 48, 64), ("bloom", 128, None)],
)
def test_shape_is_read_from_the_config_alone(name: str, width: int, positions: int | None, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.config.save_pretrained(tmp_path)  # a folder without weights
    shape = describe_model(str(tmp_path))
    assert (shape.num_layers, shape.hidden_size, shape.vocab_size) == (LAYERS, 32, VOCAB)
    assert (shape.intermediate_size, shape.max_positions) == (width, positions)
    assert describe_model(model) == shape
