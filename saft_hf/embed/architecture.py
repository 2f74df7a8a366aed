"""Where things are in a model: its text part, its blocks, its sizes, and whether it can be read at all."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from saft_hf.embed.prefix import can_share
from saft_hf.errors import SAFTInputError

# Such adapters rewrite the base weights when they are made: turned off, they do not give the base model back.
_REWRITING_INITS = ("pissa", "olora", "corda", "lora_ga")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a causal language model, as its config states them.

    Args:
        num_layers: number of blocks, L. Layers 0 (embeddings) to L (after the final norm) can be read.
        hidden_size: width of the hidden states.
        vocab_size: number of token ids.
        intermediate_size: width of the feed-forward part, in features (the widest one where blocks differ).
        dtype: dtype of the checkpoint's weights; float32 where the config does not say.
        max_positions: longest sequence in tokens; `None` where positions are not learned, so that there is no limit.
        commit: commit on the Hub that the config was read from, where there is one.
        shares_prefix: whether tokens that every row starts with can be read once.
    """

    num_layers: int
    hidden_size: int
    vocab_size: int
    intermediate_size: int
    dtype: torch.dtype
    max_positions: int | None
    commit: str | None
    shares_prefix: bool


def read_config(name: str, **options: Any) -> Any:
    """The config of a model that is given by name.

    Args:
        name: Hub id or local folder.
        options: `revision`, `trust_remote_code` and `token`, as `from_pretrained` takes them.

    Raises:
        SAFTInputError: there is no such model, or no config can be read from it.
    """
    try:
        return AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise SAFTInputError(
            f"model={name!r} (revision={options.get('revision')!r}): no model config could be read. "
            f"Give a Hub id or a folder that `AutoModel.from_pretrained` takes. transformers said: {error}"
        ) from error


def _commit_of(name: str, revision: str | None) -> str | None:
    """Commit that the config of a name was read from: transformers 5 no longer notes it in the config."""
    if Path(name).is_dir():
        return None
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def describe_model(model: str | nn.Module, **options: Any) -> ModelShape:
    """The sizes of a model, from its config alone: no weights are loaded.

    Args:
        model: Hub id, local folder, or a model object (a `PreTrainedModel`, `PeftModel` or a wrapper of one).
        options: of a name, `revision`, `trust_remote_code` and `token`.

    Raises:
        SAFTInputError: there is no such model, or it is not a decoder-only language model.
    """
    config = read_config(model, **options) if isinstance(model, str) else unwrap(model).config
    text = text_config(config)
    hidden = int(text.hidden_size)
    widths = [getattr(text, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")]
    width = next((w for w in widths if w), 4 * hidden)
    # Composite configs may state the dtype only once, on the outside.
    dtype = getattr(text, "dtype", None) or getattr(config, "dtype", None) or torch.float32
    return ModelShape(
        num_layers=int(text.num_hidden_layers),
        hidden_size=hidden,
        vocab_size=int(text.vocab_size),
        intermediate_size=int(max(width) if isinstance(width, Sequence) else width),
        dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
        max_positions=_learned_positions(text),
        commit=_commit_of(model, options.get("revision"))
        if isinstance(model, str)
        else getattr(config, "_commit_hash", None),
        shares_prefix=can_share(text),
    )


def _learned_positions(text: Any) -> int | None:
    """How many positions a table holds; a model with rotary or linear biases has none and takes longer rows."""
    rotary = ("rope_parameters", "rope_theta", "rope_scaling", "rotary_emb_base", "alibi")
    if any(getattr(text, name, None) for name in rotary):
        return None
    return getattr(text, "max_position_embeddings", None)


def forward_options(text: nn.Module) -> dict[str, Any]:
    """Nothing but hidden states, whatever the model's config asks for; only what this forward takes."""
    options = {"use_cache": False, "output_hidden_states": False, "output_attentions": False}
    if getattr(text.config, "output_router_logits", False):
        options["output_router_logits"] = False
    parameters = inspect.signature(text.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return options
    return {key: value for key, value in options.items() if key in parameters}


def text_config(config: Any) -> Any:
    """The config of the text part (of a text-only model: `config` itself).

    Raises:
        SAFTInputError: the model is not a decoder-only language model.
    """
    text = config.get_text_config(decoder=True)
    missing = [name for name in ("num_hidden_layers", "hidden_size", "vocab_size") if not hasattr(text, name)]
    if config.is_encoder_decoder or missing:
        why = "it is an encoder-decoder model" if config.is_encoder_decoder else f"its config has no {missing}"
        raise SAFTInputError(
            f"model of type {config.model_type!r}: {why}. Hidden states are read from decoder-only language "
            "models: give the causal language model that SFTTrainer would train."
        )
    return text


def check_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Layers as a sorted tuple without repeats.

    Raises:
        SAFTInputError: there is none, or one is not a whole number from 0 to `num_layers`.
    """
    wrong = [
        layer
        for layer in layers
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= num_layers
    ]
    if wrong or not layers:
        raise SAFTInputError(
            f"layer={wrong[0] if wrong else None!r}: this model has L={num_layers} layers. Give whole "
            f"numbers from 0 (the embeddings) to {num_layers} (L, after the final norm)."
        )
    return tuple(sorted(set(layers)))


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, `torch.compile`, DeepSpeed, PEFT and value-head wrappers."""
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "get_base_model"):
            outer, inner = inner, inner.get_base_model()
        else:
            names = ("_orig_mod", "module", "pretrained_model")
            outer, inner = inner, next((getattr(inner, n) for n in names if hasattr(inner, n)), None)
        if inner is None or inner is outer:
            raise SAFTInputError(
                f"model is a {type(model).__name__}; expected a name, a transformers `PreTrainedModel`, a "
                "`PeftModel`, or one of these in a DDP, torch.compile or DeepSpeed wrapper."
            )
    return inner


def find_text(model: PreTrainedModel) -> nn.Module:
    """The text part without its language-model head; its output is the state after the final norm."""
    text = text_config(model.config)
    if text is not model.config:
        parts = (m for m in model.modules() if isinstance(m, PreTrainedModel))
        model = next((part for part in parts if type(part.config) is type(text)), model)
    # Not `base_model` alone: some classes name that wrongly (Gemma 3 on transformers 4.56).
    return cast(nn.Module, model.base_model.get_decoder())


def find_blocks(text: nn.Module, num_layers: int) -> nn.ModuleList:
    """The list of the model's blocks, in order.

    Raises:
        SAFTInputError: the model has no list of `num_layers` blocks.
    """
    lists = [m for m in text.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    if not lists:
        raise SAFTInputError(
            f"model of class {type(text).__name__}: no list of {num_layers} blocks was found in it, so "
            "single layers cannot be read from it."
        )
    # A list of experts may be as long; the blocks hold it, so they have more weights.
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))


def path_of(root: nn.Module, module: nn.Module) -> str:
    """The dotted name of `module` inside `root`."""
    names: dict[nn.Module, str] = {candidate: name for name, candidate in root.named_modules()}
    return names[module]


def is_moved(model: nn.Module) -> bool:
    """Whether accelerate moves weights about while the model runs."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def needs_reload(model: nn.Module) -> str | None:
    """Why this object's weights cannot be read in place, or `None` where they can.

    Args:
        model: any model object.

    Returns:
        A phrase such as "it is sharded by FSDP", or `None`.
    """
    # accelerate's offloaded models look empty too, but fetch their weights while they run.
    offloaded = is_moved(model)
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return "it is sharded by FSDP"
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id"):
            return "it is partitioned by DeepSpeed ZeRO-3"
        if hasattr(parameter, "placements"):
            return "its weights are sharded (DTensor)"
        if parameter.is_meta and not offloaded:
            return "its weights are empty (meta device)"
    return None


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters that cannot be turned off.

    Raises:
        SAFTInputError: an adapter is merged, or has rewritten the base weights.
    """
    for name, module in model.named_modules():
        if merged := getattr(module, "merged_adapters", None):
            raise SAFTInputError(
                f"model: adapter {merged[0]!r} is merged into {name!r}, so the base model is not there to be "
                "read. Call `model.unmerge_adapter()` first, or give the base model by name."
            )
    configs = getattr(model, "peft_config", None) or getattr(unwrap(model), "peft_config", None) or {}
    for name, config in configs.items():
        init = getattr(config, "init_lora_weights", None)
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind == "ADAPTION_PROMPT" or (isinstance(init, str) and init.startswith(_REWRITING_INITS)):
            raise SAFTInputError(
                f"model: adapter {name!r} ({kind}, init_lora_weights={init!r}) has changed the base model "
                "itself, so turning it off does not give the base model back. Give the base model by name."
            )


@contextlib.contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """PEFT layers answer as the base model inside, and exactly as before afterwards.

    PEFT's own `disable_adapter` sets `requires_grad` on exit and turns on adapters that were off before; the
    flag that its layers look at has neither effect.
    """
    before = [(m, m._disable_adapters) for m in model.modules() if hasattr(m, "_disable_adapters")]
    try:
        for module, _ in before:
            cast(Any, module)._disable_adapters = True
        yield
    finally:
        for module, flag in before:
            cast(Any, module)._disable_adapters = flag
