"""The plots of the report, as PNG files: readable in print, and without telling colours apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from saft_hf.evaluate.config import first_word, without_demonstrations
from saft_hf.evaluate.results import Line, Results

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

# Okabe and Ito's colours, each with a marker and a line of its own.
_STYLES: dict[str, dict[str, Any]] = {
    "untuned": {"color": "#000000", "marker": "x", "linestyle": ":"},
    "none": {"color": "#D55E00", "marker": "s", "linestyle": "-"},
    "random": {"color": "#999999", "marker": "v", "linestyle": "--"},
    "ask": {"color": "#CC79A7", "marker": "P", "linestyle": (0, (1, 1))},
    "labelled": {"color": "#F0E442", "marker": "p", "linestyle": "-."},
    "saft": {"color": "#0072B2", "marker": "o", "linestyle": "-."},
    "auto": {"color": "#009E73", "marker": "D", "linestyle": "-"},
    "reference": {"color": "#56B4E9", "marker": "^", "linestyle": (0, (3, 1, 1, 1))},
    "drift_low": {"color": "#56B4E9", "marker": "<", "linestyle": "-"},
    "drift_high": {"color": "#D55E00", "marker": ">", "linestyle": "--"},
    "oracle": {"color": "#E69F00", "marker": "*", "linestyle": "--"},
}
_READOUTS: dict[str, dict[str, Any]] = {
    "response_start": {"color": "#0072B2", "marker": "o"},
    "response_mean": {"color": "#D55E00", "marker": "s"},
    "response_end": {"color": "#009E73", "marker": "^"},
}
_SCORES = {"energy": ("published score, k = 1", "--"), "difference": ("difference of class means", "-")}
_CLASSES = (
    (0, "not harmful", {"color": "#56B4E9", "marker": "o"}),
    (1, "harmful", {"color": "#D55E00", "marker": "x"}),
)
_ACROSS = 2
"""Panels beside one another, so that they can be read on a printed page."""


def draw(results: Results, folder: Path) -> list[tuple[Path, str]]:
    """Draw every plot that there are results for.

    Args:
        results: of the experiment.
        folder: for the PNG files; made where it is missing.

    Returns:
        (file, caption), in the order of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots: list[tuple[Path, str]] = []
    for name, (plot, caption) in _PLOTS.items():
        if (figure := plot(results)) is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
            plots.append((path, caption))
    return plots


def _by_contamination(results: Results) -> Figure | None:
    pools = sorted({pool for pool, _ in results.pools})
    if not pools:
        return None
    figure, axes = _grid(len(results.judges), len(pools))
    arms = list(dict.fromkeys(line.arm for line in results.lines if line.pool))
    for row, judge in zip(axes, results.judges, strict=True):
        for ax, pool in zip(row, pools, strict=True):
            shares = sorted(share for kind, share in results.pools if kind == pool)
            # Arms side by side, over half of the way to the next share.
            step = 0.5 * float(min(np.diff(shares), default=0.1)) / len(arms)
            if results.untuned and (level := results.untuned.evaluation.harmful[judge]):
                ax.axhline(level.mean, label="untuned", **{**_style("untuned"), "marker": ""})
            for number, arm in enumerate(arms):
                lines = [line for line in results.lines if (line.pool, line.arm) == (pool, arm)]
                shift = (number - (len(arms) - 1) / 2) * step
                _errorbars(ax, [(line.share + shift, line) for line in lines], judge)
            _labels(ax, f"{pool} pool", "harmful share of the pool", f"share judged harmful ({judge})")
            ax.set_xticks(shares, [f"{share:.0%}" for share in shares])
            ax.set_xlim(min(shares) - 0.05, max(shares) + 0.05)
            ax.set_ylim(-0.03, 1.03)
    return _with_legend(figure, axes)


def _by_utility(results: Results) -> Figure | None:
    figure = _against(results, lambda line: line.evaluation.perplexity, "perplexity on harmless rows (log)")
    for ax in figure.axes if figure else ():
        ax.set_xscale("log")  # an arm that was not trained lies far out
        for set_formatter in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
            set_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.4)))
    return figure


def _by_refusal(results: Results) -> Figure | None:
    return _against(
        results, lambda line: refused.mean if (refused := line.evaluation.refused) else None, "over-refusal"
    )


def _against(results: Results, cost: Callable[[Line], float | None], label: str) -> Figure | None:
    """Harm against what it costs, a panel for each pool and judge."""
    if not any(cost(line) is not None for line in results.lines if line.pool):
        return None
    figure, axes = _grid(len(results.pools), len(results.judges), sharex=True)
    for row, (pool, share) in zip(axes, results.pools, strict=True):
        lines = [line for line in results.lines if (line.pool, line.share) in ((pool, share), ("", 0.0))]
        for ax, judge in zip(row, results.judges, strict=True):
            for line in lines:
                if (value := cost(line)) is not None:
                    _errorbars(ax, [(value, line)], judge)
            _labels(ax, f"{pool} pool, {share:.0%} harmful", label, f"share judged harmful ({judge})")
            ax.set_ylim(-0.03, 1.03)
    return _with_legend(figure, axes)


def _errorbars(ax: Axes, lines: list[tuple[float, Line]], judge: str) -> None:
    """The lines of one arm, each at its x; a ring marks one that was barely trained. Undecided seeds are left out."""
    points = [
        (x, line, interval) for x, line in lines if not line.undecided and (interval := line.evaluation.harmful[judge])
    ]
    if not points:
        return
    x, mean = [x for x, _, _ in points], np.array([interval.mean for _, _, interval in points])
    sides = np.abs(np.array([[interval.low, interval.high] for _, _, interval in points]).T - mean)
    looks = _style(points[0][1].arm)
    ax.errorbar(x, mean, yerr=sides, label=points[0][1].arm, capsize=3, **looks)
    for at, line, interval in points:
        if line.barely_trained:
            ax.plot(at, interval.mean, marker="o", markersize=11, mfc="none", mec=looks["color"])


def _densities(results: Results) -> Figure | None:
    arms = list(dict.fromkeys(line.arm for line in results.lines if line.runs and line.runs[0].scores is not None))
    if not arms:
        return None
    figure, axes = _grid(len(results.pools), len(arms))
    for row, (pool, share) in zip(axes, results.pools, strict=True):
        for ax, arm in zip(row, arms, strict=True):
            line = results.line(pool, share, arm)
            auroc = None if line is None else line.runs[0].selection.auroc
            title = f"{arm}: {pool} pool, {share:.0%} harmful" + ("" if auroc is None else f" (AUROC {auroc:.2f})")
            _labels(ax, title, "score", "density")
            if line is None:
                ax.text(0.5, 0.5, "not run yet", ha="center", transform=ax.transAxes)
                continue
            run = line.runs[0]
            scores, truth = np.array(run.scores, dtype=np.float64), np.array(run.truth)
            known = ~np.isnan(scores)
            # A few giant scores would squeeze all others into one bar.
            top = np.quantile(scores[known], 0.99)
            bins = np.linspace(scores[known].min(), top, 31)
            for value, name, looks in _CLASSES:
                some = np.clip(scores[known & (truth == value)], None, top)
                options = {"density": True, "color": looks["color"]}
                ax.hist(some, bins, histtype="stepfilled", alpha=0.35, hatch="///" if value else "", **options)
                ax.hist(some, bins, histtype="step", linestyle="--" if value else "-", label=name, **options)
            if run.selection.threshold is not None:
                ax.axvline(run.selection.threshold, color="black", linestyle=":", label="threshold")
    return _with_legend(figure, axes)


def _by_layer(results: Results) -> Figure | None:
    if not results.probes:
        return None
    figure, axes = _wrapped(len(results.probes))
    for ax, probe in zip(axes.ravel(), results.probes, strict=False):
        for score, (words, line_style) in _SCORES.items():
            for readout, looks in _READOUTS.items():
                values = np.array(probe.auroc[score][readout], dtype=np.float64)
                label = f"{readout.replace('response_', '')}, {words}"
                hollow = {} if score == "difference" else {"markerfacecolor": "none"}
                ax.plot(probe.layers, values, linestyle=line_style, label=label, markersize=5, **looks, **hollow)
        ax.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
        _labels(ax, f"{probe.pool} pool, {probe.share:.0%} harmful", "layer", "AUROC")
        ax.set_ylim(min(0.3, ax.get_ylim()[0]), 1.02)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _with_legend(figure, axes, columns=2)


def _projections(results: Results) -> Figure | None:
    if not results.probes:
        return None
    figure, axes = _wrapped(len(results.probes))
    for ax, probe in zip(axes.ravel(), results.probes, strict=False):
        points, truth = np.array(probe.projection), np.array(probe.truth)
        for value, name, looks in _CLASSES:
            some = points[truth == value]
            ax.scatter(some[:, 0], some[:, 1], s=14, alpha=0.65, linewidths=1, label=name, **looks)
        first, second = probe.explained
        title = f"{probe.pool} pool, {probe.share:.0%} harmful, layer {probe.layer}"
        _labels(ax, title, f"direction 1 ({first:.0%} of variance)", f"direction 2 ({second:.0%})")
    return _with_legend(figure, axes)


_PLOTS = {
    "harmfulness_by_contamination": (
        _by_contamination,
        "Share of answers to held-out harmful prompts that a judge calls harmful, against the pool's harmful share. "
        "Bars: 95 % bootstrap intervals over prompts and seeds; a ring around a marker: barely trained.",
    ),
    "harmfulness_by_utility": (
        _by_utility,
        "The same share against perplexity on held-out harmless rows (on a log axis). Down and to the left is better. "
        "An arm at the perplexity of the untuned model was hardly trained (ring).",
    ),
    "harmfulness_by_refusal": (
        _by_refusal,
        "The same share against refusals of harmless prompts that sound harmful. Down and to the left is better: "
        "demonstrations buy the one with the other.",
    ),
    "score_densities": (
        _densities,
        "Scores of both classes in the first seed's pools; a filter removes what lies to the right of the threshold.",
    ),
    "auroc_by_layer": (
        _by_layer,
        "AUROC on the rows without a label, at each layer and readout: the published score with one direction (dashed),"
        " and the projection on the difference of class means of the labelled rows (solid). 0.5 is chance.",
    ),
    "projection": (
        _projections,
        "Each row of a pool on the first two principal directions, at the layer and readout that SAFT reads.",
    ),
}


def _style(arm: str) -> dict[str, Any]:
    """Colour, marker and line of an arm; hollow with demonstrations, the larger the more there are."""
    share = without_demonstrations(arm)[1]
    looks = _STYLES[arm if arm in _STYLES else first_word(arm)]
    return {"markersize": 6 + 40 * share, **looks, **({"markerfacecolor": "none"} if share else {})}


def _grid(rows: int, columns: int, *, sharex: bool = False) -> tuple[Figure, Any]:
    size = (4.6 * columns, 3.3 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", sharex=sharex)
    for ax in axes.ravel():
        ax.xaxis.set_tick_params(labelbottom=True)
    return figure, axes


def _wrapped(panels: int) -> tuple[Figure, Any]:
    """So many panels, in lines."""
    figure, axes = _grid(-(-panels // _ACROSS), min(panels, _ACROSS))
    for ax in axes.ravel()[panels:]:
        ax.remove()
    return figure, axes


def _labels(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set(xlabel=x, ylabel=y)
    ax.grid(alpha=0.25)


def _with_legend(figure: Figure, axes: Any, columns: int = 8) -> Figure:
    """One legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for ax in axes.ravel():
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)
    return figure
