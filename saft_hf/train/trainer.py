"""`SAFTSFTTrainer`: SFTTrainer on the rows that SAFT keeps."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from saft_hf.decide import Decision
from saft_hf.distributed import World, progress_bars
from saft_hf.embed import content_of, model_name, rng_untouched
from saft_hf.names import check_names
from saft_hf.result import FilterResult, log_unscored
from saft_hf.scorer import SAFTScorer
from saft_hf.summary import DatasetSource, Summary
from saft_hf.train import hub
from saft_hf.train.config import (
    CONFIG_OPTIONS,
    IN_CONFIG,
    IN_TRAINER,
    TRAINER_ARGUMENTS,
    SAFTSFTConfig,
    setting,
    without_token,
)
from saft_hf.train.dashboards import log_histogram
from saft_hf.train.filtering import filter_rows
from saft_hf.train.inputs import FilterArgs, processing_class_of
from saft_hf.train.masking import MASKED, prepare_masked
from saft_hf.train.record import Record, TrainedRows, last_checkpoint, write_summary
from saft_hf.train.stream import StreamFilter
from saft_hf.train.trial import refuse_early

logger = logging.getLogger(__name__)

_COUNTS = ("rows", "kept", "removed", "errored")


class SAFTMixin(Trainer):  # type: ignore[misc] # transformers is not typed
    """The filter, for a trainer of TRL that takes `args` and `train_dataset`: it stands before that class.

    `__init__` is all that happens to the rows; the rest tells of it. `SAFTSFTTrainer` documents the arguments.
    """

    def __init__(
        self,
        *args: Any,
        saft_labelled: Dataset | None = None,
        saft_scorer: SAFTScorer | str | Path | None = None,
        saft_reference: Any = None,
        saft_fresh_labels: Dataset | None = None,
        saft_demonstrations: Dataset | str | None = None,
        **kwargs: Any,
    ) -> None:
        # Bound to TRL's own signature: what another version of TRL adds or drops is added or dropped here.
        signature = inspect.signature(super().__init__)
        own = [*signature.parameters, *TRAINER_ARGUMENTS]
        check_names(f"{type(self).__name__}(...)", kwargs, {IN_TRAINER: own, IN_CONFIG: CONFIG_OPTIONS})
        call = signature.bind(*args, **kwargs)
        given = call.arguments
        if given.get("args") is None:
            name = (model_name(given["model"]) or "").split("/")[-1]
            given["args"] = SAFTSFTConfig(f"{name}-SFT")
        config, self._saft, self._saft_rows, self._saft_logged = given["args"], None, TrainedRows(), False

        saft = {"saft_labelled": saft_labelled, "saft_scorer": saft_scorer, "saft_reference": saft_reference}
        saft |= {"saft_fresh_labels": saft_fresh_labels, "saft_demonstrations": saft_demonstrations}
        _ = config.device  # the arguments tell Accelerate of devices and processes before anybody else asks
        World().same_on_all_ranks(lambda: _told(config, given, saft))

        # Here and not later: TRL tokenises, drops and packs rows before `Trainer.__init__`, and then no row is left
        # to tell. Other kinds of `train_dataset` are for TRL to refuse.
        if setting(config, "saft_enabled") and isinstance(given.get("train_dataset"), Dataset | IterableDataset):
            used, world = dict(given), World()
            with rng_untouched(world.device), progress_bars(not config.disable_tqdm):
                with world.sync_errors("checking the arguments"):
                    if used.get("processing_class") is None:  # once for the trial and for scoring
                        used["processing_class"] = processing_class_of(given["model"], config)
                    refuse_early(type(self).__mro__[type(self).__mro__.index(SAFTMixin) + 1], used)
                filter_args = FilterArgs(
                    **{name: value for name, value in used.items() if name in FilterArgs.__dataclass_fields__},
                    labelled=saft_labelled,
                    scorer=saft_scorer if saft_scorer is not None else setting(config, "saft_scorer"),
                    reference=saft_reference,
                    fresh_labels=saft_fresh_labels,
                    demonstrations=(
                        setting(config, "saft_demonstrations") if saft_demonstrations is None else saft_demonstrations
                    ),
                )
                self._saft = record = filter_rows(filter_args, world)
            given |= {"train_dataset": record.dataset, "eval_dataset": record.eval_dataset}
            if record.summary.filtered:
                self._tag_names = [*super()._tag_names, "saft"]  # TRL tags the model while it is made

        super().__init__(*call.args, **call.kwargs)

        if self._saft is not None:
            self._saft_log(self._saft, asked=filter_args.decides)
            self._saft_write(self._saft, filter_args.on_error)
            if self._saft.stream is not None:
                self.add_callback(StreamCallback(self._saft, self._saft.stream))

    def _saft_log(self, record: Record, *, asked: bool) -> None:
        if not self.is_world_process_zero():
            return
        summary, folder = record.summary, self.args.output_dir
        if not summary.filtered:
            logger.warning(
                "SAFT filters NOTHING: %s. The model is trained on every row of `train_dataset`. Give "
                "`saft_labelled`, `saft_scorer`, `saft_contamination` or `saft_threshold`; `saft_enabled=False` takes "
                "this warning away.",
                (summary.undecided or "no threshold could be chosen").rstrip("."),
            )
        elif record.result is not None:
            # Who asked for nothing should not find out later that rows are missing.
            level = logging.INFO if asked else logging.WARNING
            logger.log(level, "%r: decided by %s.", record.result, summary.threshold_from)
            logger.log(level, "What was decided for each row, and why: %s/_saft/audit.parquet.", folder)
            logger.log(level, "`saft_enabled=False` turns the filter off.")
        if (shown := summary.demonstrations).rows:
            logger.info("%d demonstrations are mixed in, %.1f %% of the kept rows.", shown.rows, 100 * shown.share)

    def _saft_write(self, record: Record, on_error: str) -> None:
        # The other processes get what the files say: any of them may write a checkpoint.
        self._saft_rows, summary = World().on_main(
            "writing what was filtered", lambda: (record.write(self.args.output_dir, on_error), record.summary)
        )
        record.tell(summary)

    def _prepare_dataset(self, dataset: Any, *how: Any) -> Any:
        prepare = super()._prepare_dataset
        columns = dataset.column_names if isinstance(dataset, Dataset) else ()
        return prepare_masked(prepare, dataset, [*how]) if MASKED in columns else prepare(dataset, *how)

    def compute_loss(self, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        """TRL's `compute_loss`; where all labels of a batch are masked it is 0, and not 0 / 0."""
        if num_items_in_batch is not None:
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        return super().compute_loss(*args, num_items_in_batch=num_items_in_batch, **kwargs)

    # -- what happened ---------------------------------------------------------------------------------------------

    @property
    def saft_result(self) -> FilterResult | None:
        """Kept, removed and errored rows of a dataset that was filtered."""
        return None if self._saft is None else self._saft.result

    @property
    def saft_summary(self) -> Summary | None:
        """Counts and metrics; `filtered` says whether any decision was taken. None where the filter is off."""
        return None if self._saft is None else self._saft.summary

    @saft_summary.setter
    def saft_summary(self, summary: Summary) -> None:
        """With more in it, such as where the rows come from: cards are made from it."""
        if self._saft is not None:
            self._saft.tell(summary)

    @property
    def saft_scorer(self) -> SAFTScorer | None:
        """The scorer that the decisions come from."""
        return None if self._saft is None else self._saft.scorer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's `log`. The first entry with a loss also tells what was filtered; of a stream each does, so far."""
        record, first = self._saft, False
        if record is not None and record.summary.filtered and ("loss" in logs or "train_loss" in logs):
            if first := not self._saft_logged:
                logs |= log_numbers(record.summary, ("threshold", "seconds"))
                logs |= {f"saft_score_q{name}": value for name, value in record.summary.score_quantiles.items()}
            if record.stream is not None or first:
                logs |= log_numbers(record.summary, _COUNTS)
                rows = sum(logs.get(f"saft_{name}", 0) for name in _COUNTS[1:])
                logs |= {"saft_kept_share": logs["saft_kept"] / rows} if rows else {}
            self._saft_logged = True
        super().log(logs, *args, **kwargs)
        if first and record is not None and record.result is not None and self.is_world_process_zero():
            log_histogram(self.callback_handler.callbacks, record.result.scores)

    # -- checkpoints and cards -------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's `train`. A checkpoint that was trained on other rows is refused.

        With `True` it goes on from the last checkpoint that is whole: a run that was killed may leave part of one.

        Raises:
            SAFTInputError: data, labels or saft options are not those of the checkpoint, or it is not whole.
        """
        if resume_from_checkpoint is True and (last := last_checkpoint(self.args.output_dir)) is not None:
            resume_from_checkpoint = str(last)
        if isinstance(resume_from_checkpoint, str | Path) and Path(resume_from_checkpoint).is_dir():
            self._saft_rows.check(Path(resume_from_checkpoint))
        self._saft_logged = False
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        if (record := self._saft) is not None and record.stream is not None:  # with the counts of the whole run
            World().on_main("writing the summary", lambda: write_summary(record.summary, self.args.output_dir))
        return output

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._saft_rows.differ:
            # Before the checkpoint: whenever the run ends, there is none that does not say what it was trained on.
            with World().sync_errors("writing a checkpoint"):
                folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
                if self.args.should_save:
                    self._saft_rows.save(folder)
        super()._save_checkpoint(model, trial)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with without_token():
            super()._save(*args, **kwargs)

    def _push_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with without_token():
            super()._push_from_checkpoint(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's card, and what was filtered. Checkpoints write it too."""
        super().create_model_card(*args, **kwargs)
        if self._saft is not None and self.is_world_process_zero():
            hub.extend_card(self.args.output_dir, self._saft.summary)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """TRL's `push_to_hub`, tried again where the network or the Hub fails in passing.

        With `saft_push_scorer` the scorer goes to `MODEL-saft-scorer` first, with `saft_push_dataset` the rows that
        are trained on to `MODEL-saft-rows`, both private unless `hub_private_repo` is false; the cards name each other.

        Arguments and what is returned are TRL's; without `blocking`, what fails later is not tried again.

        Raises:
            SAFTHubError: the Hub refuses, or is not reached. Model and card are in `output_dir`.
        """
        name, record = kwargs.get("dataset_name"), self._saft
        if record is not None and record.summary.source is None and isinstance(name, str):
            record.extend(source=DatasetSource(dataset=name))
        to = {"commit_message": commit_message, "token": token or self.args.hub_token, "revision": revision}
        return hub.push(self, record, partial(super().push_to_hub, blocking=blocking, **to, **kwargs), kwargs, **to)


class SAFTSFTTrainer(SAFTMixin, SFTTrainer):  # type: ignore[misc] # trl is not typed
    r"""TRL's [`~trl.SFTTrainer`] on the rows that SAFT keeps: harmful rows are taken out before training.

    It takes every argument that SFTTrainer takes, in the same order, and those below by keyword. The raw rows of
    `train_dataset` are scored with the hidden states of the model that is about to be trained, rendered as they will be
    trained on; the kept rows go to SFTTrainer, and everything after that is TRL's. `eval_dataset` is left alone unless
    `saft_eval` says otherwise. Random generators are left as they were found: training on a filtered pool equals
    SFTTrainer on its kept rows.

    Where neither labels nor a scorer, `saft_reference`, `saft_contamination` or `saft_threshold` are given, a probe of
    the built-in rows decides, and a warning says what was removed and how many rows, kept, could not be scored; where
    it cannot tell, all rows are trained on, and a warning says that. An `IterableDataset` is filtered while the model
    trains, by a frozen copy of the model. What SFTTrainer refuses is refused before a row is scored.

    Args:
        *args:
            Positional arguments of [`~trl.SFTTrainer`].
        saft_labelled ([`~datasets.Dataset`], *optional*):
            About 100 rows that people labelled, drawn at random from `train_dataset`; score and threshold are chosen on
            them, and they are decided by their labels (in a stream by their scores). Their labels are read as
            `saft_label_column` and `saft_harmful_value` of the config say.
        saft_scorer ([`SAFTScorer`], `str` or `Path`, *optional*):
            A scorer, or the folder of a saved one, in place of one that is fitted on `train_dataset`.
        saft_reference (*optional*):
            Labelled rows of other sources: a [`~datasets.Dataset`], a Hub id, a folder or file, a `ReferenceSource`, or
            a list of these; or a scorer that was fitted on some. See [`SAFTScorer`].
        saft_fresh_labels ([`~datasets.Dataset`], *optional*):
            Rows of `train_dataset` that people labelled, drawn at random from those with a score and used for no choice
            before. With `saft_alpha` of the config they certify that at most such a share of the rows that are trained
            on is harmful; `saft_summary.certificate` says what that means.
        saft_demonstrations ([`~datasets.Dataset`] or `str`, *optional*):
            Safe answers to harmful requests, mixed into the kept rows: rows with `prompt` and `completion`, or
            `messages`, which are laid out as `train_dataset` is; the Hub id, folder or file of such; or `built-in`,
            which ship with the package. `saft_demonstrations_share` of the config says how many. They are none of the
            rows that came in.
        **kwargs:
            Keyword arguments of [`~trl.SFTTrainer`]: `model`, `args` ([`SAFTSFTConfig`], or a plain
            [`~trl.SFTConfig`] or [`~transformers.TrainingArguments`]), `train_dataset`, and so on.

    Attributes:
        saft_result (`FilterResult` or `None`): kept, removed and errored rows; `None` for a stream, and where nothing
            was asked to be filtered.
        saft_summary (`Summary` or `None`): counts and metrics; `None` with `saft_enabled=False`.
        saft_scorer (`SAFTScorer` or `None`): the scorer that the decisions come from.

    Raises:
        SAFTInputError: data, labels or options are not what they must be.
        SAFTUndecidedError: no row can honestly be told harmful, and `saft_on_undecided` is not `keep`.

    Source: Choi, Du and Li, *Safety-Aware Fine-Tuning of Large Language Models*, arXiv 2410.10014.

    Examples:
        >>> trainer = SAFTSFTTrainer(                                            # doctest: +SKIP
        ...     model="Qwen/Qwen3-0.6B", train_dataset=train, saft_labelled=labelled
        ... )
        >>> trainer.train()                                                      # doctest: +SKIP
        >>> len(trainer.saft_result.removed)                                     # doctest: +SKIP
    """

    __signature__ = inspect.Signature(
        [
            *list(inspect.signature(SFTTrainer.__init__).parameters.values())[1:],
            *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in TRAINER_ARGUMENTS),
        ]
    )


class StreamCallback(TrainerCallback):  # type: ignore[misc] # transformers is not typed
    """Adds up what was filtered of a stream whenever the trainer logs, and says at the end what went unjudged."""

    def __init__(self, record: Record, stream: StreamFilter) -> None:
        self._record, self._stream = record, stream
        self._unscored: dict[str, int] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what was looked at before training."""
        self._stream.restart()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add up the counts of all processes, which all come by here."""
        if control.should_log or control.should_training_stop:
            self._unscored = self._stream.totals(World())
            self._record.extend(**{word.value: self._unscored.pop(word.value) for word in Decision})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say which rows could not be scored."""
        summary, kept = self._record.summary, self._stream.on_error == "keep"
        if state.is_world_process_zero:
            rows = sum(getattr(summary, word.value) or 0 for word in Decision)
            log_unscored(self._unscored, rows, "rows of the stream", kept=kept)


def _told(config: Any, given: Mapping[str, Any], saft: Mapping[str, Any]) -> dict[str, object]:
    """What a trainer was told of the filter, for a comparison between processes; without a filter, only that."""
    names = [
        name for name in SAFTSFTConfig.__dataclass_fields__ if name.startswith("saft_") and name != "saft_cache_dir"
    ]
    told = {name: setting(config, name) for name in names}
    if not told["saft_enabled"]:
        return {"saft_enabled": False}
    rows = ["train_dataset", *(["eval_dataset"] if told["saft_eval"] != "leave" else [])]
    told |= {name: given.get(name) for name in rows} | {
        name: value for name, value in saft.items() if value is not None
    }
    return {name: content_of(value) for name, value in told.items()}


def log_numbers(summary: Summary, names: tuple[str, ...]) -> dict[str, float]:
    """Numbers of a summary, named for a dashboard."""
    numbers = {name: getattr(summary, name) for name in names}
    return {f"saft_{name}": value for name, value in numbers.items() if value is not None}
