"""Is an answer useful? Likeness to a reference answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words.

    Words are runs of ASCII letters and digits in lower case, without stemming. Source: Lin, *ROUGE: A Package for
    Automatic Evaluation of Summaries*, 2004, equations 2 to 4 with beta = 1.

    Args:
        reference: what a person wrote.
        answer: what the model wrote.

    Returns:
        0 to 1.

    Examples:
        >>> round(rouge_l("the cat sat on the mat", "the cat on a mat"), 3)
        0.727
    """
    expected, actual = _WORD.findall(reference.lower()), _WORD.findall(answer.lower())
    # Length of the longest common subsequence, a row of its table at a time.
    row = [0] * (len(actual) + 1)
    for word in expected:
        diagonal = 0
        for i, other in enumerate(actual, start=1):
            above = row[i]
            row[i] = diagonal + 1 if word == other else max(above, row[i - 1])
            diagonal = above
    return 2 * row[-1] / (len(expected) + len(actual)) if row[-1] else 0.0


def bleurt(references: Sequence[str], answers: Sequence[str], checkpoint: str) -> NDArray[np.float64]:
    """BLEURT of answers, where the package `bleurt` is installed (it is not a dependency).

    Args:
        references: what people wrote, [n].
        answers: what the model wrote, [n].
        checkpoint: folder of a BLEURT checkpoint.

    Returns:
        `float64 [n]`.
    """
    from bleurt.score import BleurtScorer  # type: ignore[import-not-found]

    scores = BleurtScorer(checkpoint).score(references=list(references), candidates=list(answers))
    return np.asarray(scores, dtype=np.float64)
