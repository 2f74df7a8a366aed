"""What SFTTrainer will make of its arguments: the tokenizer, the rendering and the model that rows are scored with."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from saft_hf.errors import SAFTInputError
from saft_hf.render import RenderConfig
from saft_hf.train.config import setting

logger = logging.getLogger(__name__)

# Arguments of `from_pretrained` that change the weights and that the scoring backbone does not take.
_OTHER_WEIGHTS = ("subfolder", "gguf_file", "config", "state_dict", "adapter_kwargs")


def model_name(model: Any) -> str | None:
    """Name or folder of a model, or None for an object that does not know where it came from."""
    return model if isinstance(model, str) else getattr(model.config, "_name_or_path", None) or None


def training_tokenizer(model: Any, args: Any, processing_class: Any) -> PreTrainedTokenizerBase:
    """The tokenizer as SFTTrainer will have it: `eos_token`, `chat_template_path` and training template applied.

    Args:
        model: name or object.
        args: the trainer's arguments.
        processing_class: tokenizer or processor; not changed. By default the one saved with the model.

    Returns:
        A copy, whose chat template renders the training rows.

    Raises:
        SAFTInputError: there is no tokenizer, or `eos_token` is not in its vocabulary.
    """
    if processing_class is None:
        name = model_name(model)
        if name is None:
            raise SAFTInputError(
                "`model` is an object that does not say where it was loaded from, so its tokenizer cannot be found. "
                "Pass `processing_class=`."
            )
        kwargs = setting(args, "model_init_kwargs") or {}
        processing_class = AutoProcessor.from_pretrained(
            name,
            revision=kwargs.get("revision") if isinstance(model, str) else None,
            trust_remote_code=setting(args, "trust_remote_code"),
        )
    processor = copy.deepcopy(processing_class)
    tokenizer = getattr(processor, "tokenizer", processor)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise SAFTInputError(
            f"`processing_class` must be a tokenizer or a processor that has one, not {type(processor).__name__}."
        )
    if (eos_token := setting(args, "eos_token")) is not None:
        if eos_token not in tokenizer.get_vocab():
            raise SAFTInputError(f"`eos_token`={eos_token!r} is not in the vocabulary of the tokenizer.")
        tokenizer.eos_token = eos_token
    template = getattr(processor, "chat_template", None)
    if (path := setting(args, "chat_template_path")) is not None:
        template = _cloned_template(tokenizer, path)
    if setting(args, "assistant_only_loss"):
        processor.chat_template = template
        if template and not has_generation_markers(template):
            template = get_training_chat_template(processor) or template
    tokenizer.chat_template = template
    return tokenizer


def _cloned_template(tokenizer: PreTrainedTokenizerBase, path: str) -> str:
    """What `trl.clone_chat_template` does to the tokenizer; the model is not there yet."""
    if Path(path).is_file() and path.endswith((".jinja", ".j2")):
        return Path(path).read_text(encoding="utf-8")
    source = AutoTokenizer.from_pretrained(path)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in source.added_tokens_decoder.values() if token.content not in known])
    tokenizer.eos_token = source.eos_token
    return str(source.get_chat_template())


def warn_of_added_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Say so where the tokenizer has tokens that the model which scores has no embedding for."""
    if added := sum(number >= vocab_size for number in tokenizer.get_vocab().values()):
        logger.warning(
            "%d tokens of the tokenizer are new to the model (`chat_template_path` may have added them): rows are "
            "scored with the mean of its embeddings in their place.",
            added,
        )


def render_config(args: Any) -> RenderConfig:
    """How SFTTrainer will cut rows. Packing that loses no token, and rows that it leaves as they are, are not cut."""
    prepared = (setting(args, "dataset_kwargs") or {}).get("skip_prepare_dataset", False)
    packed, strategy = setting(args, "packing"), setting(args, "packing_strategy")
    uncut = prepared or (packed and strategy != "bfd")
    return RenderConfig(
        max_length=None if uncut else setting(args, "max_length"),
        # bfd packing cuts overlong rows at their end, whatever the mode says.
        truncation_mode="keep_start" if packed else setting(args, "truncation_mode"),
        text_field=setting(args, "dataset_text_field"),
    )


def loading_options(args: Any, quantization_config: Any, *, distributed: bool) -> dict[str, Any]:
    """How SFTTrainer will load a model by name, in the words of `SAFTScorer`.

    Args:
        args: the trainer's arguments.
        quantization_config: the trainer's argument.
        distributed: whether several processes train together: each then holds a whole model.

    Raises:
        SAFTInputError: `model_init_kwargs` asks for weights that cannot be read in part.
    """
    kwargs: Mapping[str, Any] = setting(args, "model_init_kwargs") or {}
    if unknown := [name for name in _OTHER_WEIGHTS if name in kwargs]:
        raise SAFTInputError(
            f"`model_init_kwargs` has {unknown[0]!r}, with which the model cannot be loaded for scoring. Load it "
            "yourself and pass the object as `model`, or set `saft_enabled=False`."
        )
    device_map = None if distributed else kwargs.get("device_map")
    if isinstance(device_map, Mapping) and set(device_map) != {""}:
        device_map = "auto"  # it names modules of the whole model; only the first blocks are loaded
    return {
        "revision": kwargs.get("revision"),
        "dtype": kwargs.get("dtype", kwargs.get("torch_dtype")) or "auto",
        "attn_implementation": kwargs.get("attn_implementation"),
        "quantization_config": quantization_config or kwargs.get("quantization_config"),
        "device_map": device_map,
        "trust_remote_code": kwargs.get("trust_remote_code", setting(args, "trust_remote_code")),
        "token": kwargs.get("token"),
    }
