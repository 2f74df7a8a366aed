"""What a method is: what it needs, what it reads, and how it answers a fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from saft_hf.decide import ChosenThreshold, Goal, ThresholdAim, threshold_for_aim, threshold_for_contamination
from saft_hf.errors import SAFTInputError
from saft_hf.render import END, MEAN, START
from saft_hf.score.probe import Probe
from saft_hf.scorer.labels import LabelSet
from saft_hf.scorer.pool import Labelled, Pool, Score
from saft_hf.scorer.probing import Reference
from saft_hf.scorer.reference_rows import ReferenceRows
from saft_hf.summary import (
    LabelTest,
    MixtureMetrics,
    ProbeMetrics,
    PublishedMetrics,
    ThresholdEffect,
)


@dataclass(frozen=True)
class FitSpec:
    """What a fit is asked for.

    Attributes:
        labels: labelled rows of the pool; None without.
        ks: numbers of directions that the published score may sum.
        threshold: rows above it are removed; None lets an aim, a share, labels or the reference set decide.
        contamination: expected harmful share of the pool, between 0 and 1.
        aim: what the threshold is chosen for on the labels; None is the method's own.
        reference: the reference set that was given, or the probe of a fitted one; None where neither was.
    """

    labels: LabelSet | None
    ks: tuple[int, ...]
    threshold: float | None = None
    contamination: float | None = None
    aim: ThresholdAim | None = None
    reference: ReferenceRows | Reference | None = None


@dataclass(frozen=True, kw_only=True)
class MethodFit:
    """What a method answers.

    Attributes:
        score: how rows are scored.
        scores: the pool's, `float32 [N]`, NaN where a row has none.
        threshold: rows above it are removed; None where no decision can be taken.
        threshold_from: what chose it, see `Summary`.
        undecided: why no decision may be taken.
        advice: what would help then; None for the general advice.
        aim: what the threshold was chosen for on the labels.
        published: metrics of the published procedure.
        test: whether the score can be told from chance on the labels.
        expected: effect of the threshold that cross-validation expects.
        probe: the probe, where it alone scores.
        posterior: probability that a row of the pool is harmful, for each of the probe's bins.
        probabilities: that of each row, `float32 [N]`; NaN where it has none.
        probe_metrics: what the probe was fitted on.
        mixture: what it says the pool is made of.
        reference_auroc: of the built-in reference set on the labelled rows, see `LabelCounts`; `fitting.run` adds it.
    """

    score: Score
    scores: NDArray[np.float32]
    threshold: float | None = None
    threshold_from: str = "none"
    undecided: str | None = None
    advice: str | None = None
    aim: str | None = None
    published: PublishedMetrics | None = None
    test: LabelTest | None = None
    expected: ThresholdEffect | None = None
    probe: Probe | None = None
    posterior: NDArray[np.float64] | None = None
    probabilities: NDArray[np.float32] | None = None
    probe_metrics: ProbeMetrics | None = None
    mixture: MixtureMetrics | None = None
    reference_auroc: float | None = None


class Method(ABC):
    """One way to score. It has no state: what a fit learns is in the `MethodFit` that it returns.

    Attributes:
        name: what users call it.
        needs_labels: whether it can do nothing without labelled rows of the pool.
        uses_k: whether it sums `k` principal directions.
        uses_reference: whether it takes a reference set.
        uses_aim: whether labels choose its threshold for an aim.
        labels_decide: whether a row that people labelled is decided by its label.
        sources: what its threshold may come from, beside what is given, a share and an aim.
    """

    name: ClassVar[str]
    needs_labels: ClassVar[bool] = False
    uses_k: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False
    uses_aim: ClassVar[bool] = True
    labels_decide: ClassVar[bool] = True
    sources: ClassVar[tuple[str, ...]] = ()

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers to read by default: half and three quarters of the way. The last quarter of the model is never run."""
        return tuple(sorted({num_layers // 2, 3 * num_layers // 4}))

    def readouts(self, boundary: bool) -> tuple[str, ...]:
        """Readouts to read by default, where rows have a `boundary` of prompt and response, and where they are text."""
        return (START, MEAN) if boundary else (MEAN, END)

    @abstractmethod
    def fit(self, spec: FitSpec, pool: Pool, labelled: Labelled | None) -> MethodFit:
        """Learn a score and a threshold. Collective: every process gets the same bits.

        Args:
            spec: what was asked for.
            pool: the embedded rows.
            labelled: labelled rows; None without.

        Raises:
            SAFTInputError: no row can be used, or the labels cannot serve what was asked for.
        """


def check_f1(spec: FitSpec) -> None:
    """Refuse F1 with labels that say nothing of the harmful share.

    Raises:
        SAFTInputError: the labels were not drawn uniformly, and no `contamination` was given.
    """
    if spec.labels is not None and not spec.labels.uniform and spec.contamination is None:
        raise SAFTInputError(
            "`label_sampling='other'`: F1 means something only where labels were drawn uniformly from the pool. Give "
            "`contamination`, `threshold` or another `aim`, or draw the labels at random and say "
            "`label_sampling='uniform'`."
        )


def cut(
    spec: FitSpec,
    aim: ThresholdAim,
    labelled_scores: NDArray[np.floating],
    harmful: NDArray[np.bool_],
    scores: NDArray[np.float32],
) -> ChosenThreshold:
    """The threshold for an aim, on scores of the labelled rows by models that have not seen them.

    Args:
        spec: what was asked for; a `contamination` without an aim decides.
        aim: what the threshold is for.
        labelled_scores: `[m]` or `[repeats, m]`.
        harmful: `bool [m]`.
        scores: the pool's, `[N]`.
    """
    if spec.aim is None and spec.contamination is not None:
        share = ThresholdAim(Goal.SHARE, spec.contamination)
        return replace(threshold_for_aim(share, labelled_scores, harmful, scores), threshold_from="contamination")
    return threshold_for_aim(aim, labelled_scores, harmful, scores, contamination=spec.contamination)


def cut_without_labels(spec: FitSpec, scores: NDArray[np.floating]) -> ChosenThreshold | None:
    """The threshold that was given, or that of a share that was given; None where neither was."""
    if spec.threshold is not None:
        return ChosenThreshold(float(spec.threshold), "given")
    if spec.contamination is not None:
        return ChosenThreshold(threshold_for_contamination(scores, spec.contamination), "contamination")
    return None
