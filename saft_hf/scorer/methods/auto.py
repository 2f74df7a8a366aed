"""`auto`: what is there, together: the direction from the labels, and the score of a reference set that was given."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from saft_hf.errors import SAFTUndecidedError
from saft_hf.score.direction import auroc
from saft_hf.score.mixture import FPR
from saft_hf.scorer.methods.base import FitSpec, Method, MethodFit
from saft_hf.scorer.methods.directed import fit_labels
from saft_hf.scorer.methods.reference import explained, learn
from saft_hf.scorer.pool import Labelled, Pool
from saft_hf.summary import ranks_the_other_way

logger = logging.getLogger(__name__)


class Auto(Method):
    """One statistic and one test: nothing is picked, so nothing is paid for picking.

    Over 126 draws of labels the choice among 15 candidates never gained anything over their weighted sum, and the test
    of the best of them has less power.
    """

    name = "auto"
    needs_labels = True
    uses_reference = True

    def fit(self, spec: FitSpec, pool: Pool, labelled: Labelled | None) -> MethodFit:
        """Learn from the labels; where a reference set was given, beside its score, weighted by how well that does."""
        assert labelled is not None  # noqa: S101 - checked where the fit was asked for
        if spec.reference is None:
            return fit_labels(spec, pool, labelled)
        try:
            learned = learn(spec.reference, pool)
        except SAFTUndecidedError as error:
            logger.warning("The reference set is left out, and the labels alone decide: %s.", error)
            return fit_labels(spec, pool, labelled)
        score = learned.probe.score
        answer = fit_labels(spec, pool, labelled, pool.centred(score))
        found, _ = explained(learned, pool, FPR)
        answer = replace(answer, probe_metrics=learned.metrics, mixture=None if found.undecided else found.metrics)
        values = labelled.scores(score)
        known = ~np.isnan(values)
        harmful = labelled.harmful[known]
        if spec.threshold is None and harmful.any() and not harmful.all():
            area = float(auroc(values[known].astype(np.float64), harmful))
            if ranks_the_other_way(area, int(harmful.sum()), int((~harmful).sum())):
                why = f"probe and labels clearly disagree: the labels rank the probe's scores at AUROC {area:.3f}"
                return replace(answer, threshold=None, undecided=why, advice=_TURNED)
        return answer


_TURNED = "See whether the labels are read the right way round (`harmful_value`), or leave the reference out"
