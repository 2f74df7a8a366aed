"""A token that the model has no embedding for is read as their mean."""

from __future__ import annotations

import copy

import pytest
import torch
from models import VOCAB, tiny_model, token_ids

from saft_hf.embed.backbone import Backbone


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_added_tokens_are_read_as_if_their_row_held_the_mean(architecture: str) -> None:
    model = tiny_model(architecture)
    grown = copy.deepcopy(model)
    grown.resize_token_embeddings(VOCAB + 1, mean_resizing=False)
    table = grown.get_input_embeddings().weight
    with torch.no_grad():
        table[VOCAB] = model.get_input_embeddings().weight.mean(dim=0)
    ids = token_ids()
    ids[0, 3] = ids[1, 0] = VOCAB
    kept = ids.clone()
    found = Backbone.wrap(model, layers=[0, 2]).read(ids, [0, 2])
    wanted = Backbone.wrap(grown, layers=[0, 2]).read(ids, [0, 2])
    assert torch.equal(ids, kept)
    for layer in (0, 2):
        torch.testing.assert_close(found[layer], wanted[layer])
    assert not model.get_input_embeddings()._forward_hooks
