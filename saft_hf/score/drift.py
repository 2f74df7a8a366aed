"""How far an answer lies from declining towards complying: what harmless rows may wear off a model's refusals.

At each layer the direction is the mean, over pairs of answers to the same request, of the complying less the declining
answer's vector; a vector is the mean of the response's states less the state before the response. The layer is the one
that tells the two apart best in pairs that the direction has not seen.

Sources: DataShield (arXiv 2606.00160), LARF (arXiv 2507.18631).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saft_hf.errors import SAFTInputError
from saft_hf.score.direction import auroc

_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """A direction from declining to complying.

    Attributes:
        layer: where it lies.
        direction: of length 1, float64 [d].
        auroc: of complying against declining answers, out of fold, at each layer.
    """

    layer: int
    direction: NDArray[np.float64]
    auroc: Mapping[int, float]

    def __call__(self, differences: ArrayLike) -> NDArray[np.float32]:
        """Project vectors, mean less start, [n, d] -> float32 [n]: the higher, the nearer to complying."""
        projected: NDArray[np.float32] = (np.asarray(differences, np.float64) @ self.direction).astype(np.float32)
        return projected


def learn_drift(complying: Mapping[int, ArrayLike], declining: Mapping[int, ArrayLike]) -> Drift:
    """Learn the direction.

    Args:
        complying: layer -> vectors of complying answers, [p, d]: row i of both is an answer to request i.
        declining: layer -> vectors of declining answers, likewise.

    Returns:
        The direction, at the best layer; the first of equal ones.

    Raises:
        SAFTInputError: there are too few pairs with finite vectors to learn from some and test on others.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> comply, decline = rng.standard_normal((2, 40, 8))
        >>> comply[:, 3] += 4
        >>> int(np.argmax(learn_drift({6: comply}, {6: decline}).direction))
        3
    """
    found: dict[int, tuple[float, NDArray[np.float64]]] = {}
    for layer, states in complying.items():
        comply, decline = np.asarray(states, np.float64), np.asarray(declining[layer], np.float64)
        whole = np.isfinite(comply).all(axis=1) & np.isfinite(decline).all(axis=1)
        comply, decline, fold = comply[whole], decline[whole], np.arange(whole.sum()) % _FOLDS
        if len(comply) < 2 * _FOLDS:
            raise SAFTInputError(
                f"{len(comply)} pairs of answers can be read, and {2 * _FOLDS} are needed: the others are longer than "
                "`max_length`, or give no number."
            )
        values = np.empty((2, len(comply)))
        for part in range(_FOLDS):
            direction = (comply - decline)[fold != part].mean(axis=0)
            values[:, fold == part] = np.stack([comply, decline])[:, fold == part] @ direction
        labels = np.repeat([True, False], len(comply))
        direction = (comply - decline).mean(axis=0)
        found[layer] = float(auroc(values.ravel(), labels)), direction / np.linalg.norm(direction)
    best = max(found, key=lambda layer: found[layer][0])
    return Drift(best, found[best][1], {layer: score for layer, (score, _) in found.items()})
