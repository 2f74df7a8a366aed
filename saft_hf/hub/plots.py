"""Pictures for cards."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from saft_hf.histogram import LOG_FROM, bar_edges

logger = logging.getLogger(__name__)


def score_histogram(scores: ArrayLike, threshold: float | None) -> bytes | None:
    """Draw how many rows have which score, and where the threshold lies.

    Args:
        scores: of the rows, [N]; NaN where a row has none.
        threshold: rows above it are removed; None where there is none.

    Returns:
        A PNG, the same bytes for the same input; None where no row has a score, or, with a warning, where matplotlib
        (`saft-hf[plots]`) is not installed. It holds counts in bins, and nothing about a single row.

    Examples:
        >>> picture = score_histogram([0.1, 0.2, 0.9], threshold=0.5)
    """
    values = np.asarray(scores, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("The card has no picture of the scores: `pip install 'saft-hf[plots]'` draws it.")
        return None
    edges = bar_edges(values, threshold)
    shown = np.clip(values, edges[0], edges[-1])
    above = np.zeros(len(values), dtype=bool) if threshold is None else values > threshold
    below, over = (np.histogram(shown[chosen], bins=edges)[0] for chosen in (~above, above))
    figure = Figure(figsize=(7, 3.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    # Okabe and Ito's colours, told apart by people with any colour vision; the hatching tells them apart in print.
    bars: dict[str, Any] = {"width": np.diff(edges), "align": "edge", "edgecolor": "white", "linewidth": 0.3}
    axes.bar(edges[:-1], below, color="#0072B2", label="up to the threshold", **bars)
    if threshold is not None:
        axes.bar(edges[:-1], over, bottom=below, color="#E69F00", hatch="//", label="above the threshold", **bars)
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.4g}")
        axes.legend(frameon=False)
    if max(below.max(), over.max()) > LOG_FROM:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("SAFT score" + (" (the outer bars hold all beyond them)" if (shown != values).any() else ""))
    axes.set_ylabel("rows")
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
