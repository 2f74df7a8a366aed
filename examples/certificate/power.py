"""How often a certificate is issued, and how much it keeps, against the number of fresh labels.

    python examples/certificate/power.py            # about two minutes
    python examples/certificate/power.py --draws 50 --alpha 0.05 --kept 0.4 0.5 0.6

Simulated pools of 3,000 rows: the scores of both classes are normal, so far apart that the AUROC is as given. Columns:
`best` is the largest share that could truthfully be certified, `issued` the share of draws with a certificate, `kept`
the mean share kept (0 where none is issued), `false` the share of draws with a certificate that is not true.

Kept 0.4: all labels are drawn from the 40 % of rows with the lowest scores, a cut that is fixed before (`kept_only`),
and just these rows are certified or not.

Stratified: the rows have a noisy mark, such as "the prompt is harmful", on 90 % of the harmful and 20 % of the benign
rows, and half of the labels are drawn from the marked rows.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from saft_hf.decide.certify import FreshLabels
from saft_hf.files import write_json

ROWS = 3000
POOLS = ((0.10, 0.95), (0.10, 0.99), (0.25, 0.85), (0.25, 0.95), (0.25, 0.99))
LABELS = (50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Pool:
    """Scores, truth, and the noisy mark of each row."""

    scores: NDArray[np.float32]
    harmful: NDArray[np.bool_]
    marked: NDArray[np.bool_]


def make_pool(share: float, auroc: float) -> Pool:
    """Two normal classes whose scores have the given AUROC, up to chance."""
    rng = np.random.default_rng(0)
    harmful = np.arange(ROWS) < share * ROWS
    scores = rng.normal(size=ROWS) + harmful * norm.ppf(auroc) * np.sqrt(2)
    return Pool(scores.astype(np.float32), harmful, rng.random(ROWS) < np.where(harmful, 0.9, 0.2))


def best_share(pool: Pool, alpha: float) -> float:
    """The largest share of lowest scores of which at most alpha is harmful."""
    bad = np.cumsum(pool.harmful[np.argsort(pool.scores)])
    return float(np.flatnonzero(bad <= alpha * np.arange(1, ROWS + 1)).max(initial=-1) + 1) / ROWS


def draw(pool: Pool, labels: int, form: float | str, rng: np.random.Generator) -> tuple[FreshLabels, float | None]:
    """Fresh labels, drawn in one of the forms, and the cut that alone is certified where there is one."""
    if form == "stratified":
        drawn = [rng.permutation(np.flatnonzero(pool.marked == mark))[: labels // 2] for mark in (False, True)]
        rows = np.concatenate(drawn)
        return FreshLabels.of(pool.scores, rows, pool.harmful[rows], strata=pool.marked), None
    if form == "uniform":
        rows = rng.permutation(ROWS)[:labels]
        return FreshLabels.of(pool.scores, rows, pool.harmful[rows]), None
    cut = float(np.quantile(pool.scores, form, method="lower"))
    removed = np.flatnonzero(pool.scores > cut)
    rows = rng.permutation(np.flatnonzero(pool.scores <= cut))[:labels]
    return FreshLabels.of(pool.scores, rows, pool.harmful[rows], excluded=removed), cut


def power(pool: Pool, labels: int, alpha: float, delta: float, draws: int, form: float | str) -> dict[str, float]:
    """One form: shares of draws with a certificate, of rows kept, of draws with one that is false."""
    rng = np.random.default_rng(1)
    kept, false = np.zeros(draws), 0
    for i in range(draws):
        fresh, cut = draw(pool, labels, form, rng)
        found = fresh.certify(alpha=alpha, delta=delta, threshold=cut)
        kept[i] = found.kept / ROWS
        if found.threshold is not None:
            false += pool.harmful[pool.scores <= found.threshold].mean() > alpha
    return {"issued": float((kept > 0).mean()), "kept": float(kept.mean()), "false": false / draws}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--kept", type=float, nargs="*", default=[0.4], help="shares of rows to draw all labels from")
    parser.add_argument("--stratified", action="store_true", help="also the stratified form, slower")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    forms = ["uniform", *options.kept, *(["stratified"] if options.stratified else [])]
    title = "| harmful | AUROC | alpha | best | labels |"
    for form in forms:
        name = form if isinstance(form, str) else f"kept {form:g}"
        title += f" {name}: issued, kept, false |"
    print(title, "|" + "|".join("-" * len(part) for part in title.split("|")[1:-1]) + "|", sep="\n")
    found: dict[str, dict[str, object]] = {}
    for share, auroc in POOLS:
        pool = make_pool(share, auroc)
        for alpha in options.alpha:
            for labels in LABELS:
                best = best_share(pool, alpha)
                powers = {str(form): power(pool, labels, alpha, options.delta, options.draws, form) for form in forms}
                row = f"| {share:7.0%} | {auroc:5} | {alpha:5} | {best:4.0%} | {labels:6} |"
                cells = [f" {p['issued']:6.0%} {p['kept']:6.1%} {p['false']:6.1%} |" for p in powers.values()]
                print(row + "".join(cells), flush=True)
                found[f"harmful {share}, AUROC {auroc}, alpha {alpha}, {labels} labels"] = {"labels": labels, **powers}
    if options.json is not None:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
