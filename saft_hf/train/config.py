"""`SAFTSFTConfig`: TRL's `SFTConfig` and the options of the filter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any

from trl import SFTConfig

from saft_hf.hub import redact
from saft_hf.names import names_checked
from saft_hf.scorer.inputs import check_choice
from saft_hf.scorer.options import BY_NAME
from saft_hf.summary import DEMONSTRATIONS_SHARE

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "saft_label_sampling": ("uniform", "other"),
    "saft_on_undecided": (None, "raise", "keep"),
    "saft_on_error": (None, "exclude", "keep", "raise"),
    "saft_eval": ("leave", "score", "filter"),
    "saft_action": ("remove", "mask"),
}

_to_disk: ContextVar[bool] = ContextVar("_to_disk", default=False)


TRAINER_ARGUMENTS = ("saft_labelled", "saft_scorer", "saft_reference", "saft_fresh_labels", "saft_demonstrations")
"""What the filter is given as arguments of the trainer."""

IN_TRAINER, IN_CONFIG = "`SAFTSFTTrainer(...)`", "`SAFTSFTConfig(...)`"


def _field(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _option(name: str) -> Any:
    """The field of an option that the scorer has too: its default and help stand in one table."""
    return _field(BY_NAME[name].default, BY_NAME[name].help)


@names_checked("__init__", elsewhere={IN_TRAINER: TRAINER_ARGUMENTS})
@dataclass
class SAFTSFTConfig(SFTConfig):  # type: ignore[misc] # trl is not typed
    r"""Configuration class for the [`SAFTSFTTrainer`]: every option of [`~trl.SFTConfig`], and those of the filter.

    Using [`~transformers.HfArgumentParser`] or [`~trl.TrlParser`] this class can be turned into command-line
    arguments, or be read from YAML.

    Parameters:
        saft_enabled (`bool`, *optional*, defaults to `True`):
            `False` turns the filter off: the trainer is then TRL's, and nothing is loaded, scored or written.
        saft_method (`str`, *optional*, defaults to `auto` with labels):
            `saft` is the published score, `directed` a direction learned from the labels, `auto` that and the score of
            a reference set that was given, together. Without labels the default is `reference`: a probe of rows that
            are known to be harmful or benign, and ship with the package.
        saft_layer (`int`, *optional*):
            Index into `hidden_states` where rows are read: 0 the embeddings, `l` after block `l`. By default `saft`
            reads half of the layers (the paper reads 15 of 32), the other methods that and three quarters, in one pass.
        saft_readout (`str`, *optional*):
            `response_start` (published: the last token before the response), `response_mean` or `response_end`. By
            default `response_start`; methods other than `saft` read `response_mean` beside it.
        saft_aim (`str`, *optional*):
            What the threshold is chosen for, on the labels: `fpr=0.05` (lose that share of the benign rows on average
            over draws of the labels; the default, but for `saft`), `fpr=0.05@0.9` (lose no more than that share, with
            confidence 0.9 over such draws), `recall=0.9` (remove that share of the harmful ones on average),
            `share=0.1` (remove at most that share of all rows) or `f1` (the default for `saft`).
        saft_k (`int`, *optional*):
            How many principal directions `saft` sums; by default chosen from 1 to 4 on the labels, and 1 without
            labels or where `saft_threshold` or `saft_contamination` is given.
        saft_threshold (`float`, *optional*):
            Remove rows with a score above it, whatever the labels say.
        saft_contamination (`float`, *optional*):
            Expected harmful share of the rows, between 0 and 1: that share, the rows with the highest scores, is
            removed.
        saft_reference (`list[str]`, *optional*):
            Labelled rows of other sources to learn from: Hub ids, folders or files, with options as in
            `PKU-Alignment/BeaverTails,split=30k_train`; or the folder or Hub id of a scorer that was fitted on some. By
            default, without labels, a set that ships with the package.
        saft_label_column (`str`, *optional*):
            Column of `saft_labelled` that holds the labels; by default the one named `is_safe`, `safe`,
            `is_harmful`, `harmful` or `unsafe`.
        saft_harmful_value (`str`, *optional*):
            The value that marks a harmful row, where the column's name does not say.
        saft_label_sampling (`str`, *optional*, defaults to `"uniform"`):
            `uniform` where the labelled rows were drawn at random from the training rows, else `other`.
        saft_fit_rows (`int`, *optional*):
            Fit on the first so many rows only. By default on all; of a stream on the first 1,000.
        saft_on_undecided (`str`, *optional*):
            What to do where no row can honestly be told harmful, or the rows have images: `raise`, or `keep` every row
            and say so. By default it raises where labels, a scorer, a share or a threshold were given, and keeps every
            row, whatever stops the scoring, where nothing was.
        saft_on_error (`str`, *optional*):
            Rows that cannot be scored: `exclude` them from training, `keep` them, or `raise`. By default they are
            excluded where labels, a scorer, a share or a threshold were given, and kept where nothing was; a warning
            says how many there are.
        saft_by (`str`, *optional*):
            Column of the rows, such as a source or a language: the summary tells how many rows with each of its values
            are removed, and warns of one that loses more than three times the average. Not of a stream.
        saft_alpha (`float`, *optional*):
            With `saft_fresh_labels`: the largest harmful share that the rows trained on may have. Of the rows that the
            scorer keeps, the largest set is trained on that the labels certify. Where they certify none it raises, or,
            with `saft_on_undecided="keep"`, trains on the scorer's rows and says that nothing is certified.
        saft_delta (`float`, *optional*, defaults to 0.1):
            Chance, over the draw of the fresh labels, that a certificate is issued and false.
        saft_looks (`int`, *optional*, defaults to 1):
            How often in all, announced before the first time, you will add fresh labels and certify again: each look
            has an equal part of `saft_delta`.
        saft_eval (`str`, *optional*, defaults to `"leave"`):
            What to do with `eval_dataset`: `leave` it alone; `score` it, so that the summary says how many of its rows
            the filter would remove, and evaluate on all of them; or `filter` it like the training rows.
        saft_action (`str`, *optional*, defaults to `"remove"`):
            What to do with the rows above the threshold: `remove` them; or `mask` them: they stay in their places, and
            their responses out of the loss, so that only prompts are learned from (nothing, where the loss is on
            completions alone or the rows are plain text). Not for streams.
        saft_demonstrations (`str`, *optional*):
            Safe answers to harmful requests to mix into the kept rows: `built-in`, which ship with the package, or a
            Hub id, folder or file. They are spread evenly, and are none of the rows that came in. Not for streams.
        saft_demonstrations_share (`float`, *optional*, defaults to 0.03):
            How many of them, as a share of the kept rows.
        saft_trust_scores (`bool`, *optional*, defaults to `False`):
            Decide by the columns `saft_score` and `saft_status` that the data brings, whoever wrote them, without
            loading a model. Needs a threshold, a share or a scorer. Otherwise such columns are ignored: the rows are
            scored again, from the store where their vectors are there.
        saft_push_scorer (`bool`, *optional*, defaults to `False`):
            When the model is pushed, push the scorer to `MODEL-saft-scorer` too, and link it in the cards.
        saft_push_dataset (`bool`, *optional*, defaults to `False`):
            When the model is pushed, push the rows that it was trained on to `MODEL-saft-rows` too. Removed rows are
            not pushed. Both are private unless `hub_private_repo` is false.
        saft_cache_dir (`str`, *optional*):
            Where hidden states are kept, to be computed once; by default `saft` in the Hugging Face home.
        saft_scorer (`str`, *optional*):
            Folder or Hub id of a fitted scorer (`SAFTScorer.save_pretrained`, `push_to_hub`), in place of fitting one.

    Raises:
        SAFTInputError: an option has a value that it does not know.

    Examples:
        >>> args = SAFTSFTConfig(output_dir="out", saft_contamination=0.1)  # doctest: +SKIP
    """

    saft_enabled: bool = _field(True, "Filter the rows before training.")
    saft_layer: int | None = _option("layer")
    saft_readout: str | None = _option("readout")
    saft_method: str | None = _option("method")
    saft_aim: str | None = _option("aim")
    saft_k: int | None = _option("k")
    saft_threshold: float | None = _option("threshold")
    saft_contamination: float | None = _option("contamination")
    saft_reference: list[str] | None = _option("reference")  # noqa: RUF009 - a `field`
    saft_label_column: str | None = _option("label_column")
    saft_harmful_value: str | None = _option("harmful_value")
    saft_label_sampling: str = _option("label_sampling")
    saft_fit_rows: int | None = _option("fit_rows")
    saft_on_undecided: str | None = _option("on_undecided")
    saft_on_error: str | None = _field(None, BY_NAME["on_error"].help)
    saft_by: str | None = _option("by")
    saft_alpha: float | None = _field(
        None, "Largest harmful share to certify on fresh labels; only such rows are kept."
    )
    saft_delta: float = _field(0.1, "Chance that a certificate is issued and false.")
    saft_looks: int = _field(1, "How often in all, announced beforehand, labels are added and certified again.")
    saft_eval: str = _field("leave", "Rows to evaluate on: `leave` them alone, `score` them, or `filter` them.")
    saft_action: str = _field("remove", "`remove` rows above the threshold, or `mask` their responses in the loss.")
    saft_demonstrations: str | None = _field(
        None, "Safe answers to harmful requests to mix in: `built-in`, a Hub id, folder or file."
    )
    saft_demonstrations_share: float = _field(DEMONSTRATIONS_SHARE, "How many of them, as a share of the kept rows.")
    saft_trust_scores: bool = _field(False, "Decide by the `saft_score` column of the data, whoever wrote it.")
    saft_push_scorer: bool = _field(False, "Push the scorer beside the model, to `MODEL-saft-scorer`.")
    saft_push_dataset: bool = _field(False, "Push the rows that are trained on beside the model, to `MODEL-saft-rows`.")
    saft_cache_dir: str | None = _option("cache_dir")
    saft_scorer: str | None = _field(None, "Folder or Hub id of a fitted scorer, in place of fitting one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)

    def __str__(self) -> str:
        # TRL's hides the fields that are tokens, in `str` alone; the model's own token stands in a field of options.
        return redact(super().__str__(), (self.model_init_kwargs or {}).get("token"))

    __repr__ = __str__

    def __getstate__(self) -> dict[str, Any]:
        if not _to_disk.get():
            return self.__dict__
        kwargs = self.model_init_kwargs and {**self.model_init_kwargs, "token": None}
        return {**self.__dict__, "hub_token": None, "model_init_kwargs": kwargs}


CONFIG_OPTIONS = tuple(each.name for each in fields(SAFTSFTConfig))


@contextmanager
def without_token() -> Iterator[None]:
    """Inside, a config is pickled without the Hub's token: `training_args.bin` is pushed with the model."""
    before = _to_disk.set(True)
    try:
        yield
    finally:
        _to_disk.reset(before)


def setting(args: Any, name: str) -> Any:
    """An option of a `SAFTSFTConfig`, or its default where `args` is a plain `SFTConfig` or `TrainingArguments`."""
    return getattr(args, name, SAFTSFTConfig.__dataclass_fields__[name].default)
