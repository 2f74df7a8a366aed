"""What every scorer has beside its method: options, learned state, the parts it is made of, and how it is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from datasets import Dataset
from safetensors.numpy import load as tensors_from_bytes
from safetensors.numpy import save as tensors_to_bytes
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from saft_hf.distributed import World
from saft_hf.embed.extract import Extractor
from saft_hf.embed.features import Features
from saft_hf.embed.rows import RowReader
from saft_hf.embed.source import ALGORITHM, ModelSource
from saft_hf.embed.store import default_cache_dir, name_of
from saft_hf.errors import SAFTArtifactError, SAFTInputError
from saft_hf.files import replacing
from saft_hf.hub import render_card
from saft_hf.render import RenderConfig, Renderer
from saft_hf.scorer.artifact import load_artifact, save_artifact
from saft_hf.scorer.card import scorer_card
from saft_hf.scorer.fitted import Fitted
from saft_hf.scorer.hub import HubMixin, fetched
from saft_hf.version import __version__

logger = logging.getLogger(__name__)


class ScorerBase(HubMixin):
    """Options, learned state, saving and loading of a `SAFTScorer`, which documents them."""

    def __init__(
        self,
        model: str | nn.Module,
        *,
        revision: str | None = None,
        layer: int | None = None,
        readout: str | None = None,
        method: str | None = None,
        k: int | None = None,
        threshold: float | None = None,
        contamination: float | None = None,
        reference: Dataset | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        quantization_config: Any = None,
        device_map: Any = None,
        vector_dtype: str = "float32",
        max_length: int | None = 1024,
        cache_dir: str | Path | None = None,
        trust_remote_code: bool = False,
        token: str | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        render: RenderConfig | None = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        self.model = model
        self.revision = revision
        self.layer = layer
        self.readout = readout
        self.method = method
        self.k = k
        self.threshold = threshold
        self.contamination = contamination
        self.reference = reference
        self.dtype = dtype
        self.attn_implementation = attn_implementation
        self.quantization_config = quantization_config
        self.device_map = device_map
        self.vector_dtype = vector_dtype
        self.max_length = max_length
        self.cache_dir = cache_dir
        self.trust_remote_code = trust_remote_code
        self.token = token
        self.processing_class = processing_class
        self.render = render
        self.formatting_func = formatting_func
        self.fitted_: Fitted | None = None
        self._safetensors_only = False
        self._source: ModelSource | None = None
        self._reader: RowReader | None = None

    # -- learned state -------------------------------------------------------------------------------------------

    @property
    def _fitted(self) -> Fitted:
        if self.fitted_ is None:
            raise SAFTInputError("this SAFTScorer is not fitted yet: call `fit(pool)`, or use `from_pretrained`.")
        return self.fitted_

    @property
    def layers_(self) -> tuple[int, ...]:
        """Layers that the score reads."""
        return self._fitted.layers

    @property
    def readouts_(self) -> tuple[str, ...]:
        """Readouts that the score reads."""
        return tuple(readout.value for readout in self._fitted.readouts)

    @property
    def method_(self) -> str:
        """How the score was found: `saft`, `directed`, `auto` or `reference`."""
        return self._fitted.method

    @property
    def k_(self) -> int | None:
        """How many directions the published score sums; None for a learned direction."""
        return self._fitted.k

    @property
    def threshold_(self) -> float | None:
        """Rows above it are removed; None where no decision can be taken."""
        return self._fitted.threshold

    @property
    def summary_(self) -> dict[str, Any]:
        """Counts and figures of the fit."""
        return self._fitted.summary

    # -- save and load -------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Save the fitted scorer: `config.json`, `saft_scorer.safetensors` and a card. The model is not saved.

        Args:
            save_directory: folder, made where it is missing.

        Raises:
            SAFTInputError: the scorer is not fitted.
            OSError: the folder cannot be written; files that stood there stay whole.
        """
        self._save(Path(save_directory), self._fitted)

    def _save(self, folder: Path, fitted: Fitted, repo_id: str | None = None) -> None:
        config, tensors = fitted.to_parts()
        save_artifact(folder, {"saft_hf_version": __version__, **config, "scorer": self._options()}, tensors)
        card = render_card("scorer", {**scorer_card(fitted), "repo_id": repo_id})
        with replacing(folder / "README.md") as [file]:
            file.write(card.encode())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        revision: str | None = None,
        model: str | nn.Module | None = None,
        cache_dir: str | Path | None = None,
        trust_remote_code: bool = False,
        token: str | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
    ) -> Self:
        """Load a scorer that `save_pretrained` wrote. The model that it names is loaded only when rows are scored.

        Args:
            pretrained_name_or_path: the folder, or a Hub id.
            revision: commit, branch or tag of the scorer's repository; the model's own is in the scorer.
            model: where the model is now, if not where it was; its weights must be the same.
            cache_dir: where vectors are kept, as in the constructor.
            trust_remote_code: run code that comes with the model, or an attention kernel that the file names; never
                taken from the file.
            token: for private scorers and models; never taken from the file.
            processing_class: tokenizer or processor; by default the one saved with the model.

        Returns:
            The scorer.

        Raises:
            SAFTArtifactError: a file is missing, damaged, hostile or of an unknown format.
            SAFTHubError: there is no such repository or revision, no access to it, or no way to the Hub.
        """
        config, tensors = load_artifact(fetched(pretrained_name_or_path, revision, token))
        try:
            fitted = Fitted.from_parts(config, tensors)
            options = _read_options(config["scorer"])
        except (KeyError, TypeError, ValueError) as error:
            raise SAFTArtifactError(
                f"{pretrained_name_or_path}: config.json lacks or misnames a field ({error}). Save the scorer again "
                "with this version of saft_hf."
            ) from error
        if "/" in str(options["attn_implementation"]) and not trust_remote_code:
            raise SAFTArtifactError(
                f"{pretrained_name_or_path} asks for the attention kernel {options['attn_implementation']!r} from the "
                "Hub, which is code: pass `trust_remote_code=True` if you trust it."
            )
        reads = model or fitted.model
        if model is None and fitted.revision is not None:
            options["revision"] = fitted.revision
        if reads is None:
            raise SAFTArtifactError(
                f"{pretrained_name_or_path} was fitted on a model object without a name: pass that model as `model=`."
            )
        logger.info("The scorer %s reads the model %s.", pretrained_name_or_path, fitted.model)
        scorer = cls(
            reads,
            **options,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            token=token,
            processing_class=processing_class,
        )
        scorer.fitted_ = fitted
        # A model that somebody else's file names may run no code here: not its own, and none from a pickle.
        scorer._safetensors_only = model is None
        return scorer

    # The state is plain bytes, so that it is small, and the same in every process: `map` caches on its hash.

    def __getstate__(self) -> dict[str, Any]:
        config, tensors = ({}, {}) if self.fitted_ is None else self.fitted_.to_parts()
        source = self._open_source()
        return {
            "code": f"{__version__}/{ALGORITHM}",
            "safetensors_only": self._safetensors_only,
            "model": source.name,
            "options": json.dumps(self._options(), sort_keys=True),
            "fitted": json.dumps(config, sort_keys=True),
            "tensors": tensors_to_bytes(tensors),
            **{name: getattr(self, name) for name in _LOCAL},
            "cache_dir": str(self._cache_dir()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = _read_options(json.loads(state["options"]))
        kept = {name: state[name] for name in _LOCAL}
        self.__init__(state["model"], **options, **kept)  # type: ignore[misc]
        self._safetensors_only = state["safetensors_only"]
        config = json.loads(state["fitted"])
        if config:
            self.fitted_ = Fitted.from_parts(config, tensors_from_bytes(state["tensors"]))

    def _options(self) -> dict[str, Any]:
        """The arguments of `_OPTIONS`, JSON-ready."""
        options = {name: getattr(self, name) for name in _OPTIONS}
        quantization = self.quantization_config
        return {
            **options,
            **self._open_source().read_as,
            "quantization_config": quantization.to_dict() if hasattr(quantization, "to_dict") else quantization,
            "render": asdict(self._render_config()),
        }

    # -- parts ---------------------------------------------------------------------------------------------------

    def _cache_dir(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir else default_cache_dir()

    def _render_config(self) -> RenderConfig:
        return self.render or RenderConfig(max_length=self.max_length)

    def _renderer(self) -> Renderer:
        renderer = Renderer(self._open_source().tokenizer, self._render_config(), formatting_func=self.formatting_func)
        if self.fitted_ and renderer.template_digest(self.fitted_.readouts) != self.fitted_.template_digest:
            raise SAFTArtifactError(
                f"this scorer was fitted with another chat template or tokenizer than {self._open_source().name} has "
                "now: its directions and threshold mean nothing for these tokens. Fit again, or pass the "
                "`processing_class` that it was fitted with."
            )
        return renderer

    def _open_source(self) -> ModelSource:
        if self._source is None:
            self._source = ModelSource(
                self.model,
                processing_class=self.processing_class,
                options={
                    "revision": self.revision,
                    "dtype": self.dtype,
                    "attn_implementation": self.attn_implementation,
                    "quantization_config": self.quantization_config,
                    "device_map": self.device_map,
                    "trust_remote_code": self.trust_remote_code,
                    "use_safetensors": self._safetensors_only or None,
                    "token": self.token,
                },
            )
        return self._source

    def _extractor(
        self,
        renderer: Renderer,
        features: Features,
        fingerprint: str,
        world: World,
        device: torch.device | None = None,
    ) -> Extractor:
        source = self._open_source()
        device = device or world.device
        read = {**source.identity(fingerprint, device), "features": features.names, "vectors": features.dtype}
        return source.extractor(
            renderer,
            features,
            folder=self._cache_dir() / name_of(read)[:32],
            world=world,
            device=device,
            fingerprint=fingerprint,
            width=self.fitted_.score.width if self.fitted_ else None,
            token_budget=self.fitted_.token_budget if self.fitted_ else None,
            shares_prefix=self.fitted_.shares_prefix if self.fitted_ else None,
        )


_OPTIONS = (
    "revision",
    "layer",
    "readout",
    "method",
    "k",
    "threshold",
    "contamination",
    "dtype",
    "attn_implementation",
    "quantization_config",
    "vector_dtype",
    "render",
)
"""Constructor arguments that belong to the scorer and not to this machine or its user."""

_LOCAL = ("cache_dir", "trust_remote_code", "device_map", "token", "processing_class", "formatting_func")
"""Those that belong to this machine or its user: they travel to other processes, and never into a file."""


def _read_options(saved: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from a saved dict that holds just these.

    Raises:
        ValueError: a name is missing or unknown.
    """
    if set(saved) != set(_OPTIONS):
        raise ValueError(f"`scorer` must hold {list(_OPTIONS)}, not {sorted(saved)}")
    return {**saved, "render": RenderConfig(**saved["render"])}
