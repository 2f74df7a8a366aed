"""`SAFTSFTTrainer`: SFTTrainer on the rows that SAFT keeps."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from saft_hf.distributed import World
from saft_hf.embed.loading import rng_untouched
from saft_hf.result import FilterResult
from saft_hf.scorer import SAFTScorer
from saft_hf.train.config import SAFTSFTConfig, setting
from saft_hf.train.filtering import filter_rows
from saft_hf.train.inputs import model_name
from saft_hf.train.publish import Publishing
from saft_hf.train.record import Record, checkpoint_folder, write_results, write_summary
from saft_hf.train.report import FilterCallback, Numbers, log_numbers
from saft_hf.train.request import Filtered, Request

logger = logging.getLogger(__name__)

_SIGNATURE = inspect.signature(SFTTrainer.__init__)


class SAFTSFTTrainer(Publishing, SFTTrainer):  # type: ignore[misc] # trl is not typed
    r"""TRL's [`~trl.SFTTrainer`] on the rows that SAFT keeps: harmful rows are taken out before training.

    It takes every argument that SFTTrainer takes, in the same order, and those below by keyword. The raw rows of
    `train_dataset` are scored with the hidden states of the model that is about to be trained, rendered as they will be
    trained on; the kept rows go to SFTTrainer, and everything after that is TRL's. `eval_dataset` is left alone unless
    `saft_eval` says otherwise. Random generators are left as they were found: training on a filtered pool equals
    SFTTrainer on its kept rows.

    Where neither labels nor a scorer, `saft_contamination` or `saft_threshold` are given, a reference set decides, and
    a warning says what was removed; where it cannot tell, all rows are trained on, and a warning says that. An
    `IterableDataset` is filtered while the model trains, by a frozen copy of the model.

    Args:
        *args:
            Positional arguments of [`~trl.SFTTrainer`].
        saft_labelled ([`~datasets.Dataset`], *optional*):
            About 100 rows that people labelled, drawn at random from `train_dataset`; score and threshold are chosen on
            them, and they are decided by their labels (in a stream by their scores). Their labels are read as
            `saft_label_column` and `saft_harmful_value` of the config say.
        saft_scorer ([`SAFTScorer`], `str` or `Path`, *optional*):
            A scorer, or the folder of a saved one, in place of one that is fitted on `train_dataset`.
        saft_fresh_labels ([`~datasets.Dataset`], *optional*):
            Rows of `train_dataset` that people labelled, drawn at random from those with a score and used for no choice
            before. With `saft_alpha` of the config they certify that at most such a share of the rows that are trained
            on is harmful; `saft_summary["certificate"]` has the figures and says what they mean.
        **kwargs:
            Keyword arguments of [`~trl.SFTTrainer`]: `model`, `args` ([`SAFTSFTConfig`], or a plain
            [`~trl.SFTConfig`] or [`~transformers.TrainingArguments`]), `train_dataset`, and so on.

    Attributes:
        saft_result (`FilterResult` or `None`): kept, removed and errored rows; `None` for a stream, and where nothing
            was asked to be filtered.
        saft_summary (`dict` or `None`): counts and figures; `None` with `saft_enabled=False`.
        saft_scorer (`SAFTScorer` or `None`): the scorer that the decisions come from.

    Raises:
        SAFTInputError: data, labels or options are not what they must be.
        SAFTUndecidedError: no row can honestly be told harmful, and `saft_on_undecided` is not `keep`.

    Source: Choi, Du and Li, *Safety-Aware Fine-Tuning of Large Language Models*, arXiv 2410.10014.

    Example:
        >>> trainer = SAFTSFTTrainer(                                            # doctest: +SKIP
        ...     model="Qwen/Qwen3-0.6B", train_dataset=train, saft_labelled=labelled
        ... )
        >>> trainer.train()                                                      # doctest: +SKIP
        >>> len(trainer.saft_result.removed)                                     # doctest: +SKIP
    """

    __signature__ = _SIGNATURE.replace(
        parameters=[
            *list(_SIGNATURE.parameters.values())[1:],
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
                for name in ("saft_labelled", "saft_scorer", "saft_fresh_labels")
            ),
        ]
    )

    def __init__(
        self,
        *args: Any,
        saft_labelled: Dataset | None = None,
        saft_scorer: SAFTScorer | str | Path | None = None,
        saft_fresh_labels: Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        # Bound to TRL's own signature: what another version of TRL adds or drops is added or dropped here.
        bound = _SIGNATURE.bind(self, *args, **kwargs)
        given = bound.arguments
        if given.get("args") is None:
            name = (model_name(given["model"]) or "").split("/")[-1]
            given["args"] = SAFTSFTConfig(f"{name}-SFT")
        request = Request(
            model=given["model"],
            args=given["args"],
            dataset=given.get("train_dataset"),
            processing_class=given.get("processing_class"),
            quantization_config=given.get("quantization_config"),
            formatting_func=given.get("formatting_func"),
            labelled=saft_labelled,
            fresh_labels=saft_fresh_labels,
            eval_dataset=given.get("eval_dataset"),
            scorer=saft_scorer if saft_scorer is not None else setting(given["args"], "saft_scorer"),
        )
        self._saft_record = Record()
        self._saft_totals: Numbers = {}
        self._saft = self._saft_filter(request)
        if self._saft is not None:
            given |= {"train_dataset": self._saft.dataset, "eval_dataset": self._saft.eval_dataset}
            if self._saft.summary["filtered"]:
                self._tag_names = [*super()._tag_names, "saft"]
        super().__init__(*bound.args[1:], **bound.kwargs)
        if self._saft is not None:
            self._saft_write(request)

    def _saft_filter(self, request: Request) -> Filtered | None:
        # Other kinds of `train_dataset` are for SFTTrainer to refuse.
        if not request.get("enabled") or not isinstance(request.dataset, Dataset | IterableDataset):
            return None
        _ = request.args.device  # the arguments tell Accelerate of devices and processes before anybody else asks
        world = World()
        with rng_untouched(world.device):
            return filter_rows(request, world)

    def _saft_write(self, request: Request) -> None:
        assert self._saft is not None  # noqa: S101 - for the type checker
        summary, is_main = self._saft.summary, self.is_world_process_zero()
        if is_main and not summary["filtered"]:
            logger.warning(
                "SAFT filters NOTHING: %s. The model is trained on every row of `train_dataset`. Give "
                "`saft_labelled`, `saft_scorer`, `saft_contamination` or `saft_threshold`; `saft_enabled=False` takes "
                "this warning away.",
                summary.get("undecided") or summary.get("why", "no threshold could be chosen"),
            )
        elif is_main and self._saft.result is not None:
            # Who asked for nothing should not find out later that rows are missing.
            level = logging.INFO if request.decides else logging.WARNING
            logger.log(level, "%r: decided by %s.", self._saft.result, summary.get("threshold_from"))
            logger.log(level, "What was decided for each row, and why: %s/_saft/audit.parquet.", self.args.output_dir)
            logger.log(level, "`saft_enabled=False` turns the filter off.")
        if "why" in summary:  # nothing was asked for: nothing that other processes wait for
            if is_main:
                write_summary(summary, self.args.output_dir)
            return
        world = World()
        with world.sync_errors("writing what was filtered"):
            if world.is_main:
                self._saft_record = write_results(self._saft, self.args.output_dir, request.get("on_error"))
        self._saft_record = world.broadcast(self._saft_record)
        if summary["filtered"]:
            count = self._saft_count if self._saft.stream else None
            self.add_callback(FilterCallback(self._saft_begin, count, self.log))

    # -- what happened ---------------------------------------------------------------------------------------------

    @property
    def saft_result(self) -> FilterResult | None:
        """Kept, removed and errored rows of a dataset that was filtered."""
        return None if self._saft is None else self._saft.result

    @property
    def saft_summary(self) -> dict[str, Any] | None:
        """Counts and figures; `filtered` says whether any decision was taken."""
        return None if self._saft is None else self._saft.summary

    @property
    def saft_scorer(self) -> SAFTScorer | None:
        """The scorer that the decisions come from."""
        return None if self._saft is None else self._saft.scorer

    def _saft_begin(self) -> Numbers:
        assert self._saft is not None  # noqa: S101 - for the type checker
        if self._saft.stream is not None:
            self._saft.stream.restart()
        return log_numbers(self._saft.summary)

    def _saft_count(self) -> None:
        assert self._saft is not None  # noqa: S101
        assert self._saft.stream is not None  # noqa: S101
        counts = self._saft.stream.totals(World())
        self._saft.summary["stream_rows"] = counts
        self._saft_totals = {f"saft_{word}": count for word, count in counts.items()}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's `log`; for a stream with the rows kept, removed and errored so far."""
        if "loss" in logs or "train_loss" in logs:
            logs |= self._saft_totals
        super().log(logs, *args, **kwargs)

    # -- checkpoints and cards -------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """TRL's `train`. A checkpoint that was trained on other rows is refused.

        Raises:
            SAFTInputError: data, labels or saft options are not those of the checkpoint.
        """
        checkpoint = checkpoint_folder(resume_from_checkpoint, self.args.output_dir)
        if checkpoint is not None and checkpoint.is_dir():
            self._saft_record.check(checkpoint)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        if self._saft is not None and self._saft.stream is not None and PartialState().is_main_process:
            write_summary(self._saft.summary, self.args.output_dir)
        return output

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._saft_record.filtered and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self._saft_record.save(folder)
