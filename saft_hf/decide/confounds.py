"""What else a score may measure: length, format, language; what it costs a group of rows; whom it hangs on."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, spearmanr

from saft_hf.decide.certify import clopper_pearson
from saft_hf.decide.filtering import Decisions
from saft_hf.errors import SAFTInputError
from saft_hf.summary import Confounds, GroupShare, Leverage

# What is named in a warning:
WARN_CORRELATION = 0.3  # a feature with a larger |Spearman's rho|; on few rows, three standard errors if that is more
WARN_LEVERAGE = 0.2  # one row, or the copies of one, with a larger share of the pool's energy
WARN_KEPT = 0.8  # a group of which a smaller share is kept
WARN_TIMES = 3  # a value whose rows are removed more than so many times as often as all rows, beyond chance
CHANCE = 0.01  # of a warning of any value, where rows are removed by lot

# Of a column whose values are told apart. So few are told apart however few the rows; text of rows is no such value.
MOST_VALUES, LONGEST_VALUE, FEW_VALUES = 100, 60, 20

_BY_LINE = {
    "lists": r"^\s*(?:[-*+\u2022]|\d{1,3}[.)])\s",
    "markdown": r"^#{1,6}\s|\*\*\S|__\S|^\s*\|.*\|\s*$|^>\s|\[[^\]\n]+\]\(",
    "code": r"^(?: {4}|\t)\S|^```|[{};]\s*$|^\s*(?:def|class|import|from|return|#include)\b",
}
_MATHS = re.compile(r"[0-9=+*/^<>%\u00b1\u00d7\u00f7\u2200-\u22ff]|\\[a-z]{2,}")


def text_features(texts: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    r"""Crude measures of length, format and language.

    Args:
        texts: what the score has read of each row, [n].

    Returns:
        float64 [n] for each of `characters`; `lists`, `markdown` and `code` (marks a line); `maths` (share of the
        characters that are digits or operators); `not_ascii` (share of the letters; foreign scripts and accents).

    Examples:
        >>> features = text_features(["- one\n- two", "\u043f\u0440\u0438\u0432\u0435\u0442"])
        >>> features["lists"].tolist(), features["not_ascii"].tolist()
        ([1.0, 0.0], [0.0, 1.0])
    """
    counts = {
        "characters": [len(text) for text in texts],
        **{
            name: [len(re.findall(pattern, text, re.MULTILINE)) / (text.count("\n") + 1) for text in texts]
            for name, pattern in _BY_LINE.items()
        },
        "maths": [len(_MATHS.findall(text)) / max(len(text), 1) for text in texts],
        "not_ascii": [_not_ascii(text) for text in texts],
    }
    return {name: np.array(values, dtype=np.float64) for name, values in counts.items()}


def correlations(scores: ArrayLike, features: Mapping[str, ArrayLike]) -> Confounds:
    """Spearman's correlation of the score with each feature.

    Args:
        scores: scores, [n]; rows without one (NaN) are left out.
        features: name -> values, [n].

    Raises:
        SAFTInputError: a feature has another number of rows.

    Examples:
        >>> correlations(np.arange(150), {"tokens": np.arange(150)}).warnings
        ('The score rises with tokens (Spearman 1.00 on 150 rows): it may measure that, not harm.',)
    """
    values = np.asarray(scores, dtype=np.float64)
    scored = ~np.isnan(values)
    spearman: dict[str, float | None] = {}
    for name, column in features.items():
        feature = np.asarray(column, dtype=np.float64)
        if feature.shape != values.shape:
            raise SAFTInputError(f"{name} must hold one number for each of {values.size} rows; found {feature.shape}")
        x, y = values[scored], feature[scored]
        constant = x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
        spearman[name] = None if constant else float(spearmanr(x, y).statistic)
    rows = int(scored.sum())
    level = max(WARN_CORRELATION, min(1.0, 3 / math.sqrt(max(rows - 1, 1))))
    warnings = tuple(
        f"The score {'rises' if rho > 0 else 'falls'} with {name} (Spearman {rho:.2f} on {rows} rows): it may measure "
        "that, not harm."
        for name, rho in spearman.items()
        if rho is not None and abs(rho) > level
    )
    return Confounds(rows=rows, spearman=spearman, warn_above=level, warnings=warnings)


def kept_share(group: str, decisions: Decisions, member: ArrayLike) -> GroupShare:
    """How much of a group of rows is kept, such as of the safe refusals, the most valuable rows for safety.

    The interval, at 95 %, is for what the filter would do to more rows of this kind.

    Args:
        group: its name, for the warning.
        decisions: of all rows, [N].
        member: whether each row is of the group, bool [N].

    Raises:
        SAFTInputError: the lengths differ.

    Examples:
        >>> from saft_hf.decide import decide
        >>> kept_share("refusals", decide([1.0, 1.0, 9.0, 1.0], ["ok"] * 4, 5.0), [True, True, True, False]).warnings
        ('Only 67% of the 3 rows of refusals are kept.',)
    """
    inside = np.asarray(member, dtype=np.bool_)
    if inside.shape != (len(decisions),):
        raise SAFTInputError(f"member must hold one value for each of {len(decisions)} rows; found {inside.shape}")
    rows, count = int(inside.sum()), int(inside[decisions.train_rows()].sum())
    removed = int(inside[decisions.removed].sum())
    if not rows:
        return GroupShare(rows=0, kept=0, removed=0, share=None, low=None, high=None, confidence=0.95)
    estimate = clopper_pearson(count, rows)
    warning = f"Only {count / rows:.0%} of the {rows} rows of {group} are kept."
    return GroupShare(
        rows=rows,
        kept=count,
        removed=removed,
        share=estimate.share,
        low=estimate.low,
        high=estimate.high,
        confidence=estimate.confidence,
        warnings=(warning,) if estimate.share < WARN_KEPT else (),
    )


def value_names(column: str, values: Sequence[Any]) -> NDArray[np.object_]:
    """The values of a column as names of groups of rows, [N]; None is `(none)`.

    Raises:
        SAFTInputError: values are lists or objects, or they are too many or too long to be groups: text is none.
    """
    if any(isinstance(value, list | dict) for value in values):
        raise SAFTInputError(f"by={column!r} must hold plain values, such as text or numbers: found lists or objects")
    names = ["(none)" if value is None else str(value) for value in values]
    different, longest = len(set(names)), max(map(len, names), default=0)
    if different > min(MOST_VALUES, max(FEW_VALUES, len(names) // 2)) or longest > LONGEST_VALUE:
        raise SAFTInputError(
            f"by={column!r} has {different} different values of up to {longest} characters in {len(names)} rows: name "
            f"a column of at most {MOST_VALUES} values of at most {LONGEST_VALUE} characters that many rows share, "
            "such as a source or a language"
        )
    return np.array(names, dtype=np.object_)


def shares_by(column: str, names: NDArray[np.object_], decisions: Decisions) -> dict[str, GroupShare]:
    """What becomes of the rows with each value of a column; every row is counted once.

    The average hides what a minority loses: at 4.4 % overall, one source of six lost 20 to 39 %.

    Args:
        column: its name.
        names: a value for each row, [N], see `value_names`.
        decisions: of all rows, [N].

    Returns:
        Value -> share, the commonest first.

    Examples:
        >>> from saft_hf.decide import decide
        >>> names = value_names("source", ["a", "a", "b"])
        >>> found = shares_by("source", names, decide([1.0, 9.0, 1.0], ["ok"] * 3, 5.0))
        >>> [(value, share.rows, share.removed) for value, share in found.items()]
        [('a', 2, 1), ('b', 1, 0)]
    """
    found, total = {}, len(decisions.removed)
    counts = Counter(names.tolist())
    for name, rows in counts.most_common():
        share, average = kept_share(name, decisions, names == name), total / len(names)
        often = share.removed > WARN_TIMES * average * rows
        chance = binom.sf(share.removed - 1, rows, average) * len(counts)
        warning = (
            f"{share.removed / rows:.1%} of the {rows} rows with {column}={name!r} are removed, and {average:.1%} of "
            "all rows: harmful rows may gather there, or the score may follow what these rows have in common."
        )
        found[name] = replace(share, warnings=(warning,) if often and chance < CHANCE else ())
    return found


def leverage(energies: ArrayLike, keys: ArrayLike) -> Leverage:
    """How much of the pool's energy along the directions in use hangs on one row, or on the copies of one.

    One row of giant norm, or a text that stands in the pool a hundred times, can make a direction its own.

    Args:
        energies: squared distance of each row from the pool's mean along the directions, [N]: the published score, or
            the squared deviation of a signed one; NaN where a row has none.
        keys: a value for each row, [N] or uint8 [N, b]; rows with equal values are copies.

    Raises:
        SAFTInputError: the lengths differ.

    Examples:
        >>> leverage([1.0, 1.0, 97.0, 1.0], ["a", "a", "b", "c"]).top_row_share
        0.97
    """
    values, names = np.asarray(energies, dtype=np.float64), np.asarray(keys)
    if len(names) != values.size:
        raise SAFTInputError(f"keys must hold one value for each of {values.size} rows; found {len(names)}")
    values = np.nan_to_num(values, nan=0.0)
    total = float(values.sum()) or math.inf
    copy = np.unique(names, axis=0, return_inverse=True)[1].ravel()
    by_copy = np.bincount(copy, weights=values)
    top = int(by_copy.argmax())
    row_share, share, copies = float(values.max()) / total, float(by_copy[top]) / total, int((copy == top).sum())
    what, most = f"{copies} copies of one row carry", share
    if row_share > WARN_LEVERAGE:
        what, most = "One row carries", row_share
    warning = f"{what} {most:.0%} of the pool's energy along the directions in use."
    return Leverage(
        top_row_share=row_share,
        top_copies_share=share,
        top_copies=copies,
        warn_above=WARN_LEVERAGE,
        warnings=(warning,) if most > WARN_LEVERAGE else (),
    )


def _not_ascii(text: str) -> float:
    if text.isascii():
        return 0.0
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter > "\x7f" for letter in letters) / max(len(letters), 1)
