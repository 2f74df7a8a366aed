"""What fitting learns: small, plain, and the same bytes in every process."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saft_hf.render import Readout
from saft_hf.score import Subspace, saft_score

_TENSORS = ("mean", "directions", "energies")


@dataclass(frozen=True)
class Fitted:
    """The learned state of a `SAFTScorer`.

    Attributes:
        model: name or folder of the model that is read.
        revision: its commit, where one is known.
        model_fingerprint: SHA-256 of the weights that are read.
        template_digest: SHA-256 of the chat template and the tokenizer.
        layer: index into `hidden_states`.
        num_layers: blocks of the whole model.
        readout: where a row is read.
        method: how the score is made; `saft` is the published one.
        k: how many directions the score sums.
        threshold: rows above it are removed; None where no decision can be taken.
        threshold_from: `f1`, `expected_share`, `given` or `none`.
        refusal: why no decision is taken although one was asked for; None where there is none.
        keep_on_refusal: whether a refusal keeps every row in place of raising.
        subspace: the pool's mean and principal directions.
        token_budget: tokens in one batch.
        plan_digest: names the pool's batches in the store.
        summary: counts and figures of the fit, for people and cards.
    """

    model: str | None
    revision: str | None
    model_fingerprint: str
    template_digest: str
    layer: int
    num_layers: int
    readout: Readout
    method: str
    k: int
    threshold: float | None
    threshold_from: str
    refusal: str | None
    keep_on_refusal: bool
    subspace: Subspace
    token_budget: int
    plan_digest: str
    summary: dict[str, Any]

    def __post_init__(self) -> None:
        digests = (self.model_fingerprint, self.template_digest, self.plan_digest)
        sound = {
            "model": isinstance(self.model, str | None),
            "revision": isinstance(self.revision, str | None),
            "model_fingerprint, template_digest or plan_digest": all(re.fullmatch("[0-9a-f]{64}", d) for d in digests),
            "num_layers": type(self.num_layers) is int and self.num_layers > 0,
            "layer": type(self.layer) is int and 0 <= self.layer <= self.num_layers,
            "k": type(self.k) is int and 1 <= self.k <= len(self.subspace.directions),
            "threshold": self.threshold is None or (type(self.threshold) is float and math.isfinite(self.threshold)),
            "refusal": isinstance(self.refusal, str | None),
            "keep_on_refusal": type(self.keep_on_refusal) is bool,
            "token_budget": type(self.token_budget) is int and self.token_budget > 0,
            "summary": isinstance(self.summary, dict),
        }
        if wrong := [name for name, good in sound.items() if not good]:
            raise ValueError(f"{', '.join(wrong)}: not a value that a fit can give")

    def score(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of vectors, `float32 [n, d]` -> `float32 [n]`; a row's bits depend on that row alone."""
        return saft_score(vectors, self.subspace, self.k)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Split into a JSON-ready dict and arrays."""
        config = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "subspace"}
        config["readout"] = self.readout.value
        state = {name: getattr(self.subspace, name) for name in self.subspace.__slots__}
        config["subspace"] = {name: value for name, value in state.items() if name not in _TENSORS}
        config["subspace"]["spectral_gaps"] = self.subspace.spectral_gaps.tolist()
        return config, {name: state[name] for name in _TENSORS}

    @classmethod
    def from_parts(cls, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Fitted:
        """Put together again what `to_parts` took apart; what else stands in `config` is left alone."""
        values = {f.name: config[f.name] for f in fields(cls)}
        values["readout"] = Readout(values["readout"])
        plain: dict[str, Any] = dict(values["subspace"])
        plain["spectral_gaps"] = np.asarray(plain["spectral_gaps"], dtype=np.float64)
        values["subspace"] = Subspace(**{**plain, **{name: tensors[name] for name in _TENSORS}})
        return cls(**values)
