"""`SAFTScorer`: fit on a pool, score rows, filter datasets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray

from saft_hf.decide import OnError, ThresholdAim, check_outcome, decide, read_labels, resolve_label_column
from saft_hf.distributed import World
from saft_hf.embed.extract import where_finite
from saft_hf.embed.features import Features, readouts_of
from saft_hf.embed.rows import RowReader
from saft_hf.embed.survey import Survey
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.render import Readout, Renderer
from saft_hf.result import FilterResult
from saft_hf.scorer import inputs
from saft_hf.scorer.card import public_name
from saft_hf.scorer.certifying import CertifyingScorer
from saft_hf.scorer.confounding import side_effects
from saft_hf.scorer.fitted import Fitted
from saft_hf.scorer.fitting import final_statuses, fit_scorer, undecided
from saft_hf.scorer.pool import pool_scores
from saft_hf.scorer.referenced import Reference
from saft_hf.scorer.suggested import answered, is_informative
from saft_hf.scorer.task import PUBLISHED_KS, Task

logger = logging.getLogger(__name__)

SCORE, STATUS = "saft_score", "saft_status"


class SAFTScorer(CertifyingScorer):
    """Scores rows of fine-tuning data by the hidden states of the model that is to be tuned.

    The constructor loads nothing. `fit` learns from a pool; after that the scorer is a callable for
    `Dataset.map(batched=True)` and scores, filters and saves.

    Args:
        model (`str` or `PreTrainedModel`): name or folder of the model that will be tuned, or the loaded model. A name
            is loaded with only the layers that are read; an object is read in place and left as it was found.
        revision (`str`, *optional*): commit, branch or tag of the model.
        layer (`int`, *optional*): index into transformers' `hidden_states`: 0 the embeddings, `l` after block `l`, `L`
            after the final norm. By default `saft` reads half of the layers (the paper reads 15 of 32), the other
            methods that, three quarters and all of them, in one pass.
        readout (`str`, *optional*): `response_start` (published: the last token before the response),
            `response_mean` or `response_end`. By default `response_start`, and with `directed` and `auto` also
            `response_mean`; for a pool of plain text `response_mean`, and also `response_end`.
        method (`str`, *optional*, defaults to `auto` with labels): `saft` is the published score, `directed` a
            direction learned from the labels, `auto` the best of both and their variants on the labels.
            Without labels the default is `reference`: a direction from rows that are known to be harmful or benign.
        k (`int`, *optional*): how many directions the published score sums; by default chosen from 1 to 4 on labels,
            and 1 without labels or where `threshold` or `contamination` is given.
        threshold (`float`, *optional*): remove rows with a score above it.
        contamination (`float`, *optional*): remove this share of the pool, the rows with the highest scores.
        reference (`Dataset`, *optional*): reference set for `method="reference"`: rows with a label column such as
            `is_harmful`, and `category` where rows belong together; by default the one that ships with the package.
        dtype (`str`, *optional*, defaults to `auto`): of the model by name; `auto` is the checkpoint's, float32 on CPU.
        attn_implementation (`str`, *optional*): as in transformers.
        quantization_config (*optional*): as in transformers, for a model by name.
        device_map (*optional*): as in transformers, for a model by name.
        vector_dtype (`str`, *optional*, defaults to `float32`): of the vectors that are kept; `float16` halves the
            store, and a row with a value beyond 65,504 gets the status `non_finite`.
        max_length (`int` or `None`, defaults to 1024): rows are cut to this many tokens, as SFTTrainer would.
        cache_dir (`str` or `Path`, *optional*): where vectors are kept; by default `saft` in the Hugging Face home.
        trust_remote_code (`bool`, defaults to `False`): run code that comes with the model.
        token (`str`, *optional*): for private models; never written or logged.
        processing_class (*optional*): tokenizer or processor; by default the one saved with the model.
        render (`RenderConfig`, *optional*): how rows become tokens, where that differs from SFTTrainer's defaults.
        formatting_func (`Callable`, *optional*): row -> text, as SFTTrainer takes it.

    Source: Choi, Du and Li, *Safety-Aware Fine-Tuning of Large Language Models*, arXiv 2410.10014.

    Example:
        >>> scorer = SAFTScorer("meta-llama/Llama-2-7b-chat-hf", layer=15)  # doctest: +SKIP
        >>> scorer.fit(train, labelled=labelled)                            # doctest: +SKIP
        >>> train = train.map(scorer, batched=True)                         # doctest: +SKIP
        >>> result = scorer.filter(train)                                   # doctest: +SKIP
    """

    # -- fit -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        pool: Dataset | IterableDataset,
        labelled: Dataset | None = None,
        *,
        label_column: str | None = None,
        harmful_value: str | int | bool | None = None,
        label_sampling: Literal["uniform", "other"] = "uniform",
        aim: str | None = None,
        fit_rows: int | None = None,
        on_undecided: Literal["raise", "keep"] = "raise",
    ) -> Self:
        """Learn a score and a threshold from a pool and from labels.

        The pool is embedded once. `saft` takes its principal directions, then k and the threshold by F1 on the labels;
        `directed` learns a direction from the labels; `auto` compares both and their variants on the labels.

        Every process of a distributed run must call it, with the same data; all of them end up with the same bits.

        Args:
            pool: the rows that will be scored, or a sample of them; any shape that SFTTrainer takes.
            labelled: rows that people labelled, about 100, drawn at random from the pool.
            label_column: their label; by default the one column named `is_safe`, `safe`, `is_harmful`, `harmful` or
                `unsafe`.
            harmful_value: the value that marks a harmful row, where the column's name does not say.
            label_sampling: `uniform` where the labelled rows were drawn at random from the pool, else `other`. Rows
                that `suggest_labels` laid out say so themselves, and may be labelled in part.
            aim: what the threshold is chosen for, on the labels. `fpr=0.05`: lose at most that share of the
                benign rows (the default, but for `saft`). `recall=0.9`: remove at least that share of the harmful rows.
                `share=0.1`: remove at most that share of all rows. `f1`: the best F1 (the default for `saft`).
            fit_rows: fit on the first so many rows only; needed for an `IterableDataset`.
            on_undecided: what to do where no threshold can honestly be chosen: `raise`, or `keep` every row.

        Returns:
            The scorer.

        Raises:
            SAFTInputError: the pool, the labels or an argument are not what they must be.
            SAFTUndecidedError: the choice cannot be told from chance, a class has too few labels, or the threshold
                would remove nearly all or nothing. Scores can be taken all the same.
        """
        method = inputs.method_of(self, labelled is not None, aim)
        if on_undecided not in ("raise", "keep"):
            raise SAFTInputError(f"`on_undecided` must be 'raise' or 'keep', not {on_undecided!r}.")
        if label_sampling not in ("uniform", "other"):
            raise SAFTInputError(f"`label_sampling` must be 'uniform' or 'other', not {label_sampling!r}.")
        pool = inputs.as_pool(pool, fit_rows)
        harmful, column, uniform = None, None, label_sampling == "uniform"
        if labelled is not None:
            inputs.check_dataset(labelled)
            column = resolve_label_column(labelled.column_names, label_column)
            labelled, labels = answered(labelled, column)
            harmful = read_labels(labels, column, harmful_value)
            uniform = uniform and not is_informative(labelled).any()
        self.fitted_, self._reader = None, None
        world, source = World(), self._open_source()
        renderer = self._renderer()
        reference = Reference.of(self.reference) if method == "reference" else None
        features = self._features(method, renderer, pool)
        try:
            fingerprint = source.fingerprint(features.layers, world)
            extractor = self._extractor(renderer, features, fingerprint, world)
            learned = fit_scorer(
                extractor,
                pool,
                labelled,
                reference,
                Task(
                    method=method,
                    published=features.names[0],
                    ks=PUBLISHED_KS if self.k is None else (self.k,),
                    threshold=self.threshold,
                    contamination=self.contamination,
                    aim=None if aim is None else ThresholdAim.parse(aim),
                    harmful=harmful,
                    label_column=column,
                    uniform=uniform,
                ),
            )
        finally:
            source.release()
        found = learned.found
        self.fitted_ = Fitted(
            model=source.name,
            revision=source.revision,
            model_fingerprint=fingerprint,
            template_digest=renderer.template_digest(readouts_of(found.score.features)),
            num_layers=source.shape.num_layers,
            captured=features,
            method=method,
            score=found.score,
            threshold=None if learned.undecided else found.threshold,
            threshold_from=found.threshold_from,
            undecided=learned.undecided,
            keep_on_undecided=on_undecided == "keep",
            labelled=learned.labelled,
            token_budget=extractor.token_budget,
            shares_prefix=extractor.shares_prefix,
            plan_digest=learned.plan_digest,
            summary=learned.summary,
        )
        if learned.undecided and on_undecided == "raise":
            raise undecided(learned, 0 if harmful is None else len(harmful))
        return self

    def _features(self, method: str, renderer: Renderer, pool: Dataset) -> Features:
        """What is read in one pass: one feature as published; else three layers, with labels at two readouts.

        The first feature is the published score's.
        """
        depth = self._open_source().shape.num_layers
        readouts = (Readout(self.readout),) if self.readout else inputs.pick_readouts(renderer, pool)
        layers = sorted({depth // 2, 3 * depth // 4, depth}) if self.layer is None else [self.layer]
        if method == "saft":
            layers = layers[:1]
        return Features(tuple(layers), readouts[:1] if method in ("saft", "reference") else readouts, self.vector_dtype)

    # -- score ---------------------------------------------------------------------------------------------------

    def __call__(self, batch: Mapping[str, Sequence[Any]], rank: int | None = None) -> dict[str, Any]:
        """Score a batch of rows, for `Dataset.map(scorer, batched=True)` and its `IterableDataset` twin.

        Args:
            batch: column name -> values, one a row.
            rank: index of the worker, with `with_rank=True`: on a machine with GPUs worker r takes GPU r.

        Returns:
            `saft_score` (`float32 [n]`, NaN where a row has none) and `saft_status` (list of `str`, `ok` or why not).

        Raises:
            SAFTInputError: the columns are not those of rows to train on, or single rows came in place of a batch.
        """
        fitted = self._fitted
        inputs.check_batched(batch)
        if self._reader is None:
            device, features = self._open_source().worker_device(rank), fitted.captured
            extractor = self._extractor(self._renderer(), features, fitted.model_fingerprint, World(), device=device)
            self._reader = RowReader(extractor, extractor.store(fitted.plan_digest), fitted.score.width)
        vectors, statuses = self._reader(batch, fitted.score.features)
        scores = where_finite(fitted.score, vectors)
        return {SCORE: scores, STATUS: final_statuses(scores, statuses)}

    def score_dataset(self, dataset: Dataset) -> Dataset:
        """Add `saft_score` and `saft_status`, embedding on all processes of the launch together.

        Args:
            dataset: rows of any shape that SFTTrainer takes. Columns of these two names are replaced.

        Returns:
            The dataset with the two columns; rows and order unchanged, the same on every process.

        Raises:
            SAFTInputError: the columns are not those of rows to train on.
            SAFTArtifactError: the model or chat template is not the one that the scorer was fitted on.
        """
        scores, statuses, _ = self._scores(dataset)
        plain = dataset.remove_columns([name for name in (SCORE, STATUS) if name in dataset.column_names])
        return plain.add_column(SCORE, scores).add_column(STATUS, statuses)

    def _scores(self, dataset: Dataset) -> tuple[NDArray[np.float32], list[str], Survey]:
        """Scores, final statuses, and what rendering said about each row."""
        fitted, source = self._fitted, self._open_source()
        inputs.check_dataset(dataset)
        extractor = self._extractor(self._renderer(), fitted.captured, fitted.model_fingerprint, World())
        try:
            embedded = extractor.embed(dataset)
        finally:
            source.release()
        scores = pool_scores(embedded, fitted.score)
        return scores, final_statuses(scores, embedded.survey.statuses(fitted.readouts)), embedded.survey

    # -- filter --------------------------------------------------------------------------------------------------

    def filter(
        self,
        dataset: Dataset,
        *,
        on_error: OnError = "exclude",
        on_undecided: Literal["raise", "keep"] | None = None,
        label_column: str | None = None,
        harmful_value: str | int | bool | None = None,
        refusal_column: str | None = None,
    ) -> FilterResult:
        """Remove the rows whose score is above the threshold.

        Args:
            dataset: the rows. Vectors that `fit` or `score_dataset` left in the store are not computed again.
            on_error: rows that could not be scored: `exclude` them from `kept`, `keep` them in `train_rows()`, or
                `raise`.
            on_undecided: where there is no threshold, or nothing would be kept: `raise`, or `keep` every row; by
                default what `fit` was told.
            label_column: let people decide the rows that they labelled: where this column of the dataset is not null,
                it overrides the score (reason `label`). The rows that `fit` was given labels for are decided by them
                in every method but `saft`, which knows scores only.
            harmful_value: the value that marks a harmful row, where the column's name does not say.
            refusal_column: a column of booleans that says which rows are safe refusals, the most valuable rows for
                safety: the summary tells how many of them are kept.

        Returns:
            Kept, removed and errored rows, with counts and reasons. The summary warns where the score follows length,
            format or language, or hangs on one row.

        Raises:
            SAFTUndecidedError: there is no threshold, or nothing would be kept, and neither this call nor `fit` was
                told `on_undecided="keep"`.
            SAFTInputError: rows could not be scored and `on_error="raise"`.
        """
        fitted = self._fitted
        if on_undecided not in (None, "raise", "keep"):
            raise SAFTInputError(f"`on_undecided` must be 'raise', 'keep' or None, not {on_undecided!r}.")
        keep = fitted.keep_on_undecided if on_undecided is None else on_undecided == "keep"
        if fitted.threshold is None and not keep:
            why = fitted.undecided or "the scorer was fitted with no labels, no `threshold` and no `contamination`"
            raise SAFTUndecidedError(
                f"no row can be removed: {why}. Give labels, `contamination` or `threshold`; or fit with "
                "`on_undecided='keep'` to keep every row."
            )
        scores, statuses, survey = self._scores(dataset)
        threshold, undecided = fitted.threshold, fitted.undecided
        labels: dict[int, bool] = {}
        if fitted.method != "saft" and threshold is not None:
            labels = fitted.labelled.among(survey.identities)
        if label_column is not None:
            labels |= inputs.labels_by_row(dataset, label_column, harmful_value)
        decisions = decide(scores, statuses, threshold, on_error=on_error, labels=labels)
        if keep and threshold is not None and len(decisions.kept) == 0:
            threshold, undecided = None, f"the threshold {threshold:.6g} would keep none of {len(dataset)} rows"
            logger.warning("Every row is kept: %s.", undecided)
            decisions = decide(scores, statuses, None, on_error=on_error, labels=labels)
        if not keep:
            check_outcome(decisions)
        summary = {
            **self.summary_,
            "model": public_name(fitted),
            "method": fitted.method,
            "layers": list(fitted.layers),
            "readouts": [readout.value for readout in fitted.readouts],
            "k": fitted.k,
            "threshold": threshold,
            "filtered": threshold is not None,
            "undecided": undecided,
            **side_effects(self._renderer(), dataset, scores, survey, decisions, fitted.k is not None, refusal_column),
        }
        return FilterResult(dataset, scores, statuses, decisions, summary)
