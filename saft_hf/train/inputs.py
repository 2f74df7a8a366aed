"""What a trainer was called with, and what SFTTrainer will make of it: tokenizer, rendering, and how a model loads."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, IterableDataset
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from saft_hf.decide import OnError
from saft_hf.embed import model_name, tokenizer_of
from saft_hf.errors import SAFTInputError
from saft_hf.render import RenderConfig
from saft_hf.scorer import SAFTScorer
from saft_hf.scorer.options import BY_NAME, OPTIONS, Option, refuse_idle
from saft_hf.train.config import setting

logger = logging.getLogger(__name__)

# Arguments of `from_pretrained` that change the weights and that the scoring backbone does not take.
_OTHER_WEIGHTS = ("subfolder", "gguf_file", "config", "state_dict", "adapter_kwargs")


@dataclass(frozen=True, kw_only=True)
class FilterArgs:
    """What a trainer was called with, as far as the filter needs it; names and meaning are those of the trainer."""

    model: Any
    args: Any
    train_dataset: Any = None
    eval_dataset: Any = None
    processing_class: Any = None
    quantization_config: Any = None
    formatting_func: Any = None
    labelled: Dataset | None = None
    scorer: SAFTScorer | str | Path | None = None
    reference: Any = None
    fresh_labels: Dataset | None = None
    demonstrations: Dataset | str | None = None
    data_collator: Any = None

    def get(self, name: str) -> Any:
        """An option of the config, without its prefix `saft_`; a reference set may be given beside it."""
        if name == "reference" and self.reference is not None:
            return self.reference
        return setting(self.args, f"saft_{name}")

    @property
    def streams(self) -> bool:
        """Whether rows are filtered while the model trains."""
        return isinstance(self.train_dataset, IterableDataset)

    @property
    def decides(self) -> bool:
        """Whether anything was given to decide rows by."""
        given = (self.labelled, self.fresh_labels, self.scorer)
        told = (self.get(name) for name in ("contamination", "threshold", "reference"))
        return bool(self.get("trust_scores")) or any(value is not None for value in (*given, *told))

    @property
    def on_undecided(self) -> Literal["raise", "keep"] | None:
        """What was asked for: by default to keep every row where nothing was given to decide by.

        None where something was: a scorer that was fitted before knows it, and another one raises.
        """
        asked: Literal["raise", "keep"] | None = self.get("on_undecided")
        return "keep" if asked is None and not self.decides else asked

    @property
    def on_error(self) -> OnError:
        """What becomes of rows without a score: who gave nothing to decide by does not lose them."""
        asked: OnError | None = self.get("on_error")
        return asked or ("exclude" if self.decides else "keep")


def check_args(args: FilterArgs) -> None:
    """Refuse labels without a share to certify or the other way round, what they cannot certify, and idle options."""
    fresh, alpha = args.fresh_labels, args.get("alpha")
    if (fresh is None) != (alpha is None):
        raise SAFTInputError(
            "`saft_fresh_labels` and `saft_alpha` go together: labels certify that at most that share of the rows is "
            f"harmful. Found `saft_alpha`={alpha}, fresh labels: {'none' if fresh is None else 'given'}."
        )
    if fresh is not None and (args.streams or args.get("trust_scores")):
        raise SAFTInputError(
            "`saft_fresh_labels` certify a dataset whose rows are scored here: not a stream, and not scores that are "
            "trusted (`saft_trust_scores`)."
        )
    if args.streams and args.demonstrations is not None:
        raise SAFTInputError(
            "`saft_demonstrations` are a share of the kept rows, and how many rows of a stream are kept is not known "
            "before it ends. Give a `Dataset`, or mix them into the stream yourself."
        )
    if args.get("action") == "mask":
        _check_masks(args)
    _refuse_idle(args)


def _check_masks(args: FilterArgs) -> None:
    """Refuse what would make labels of its own, and so bring the responses back into the loss."""
    collator = args.data_collator
    causes = {
        "a stream is filtered before SFTTrainer makes tokens of its rows, one by one": args.streams,
        "`dataset_kwargs={'skip_prepare_dataset': True}`: SFTTrainer then makes no labels that could be masked": (
            setting(args.args, "dataset_kwargs") or {}
        ).get("skip_prepare_dataset", False),
        f"`data_collator` ({type(collator).__name__}) may make labels of its own": (
            collator is not None and not isinstance(collator, DataCollatorForLanguageModeling)
        ),
        "`label_smoothing_factor`: a batch whose labels are all masked would give no number": (
            args.args.label_smoothing_factor > 0
        ),
    }
    if found := [cause for cause, there in causes.items() if there]:
        raise SAFTInputError(f"`saft_action='mask'`: {found[0]}. Use `saft_action='remove'`.")


def check_workers(args: FilterArgs) -> None:
    """Refuse worker processes for a stream."""
    workers = setting(args.args, "dataloader_num_workers")
    if args.streams and workers:
        raise SAFTInputError(
            f"`dataloader_num_workers`={workers}: a stream is filtered by a model in this process, which worker "
            "processes do not have. Set it to 0, or filter first (`saft-hf filter`)."
        )


def _refuse_idle(args: FilterArgs) -> None:
    """Refuse options that have no effect: beside a scorer, with scores that are only trusted, and without labels."""
    options = [option for option in OPTIONS if option.in_trainer and (option.travels or option.learned)]
    options = [option for option in options if option.name != "on_undecided"]
    if args.fresh_labels is not None:  # they are read by these, whatever was fitted
        options = [option for option in options if option.name not in ("label_column", "harmful_value")]
    scorer, why = args.scorer, "beside `saft_scorer`, which is fitted already"
    uses: tuple[str, ...] = ("scorer", "fit")
    if args.get("trust_scores"):
        why = "beside `saft_trust_scores`: no row is scored"
        if scorer is None:
            options = [option for option in options if option.name not in ("threshold", "contamination")]
    elif scorer is None:
        uses = ()
    elif isinstance(scorer, SAFTScorer) and scorer.fit_ is None:
        uses, why = ("scorer",), "beside `saft_scorer`, which brings its own"
    refuse_idle(args.get, (option for option in options if option.use in uses), why, prefix="saft_")
    if args.labelled is None:
        of_labels = (option for option in options if option.of_labels)
        refuse_idle(args.get, of_labels, "without `saft_labelled` rows", prefix="saft_")
    if args.streams or args.get("trust_scores"):
        refuse_idle(args.get, [BY_NAME["by"]], "with a stream, or beside `saft_trust_scores`", prefix="saft_")
    for name, missing, what in (
        ("delta", args.get("alpha"), "`saft_alpha`"),
        ("looks", args.get("alpha"), "`saft_alpha`"),
        ("eval", args.eval_dataset, "an `eval_dataset`"),
        ("demonstrations_share", args.demonstrations, "`saft_demonstrations`"),
    ):
        if missing is None:
            refuse_idle(args.get, [Option(name, setting(None, f"saft_{name}"), "")], f"without {what}", prefix="saft_")


def has_images(args: FilterArgs) -> bool:
    """Whether the rows have images; refused where something was given to filter them by."""
    columns = args.train_dataset.column_names or list(next(iter(args.train_dataset.with_format(None)), {}))
    if not {"image", "images"} & set(columns):
        return False
    if args.on_undecided == "keep":
        return True
    raise SAFTInputError(
        f"`train_dataset` has images (columns {columns}): SAFT scores text only. Train on every row with "
        "`saft_on_undecided='keep'`, or turn the filter off with `saft_enabled=False`."
    )


# -- what SFTTrainer will make of it ----------------------------------------------------------------------------------


def processing_class_of(model: Any, config: Any) -> Any:
    """The tokenizer or processor that SFTTrainer loads where none is given.

    Raises:
        SAFTInputError: the model does not say where it was loaded from.
        OSError: there is none.
    """
    name = model_name(model)
    if name is None:
        raise SAFTInputError(
            "`model` is an object that does not say where it was loaded from, so its tokenizer cannot be found. Pass "
            "`processing_class=`."
        )
    kwargs = setting(config, "model_init_kwargs") or {}
    return AutoProcessor.from_pretrained(
        name,
        revision=kwargs.get("revision") if isinstance(model, str) else None,
        trust_remote_code=setting(config, "trust_remote_code"),
    )


def training_tokenizer(args: FilterArgs) -> PreTrainedTokenizerBase:
    """The tokenizer as SFTTrainer will have it: `eos_token`, `chat_template_path` and training template applied.

    Returns:
        A copy, whose chat template renders the training rows.

    Raises:
        SAFTInputError: it is no tokenizer, or `eos_token` is not in its vocabulary.
    """
    config, given = args.args, args.processing_class
    processor = copy.deepcopy(processing_class_of(args.model, config) if given is None else given)
    tokenizer = tokenizer_of(processor)
    if (eos_token := setting(config, "eos_token")) is not None:
        if eos_token not in tokenizer.get_vocab():
            raise SAFTInputError(f"`eos_token`={eos_token!r} is not in the vocabulary of the tokenizer.")
        tokenizer.eos_token = eos_token
    template = getattr(processor, "chat_template", None)
    if (path := setting(config, "chat_template_path")) is not None:
        template = _cloned_template(tokenizer, path)
    if setting(config, "assistant_only_loss"):
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


def render_config(args: FilterArgs) -> RenderConfig:
    """How SFTTrainer will cut rows. Packing that loses no token, and rows that it leaves as they are, are not cut."""
    config = args.args
    prepared = (setting(config, "dataset_kwargs") or {}).get("skip_prepare_dataset", False)
    packed, strategy = setting(config, "packing"), setting(config, "packing_strategy")
    uncut = prepared or (packed and strategy != "bfd")
    return RenderConfig(
        max_length=None if uncut else setting(config, "max_length"),
        # bfd packing cuts overlong rows at their end, whatever the mode says.
        truncation_mode="keep_start" if packed else setting(config, "truncation_mode"),
        text_field=setting(config, "dataset_text_field"),
    )


def quantization(args: FilterArgs) -> Any:
    """How SFTTrainer will quantise a model by name; None where it will not."""
    if not isinstance(args.model, str):
        return None
    return args.quantization_config or (setting(args.args, "model_init_kwargs") or {}).get("quantization_config")


def loading_options(args: FilterArgs, *, distributed: bool) -> dict[str, Any]:
    """How SFTTrainer will load a model by name, in the words of `SAFTScorer`.

    Args:
        args: with a model by name.
        distributed: whether several processes train together: each then holds a whole model.

    Raises:
        SAFTInputError: `model_init_kwargs` asks for weights that cannot be read in part.
    """
    kwargs: Mapping[str, Any] = setting(args.args, "model_init_kwargs") or {}
    if unknown := [name for name in _OTHER_WEIGHTS if name in kwargs]:
        raise SAFTInputError(
            f"`model_init_kwargs` has {unknown[0]!r}, with which the model cannot be loaded for scoring. Load it "
            "yourself and pass the object as `model`, or set `saft_enabled=False`."
        )
    if args.quantization_config is not None and "quantization_config" in kwargs:
        raise SAFTInputError("`quantization_config` is given twice: to the trainer, and in `model_init_kwargs`.")
    device_map = None if distributed else kwargs.get("device_map")
    if isinstance(device_map, Mapping) and set(device_map) != {""}:
        device_map = "auto"  # it names modules of the whole model; only the first blocks are loaded
    return {
        "revision": kwargs.get("revision"),
        "dtype": kwargs.get("dtype", kwargs.get("torch_dtype")) or "auto",
        "attn_implementation": kwargs.get("attn_implementation"),
        "quantization_config": quantization(args),
        "device_map": device_map,
        "trust_remote_code": kwargs.get("trust_remote_code", setting(args.args, "trust_remote_code")),
        "token": kwargs.get("token"),
    }
