"""Rows are rendered as SFTTrainer will cut them, and once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from train_kit import make_args, make_tokenizer, pool_rows, save_model
from trl import SFTTrainer

from saft_hf import SAFTSFTTrainer
from saft_hf.render import Renderer
from saft_hf.train.inputs import FilterArgs, render_config

LENGTH = 14
CUTS = {"none": {"packing": False}} | {
    strategy: {"packing": True, "packing_strategy": strategy} for strategy in ("bfd", "bfd_split", "wrapped")
}


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("packing", CUTS)
def test_rows_are_cut_as_sft_trainer_cuts_them(packing: str, mode: str, tmp_path: Path) -> None:
    """One row, longer than `max_length`: what is trained on are the tokens that it is scored with."""
    model, row = save_model(tmp_path / "model"), {"text": "heron egret plover osprey curlew avocet bittern dunlin " * 2}
    options = {"max_length": LENGTH, "truncation_mode": mode, **CUTS[packing]}
    args = make_args(tmp_path, **options)
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list([row]))
    trained = [tokens for pack in trainer.train_dataset["input_ids"] for tokens in pack]
    whole = make_tokenizer()(row["text"])["input_ids"]
    assert len(whole) > 2 * LENGTH
    renderer = Renderer(make_tokenizer(), render_config(FilterArgs(model=model, args=args)))
    (rendering,) = renderer({"text": [row["text"]]})
    assert len(rendering.input_ids) == (LENGTH if packing in ("none", "bfd") else len(whole) + 1)
    # Packing may lay the pieces of a row in another order.
    as_packed = sorted if packing == "bfd_split" else list
    assert as_packed(rendering.input_ids.tolist()) == as_packed(trained)


@pytest.mark.parametrize("labels", [True, False])
def test_a_row_is_rendered_once(labels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: Counter[str] = Counter()
    render = Renderer.__call__

    def counted(self: Renderer, batch: Any) -> Any:
        rendered.update(prompt for prompt in batch.get("prompt", ()) if isinstance(prompt, str))  # no probe
        return render(self, batch)

    pool = pool_rows(rows=240).map(lambda row, index: {"prompt": f"{index} {row['prompt']}"}, with_indices=True)
    labelled = pool.select(range(0, 240, 3)) if labels else pool.select([])
    monkeypatch.setattr(Renderer, "__call__", counted)
    options = {"saft_contamination": 0.25, "saft_method": "saft"}
    call = {"saft_labelled": labelled} if labels else {}
    trainer = SAFTSFTTrainer(save_model(tmp_path / "model"), make_args(tmp_path, **options), train_dataset=pool, **call)
    assert trainer.saft_result is not None
    times = sum(rendered[prompt] for prompt in pool["prompt"])
    assert len(pool) <= times <= 1.1 * len(pool) + len(labelled)
