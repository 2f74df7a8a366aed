"""What fitting learns: small, plain, and the same bytes in every process."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide import ThresholdAim
from saft_hf.embed import Features, Vectors, layers_of, readouts_of
from saft_hf.errors import SAFTInputError
from saft_hf.records import Between, Digest, Matching, Name, from_plain, to_plain
from saft_hf.render import READOUTS
from saft_hf.score import LinearScore, PublishedScore
from saft_hf.score.probe import Probe
from saft_hf.scorer.labels import LabelledRows
from saft_hf.scorer.methods import METHODS, Method
from saft_hf.scorer.pool import Score
from saft_hf.summary import FitMetrics, Summary, public_name

_SCORES: dict[str, type[Score]] = {"published": PublishedScore, "linear": LinearScore}
_UNDECIDED = "the fit could not tell which rows are harmful"
"""What a loaded scorer says: a file's own words would stand in the cards of who loads it."""

MAX_LAYERS = 10_000
Revision = Annotated[str, Matching(r"\S{1,255}")]
Layer = Annotated[int, Between(0, MAX_LAYERS)]


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
    revision: Revision | None
    model_fingerprint: Digest
    template_digest: Digest
    num_layers: Annotated[int, Between(1, MAX_LAYERS)]
    layers: tuple[Layer, ...]
    readouts: tuple[Name, ...]
    vector_dtype: Name
    method: Name
    threshold: float | None
    threshold_from: Name
    undecided: str | None
    keep_undecided: bool
    # More than any card is given; what the model at hand is given at most is checked before it reads.
    token_budget: Annotated[int, Between(1, 1 << 17)]
    shares_prefix: bool
    plan_digest: Digest
    metrics: FitMetrics
    stratify_by: str | None = None
    thresholds: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fit(FitHeader):
    """The learned state of a `SAFTScorer`.

    Attributes:
        score: how rows are scored.
        labelled: the rows that the fit had labels for.
        probe: the probe that the score is, for `method="reference"`; None for any other score.
        posterior: probability that a row is harmful, for each of its bins, ascending; None where it was fitted without
            a pool.
    """

    score: Score
    labelled: LabelledRows
    probe: Probe | None = None
    posterior: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        for name, found, good, expected in self._facts():
            if not good:
                raise ValueError(f"fit.{name}: {str(found)[:100]}, not {expected}")

    def _facts(self) -> Iterator[tuple[str, Any, bool, str]]:
        """What holds of every fit: name, value, whether it does, and what was expected. Later ones build on earlier."""
        layers = range(self.num_layers + 1)
        yield "layers", self.layers, _different(self.layers, layers), f"different ones up to {self.num_layers}"
        yield "readouts", self.readouts, _different(self.readouts, READOUTS), f"different ones of {list(READOUTS)}"
        names = self.captured.names
        features = self.score.features
        yield "score.features", features, _different(features, names), f"different ones of {names}"
        yield "method", self.method, self.method in METHODS, f"one of {list(METHODS)}"
        by_stratum = self.stratify_by is not None
        several = bool(self.thresholds) == by_stratum and (self.threshold is None or not by_stratum)
        yield "thresholds", self.thresholds, several, "one for each value of stratify_by, in place of threshold"
        # The rest stands in cards, in words of ours.
        metrics = self.metrics
        notes = tuple(READOUTS[readout].note for readout in self.score_readouts)
        yield "metrics.notes", metrics.notes, metrics.notes == notes, "those of the readouts"
        yield "metrics.aim", metrics.aim, metrics.aim is None or _is_aim(metrics.aim), "an aim such as fpr=0.05"
        labels, pool = metrics.labels, metrics.pool
        yield "metrics.labels.harmful", labels, labels is None or labels.harmful <= labels.rows, "at most its rows"
        yield "metrics.pool.scored", pool, (pool.flagged or 0) <= pool.scored <= pool.rows, "at most its rows"
        mixture, parts = metrics.mixture, metrics.probe.components if metrics.probe else ()
        counted = mixture is None or len(parts) == len(mixture.weights) == len(mixture.above or mixture.weights)
        yield "metrics.mixture", "of other components", counted, "a weight for each component of the probe"
        yield "probe", "a probe", self.probe is None or self._fits(self.probe), "what its metrics and the score say"
        # The figure that a threshold is said to rest on.
        basis = dict.fromkeys(("given", "certificate", metrics.aim, *self.how.sources), True)
        basis |= {"none": self.threshold is None, "contamination": metrics.contamination is not None}
        basis["f1"] = bool(metrics.expected) or (metrics.published is not None and metrics.published.f1 is not None)
        yield (
            "threshold_from",
            self.threshold_from,
            basis.get(self.threshold_from, False),
            "what the metrics explain",
        )

    def _fits(self, probe: Probe) -> bool:
        metrics, posterior = self.metrics.probe, self.posterior
        if metrics is None or probe.score is not self.score:
            return False
        names = tuple(f"{part.source}: {'harmful' if part.harmful else 'benign'}" for part in metrics.components)
        if names != probe.components:
            return False
        if posterior is None or self.metrics.mixture is None:
            return posterior is None and self.metrics.mixture is None
        ascending = bool((np.diff(posterior) >= 0).all() and (posterior >= 0).all() and (posterior <= 1).all())
        return ascending and posterior.shape == (probe.densities.edges.size + 1,)

    def read(self, vectors: Vectors) -> NDArray[np.float32]:
        """Scores of rows and, by a probe, their probabilities of being harmful, `float32 [n, 1 or 2]`.

        The probability is that in the pool that was explained; without one, as if rows were made of the sources as the
        reference is. That of a row that is unlike the reference is -1: NaN stands for a row without a score.
        """
        scores = self.score(vectors)
        if self.probe is None:
            return scores[:, None]
        posterior = self.probe.densities.posterior if self.posterior is None else self.posterior
        likely = self.probe.probabilities(posterior, scores, vectors)
        return np.stack([scores, np.nan_to_num(likely, nan=-1.0)], axis=1)

    @property
    def columns(self) -> int:
        """How many values `read` gives a row."""
        return 1 if self.probe is None else 2

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
        header["undecided"] = self.undecided and _UNDECIDED
        labels: dict[str, NDArray[Any]] = dict(zip(_LABELS, self.labelled.to_tensors(), strict=True))
        plain: dict[str, Any] = {"fit": header, "score": {**score, "kind": kind}}
        if self.probe is not None:
            plain["probe"], arrays = self.probe.to_parts()
            labels |= {f"probe_{name}": array for name, array in arrays.items()}
            labels |= {} if self.posterior is None else {"probe_posterior": self.posterior}
        return plain, {**tensors, **labels}

    @classmethod
    def from_parts(cls, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Self:
        """Put together again what `to_parts` took apart.

        Raises:
            ValueError: a value is missing, unknown or not what a fit can give. The message names it.
        """
        parts = from_plain(_Parts, config)
        header, kind = parts.fit, parts.score.get("kind")
        if header.undecided not in (None, _UNDECIDED):
            raise ValueError(f"fit.undecided: not {_UNDECIDED!r}")
        if kind not in tuple(_SCORES):
            raise ValueError(f"score.kind: not one of {list(_SCORES)}")
        own = {name: value for name, value in parts.score.items() if name != "kind"}
        of_probe = {name[6:]: array for name, array in tensors.items() if name.startswith("probe_")}
        of_score = {name: array for name, array in tensors.items() if name not in _LABELS and name[6:] not in of_probe}
        score = _SCORES[kind].from_parts(own, of_score)
        posterior = of_probe.pop("posterior", None)
        if parts.probe is None and (of_probe or posterior is not None):
            raise ValueError("probe: missing, though there are its tensors")
        if posterior is not None and posterior.dtype != np.float64:
            raise ValueError("probe.posterior: not float64")
        probe = None
        if parts.probe is not None:
            if not isinstance(score, LinearScore):
                raise ValueError("probe: its score is not linear")
            probe = Probe.from_parts(parts.probe, of_probe, score)
        return cls(
            **{name: getattr(header, name) for name in _HEADER},
            score=score,
            probe=probe,
            posterior=posterior,
            labelled=LabelledRows.from_tensors(*(tensors.get(name) for name in _LABELS)),
        )


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """A `Fit` in JSON."""

    fit: FitHeader
    score: dict[str, Any]
    probe: dict[str, Any] | None = None


_HEADER = tuple(field.name for field in fields(FitHeader))
_LABELS = ("labelled", "labelled_harmful")


def _different(items: Sequence[Any], known: Container[Any]) -> bool:
    """Whether they are known ones, at least one, and none twice."""
    return 0 < len(set(items)) == len(items) and all(item in known for item in items)


def _is_aim(text: str) -> bool:
    try:
        return str(ThresholdAim.parse(text)) == text
    except SAFTInputError:
        return False
