"""What fitting learns: small, plain, and the same bytes in every process."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from saft_hf.embed import KEY_BYTES, Features, layers_of, readouts_of
from saft_hf.records import from_plain, to_plain
from saft_hf.render import READOUTS
from saft_hf.score import LinearScore, PublishedScore
from saft_hf.scorer.labels import LabelledRows
from saft_hf.scorer.methods import METHODS, Method
from saft_hf.scorer.pool import Score
from saft_hf.summary import FitMetrics, Summary, public_name

_SCORES: dict[str, type[Score]] = {"published": PublishedScore, "linear": LinearScore}
_DIGEST = re.compile("[0-9a-f]{64}")
MAX_TOKEN_BUDGET = 1 << 17
"""Tokens in one batch that a saved scorer may ask for: more than any card is given, less than what takes the memory."""


@dataclass(frozen=True, kw_only=True)
class FitHeader:
    """The part of a `Fit` that is JSON.

    Attributes:
        model: name or folder of the model that is read.
        revision: its commit, where one is known.
        model_fingerprint: SHA-256 of the weights that are read.
        template_digest: SHA-256 of what chat template and tokenizer make of a few fixed rows.
        num_layers: layers of the whole model.
        layers: layers that the fit read, all in one pass; the score reads some of them.
        readouts: readouts that it took, likewise.
        vector_dtype: of the vectors that are kept.
        method: how the score was found, a name in `METHODS`.
        threshold: rows above it are removed; None where no decision can be taken.
        threshold_from: what chose it, see `Summary`.
        undecided: why no decision is taken although one was asked for; None where there is none.
        keep_undecided: whether every row is kept, in place of raising, where nothing is decided.
        token_budget: tokens in one batch.
        shares_prefix: whether tokens that all rows start with are read once.
        plan_digest: names the pool's batches in the store.
        metrics: counts and figures, for people and cards.
        stratify_by: column whose values have a threshold each, where a certificate found them so.
        thresholds: value of that column -> its threshold; None where none of it is kept.
    """

    model: str | None
    revision: str | None
    model_fingerprint: str
    template_digest: str
    num_layers: int
    layers: tuple[int, ...]
    readouts: tuple[str, ...]
    vector_dtype: str
    method: str
    threshold: float | None
    threshold_from: str
    undecided: str | None
    keep_undecided: bool
    token_budget: int
    shares_prefix: bool
    plan_digest: str
    metrics: FitMetrics
    stratify_by: str | None = None
    thresholds: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fit(FitHeader):
    """The learned state of a `SAFTScorer`.

    Attributes:
        score: how rows are scored.
        labelled: the rows that the fit had labels for.
    """

    score: Score
    labelled: LabelledRows

    def __post_init__(self) -> None:
        digests = (self.model_fingerprint, self.template_digest, self.plan_digest)
        sound = {
            "model_fingerprint, template_digest or plan_digest": all(map(_DIGEST.fullmatch, digests)),
            "num_layers": self.num_layers > 0,
            "layers": bool(self.layers) and all(0 <= layer <= self.num_layers for layer in self.layers),
            "readouts": bool(self.readouts) and set(self.readouts) <= set(READOUTS),
            "score": bool(self.score.features) and set(self.score.features) <= set(self.captured.names),
            "method": self.method in METHODS,
            "threshold": self.threshold is None or math.isfinite(self.threshold),
            "thresholds": bool(self.thresholds) == (self.stratify_by is not None)
            and (self.threshold is None or not self.thresholds),
            "labelled": self.labelled.identities.shape == (len(self.labelled.harmful), KEY_BYTES),
            "token_budget": 0 < self.token_budget <= MAX_TOKEN_BUDGET,
        }
        if wrong := [name for name, good in sound.items() if not good]:
            raise ValueError(f"{', '.join(wrong)}: not a value that a fit can give")

    @property
    def captured(self) -> Features:
        """The hidden states that the fit took."""
        return Features(self.layers, self.readouts, self.vector_dtype)

    @property
    def how(self) -> Method:
        """The method."""
        return METHODS[self.method]

    @property
    def k(self) -> int | None:
        """How many principal directions the published score sums; None for a learned direction."""
        return self.score.k if isinstance(self.score, PublishedScore) else None

    @property
    def score_layers(self) -> tuple[int, ...]:
        """Layers that the score reads."""
        return layers_of(self.score.features)

    @property
    def score_readouts(self) -> tuple[str, ...]:
        """Readouts that the score reads."""
        return readouts_of(self.score.features)

    def summary(self) -> Summary:
        """What is known after the fit."""
        return Summary(
            undecided=self.undecided,
            method=self.method,
            model=public_name(self.model),
            model_revision=self.revision,
            model_fingerprint=self.model_fingerprint,
            template_digest=self.template_digest,
            num_layers=self.num_layers,
            layers=self.score_layers,
            readouts=self.score_readouts,
            k=self.k,
            threshold=self.threshold,
            threshold_from=self.threshold_from,
            fit=self.metrics,
        )

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Split into a JSON-ready dict and arrays."""
        score, tensors = self.score.to_parts()
        kind = next(name for name, score_class in _SCORES.items() if type(self.score) is score_class)
        header = {name: to_plain(getattr(self, name)) for name in _HEADER}
        labels = np.ascontiguousarray(self.labelled.identities).view("<i8").astype(np.int64)
        return {"fit": header, "score": {**score, "kind": kind}}, {
            **tensors,
            "labelled": labels.reshape(-1, KEY_BYTES // 8),
            "labelled_harmful": self.labelled.harmful.astype(np.int64),
        }

    @classmethod
    def from_parts(cls, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Self:
        """Put together again what `to_parts` took apart; what else stands in `config` is left alone.

        Raises:
            ValueError, KeyError, TypeError: a value is missing, unknown or not what a fit can give.
        """
        header = from_plain(FitHeader, config["fit"], "fit")
        score = dict(config["score"])
        labels = np.ascontiguousarray(tensors["labelled"].astype("<i8")).view(np.uint8)
        return cls(
            **{name: getattr(header, name) for name in _HEADER},
            score=_SCORES[score.pop("kind")].from_parts(score, tensors),
            labelled=LabelledRows(labels.reshape(-1, KEY_BYTES), tensors["labelled_harmful"].astype(np.int8)),
        )


_HEADER = tuple(field.name for field in fields(FitHeader))
