"""The plain way to hidden states and scores, and models with something wrong in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saft_hf.assets import demo_folder
from saft_hf.embed.backbone import Backbone
from saft_hf.files import replacing_folder
from saft_hf.scorer import artifact
from saft_hf.scorer.artifact import CONFIG_FILE, TENSORS_FILE, digest_of

OPENING, CLOSING = "<|assistant|>\n", "<|end|>"


def sign(folder: Path) -> None:
    """Give a saved scorer that was changed a digest that fits, as who changes it on purpose would."""
    config, payload = json.loads((folder / CONFIG_FILE).read_text()), (folder / TENSORS_FILE).read_bytes()
    config |= {"sha256": digest_of(config, payload)}
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def save_artifact(folder: Path, config: Any, tensors: Any) -> None:
    """Write a scorer's files as a whole, as `save_pretrained` does."""
    with replacing_folder(folder, (CONFIG_FILE, TENSORS_FILE)) as draft:
        artifact.save_artifact(draft, config, tensors)


def tokens_and_spans(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a demo dialogue, and its answers, found by where their text stands."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    spans, at = [], 0
    while (found := text.find(OPENING, at)) >= 0:
        first, at = found + len(OPENING), text.index(CLOSING, found) + len(CLOSING)
        own = [i for i, (a, _) in enumerate(encoded["offset_mapping"]) if first <= a < at]
        spans.append((own[0], own[-1] + 1))
    return encoded["input_ids"], spans


def demo_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_folder())


def demo_causal_lm(**options: Any) -> Any:
    """The demo's whole model, float32 unless told otherwise."""
    return AutoModelForCausalLM.from_pretrained(demo_folder(), **{"dtype": torch.float32, **options})


@torch.no_grad()
def plain_vectors(rows: Any, layer: int, readout: str) -> np.ndarray:
    """One row at a time, unpadded, whole sequence, every hidden state; float64 [n, d]."""
    model, tokenizer = demo_causal_lm().eval(), demo_tokenizer()
    vectors = []
    for row in rows:
        ids, spans = tokens_and_spans(tokenizer, row["messages"])
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0].double().numpy()
        if readout == "response_start":
            vectors.append(states[spans[-1][0] - 1])
        elif readout == "response_end":
            vectors.append(states[spans[-1][1] - 1])
        else:
            vectors.append(np.concatenate([states[a:b] for a, b in spans]).mean(axis=0))
    return np.stack(vectors)


def plain_scores(vectors: np.ndarray, k: int) -> np.ndarray:
    """The published score by a singular value decomposition of the centred rows."""
    centred = vectors - vectors.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:k]
    return np.square(centred @ directions.T).mean(axis=1)


def changed_demo(folder: Path, change: Callable[[Any], None]) -> str:
    """A copy of the demo's model after `change(model)`, in float32; its folder's name."""
    model = demo_causal_lm()
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    return str(folder)


class Forwards:
    """Counts calls of `Backbone.read`, and raises at one of them if told so."""

    def __init__(self, monkeypatch: Any, *, fail_at: int | None = None, error: type[BaseException] = RuntimeError):
        self.count = 0
        read = Backbone.read

        def counted(backbone: Backbone, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == fail_at:
                raise error
            return read(backbone, *args, **kwargs)

        monkeypatch.setattr(Backbone, "read", counted)
