"""`SAFTScorer`: fit on a pool, score rows, filter datasets, certify, save."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import CommitInfo
from numpy.typing import NDArray
from safetensors.numpy import load as tensors_from_bytes
from safetensors.numpy import save as tensors_to_bytes
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from saft_hf.decide import (
    LabelSource,
    OnError,
    RowLabel,
    ThresholdAim,
    check_outcome,
    decide,
    near_threshold,
)
from saft_hf.decide.certify import Certificate
from saft_hf.decide.confounds import shares_by
from saft_hf.decide.labelling import suggest_rows
from saft_hf.distributed import World
from saft_hf.embed import (
    ALGORITHM,
    Extractor,
    Features,
    ModelSource,
    RowReader,
    Survey,
    content_of,
    default_cache_dir,
    name_of,
    readouts_of,
    rows_digest,
    survey_dataset,
    where_finite,
)
from saft_hf.errors import SAFTArtifactError, SAFTInputError, SAFTUndecidedError
from saft_hf.hub import Destination, check_token, push_files
from saft_hf.names import names_checked
from saft_hf.records import to_plain
from saft_hf.render import READOUTS, RenderConfig, Renderer
from saft_hf.render.readouts import MEAN, START
from saft_hf.result import FilterResult
from saft_hf.scorer import certifying, diagnostics, fitting, inputs, saving
from saft_hf.scorer.drift import drift_of
from saft_hf.scorer.fit import Fit
from saft_hf.scorer.inputs import DRIFT
from saft_hf.scorer.labels import (
    LabelledRows,
    LabelSet,
    identities_of,
    labels_by_row,
    labels_of,
    laid_out,
    read_decisions,
    read_fresh,
)
from saft_hf.scorer.methods import METHODS, FitSpec
from saft_hf.scorer.methods.reference import as_dialogues, with_built_in
from saft_hf.scorer.options import BY_NAME, LOCAL, OPTIONS, TRAVELLING, refuse_idle
from saft_hf.scorer.pool import Score
from saft_hf.scorer.probing import Reference, learn_probe
from saft_hf.scorer.reference_rows import ReferenceInput, ReferenceRows, read_reference
from saft_hf.summary import FitMetrics, PoolCounts, Summary, public_name
from saft_hf.version import __version__

logger = logging.getLogger(__name__)

_PUBLISHED_KS = (1, 2, 3, 4)
"""The numbers of directions that the paper chooses from."""


@dataclass(frozen=True)
class _Scored:
    """What was found of a dataset, so that the next call on the same rows renders and scores nothing again."""

    digest: tuple[str, str]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None
    statuses: list[str]
    survey: Survey
    renderer: Renderer

    @property
    def placed(self) -> NDArray[np.float64]:
        """The scores as thresholds see them, see `inputs.placed`."""
        return inputs.placed(self.scores, self.probabilities)


def _split(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Scores and probabilities, from what `Fit.read` gave."""
    scores = np.ascontiguousarray(values[:, 0])
    return scores, None if values.shape[1] == 1 else np.where(values[:, 1] < 0, np.nan, values[:, 1])


@names_checked("__init__", "fit", "filter", "certify", "suggest_labels")
class SAFTScorer:
    """Scores rows of fine-tuning data by the hidden states of the model that is to be tuned.

    The constructor loads nothing. `fit` learns from a pool; after that the scorer is a callable for
    `Dataset.map(batched=True)` and scores, filters and saves.

    Args:
        model (`str` or `PreTrainedModel`): name or folder of the model that will be tuned, or the loaded model. A name
            is loaded with only the layers that are read; an object is read in place and left as it was found.
        revision (`str`, *optional*): commit, branch or tag of the model.
        layer (`int`, *optional*): index into transformers' `hidden_states`: 0 the embeddings, `l` after block `l`, `L`
            after the final norm. By default `saft` reads half of the layers (the paper reads 15 of 32), the other
            methods that and three quarters, in one pass.
        readout (`str`, *optional*): `response_start` (published: the last token before the response), `response_mean`
            or `response_end`. By default `response_start`, but for `saft` also `response_mean`; for a pool of plain
            text `response_mean`, and also `response_end`.
        method (`str`, *optional*, defaults to `auto` with labels): `saft` is the published score, `directed` a
            direction learned from the labels, `auto` that and the score of a `reference` set that was given, together.
            Without labels the default is `reference`: a probe of rows that ship with the package.
        k (`int`, *optional*): how many directions the published score sums; by default chosen from 1 to 4 on labels,
            and 1 without labels or where `threshold` or `contamination` is given.
        threshold (`float`, *optional*): remove rows with a score above it.
        contamination (`float`, *optional*): remove this share of the pool, the rows with the highest scores.
        reference (*optional*): for `reference` and `auto`: labelled rows of other sources, with a label column such as
            `is_harmful`: a `Dataset`, a Hub id, a folder or file, a `ReferenceSource` (or `NAME,split=...`), or a list
            of these; without it `reference` takes the set that ships with the package.
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

    Examples:
        >>> scorer = SAFTScorer("meta-llama/Llama-2-7b-chat-hf", layer=15)  # doctest: +SKIP
        >>> scorer.fit(train, labelled=labelled)                            # doctest: +SKIP
        >>> train = train.map(scorer, batched=True)                         # doctest: +SKIP
        >>> result = scorer.filter(train)                                   # doctest: +SKIP
    """

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
        reference: ReferenceInput | Sequence[ReferenceInput] | None = None,
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
        self.fit_: Fit | None = None
        self._looks: list[tuple[str, frozenset[bytes]]] = []
        self._safetensors_only = False
        self._trust_labels = True
        self._source: ModelSource | None = None
        self._reader: RowReader | None = None
        self._scored: _Scored | None = None

    def __repr__(self) -> str:
        model = self.model if isinstance(self.model, str) else type(self.model).__name__
        if self.fit_ is None:
            return f"SAFTScorer({model!r}, method={self.method!r}, not fitted)"
        fit, pool = self.fit_, self.fit_.metrics.pool
        threshold = "none" if fit.threshold is None else f"{fit.threshold:.6g}"
        return (
            f"SAFTScorer({model!r}, method={fit.method!r}, layers={list(fit.score_layers)}, "
            f"readouts={list(fit.score_readouts)}, threshold={threshold}, fitted on {pool.rows} rows)"
        )

    # -- learned state -------------------------------------------------------------------------------------------

    @property
    def _fitted(self) -> Fit:
        if self.fit_ is None:
            raise SAFTInputError("this SAFTScorer is not fitted yet: call `fit(pool)`, or use `from_pretrained`.")
        return self.fit_

    @property
    def layers_(self) -> tuple[int, ...]:
        """Layers that the score reads."""
        return self._fitted.score_layers

    @property
    def readouts_(self) -> tuple[str, ...]:
        """Readouts that the score reads."""
        return self._fitted.score_readouts

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
    def summary_(self) -> Summary:
        """Counts and figures of the fit."""
        return self._fitted.summary()

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
        `directed` learns a direction from the labels; `auto` adds the score of a reference set that was given. Both are
        tested as one statistic against labels that are dealt out at random.

        Every process of a distributed run must call it, with the same data; all of them end up with the same bits.

        Args:
            pool: the rows that will be scored, or a sample of them; any shape that SFTTrainer takes.
            labelled: rows that people labelled, about 100, drawn at random from the pool.
            label_column: their label; by default the one column named `is_safe`, `safe`, `is_harmful`, `harmful` or
                `unsafe`: booleans, 0 and 1, "yes" and "no", or words such as "safe". Classes are read by their names.
            harmful_value: the value that marks a harmful row, where the column's name does not say; it may not
                contradict the name.
            label_sampling: `uniform` where the labelled rows were drawn at random from the pool, else `other`. Rows
                that `suggest_labels` laid out say so themselves, and may be labelled in part.
            aim: what the threshold is chosen for, on the labels. `fpr=0.05`: lose that share of the benign rows on
                average over draws of the labels (the default, but for `saft`); single draws lose up to twice as much.
                `fpr=0.05@0.9`: lose no more than that share, with confidence 0.9 over draws of the labels, of which at
                least 45 must be benign. `recall=0.9`: remove that share of the harmful rows on average. `share=0.1`:
                remove at most that share of all rows. `f1`: the best F1 (the default for `saft`).
            fit_rows: fit on the first so many rows only; needed for an `IterableDataset`.
            on_undecided: what to do where no threshold can honestly be chosen: `raise`, or `keep` every row.

        Returns:
            The scorer.

        Raises:
            SAFTInputError: the pool, the labels or an argument are not what they must be.
            SAFTUndecidedError: the choice cannot be told from chance, a class has too few labels, or the threshold
                would remove nearly all or nothing. Scores can be taken all the same.
        """
        world = World()
        with world.sync_errors("reading the pool"):
            pool = inputs.as_pool(pool, fit_rows)
        told: dict[str, Any] = {"label_column": label_column, "harmful_value": harmful_value, "aim": aim}
        told |= {"label_sampling": label_sampling, "fit_rows": fit_rows, "on_undecided": on_undecided}
        rows = {"pool": pool, "labelled": labelled, "reference": self.reference}
        self._check_ranks(lambda: {**self._options(), **told, **rows})
        if labelled is None:
            refuse_idle(told.__getitem__, (option for option in OPTIONS if option.of_labels), "without `labelled` rows")
        method = fitting.choose_method(self, labelled is not None, aim)
        inputs.check_choice("on_undecided", on_undecided, ("raise", "keep"))
        spec = FitSpec(
            labels=None if labelled is None else LabelSet.read(labelled, label_column, harmful_value, label_sampling),
            ks=_PUBLISHED_KS if self.k is None else (self.k,),
            threshold=self.threshold,
            contamination=self.contamination,
            aim=None if aim is None else ThresholdAim.parse(aim),
            reference=self._read_reference(world),
        )
        self.fit_, self._reader, self._scored, self._trust_labels = None, None, None, True
        with world.sync_errors("reading tokenizer and configuration"):
            source, renderer = self._open_source(), self._renderer()
            features = fitting.features_of(self, method, source.shape.num_layers, inputs.has_boundary(renderer, pool))
        try:
            fingerprint = source.fingerprint(features.layers, world)
            extractor = self._extractor(renderer, features, fingerprint, world)
            answer, embedded, labelled_rows = fitting.run(spec, method, extractor, pool)
        finally:
            source.release()
        self.fit_ = Fit(
            **self._read_as(extractor, fingerprint, answer.score),
            method=method.name,
            threshold=None if answer.undecided else answer.threshold,
            threshold_from=answer.threshold_from,
            undecided=answer.undecided,
            keep_undecided=on_undecided == "keep",
            plan_digest=embedded.embedded.plan.digest,
            metrics=fitting.metrics_of(spec, embedded, answer),
            score=answer.score,
            labelled=labelled_rows,
            probe=answer.probe,
            posterior=answer.posterior,
        )
        found = answer.scores, answer.probabilities
        self._remember(self._digest(pool, renderer), *found, embedded.embedded.survey, renderer)
        for warning in self.summary_.warnings if world.is_main else ():
            logger.warning("%s", warning)
        if answer.undecided and on_undecided == "raise":
            raise fitting.undecided_error(answer, spec.labels)
        return self

    def fit_reference(self, reference: ReferenceInput | Sequence[ReferenceInput] | None = None) -> Self:
        """Learn a probe from labelled rows of other sources, for any pool: `SAFTScorer(model, reference=saved)`.

        The rows are read in the chat template where the tokenizer has one. The harmless rows that ship with the
        package join them; where a class has fewer than 200, the harmful ones too. The scorer then scores, and filters
        where it was given a `threshold`; `fit` on a pool finds what the pool is made of, and a threshold for it.

        Every process of a distributed run must call it, with the same reference.

        Args:
            reference: as `reference` of the constructor, which is the default; without any, the built-in rows alone.

        Returns:
            The scorer.

        Raises:
            SAFTInputError: a source cannot be read, or an option needs a pool or labels.

        Examples:
            >>> scorer = SAFTScorer("meta-llama/Llama-2-7b-chat-hf")                   # doctest: +SKIP
            >>> scorer.fit_reference(["PKU-Alignment/BeaverTails", "benign.jsonl"])    # doctest: +SKIP
            >>> scorer.push_to_hub("me/llama-2-safety-probe")                          # doctest: +SKIP
        """
        if reference is not None:
            self.reference = reference
        world = World()
        self._check_ranks(lambda: {**self._options(), "reference": self.reference})
        method = METHODS["reference"]
        inputs.check_choice("method", self.method, (None, method.name))
        fitting.choose_method(self, has_labels=False, aim=None)
        if self.contamination is not None:
            raise SAFTInputError(
                f"`contamination`={self.contamination} is a share of a pool, and `fit_reference` has none: leave it "
                "out here, and give it to the scorer that is fitted on a pool; or give a `threshold`."
            )
        rows = self._read_reference(world)
        if isinstance(rows, Reference):
            raise SAFTInputError("`reference` is a fitted scorer already: `fit_reference` takes labelled rows.")
        rows = with_built_in(rows)
        self.fit_, self._reader, self._scored, self._trust_labels = None, None, None, True
        with world.sync_errors("reading tokenizer and configuration"):
            source = self._open_source()
            # What a `formatting_func` makes of a pool's columns says nothing of these.
            renderer = Renderer(source.tokenizer, self._render_config())
            lay_out = partial(as_dialogues, renderer=renderer)
            boundary = all(inputs.has_boundary(renderer, lay_out(part)) for part in rows.parts)
            features = fitting.features_of(self, method, source.shape.num_layers, boundary)
        try:
            fingerprint = source.fingerprint(features.layers, world)
            extractor = self._extractor(renderer, features, fingerprint, world)
            found = learn_probe(rows, extractor, lay_out, None)
        finally:
            source.release()
        self.fit_ = Fit(
            **self._read_as(extractor, fingerprint, found.probe.score),
            method=method.name,
            threshold=None if self.threshold is None else float(self.threshold),
            threshold_from="none" if self.threshold is None else "given",
            undecided=None,
            keep_undecided=False,
            plan_digest=name_of({"reference": [info.digest for info in rows.sources]}),
            metrics=FitMetrics(
                pool=PoolCounts(rows=0, scored=0, unique=0),
                probe=found.metrics,
                notes=tuple(READOUTS[name].note for name in readouts_of(found.probe.score.features)),
            ),
            score=found.probe.score,
            labelled=LabelledRows.none(),
            probe=found.probe,
        )
        for warning in self.summary_.warnings if world.is_main else ():
            logger.warning("%s", warning)
        return self

    def _read_as(self, extractor: Extractor, fingerprint: str, score: Score) -> dict[str, Any]:
        """The fields of a `Fit` that say which model was read, and how."""
        source, features = self._open_source(), extractor.features
        return {
            "model": source.name,
            "revision": source.revision,
            "model_fingerprint": fingerprint,
            "template_digest": extractor.renderer.template_digest(readouts_of(score.features)),
            "num_layers": source.shape.num_layers,
            "layers": features.layers,
            "readouts": features.readouts,
            "vector_dtype": features.dtype,
            "token_budget": extractor.token_budget,
            "shares_prefix": extractor.shares_prefix,
        }

    def _read_reference(self, world: World) -> ReferenceRows | Reference | None:
        """The rows of the reference, or the probe of a fitted one, which must have read this model in this way."""
        if self.reference is None:
            return None
        found = read_reference(self.reference, world, token=self.token)
        if isinstance(found, ReferenceRows):
            return found
        with world.sync_errors("reading the fitted reference"):
            fit, _ = saving.load(found.path, found.revision, self.token)
            if fit.probe is None or fit.metrics.probe is None:
                raise SAFTInputError(
                    f"`reference` {found.path} is a scorer without a probe (method {fit.method!r}): name one that "
                    "`fit_reference` made, or the rows."
                )
        world.same_on_all_ranks(lambda: {"reference": fit.probe and (fit.probe.limit, fit.probe.auroc)})
        with world.sync_errors("reading tokenizer and configuration"):
            source = self._open_source()
            renderer = Renderer(source.tokenizer, self._render_config())
            same = source.shape.num_layers == fit.num_layers
        try:
            same = same and source.fingerprint(fit.layers, world) == fit.model_fingerprint
        finally:
            source.release()
        if not same:
            raise SAFTArtifactError(
                f"`reference` {found.path} was fitted on another model than {source.name} (it names {fit.model}): its "
                "directions mean nothing for these hidden states. Fit the reference again with this model."
            )
        if renderer.template_digest(fit.score_readouts) != fit.template_digest:
            raise SAFTArtifactError(
                f"`reference` {found.path} was fitted with another chat template or tokenizer than {source.name} has "
                "now: fit the reference again."
            )
        repo = public_name(found.path)
        return Reference(fit.probe, replace(fit.metrics.probe, repo=repo, repo_revision=found.revision))

    # -- score ---------------------------------------------------------------------------------------------------

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """Score a batch of rows, for `Dataset.map(scorer, batched=True)` and its `IterableDataset` twin.

        To filter a dataset call `filter`; `Dataset.filter` is none of this scorer's.

        Args:
            batch: column name -> values, one a row, in any format of `datasets`: an Arrow table or a data frame too.
            rank: index of the worker, with `with_rank=True`: on a machine with GPUs worker r takes GPU r.

        Returns:
            `saft_score` (`float32 [n]`, NaN where a row has none) and `saft_status` (list of `str`, `ok` or why not);
            by a probe also `saft_probability` (`float32 [n]`): that the row is harmful, in the pool that was fitted,
            or without one as if rows were made of the sources as the reference is; NaN where it is unlike them. For
            a table or a data frame it with these two columns, which is what `map` needs then.

        Raises:
            SAFTInputError: the columns are not those of rows to train on; single rows came in place of a batch
                (`map` without `batched=True`); or `Dataset.filter` asks for a mask.
        """
        fit = self._fitted
        columns = inputs.as_batch(batch)
        if self._reader is None:
            device = self._open_source().worker_device(rank)
            extractor = self._extractor(self._renderer(), fit.captured, fit.model_fingerprint, World(), device=device)
            self._reader = RowReader(extractor, extractor.store(fit.plan_digest))
        vectors, statuses = self._reader(columns, fit.score.features)
        scores, likely = _split(where_finite(fit.read, vectors))
        return inputs.in_form_of(batch, inputs.score_columns(scores, fitting.final_statuses(scores, statuses), likely))

    def score_dataset(self, dataset: Dataset) -> Dataset:
        """Add `saft_score`, `saft_status` and by a probe `saft_probability`, embedding on all processes together.

        Args:
            dataset: rows of any shape that SFTTrainer takes. Columns of these names are replaced.

        Returns:
            The dataset with the columns; rows and order unchanged, the same on every process.

        Raises:
            SAFTInputError: the columns are not those of rows to train on.
            SAFTArtifactError: the model or chat template is not the one that the scorer was fitted on.
        """
        scored = self._score(dataset)
        columns = inputs.score_columns(scored.scores, scored.statuses, scored.probabilities)
        return inputs.with_columns(inputs.without_scores(dataset), **columns)

    def drift(self, dataset: Dataset) -> Dataset:
        """Add `saft_drift`: how far a row's answer lies from declining towards complying.

        It is the projection of `response_mean` less `response_start` on the direction between complying and declining
        answers to the same requests (the package's own pairs), at the layer that tells these apart best. Where the
        scorer reads both, rows that it has scored are not read again. Harmless rows with a high drift are said to wear
        off refusals most; it follows the length of answers too, so compare it within rows of about the same length.

        Args:
            dataset: rows of any shape that SFTTrainer takes. A column of this name is replaced.

        Returns:
            The dataset with the column (`float32`, NaN where a row has no prompt, or no answer that can be read), the
            same on every process. Rows and order are unchanged, and nothing is removed.

        Raises:
            SAFTInputError: the columns are not those of rows to train on, or too few of the pairs can be read.

        Source: DataShield (arXiv 2606.00160), LARF (arXiv 2507.18631).

        Examples:
            >>> rows = scorer.drift(rows).sort("saft_drift").select(range(800))  # doctest: +SKIP
        """
        world = World()
        self._check_ranks(lambda: {**self._options(), "dataset": dataset})
        with world.sync_errors("reading the dataset"):
            inputs.check_dataset(dataset)
            source, renderer = self._open_source(), self._renderer()
            layers = METHODS["auto"].layers(source.shape.num_layers) if self.layer is None else (self.layer,)
            features = Features(layers, (START, MEAN), self.vector_dtype)
        try:
            if self.fit_ is not None and self.fit_.captured == features:
                fingerprint = self.fit_.model_fingerprint
            else:
                fingerprint = source.fingerprint(features.layers, world)
            drifts = drift_of(self._extractor(renderer, features, fingerprint, world), dataset)
        finally:
            source.release()
        plain = dataset.remove_columns(DRIFT) if DRIFT in dataset.column_names else dataset
        return inputs.with_columns(plain, **{DRIFT: drifts})

    def _score(self, dataset: Dataset) -> _Scored:
        """Scores, final statuses, and what rendering said about each row. Collective."""
        world = World()
        self._check_ranks(lambda: {"scorer": self._state()})
        with world.sync_errors("reading the dataset"):
            fit, source = self._fitted, self._open_source()
            inputs.check_dataset(dataset)
            renderer = self._renderer()
            digest = self._digest(dataset, renderer)
        self._check_ranks(lambda: {"dataset": digest[0]})
        if self._scored is not None and self._scored.digest == digest:
            return self._scored
        extractor = self._extractor(renderer, fit.captured, fit.model_fingerprint, world)
        try:
            embedded = extractor.embed(dataset, sample=True)
        finally:
            source.release()
        scores, likely = _split(embedded.rows(embedded.compute(fit.score.features, fit.read, fit.columns)))
        if np.isnan(scores).all():
            why = inputs.why_unread(renderer, dataset, fit.score_readouts)
            logger.warning("None of %d rows can be scored. %s", len(scores), why)
        return self._remember(digest, scores, likely, embedded.survey, renderer)

    def _remember(
        self,
        digest: tuple[str, str],
        scores: NDArray[np.float32],
        probabilities: NDArray[np.float32] | None,
        survey: Survey,
        renderer: Renderer,
    ) -> _Scored:
        statuses = fitting.final_statuses(scores, survey.statuses(self._fitted.score_readouts))
        self._scored = _Scored(digest, scores, probabilities, statuses, survey, renderer)
        return self._scored

    def _check_ranks(self, given: Callable[[], Mapping[str, Any]]) -> None:
        """Refuse what differs between processes, before any work: each would decide otherwise. Collective."""
        World().same_on_all_ranks(lambda: {name: content_of(value) for name, value in given().items()})

    def _state(self) -> str:
        """Names the options that travel and what was learned."""
        state = self.__getstate__()
        return hashlib.sha256(repr([state[name] for name in ("options", "fit", "tensors")]).encode()).hexdigest()

    def _digest(self, dataset: Dataset, renderer: Renderer) -> tuple[str, str]:
        """Names rows, and how this process renders them: with the same fit, equal digests mean equal scores."""
        content = rows_digest(dataset, renderer.columns(dataset.column_names))
        return content, name_of({"render": renderer.config, "formatted": id(renderer.formatting_func)})

    # -- filter --------------------------------------------------------------------------------------------------

    def filter(
        self,
        dataset: Dataset,
        *,
        threshold: float | None = None,
        certificate: Certificate | None = None,
        on_error: OnError = "exclude",
        on_undecided: Literal["raise", "keep"] | None = None,
        label_column: str | None = None,
        harmful_value: str | int | bool | None = None,
        refusal_column: str | None = None,
        marks: str | Path | None = None,
        by: str | None = None,
    ) -> FilterResult:
        """Remove the rows whose score is above the threshold. This is the call that filters, not `Dataset.filter`.

        Rows that `fit` saw, or that were scored before, are neither rendered nor scored again.

        Args:
            dataset: the rows.
            threshold: decides in place of the fitted one. Labels of people still decide their rows.
            certificate: keep the set that `certify` certified for these rows, with the `on_error` that it was told.
            on_error: rows that could not be scored: `exclude` them from `kept`, `keep` them in `train_rows()`, or
                `raise`.
            on_undecided: where there is no threshold, or nothing would be kept: `raise`, or `keep` every row; by
                default what `fit` was told.
            label_column: let people decide the rows that they labelled: where this column of the dataset is not null,
                it overrides the score (reason `label`), and decides rows without one. The rows that `fit` was given
                labels for are decided by them too; by `saft` only where they have no score. The labels of a scorer
                that was loaded from a file decide only with `from_pretrained(..., trust_labels=True)`.
            harmful_value: the value that marks a harmful row, where the column's name does not say.
            refusal_column: a column of booleans that says which rows are safe refusals, the most valuable rows for
                safety: the summary tells how many of them are kept.
            marks: a file of marks that the page of `FilterResult.review` saved: `harmful` and `harmless` are labels
                (reason `label`), `keep` and `remove` decide their row and say no more (reason `mark`). They override
                other labels.
            by: a column, such as a source or a language: the summary tells how many rows with each of its values are
                removed, and warns of one that loses more than three times the average.

        Returns:
            Kept, removed and errored rows, with counts and reasons. The summary warns where the score follows length,
            format or language, or hangs on one row.

        Raises:
            SAFTUndecidedError: there is no threshold, or nothing would be kept, and neither this call nor `fit` was
                told `on_undecided="keep"`.
            SAFTInputError: rows could not be scored and `on_error="raise"`; or a certificate is about other rows, or
                certifies nothing.
        """
        told: dict[str, Any] = {"threshold": threshold, "on_error": on_error, "on_undecided": on_undecided}
        told |= {"label_column": label_column, "harmful_value": harmful_value, "refusal_column": refusal_column}
        told |= {"by": by, "marks": None if marks is None else str(marks)}

        def given() -> dict[str, Any]:
            inputs.check_dataset(dataset)
            read = [name for name in dataset.column_names if name in (label_column, refusal_column, by)]
            return {
                **told,
                "scorer": self._state(),
                "certificate": certificate and certificate.to_dict(),
                "marked": None if marks is None else Path(marks).read_bytes(),
                "dataset": dataset.select_columns(read) if read else None,
            }

        self._check_ranks(given)
        inputs.check_number("threshold", threshold)
        if label_column is None:
            refuse_idle(told.get, [BY_NAME["harmful_value"]], "without `label_column`")
        fit = self._fitted
        if certificate is not None:
            if any(option is not None for option in (threshold, label_column, marks)):
                raise SAFTInputError("a certificate decides alone: leave `threshold`, `label_column` and `marks` out.")
            fit = certifying.certified_fit(fit, certificate)
        inputs.check_choice("on_undecided", on_undecided, (None, "raise", "keep"))
        keep = fit.keep_undecided if on_undecided is None else on_undecided == "keep"
        undecided, threshold_from = fit.undecided, fit.threshold_from
        if threshold is None:
            threshold = fit.threshold
        else:
            undecided, threshold_from = None, "given"
        if threshold_from == "certificate" and certificate is None:
            threshold_from = "given"  # it was certified of other rows, or so a file says
        limits: float | NDArray[np.float64] | None = threshold
        if threshold is None and fit.thresholds:
            limits = certifying.thresholds_by_row(fit, dataset)
        if limits is None and not keep:
            why = undecided or "the scorer was fitted with no labels, no `threshold` and no `contamination`"
            raise SAFTUndecidedError(
                f"no row can be removed: {why}. Give labels, `contamination` or `threshold`; or fit with "
                "`on_undecided='keep'` to keep every row."
            )
        names = {} if by is None else {by: diagnostics.groups_by(dataset, by, self._render_config().text_field)}
        scored = self._score(dataset)
        if limits is not None:
            limits = inputs.limits_of(
                limits, scored.scores, scored.probabilities, of_probe=threshold_from == "reference"
            )
        labels: dict[int, bool] = {}
        known: dict[int, RowLabel] = {}
        if len(fit.labelled.harmful):
            identities = identities_of(dataset, scored.survey, scored.renderer)
            known = fit.labelled.known(identities)
            if limits is not None:
                labels = self._labels_that_decide(scored, identities)
        if labels and not self._trust_labels:
            logger.warning(
                "%d of the %d rows have a label in the file of the scorer. A file's labels decide no row: scores do. "
                "If you trust them, load it with `trust_labels=True`.",
                len(labels),
                len(dataset),
            )
            labels = {}
        if label_column is not None:
            of_column = labels_by_row(dataset, label_column, harmful_value)
            labels |= of_column
            known |= labels_of(of_column, LabelSource.COLUMN, known)
        marked: dict[int, bool] = {}
        if marks is not None:
            of_marks, marked = read_decisions(marks, dataset)
            labels |= of_marks
            known |= labels_of(of_marks, LabelSource.MARK, known)
        decisions = decide(scored.scores, scored.statuses, limits, on_error=on_error, labels=labels, marks=marked)
        if keep and limits is not None and len(decisions.kept) == 0:
            at = "the thresholds" if threshold is None else f"the threshold {threshold:.6g}"
            threshold, limits, undecided = None, None, f"{at} would keep none of {len(dataset)} rows"
            if not (labels or marked):
                logger.warning("Every row is kept: %s.", undecided)
            decisions = decide(scored.scores, scored.statuses, None, on_error=on_error, labels=labels, marks=marked)
        if certificate is not None:
            about = certifying.digest_of(scored.digest[0], scored.placed, dataset, certificate.stratify_by)
            certifying.check_certificate(certificate, about, decisions)
        if not keep:
            unread = bool(np.isnan(scored.scores).all())
            why = inputs.why_unread(scored.renderer, dataset, fit.score_readouts) if unread else ""
            check_outcome(decisions, why)
        groups = [] if refusal_column is None else [refusal_column]
        summary = replace(
            fit.summary(),
            filtered=limits is not None or bool(labels or marked),
            undecided=undecided,
            threshold=threshold,
            threshold_from="labels" if limits is None and (labels or marked) else threshold_from,
            near_threshold=None if threshold is None else near_threshold(scored.scores, threshold),
            score_quantiles=fitting.quantiles(scored.scores),
            flagged=None if certificate else diagnostics.flagged_share(scored.placed, threshold, fit.metrics.pool),
            confounds=diagnostics.confounds_of(self._open_source().tokenizer, scored.survey, scored.scores),
            leverage=diagnostics.leverage_of(scored.scores, scored.survey, energies=fit.k is not None),
            groups={column: diagnostics.group_of(dataset, column, decisions) for column in groups},
            by={column: shares_by(column, values, decisions) for column, values in names.items()},
            certificate=None if certificate is None else certificate.used(decisions).summary(trained_on=True),
            provenance=fitting.provenance_of(
                fit,
                self._arguments(TRAVELLING) | {name: value for name, value in told.items() if value is not None},
            ),
        )
        result = FilterResult(dataset, scored.scores, scored.statuses, decisions, summary, known)
        if World().is_main:
            result.log_warnings()
        return result

    def _labels_that_decide(self, scored: _Scored, identities: NDArray[np.uint8]) -> dict[int, bool]:
        """Row -> harmful, for the rows that labels of the fit decide in place of a score."""
        fit = self._fitted
        labels = fit.labelled.among(identities)
        if not fit.how.labels_decide:  # where there is no score, a label is all that there is
            labels = {row: harmful for row, harmful in labels.items() if np.isnan(scored.scores[row])}
        return labels

    # -- certify -------------------------------------------------------------------------------------------------

    def suggest_labels(
        self,
        dataset: Dataset,
        *,
        uniform: int = 100,
        informative: int = 0,
        kept_only: bool = False,
        threshold: float | None = None,
        seed: int = 0,
    ) -> Dataset:
        """Choose rows for people to label, and lay them out to be labelled.

        The rows that the scorer was fitted on, and copies of them, are not suggested. Scores are left out, and so are
        label columns that are there already: who labels should judge the row alone.

        Args:
            dataset: the rows to draw from.
            uniform: how many to draw at random; their labels may certify, estimate shares, or fit.
            informative: how many to take near the threshold, spread over different rows and scores; up to half of them
                from the rows that score above nearly all benign rows of a reference and are counted as benign all the
                same. Their labels are for fitting alone.
            kept_only: draw the uniform rows from those that are kept at the threshold, which must stay as it is. Their
                labels certify exactly that set, with far fewer of them where it holds little harm, and no other.
            threshold: in place of the fitted one, for `kept_only` and `informative`.
            seed: of the draw.

        Returns:
            The rows in random order, so that who stops half way has labelled a uniform sample, with `saft_row` (where
            they stand in `dataset`), `saft_purpose` (`uniform`, with `kept_only` `uniform up to` the threshold,
            `informative` or `unexplained`) and an empty `is_harmful`.

        Raises:
            SAFTInputError: more rows are asked for than have a score and no label (and are kept); or there is no
                threshold to keep rows at.
        """
        options = {"uniform": uniform, "informative": informative, "kept_only": kept_only, "threshold": threshold}
        self._check_ranks(lambda: {**options, "seed": seed})
        inputs.check_number("threshold", threshold)
        if threshold is not None and not (kept_only or informative):
            raise SAFTInputError(
                f"`threshold`={threshold} is for `kept_only` or `informative` rows: others are drawn from all scores."
            )
        scored, fit = self._score(dataset), self._fitted
        likely, unexplained = scored.probabilities, np.zeros(0, dtype=np.int64)
        if likely is not None and fit.probe is not None:
            unexplained = np.flatnonzero(fit.probe.unexplained(scored.placed, likely))
        suggestion = suggest_rows(
            scored.placed,
            uniform=uniform,
            informative=informative,
            threshold=fit.threshold if threshold is None else threshold,
            unexplained=unexplained,
            labelled=fit.labelled.used(scored.survey.identities),
            groups=[key.tobytes() for key in scored.survey.keys],
            kept_only=kept_only,
            seed=seed,
        )
        rows = suggestion.rows.tolist()
        return laid_out(dataset, rows, suggestion.drawn, [None] * len(rows))

    def certify(
        self,
        dataset: Dataset,
        fresh_labels: Dataset,
        *,
        alpha: float | Mapping[Any, float],
        delta: float = 0.1,
        looks: int = 1,
        threshold: float | None = None,
        label_column: str | None = None,
        harmful_value: str | int | bool | None = None,
        stratify_by: str | None = None,
        on_error: Literal["exclude", "keep"] = "exclude",
    ) -> Certificate:
        """Certify the largest kept set of a dataset whose harmful share is at most alpha.

        Beside it stands a bound on the rows kept at the scorer's own threshold, and estimates of the harmful share
        before and after filtering; each is a statement of its own. Scores are taken once, from the store where it has
        them. `filter(dataset, certificate=...)` keeps the certified set. Rows that are unlike a reference are kept at
        any threshold: they are in every kept set, and count in it like others.

        Args:
            dataset: the rows that are filtered.
            fresh_labels: rows of it that people labelled, drawn uniformly without replacement from those with a score
                that the scorer was not fitted on, and used for no choice. Rows are recognised by their tokens. Of rows
                that `suggest_labels` laid out, the uniform ones count; the others are set aside, from the dataset too.
                Where they were drawn with `kept_only`, exactly the rows kept at that threshold are certified.
            alpha: largest harmful share, between 0 and 1. With `stratify_by` also one for each value of that column,
                `{value: share}`: each has a certified set of its own, and all of them hold together, with delta split.
            delta: chance that a certificate is issued and false, between 0 and 1.
            looks: how often in all, announced before the first time, you will add labels and certify again: each look
                has an equal part of delta. With 1, another look needs labels that are all drawn anew.
            threshold: that is in use, where it is not the fitted one. These labels must not have chosen it.
            label_column: the labels; by default as in `fit`.
            harmful_value: the value that marks a harmful row, where the column's name does not say.
            stratify_by: a column of both. With one alpha: labels were drawn from each of its values on its own. With
                an alpha for each value they may also have been drawn from all rows.
            on_error: with `keep`, rows without a score are trained on too, and count as harmful.

        Returns:
            The certificate, or that there is none and about how many labels it would take. `says()` puts it in words.

        Raises:
            SAFTInputError: a label is of no row of the dataset, or of one that the scorer was fitted on; it was drawn
                from the rows kept at another threshold; or an argument is not what it must be.

        Examples:
            >>> fresh = scorer.suggest_labels(train, uniform=200)                # doctest: +SKIP
            >>> certificate = scorer.certify(train, labelled_fresh, alpha=0.05)  # doctest: +SKIP
            >>> print(certificate.says())                                        # doctest: +SKIP
            >>> kept = scorer.filter(train, certificate=certificate).kept        # doctest: +SKIP
        """
        fit, world = self._fitted, World()
        told: dict[str, Any] = {"alpha": alpha, "delta": delta, "looks": looks, "threshold": threshold}
        told |= {"label_column": label_column, "harmful_value": harmful_value, "stratify_by": stratify_by}

        def given() -> dict[str, Any]:
            inputs.check_dataset(dataset)
            inputs.check_dataset(fresh_labels)
            by = dataset.select_columns([stratify_by]) if stratify_by in dataset.column_names else None
            return {**told, "on_error": on_error, "fresh_labels": fresh_labels, "dataset": by}

        self._check_ranks(given)
        inputs.check_choice("on_error", on_error, ("exclude", "keep"))
        inputs.check_number("threshold", threshold)
        alpha = certifying.check_alpha(alpha, stratify_by)
        labels = read_fresh(fresh_labels, label_column, harmful_value)
        strata = None if stratify_by is None else certifying.strata_of(dataset, fresh_labels, stratify_by, alpha)
        for warning in labels.warnings(uniform=strata is None) if world.is_main else ():
            logger.warning("fresh_labels: %s", warning)
        scored = self._score(dataset)
        fresh = survey_dataset(fresh_labels, scored.renderer, fit.captured.readouts, world)
        identities = identities_of(dataset, scored.survey, scored.renderer)
        fresh_identities = identities_of(fresh_labels, fresh, scored.renderer)
        certificate = certifying.certify(
            fit,
            scored.placed,
            identities,
            fresh_identities,
            labels,
            strata,
            alpha=alpha,
            delta=delta,
            looks=looks,
            stratify_by=stratify_by,
            threshold=threshold,
            keep_errored=on_error == "keep",
            decided=lambda at: decide(
                scored.scores,
                scored.statuses,
                inputs.limits_of(
                    at,
                    scored.scores,
                    scored.probabilities,
                    of_probe=threshold is None and fit.threshold_from == "reference",
                ),
                on_error=on_error,
                labels=self._labels_that_decide(scored, identities) if self._trust_labels else {},
            ),
        )
        look = self._look(scored.digest[0], frozenset(key.tobytes() for key in fresh_identities[labels.counts]))
        about = certifying.digest_of(scored.digest[0], scored.placed, dataset, certificate.stratify_by)
        return replace(certificate, look=look, dataset=about)

    def _look(self, digest: str, labels: frozenset[bytes]) -> int | None:
        """Which look at growing labels this is at least; None where these hold none that were looked at before."""
        earlier = sum(rows == digest and seen < labels for rows, seen in self._looks)
        if (digest, labels) not in self._looks:
            self._looks.append((digest, labels))
        return earlier + 1 if earlier else None

    def certified(self, certificate: Certificate) -> Self:
        """A copy of the scorer whose threshold is the certified one, to save, push or train with.

        Args:
            certificate: of `certify`. With an alpha for each stratum the copy has a threshold for each, and filters
                datasets that have the column.

        Raises:
            SAFTInputError: nothing is certified.
        """
        scorer = self.__copy__()
        scorer.fit_ = certifying.certified_fit(self._fitted, certificate)
        return scorer

    # -- save and load -------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Save the fitted scorer: `config.json`, `saft_scorer.safetensors` and a card. The model is not saved.

        Args:
            save_directory: folder, made where it is missing.

        Raises:
            SAFTInputError: the scorer is not fitted.
            OSError: the folder cannot be written; files that stood there stay whole.
        """
        saving.save(Path(save_directory), self._fitted, self._options())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        revision: str | None = None,
        model: str | nn.Module | None = None,
        quantization_config: Any = None,
        cache_dir: str | Path | None = None,
        trust_labels: bool = False,
        trust_remote_code: bool = False,
        token: str | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
    ) -> Self:
        """Load a scorer that `save_pretrained` wrote. The model that it names is loaded only when rows are scored.

        The files are taken for somebody else's: nothing in them is run, every field and number has its limits, and a
        digest over both shows every damage. It does not show who wrote them; a threshold may be another's idea.

        Args:
            pretrained_name_or_path: the folder, or a Hub id.
            revision: commit, branch or tag of the scorer's repository; the model's own is in the scorer.
            model: where the model is now, if not where it was; its weights must be the same.
            quantization_config: as in the constructor, where the scorer was fitted on a quantised model; never taken
                from the file.
            cache_dir: where vectors are kept, as in the constructor.
            trust_labels: let the labels that are in the file decide their rows in `filter`, as they did where the
                scorer was fitted; without it these rows are decided by their scores. Whoever wrote the file may have
                labelled any row.
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
        fit, options = saving.load(pretrained_name_or_path, revision, token)
        if "/" in str(options["attn_implementation"]) and not trust_remote_code:
            raise SAFTArtifactError(
                f"{pretrained_name_or_path} asks for an attention kernel from the Hub, which is code: pass "
                f"`trust_remote_code=True` if you trust it (attn_implementation={options['attn_implementation']!r})."
            )
        if model is None and fit.model is None:
            raise SAFTArtifactError(
                f"{pretrained_name_or_path} was fitted on a model object without a name: pass that model as `model=`."
            )
        if model is None and fit.revision is not None:
            options["revision"] = fit.revision
        logger.info("The scorer %s reads the model %s.", pretrained_name_or_path, fit.model)
        scorer = cls(
            model or fit.model or "",
            **options,
            quantization_config=quantization_config,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
            token=token,
            processing_class=processing_class,
        )
        scorer.fit_, scorer._trust_labels = fit, trust_labels
        # A model that somebody else's file names may run no code here: not its own, and none from a pickle.
        scorer._safetensors_only = model is None
        return scorer

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Push the fitted scorer: `config.json`, `saft_scorer.safetensors` and a card. The model is not pushed.

        The card is merged into one that stands, pushing the same again makes no commit, and what a failed push left
        out is kept on this machine. A folder on this machine is not named: who fetches the scorer passes `model=`. To
        a public repository it goes without the digests of the rows that people labelled: their labels then decide no
        row, whoever trusts them.

        Args:
            repo_id: `user/name`, made where it is missing.
            private: None: a new repository is private, one that stands stays what it is. True: it must be private.
                False: a new one is public.
            revision: branch; made where it is missing.
            token: by default the one that is logged in.
            commit_message: of the commit.
            create_pr: open a pull request instead.

        Returns:
            The commit; with `create_pr` also the pull request.

        Raises:
            SAFTInputError: the scorer is not fitted, or the repository is public and must be private.
            SAFTHubError: the Hub refuses, or is not reached. The message says where the files are and how to push them.

        Examples:
            >>> scorer.push_to_hub("me/llama-2-saft")  # doctest: +SKIP
        """
        to = Destination(repo_id, "model", revision, token, private, commit_message, create_pr)
        fit, options = saving.for_repository(self._fitted, to), self._options()
        return push_files(lambda folder: saving.save(folder, fit, options, repo_id), to)

    # A copy keeps everything, a model object too. A pickle is small, and the same bytes in every process: `map` caches
    # on its hash. A model object does not travel in it, its name does.

    def __copy__(self) -> Self:
        scorer = type(self)(self.model, **self._arguments(TRAVELLING + LOCAL))
        scorer.fit_ = self.fit_
        scorer._safetensors_only, scorer._trust_labels = self._safetensors_only, self._trust_labels
        scorer._looks = list(self._looks)
        return scorer

    def __getstate__(self) -> dict[str, Any]:
        config, tensors = ({}, {}) if self.fit_ is None else self.fit_.to_parts()
        return {
            "code": f"{__version__}/{ALGORITHM}",
            "safetensors_only": self._safetensors_only,
            "trust_labels": self._trust_labels,
            "model": self._open_source().name,
            "options": json.dumps(self._options(), sort_keys=True),
            "fit": json.dumps(config, sort_keys=True),
            "tensors": tensors_to_bytes(tensors),
            **self._arguments(LOCAL),
            "cache_dir": str(self._cache_dir()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        local = {name: state[name] for name in LOCAL}
        self.__init__(state["model"], **saving.read_options(json.loads(state["options"])), **local)  # type: ignore[misc]
        self._safetensors_only, self._trust_labels = state["safetensors_only"], state["trust_labels"]
        if config := json.loads(state["fit"]):
            self.fit_ = Fit.from_parts(config, tensors_from_bytes(state["tensors"]))

    def _arguments(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}

    def _options(self) -> dict[str, Any]:
        """The arguments that belong to the scorer, JSON-ready."""
        given = self._arguments(TRAVELLING)
        options: dict[str, Any] = to_plain({**given, **self._open_source().read_as, "render": self._render_config()})
        return options

    # -- parts ---------------------------------------------------------------------------------------------------

    def _cache_dir(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir else default_cache_dir()

    def _render_config(self) -> RenderConfig:
        return self.render or RenderConfig(max_length=self.max_length)

    def _renderer(self) -> Renderer:
        renderer = Renderer(self._open_source().tokenizer, self._render_config(), formatting_func=self.formatting_func)
        if self.fit_ and renderer.template_digest(self.fit_.score_readouts) != self.fit_.template_digest:
            raise SAFTArtifactError(
                f"this scorer was fitted with another chat template or tokenizer than {self._open_source().name} has "
                "now: its directions and threshold mean nothing for these tokens. Fit again, or pass the "
                "`processing_class` that it was fitted with."
            )
        return renderer

    def _open_source(self) -> ModelSource:
        if self._source is None:
            check_token(self.token)
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
        if self.fit_ is not None and source.model is not None:
            _check_shape(self.fit_, source)
        device = device or world.device
        read = {**source.identity(fingerprint, device), "features": features.names, "vectors": features.dtype}
        return source.extractor(
            renderer,
            features,
            folder=self._cache_dir() / name_of(read)[:32],
            world=world,
            device=device,
            fingerprint=fingerprint,
            width=self.fit_.score.width if self.fit_ else None,
            token_budget=self.fit_.token_budget if self.fit_ else None,
            shares_prefix=self.fit_.shares_prefix if self.fit_ else None,
        )


def _check_shape(fit: Fit, source: ModelSource) -> None:
    """Refuse a fit whose numbers are not of this model: a file that asks for larger batches takes all memory.

    Raises:
        SAFTArtifactError: one of them is not; the message names it.
    """
    shape = source.shape
    budget = max(source.token_budget(torch.device(kind)) for kind in ("cpu", "cuda"))
    sound = {
        "num_layers": (fit.num_layers, shape.num_layers, fit.num_layers == shape.num_layers),
        "the width of its vectors": (fit.score.width, shape.hidden_size, fit.score.width == shape.hidden_size),
        "token_budget": (fit.token_budget, f"at most {budget}", fit.token_budget <= budget),
        "shares_prefix": (fit.shares_prefix, shape.shares_prefix, fit.shares_prefix <= shape.shares_prefix),
    }
    for name, (found, expected, good) in sound.items():
        if not good:
            raise SAFTArtifactError(
                f"this scorer does not belong to {source.name or 'the model object'}: {name} is {found}, expected "
                f"{expected}. Fit again, or name the right model and revision."
            )
