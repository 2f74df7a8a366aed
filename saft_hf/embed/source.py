"""Where the hidden states come from: a model by name, or an object that somebody else holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from saft_hf.distributed import World
from saft_hf.embed.architecture import ModelShape, describe_model, unwrap
from saft_hf.embed.backbone import Backbone
from saft_hf.embed.extract import Extractor
from saft_hf.embed.features import Features
from saft_hf.embed.plan import token_budget_for
from saft_hf.errors import SAFTArtifactError, SAFTError, SAFTInputError
from saft_hf.render import Renderer

logger = logging.getLogger(__name__)

ALGORITHM = 3
"""Raised whenever the same input would give other vectors or scores: old caches are then not used."""

_NO_MODEL = (
    "the scorer was given a model object that has no name, and an object does not travel to other processes. Score "
    "here (`score_dataset`, or `map` without `num_proc`), or name the model."
)


def model_name(model: Any) -> str | None:
    """Name or folder of a model, or None for an object that does not know where it came from."""
    return model if isinstance(model, str) else getattr(model.config, "_name_or_path", None) or None


def tokenizer_of(processor: Any) -> PreTrainedTokenizerBase:
    """A tokenizer, or that of a processor.

    Raises:
        SAFTInputError: it is neither.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise SAFTInputError(
            f"`processing_class` must be a tokenizer or a processor that has one, not {type(processor).__name__}."
        )
    return tokenizer


@dataclass
class ModelSource:
    """One model to read, and how to load it.

    Attributes:
        model: name or folder, or a loaded model (read in place).
        processing_class: tokenizer or processor; by default the one saved with the model.
        options: keyword arguments of `Backbone.load`: revision, dtype, attn_implementation, quantization_config,
            device_map, trust_remote_code, token.
    """

    model: str | nn.Module | None
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # one is a token
    _kept: Backbone | None = field(default=None, init=False, repr=False)
    _state: int = field(default=0, init=False, repr=False)

    @property
    def name(self) -> str | None:
        """Name or folder of the model; None for an object that does not know where it came from."""
        return None if self.model is None else model_name(self.model)

    @cached_property
    def shape(self) -> ModelShape:
        """Layers, widths and dtype, from the configuration alone."""
        if self.model is None:
            raise SAFTInputError(_NO_MODEL)
        return describe_model(self.model, **self._access)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that renders rows."""
        processor = self.processing_class
        if processor is None:
            if self.name is None:
                raise SAFTInputError(
                    "`model` is an object that does not say where it was loaded from, so its tokenizer cannot be "
                    "found. Pass `processing_class=`."
                )
            try:
                processor = AutoTokenizer.from_pretrained(self.name, **self._access)
            except (OSError, ValueError) as error:
                raise SAFTInputError(
                    f"model={self.name!r}: no tokenizer could be read. Give a Hub id or a folder that holds a model "
                    f"and its tokenizer, or pass `processing_class=`. transformers said: {error}"
                ) from error
        return tokenizer_of(processor)

    @property
    def _access(self) -> dict[str, Any]:
        known = ("revision", "trust_remote_code", "token")
        return {key: self.options[key] for key in known if self.options.get(key) is not None}

    @property
    def read_as(self) -> dict[str, Any]:
        """`dtype` and `attn_implementation`: what was asked for, or what the object that is read has.

        They stand in the store's key, and a process that has only the object's name loads it in this way.
        """
        if isinstance(self.model, nn.Module):
            model = unwrap(self.model)
            dtype, attention = model.dtype, model.config._attn_implementation
        else:
            dtype, attention = self.options.get("dtype", "auto"), self.options.get("attn_implementation")
        return {"dtype": str(dtype).removeprefix("torch."), "attn_implementation": attention}

    def token_budget(self, device: torch.device) -> int:
        """Tokens in one batch: a function of the model's shape and dtype and the kind of device."""
        shape, on_cpu = self.shape, device.type == "cpu"
        return token_budget_for(shape.hidden_size, shape.intermediate_size, shape.dtype.itemsize, on_cpu=on_cpu)

    def identity(self, fingerprint: str, device: torch.device) -> dict[str, Any]:
        """All that decides the vectors of given tokens."""
        dtype = self.read_as["dtype"]
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" else str(self.shape.dtype).removeprefix("torch.")
        return {
            "algorithm": ALGORITHM,
            "model": fingerprint,
            "dtype": dtype,
            "attention": self.read_as["attn_implementation"],
            "quantization": str(self.options.get("quantization_config")),
            "device": device.type,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def extractor(
        self,
        renderer: Renderer,
        features: Features,
        *,
        folder: Path,
        world: World,
        device: torch.device | None = None,
        fingerprint: str | None = None,
        width: int | None = None,
        token_budget: int | None = None,
        shares_prefix: bool | None = None,
    ) -> Extractor:
        """What embeds rows with this model.

        Args:
            renderer: rows -> tokens.
            features: which hidden states.
            folder: where the vectors are kept.
            world: the processes that work together.
            device: where the model is read; by default this process's.
            fingerprint: of the weights that the model must have.
            width: hidden size, where there may be no model to ask.
            token_budget: tokens in one batch, by default those of `token_budget`.
            shares_prefix: whether tokens that all rows start with are read once; by default where the model can.
        """
        device, known = device or world.device, self.model is not None
        if shares_prefix is None:
            shares_prefix = known and self.shape.shares_prefix
        return Extractor(
            renderer=renderer,
            features=features,
            open_backbone=lambda: self.opened(features.layers, device, fingerprint),
            width=width or self.shape.hidden_size,
            max_positions=self.shape.max_positions if known else None,
            shares_prefix=shares_prefix,
            token_budget=token_budget or self.token_budget(device),
            folder=folder,
            world=world,
            model=self.name,
        )

    @property
    def revision(self) -> str | None:
        """Commit that the model is at, where it is on the Hub; else the revision that was asked for."""
        return self.shape.commit or self.options.get("revision")

    def fingerprint(self, layers: tuple[int, ...], world: World) -> str:
        """SHA-256 of the weights that are read; the same on every process, or an error.

        Raises:
            SAFTError: a process holds other weights than the first: its copy was left empty while it loaded.
        """
        # The digests are compared outside: a process that fails to load must not answer that call with its error.
        with world.sync_errors("loading the model"), self.opened(layers, world.device) as backbone:
            digest = backbone.fingerprints[max(layers)]
        if len(set(world.gather(digest))) > 1:
            raise SAFTError(
                "the processes hold different weights of the model: some were left empty while they loaded. Score "
                "first (`saft-hf score`), then train on the scored dataset."
            )
        return digest

    @contextmanager
    def opened(
        self, layers: tuple[int, ...], device: torch.device, fingerprint: str | None = None
    ) -> Iterator[Backbone]:
        """The model, ready to be read. It stays loaded until `release`.

        Raises:
            SAFTArtifactError: its weights are not those of `fingerprint`.
        """
        state = 0
        if isinstance(self.model, nn.Module):
            # An object may be trained between two calls: torch counts what is written into each parameter.
            state = sum(parameter._version for parameter in self.model.parameters())
        if self._kept is not None and state != self._state:
            self.release()
        self._state = state
        if self._kept is None:
            if self.model is None:
                raise SAFTInputError(_NO_MODEL)
            if isinstance(self.model, str):
                self._kept = Backbone.load(self.model, layers=layers, device=device, **self.options)
            else:
                self._kept = Backbone.wrap(self.model, layers=layers)
        if fingerprint is not None and self._kept.fingerprints[max(layers)] != fingerprint:
            raise SAFTArtifactError(
                f"the weights of {self.name or 'the model object'} are not those that this scorer was fitted on: its "
                "directions and threshold mean nothing for them. Fit again, or name the right model and "
                "revision, and the `quantization_config` that it was fitted with, if any."
            )
        with self._kept.reading():
            yield self._kept

    def worker_device(self, rank: int | None) -> torch.device:
        """Where a worker of `map` reads the model, without asking the launcher: it may not know the worker."""
        if isinstance(self.model, nn.Module):
            return next(self.model.parameters()).device
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None or parse_flag_from_env("ACCELERATE_USE_CPU"):
            return torch.device("cpu")
        if rank is None:
            return torch.device(accelerator.type)
        return torch.device(accelerator.type, rank % torch.accelerator.device_count())

    def release(self) -> None:
        """Forget the loaded model, so that its memory is free for training."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
