"""What SFTTrainer refuses at once is refused before a row is scored, and with its own words."""

from __future__ import annotations

import copy
import logging
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from accelerate.state import AcceleratorState
from train_kit import make_args, make_model, make_tokenizer, pool_rows, save_model
from transformers import TrainerCallback
from trl import SFTTrainer

from saft_hf import SAFTSFTTrainer
from saft_hf.embed.backbone import Backbone
from saft_hf.train.trial import refuse_early

# name -> options of the config, arguments of the trainer
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "padding-free": ({"padding_free": True}, {}),
    "loss": ({"loss_type": "other"}, {}),
    "targets of LoRA": ({}, {"peft_config": peft.LoraConfig(target_modules=["nowhere"])}),
    "LoRA on the head": ({}, {"peft_config": peft.LoraConfig(target_modules=["lm_head"])}),
    "no adapter": ({}, {"peft_config": 3}),
    "packing": ({"packing": True, "max_length": None}, {}),
    "truncation": ({"truncation_mode": "middle"}, {}),
    "nothing to evaluate on": ({"eval_strategy": "steps"}, {}),
    "no chat": ({"assistant_only_loss": True}, {}),
    "formatted pairs": ({"completion_only_loss": True}, {"formatting_func": str}),
    "collator": ({"padding_free": True, "max_length": None}, {"data_collator": list}),
    "end token": ({"eos_token": "<no>"}, {}),
    "tracker": ({"report_to": "comet_ml"}, {}),
    "two optimizers": ({}, {"optimizer_cls_and_kwargs": (torch.optim.SGD, {}), "optimizers": (3, None)}),
    "steps of a stream": ({"max_steps": -1}, {"stream": True}),
}


@pytest.fixture
def no_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was opened for scoring")

    for name in ("load", "wrap"):
        monkeypatch.setattr(Backbone, name, refuse)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("by", ["name", "object"])
@pytest.mark.usefixtures("no_scoring")
@pytest.mark.smoke
def test_what_sft_trainer_refuses_is_refused_before_scoring(by: str, case: str, tmp_path: Path) -> None:
    options, call = REFUSED[case]
    call = {**copy.deepcopy(call), **({} if by == "name" else {"processing_class": make_tokenizer()})}
    rows: Any = pool_rows().to_iterable_dataset() if call.pop("stream", False) else pool_rows()
    said = []
    for trainer_class in (SFTTrainer, SAFTSFTTrainer):
        model = save_model(tmp_path / "model") if by == "name" else make_model()
        with pytest.raises((ValueError, TypeError, RuntimeError, ImportError)) as refused:
            trainer_class(model, make_args(tmp_path, **options), train_dataset=rows, **copy.deepcopy(call))
        said.append((refused.type, str(refused.value)))
    assert said[0] == said[1]


class Watcher(TrainerCallback):  # type: ignore[misc] # transformers is not typed
    begun = 0

    def on_init_end(self, *_: Any, **__: Any) -> None:
        self.begun += 1


def test_a_trial_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer, adapter, watcher = make_model(), make_tokenizer(), peft.LoraConfig(r=2), Watcher()
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    args = make_args(tmp_path, **options, eos_token="<pad>", padding_free=True, max_length=None, push_to_hub=True)
    modules, weights = list(model.named_modules()), {name: p.clone() for name, p in model.named_parameters()}
    before = [copy.deepcopy(thing.__dict__) for thing in (adapter, model.config, model.generation_config)]
    AcceleratorState._reset_state()
    given = {"model": model, "args": args, "train_dataset": pool_rows(), "processing_class": tokenizer}
    with caplog.at_level(logging.WARNING):
        refuse_early(SFTTrainer, {**given, "peft_config": adapter, "callbacks": [watcher]})
    assert list(model.named_modules()) == modules
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
    assert before == [thing.__dict__ for thing in (adapter, model.config, model.generation_config)]
    assert (tokenizer.eos_token, args.push_to_hub, watcher.begun, caplog.records) == ("<eos>", True, 0, [])
    assert args.gradient_checkpointing_kwargs == options["gradient_checkpointing_kwargs"]
    assert not model.is_gradient_checkpointing
    assert AcceleratorState._shared_state == {}


def test_deepspeed_which_a_process_sets_up_once_is_left_to_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.__init__", lambda *_, **__: pytest.fail("it was set up"))
    given = {"model": make_model(), "train_dataset": pool_rows(), "processing_class": make_tokenizer()}
    fine, wrong = make_args(tmp_path), make_args(tmp_path, padding_free=True)
    fine.deepspeed_plugin = wrong.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    refuse_early(SFTTrainer, {**given, "args": fine})
    with pytest.raises(ValueError, match="padding_free"):
        refuse_early(SFTTrainer, {**given, "args": wrong})


def test_a_model_that_cannot_be_copied_is_not_tried_out(tmp_path: Path) -> None:
    model = make_model()
    model.lock = threading.Lock()
    given = {"model": model, "train_dataset": pool_rows(), "processing_class": make_tokenizer()}
    refuse_early(SFTTrainer, {**given, "args": make_args(tmp_path)})
    trainer = SAFTSFTTrainer(**given, args=make_args(tmp_path))
    assert trainer.saft_result is not None
    assert len(trainer.saft_result.removed) == 10


@pytest.mark.parametrize(
    ("said", "refused"),
    [("meta-llama/Llama-2-7b has no such module", True), ("no metadata", True), ("Tensor on device meta", False)],
)
def test_only_errors_of_the_missing_weights_are_passed_over(
    said: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(said)

    monkeypatch.setattr(SFTTrainer, "__init__", fail)
    given = {"model": make_model(), "args": make_args(tmp_path), "processing_class": make_tokenizer()}
    with pytest.raises(ValueError, match=said) if refused else nullcontext():
        refuse_early(SFTTrainer, given)
