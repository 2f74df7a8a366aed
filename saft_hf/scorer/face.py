"""`SAFTScorer`: fit on a pool, score rows, filter datasets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray

from saft_hf.decide import OnError, check_outcome, decide, read_labels, resolve_label_column
from saft_hf.embed.cells import Cells
from saft_hf.embed.extract import where_finite
from saft_hf.embed.rows import RowReader
from saft_hf.embed.world import World
from saft_hf.errors import SAFTInputError, SAFTUndecidedError
from saft_hf.render import Readout
from saft_hf.result import FilterResult
from saft_hf.scorer import fitting, inputs
from saft_hf.scorer.base import ScorerBase
from saft_hf.scorer.card import public_name
from saft_hf.scorer.fitted import Fitted

logger = logging.getLogger(__name__)

SCORE, STATUS = "saft_score", "saft_status"


class SAFTScorer(ScorerBase):
    """Scores rows by their energy along the principal directions of a pool's hidden states.

    The constructor loads nothing. `fit` learns from a pool; after that the scorer is a callable for
    `Dataset.map(batched=True)` and scores, filters and saves.

    Args:
        model (`str` or `PreTrainedModel`): name or folder of the model that will be tuned, or the loaded model. A name
            is loaded with only the layers that are read; an object is read in place and left as it was found.
        revision (`str`, *optional*): commit, branch or tag of the model.
        layer (`int`, *optional*, defaults to half of the layers): index into transformers' `hidden_states`: 0 the
            embeddings, `l` after block `l`, `L` after the final norm. The paper reads 15 of 32.
        readout (`str`, *optional*, defaults to `response_start`): `response_start` (published: the last token before
            the response), `response_mean` or `response_end`. A pool of plain text is read at `response_mean`.
        method (`str`, *optional*, defaults to `saft`): `saft` is the published score.
        k (`int`, *optional*): how many directions to sum; by default chosen from 1 to 4 by F1 on labels, and 1 without
            labels or where `threshold` or `expected_share` is given.
        threshold (`float`, *optional*): remove rows with a score above it.
        expected_share (`float`, *optional*): remove this share of the pool, the rows with the highest scores.
        dtype (`str`, *optional*, defaults to `auto`): of the model by name; `auto` is the checkpoint's, float32 on CPU.
        attn_implementation (`str`, *optional*): as in transformers.
        quantization_config (*optional*): as in transformers, for a model by name.
        device_map (*optional*): as in transformers, for a model by name.
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
        fit_rows: int | None = None,
        on_refusal: Literal["raise", "keep"] = "raise",
    ) -> Self:
        """Learn the pool's principal directions, then k and the threshold.

        Every process of a distributed run must call it, with the same data; all of them end up with the same bits.

        Args:
            pool: the rows that will be scored, or a sample of them; any shape that SFTTrainer takes.
            labelled: rows that people labelled, about 100, drawn at random from the pool.
            label_column: their label; by default the one column named `is_safe`, `safe`, `is_harmful`, `harmful` or
                `unsafe`.
            harmful_value: the value that marks a harmful row, where the column's name does not say.
            label_sampling: `uniform` where the labelled rows were drawn at random from the pool, else `other`.
            fit_rows: fit on the first so many rows only; needed for an `IterableDataset`.
            on_refusal: what to do where no threshold can honestly be chosen: `raise`, or `keep` every row.

        Returns:
            The scorer.

        Raises:
            SAFTInputError: the pool, the labels or an argument are not what they must be.
            SAFTUndecidedError: no threshold can honestly be chosen. Scores can be taken all the same.
        """
        if self.method not in (None, "saft"):
            raise SAFTInputError(f"`method` must be 'saft' (or None, the same), not {self.method!r}.")
        if self.readout not in (None, *Readout):
            raise SAFTInputError(f"`readout` must be one of {[r.value for r in Readout]}, not {self.readout!r}.")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise SAFTInputError(f"`threshold` must be a finite number, not {self.threshold}.")
        if self.expected_share is not None and not 0 < self.expected_share < 1:
            raise SAFTInputError(f"`expected_share` must be between 0 and 1, not {self.expected_share}.")
        if on_refusal not in ("raise", "keep"):
            raise SAFTInputError(f"`on_refusal` must be 'raise' or 'keep', not {on_refusal!r}.")
        if label_sampling not in ("uniform", "other"):
            raise SAFTInputError(f"`label_sampling` must be 'uniform' or 'other', not {label_sampling!r}.")
        pool = inputs.as_pool(pool, fit_rows)
        harmful, column = None, None
        if labelled is not None:
            inputs.check_dataset(labelled)
            column = resolve_label_column(labelled.column_names, label_column)
            harmful = read_labels(labelled[column], column, harmful_value)
        self.fitted_, self._reader = None, None
        world, source = World(), self._open_source()
        renderer = self._renderer()
        layer = source.shape.num_layers // 2 if self.layer is None else self.layer
        readout = Readout(self.readout) if self.readout else inputs.pick_readout(renderer, pool)
        cells = Cells((layer,), (readout,))
        try:
            fingerprint = source.fingerprint((layer,), world)
            extractor = self._extractor(renderer, cells, fingerprint, world)
            learned = fitting.fit_published(
                extractor,
                pool,
                labelled,
                fitting.Aim(
                    ks=fitting.PUBLISHED_KS if self.k is None else (self.k,),
                    threshold=self.threshold,
                    expected_share=self.expected_share,
                    harmful=harmful,
                    label_column=column,
                    uniform=label_sampling == "uniform",
                ),
            )
        finally:
            source.release()
        choice = learned.choice
        self.fitted_ = Fitted(
            model=source.name,
            revision=source.revision,
            model_fingerprint=fingerprint,
            template_digest=renderer.template_digest,
            layer=layer,
            num_layers=source.shape.num_layers,
            readout=readout,
            method="saft",
            k=choice.k,
            threshold=None if choice.refusal else choice.threshold,
            threshold_from=choice.threshold_from,
            refusal=choice.refusal,
            keep_on_refusal=on_refusal == "keep",
            subspace=learned.subspace,
            token_budget=extractor.token_budget,
            plan_digest=learned.plan_digest,
            summary=learned.summary,
        )
        if choice.refusal and on_refusal == "raise":
            raise fitting.undecided(choice, 0 if harmful is None else len(harmful))
        return self

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
            device = self._open_source().worker_device(rank)
            cells = Cells((fitted.layer,), (fitted.readout,))
            extractor = self._extractor(self._renderer(), cells, fitted.model_fingerprint, World(), device=device)
            self._reader = RowReader(extractor, extractor.store(fitted.plan_digest), fitted.subspace.mean.size)
        vectors, statuses = self._reader(batch, fitted.layer, fitted.readout)
        return {
            SCORE: where_finite(fitted.score, vectors),
            STATUS: fitting.final_statuses(vectors, statuses),
        }

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
        scores, statuses = self._scores(dataset)
        plain = dataset.remove_columns([name for name in (SCORE, STATUS) if name in dataset.column_names])
        return plain.add_column(SCORE, scores).add_column(STATUS, statuses)

    def _scores(self, dataset: Dataset) -> tuple[NDArray[np.float32], list[str]]:
        fitted, source = self._fitted, self._open_source()
        inputs.check_dataset(dataset)
        world = World()
        cells = Cells((fitted.layer,), (fitted.readout,))
        extractor = self._extractor(self._renderer(), cells, fitted.model_fingerprint, world)
        try:
            embedded = extractor.embed(dataset)
        finally:
            source.release()

        def work(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
            return fitted.score(vectors)[:, None]

        scores = embedded.rows(embedded.compute(cells.names[0], work, 1))[:, 0]
        return scores, fitting.final_statuses(scores[:, None], embedded.survey.statuses(fitted.readout))

    # -- filter --------------------------------------------------------------------------------------------------

    def filter(
        self,
        dataset: Dataset,
        *,
        on_error: OnError = "exclude",
        on_refusal: Literal["raise", "keep"] | None = None,
        label_column: str | None = None,
        harmful_value: str | int | bool | None = None,
    ) -> FilterResult:
        """Remove the rows whose score is above the threshold.

        Args:
            dataset: the rows. Vectors that `fit` or `score_dataset` left in the store are not computed again.
            on_error: rows that could not be scored: `exclude` them from `kept`, `keep` them in `train_rows()`, or
                `raise`.
            on_refusal: where there is no threshold, or nothing would be kept: `raise`, or `keep` every row; by default
                what `fit` was told.
            label_column: let people decide the rows that they labelled: where this column of the dataset is not null,
                it overrides the score (reason `label`). The published method knows scores only, so this is off by
                default.
            harmful_value: the value that marks a harmful row, where the column's name does not say.

        Returns:
            Kept, removed and errored rows, with counts and reasons.

        Raises:
            SAFTUndecidedError: there is no threshold, or nothing would be kept, and neither this call nor `fit` was
                told `on_refusal="keep"`.
            SAFTInputError: rows could not be scored and `on_error="raise"`.
        """
        fitted = self._fitted
        if on_refusal not in (None, "raise", "keep"):
            raise SAFTInputError(f"`on_refusal` must be 'raise', 'keep' or None, not {on_refusal!r}.")
        keep = fitted.keep_on_refusal if on_refusal is None else on_refusal == "keep"
        if fitted.threshold is None and not keep:
            why = fitted.refusal or "the scorer was fitted with no labels, no `threshold` and no `expected_share`"
            raise SAFTUndecidedError(
                f"no row can be removed: {why}. Give labels, `expected_share` or `threshold`; or fit with "
                "`on_refusal='keep'` to keep every row."
            )
        scores, statuses = self._scores(dataset)
        threshold, refusal = fitted.threshold, fitted.refusal
        labels = {} if label_column is None else inputs.labels_by_row(dataset, label_column, harmful_value)
        decisions = decide(scores, statuses, threshold, on_error=on_error, labels=labels)
        if keep and threshold is not None and len(decisions.kept) == 0:
            threshold, refusal = None, f"the threshold {threshold:.6g} would keep none of {len(dataset)} rows"
            logger.warning("Every row is kept: %s.", refusal)
            decisions = decide(scores, statuses, None, on_error=on_error, labels=labels)
        if not keep:
            check_outcome(decisions)
        summary = {
            **self.summary_,
            "model": public_name(fitted),
            "method": fitted.method,
            "layer": fitted.layer,
            "readout": fitted.readout.value,
            "k": fitted.k,
            "threshold": threshold,
            "filtered": threshold is not None,
            "refusal": refusal,
        }
        return FilterResult(dataset, scores, statuses, decisions, summary)
