"""What fitting learns: small, plain, and the same bytes in every process."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.embed.features import Features, layers_of, readouts_of
from saft_hf.embed.plan import KEY_BYTES, find_keys
from saft_hf.render import Readout
from saft_hf.score import LinearScore, PublishedScore

Score = PublishedScore | LinearScore

METHODS = ("saft", "directed", "auto", "reference")
"""`saft`: as published. `directed`: along a direction learned from labels. `auto`: the best of both and their variants
on the labels. `reference`: along a direction that a reference set gives, without labels."""


@dataclass(frozen=True)
class LabelledRows:
    """Which rows people labelled, in digests: they decide those rows, and fresh labels must not be among them.

    Attributes:
        identities: `uint8 [m, 16]`, digests of their tokens, different ones.
        harmful: `int8 [m]`: 1 harmful, 0 benign, -1 where equal rows were labelled as both.
    """

    identities: NDArray[np.uint8]
    harmful: NDArray[np.int8]

    @classmethod
    def of(cls, identities: NDArray[np.uint8], harmful: NDArray[np.bool_]) -> LabelledRows:
        """Rows as they were labelled."""
        unique, place = np.unique(identities, axis=0, return_inverse=True)
        votes = [np.bincount(place.ravel(), weights=harmful == value, minlength=len(unique)) for value in (False, True)]
        return cls(unique, np.where(votes[0] == 0, 1, np.where(votes[1] == 0, 0, -1)).astype(np.int8))

    @classmethod
    def none(cls) -> LabelledRows:
        """No row was labelled."""
        return cls(np.zeros((0, KEY_BYTES), dtype=np.uint8), np.zeros(0, dtype=np.int8))

    def used(self, identities: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Which of the given rows (`uint8 [N, 16]`) were labelled, whatever the label, ascending."""
        return np.flatnonzero(find_keys(self.identities, identities) >= 0)

    def among(self, identities: NDArray[np.uint8]) -> dict[int, bool]:
        """Row -> harmful, for those of the given rows (`uint8 [N, 16]`) that have a label, and not two."""
        places = find_keys(self.identities, identities)
        labels = {row: int(self.harmful[places[row]]) for row in np.flatnonzero(places >= 0).tolist()}
        return {row: label == 1 for row, label in labels.items() if label >= 0}


@dataclass(frozen=True)
class Fitted:
    """The learned state of a `SAFTScorer`.

    Attributes:
        model: name or folder of the model that is read.
        revision: its commit, where one is known.
        model_fingerprint: SHA-256 of the weights that are read.
        template_digest: SHA-256 of the chat template and the tokenizer.
        num_layers: blocks of the whole model.
        captured: the hidden states that the fit took, all of them in one pass; the score reads some of them.
        method: how the score was found, one of `METHODS`.
        score: the score.
        threshold: rows above it are removed; None where no decision can be taken.
        threshold_from: `f1`, `contamination`, `given`, `reference`, an aim such as `recall=0.9`, or `none`.
        undecided: why no decision is taken although one was asked for; None where there is none.
        keep_on_undecided: whether every row is kept, in place of raising, where nothing is decided.
        labelled: the rows that the fit had labels for.
        token_budget: tokens in one batch.
        shares_prefix: whether tokens that all rows start with are read once.
        plan_digest: names the pool's batches in the store.
        summary: counts and figures of the fit, for people and cards.
    """

    model: str | None
    revision: str | None
    model_fingerprint: str
    template_digest: str
    num_layers: int
    captured: Features
    method: str
    score: Score
    threshold: float | None
    threshold_from: str
    undecided: str | None
    keep_on_undecided: bool
    labelled: LabelledRows
    token_budget: int
    shares_prefix: bool
    plan_digest: str
    summary: dict[str, Any]

    def __post_init__(self) -> None:
        digests = (self.model_fingerprint, self.template_digest, self.plan_digest)
        layers, labels = self.captured.layers, self.labelled
        sound = {
            "model": isinstance(self.model, str | None),
            "revision": isinstance(self.revision, str | None),
            "model_fingerprint, template_digest or plan_digest": all(re.fullmatch("[0-9a-f]{64}", d) for d in digests),
            "num_layers": type(self.num_layers) is int and self.num_layers > 0,
            "layers": bool(layers) and all(type(at) is int and 0 <= at <= self.num_layers for at in layers),
            "score": bool(self.score.features) and set(self.score.features) <= set(self.captured.names),
            "method": self.method in METHODS,
            "threshold": self.threshold is None or (type(self.threshold) is float and math.isfinite(self.threshold)),
            "threshold_from": isinstance(self.threshold_from, str),
            "undecided": isinstance(self.undecided, str | None),
            "keep_on_undecided": type(self.keep_on_undecided) is bool,
            "labelled": labels.identities.shape == (len(labels.harmful), KEY_BYTES),
            "token_budget": type(self.token_budget) is int and self.token_budget > 0,
            "shares_prefix": type(self.shares_prefix) is bool,
            "summary": isinstance(self.summary, dict),
        }
        if wrong := [name for name, good in sound.items() if not good]:
            raise ValueError(f"{', '.join(wrong)}: not a value that a fit can give")

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that the score reads."""
        return layers_of(self.score.features)

    @property
    def readouts(self) -> tuple[Readout, ...]:
        """Readouts that the score reads."""
        return readouts_of(self.score.features)

    @property
    def k(self) -> int | None:
        """How many principal directions the published score sums; None for a learned direction."""
        return self.score.k if isinstance(self.score, PublishedScore) else None

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Split into a JSON-ready dict and arrays."""
        config = {name: getattr(self, name) for name in _PLAIN}
        config["layers"], config["readouts"] = list(self.captured.layers), [r.value for r in self.captured.readouts]
        config["vector_dtype"] = self.captured.dtype
        config["score"], tensors = self.score.to_parts()
        config["score"]["kind"] = "published" if isinstance(self.score, PublishedScore) else "linear"
        labels = np.ascontiguousarray(self.labelled.identities).view("<i8").astype(np.int64)
        return config, {
            **tensors,
            "labelled": labels.reshape(-1, KEY_BYTES // 8),
            "labelled_harmful": self.labelled.harmful.astype(np.int64),
        }

    @classmethod
    def from_parts(cls, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Fitted:
        """Put together again what `to_parts` took apart; what else stands in `config` is left alone."""
        values = {name: config[name] for name in _PLAIN}
        readouts = tuple(map(Readout, config["readouts"]))
        values["captured"] = Features(tuple(config["layers"]), readouts, config["vector_dtype"])
        kinds: dict[str, type[Score]] = {"published": PublishedScore, "linear": LinearScore}
        values["score"] = kinds[config["score"]["kind"]].from_parts(config["score"], tensors)
        labels = np.ascontiguousarray(tensors["labelled"].astype("<i8")).view(np.uint8)
        harmful = tensors["labelled_harmful"].astype(np.int8)
        values["labelled"] = LabelledRows(labels.reshape(-1, KEY_BYTES), harmful)
        return cls(**values)


_PLAIN = tuple(f.name for f in fields(Fitted) if f.name not in ("captured", "score", "labelled"))
"""Fields that are JSON as they stand."""
