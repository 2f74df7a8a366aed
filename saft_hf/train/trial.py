"""What TRL would refuse, refused before a row is scored."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

from saft_hf.embed import all_weights_on_every_rank
from saft_hf.train.config import setting

logger = logging.getLogger(__name__)

_REFUSALS = (ValueError, TypeError, ImportError, RuntimeError, OSError)
_OF_META = re.compile(r"\bmeta\b(?![-/])", re.IGNORECASE)  # the device, not metadata or Meta's models


def refuse_early(trainer_class: type[Trainer], given: dict[str, Any]) -> None:
    """Make a trainer for nothing, on a model without weights and with no row prepared, for the errors that it raises.

    So the checks are TRL's own, of whatever version. Hub, disk and random generators aside, which the caller guards,
    making a trainer changes its arguments only: it gets copies.

    Args:
        trainer_class: TRL's.
        given: its arguments, by name, with the tokenizer or processor.

    Raises:
        ValueError, TypeError, ImportError, RuntimeError, OSError: TRL's, transformers' or PEFT's.
    """
    try:
        model = _without_weights(given)
    except Exception:  # it holds what cannot be copied, or is none that can be laid out: no trial
        logger.debug("The trainer is not tried out.", exc_info=True)
        return
    args = copy.copy(given["args"])
    args.__dict__ |= {
        name: copy.deepcopy(value) for name, value in vars(args).items() if isinstance(value, dict | list)
    }
    # These change more than the trainer: a repository is made, a class of models is patched, torch's kernels change.
    args.push_to_hub = args.use_liger_kernel = args.full_determinism = False
    copied = {name: copy.deepcopy(given.get(name)) for name in ("processing_class", "peft_config")}
    trial: Any = type(trainer_class.__name__, (_Trial, trainer_class), {})
    log, fresh = logging.getLogger("trl"), not AcceleratorState._shared_state
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # what it warns of, it warns of again when it is made in earnest
        with warnings.catch_warnings(action="ignore"), init_empty_weights(), all_weights_on_every_rank():
            trial(**{**given, **copied, "args": args, "model": model, "callbacks": None})
    except Exception as error:
        # Others, and those about the meta device, may come of the missing weights: in earnest they will tell.
        if isinstance(error, _REFUSALS) and not _OF_META.search(str(error)):
            raise
        logger.debug("The trial of the trainer ended early.", exc_info=True)
    finally:
        log.setLevel(level)
        if fresh:  # what a process may set up once only is left to the trainer itself
            AcceleratorState._reset_state()


class _EnoughError(Exception):
    """Ends a trial."""


class _Trial(Trainer):  # type: ignore[misc] # transformers is not typed
    """Stands before TRL's class, and leaves out what needs weights, rows or a run."""

    def _move_model_to_device(self, *_: Any) -> None:
        pass

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # Checks the options; nothing of a stream is read.
        row = Dataset.from_dict({"input_ids": [[0, 0]], "labels": [[0, 0]]}).to_iterable_dataset()
        super()._prepare_dataset(row, *args, **kwargs)
        return dataset

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.deepspeed_plugin is not None:
            raise _EnoughError("DeepSpeed is set up once; what TRL itself refuses is behind us")
        super().create_accelerator_and_postprocess()

    def add_callback(self, callback: Any) -> None:
        # The last callback to be made: a tracker that is not installed has been refused, and none is called.
        self.callback_handler.callbacks = []


def _without_weights(given: dict[str, Any]) -> nn.Module:
    """The modules of the model that will be trained, on the meta device."""
    model = given["model"]
    if not isinstance(model, str):
        memo: Any = {id(weight): nn.Parameter(_empty(weight), weight.requires_grad) for weight in model.parameters()}
        memo |= {id(buffer): _empty(buffer) for buffer in model.buffers()}
        copied: nn.Module = copy.deepcopy(model, memo)
        return copied
    kwargs = setting(given["args"], "model_init_kwargs") or {}
    known = {name: kwargs[name] for name in ("revision", "token") if name in kwargs}
    trusted = kwargs.get("trust_remote_code", setting(given["args"], "trust_remote_code"))
    config = AutoConfig.from_pretrained(model, trust_remote_code=trusted, **known)
    architecture = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"), all_weights_on_every_rank():
        made: nn.Module = (
            AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
            if architecture is None
            else architecture(config)
        )
    return made


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
