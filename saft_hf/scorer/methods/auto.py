"""`auto`: what is there, together: the direction from the labels, and the score of a reference set that was given."""

from __future__ import annotations

import logging

from saft_hf.errors import SAFTUndecidedError
from saft_hf.scorer.methods.base import FitSpec, Method, MethodFit
from saft_hf.scorer.methods.directed import fit_labels
from saft_hf.scorer.methods.reference import learn
from saft_hf.scorer.pool import Labelled, Pool

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
        return fit_labels(spec, pool, labelled, pool.centred(learned.score))
