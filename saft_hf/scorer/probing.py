"""A reference set, read with the model -> a probe; a probe and a pool's scores -> what the pool is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from saft_hf.embed import Embedded, Extractor, finite_rows
from saft_hf.errors import SAFTUndecidedError
from saft_hf.score.mixture import explain
from saft_hf.score.probe import ROWS, Probe, Whitening, fit_probe, others
from saft_hf.scorer.inputs import why_unread
from saft_hf.scorer.reference_rows import ReferenceRows, outside
from saft_hf.status import RowStatus
from saft_hf.summary import ComponentMetrics, MixtureMetrics, ProbeMetrics, ranks_the_other_way

UNLIKE = 0.2
"""Share of a pool that may be unlike all reference rows: of kinds that a large reference knows up to 0.15 is."""
MIN_AUROC = 0.7
"""AUROC of a probe on reference rows of unseen prompts below which it decides nothing."""

_SAMPLED_ROWS = 2048
_CARD_FPR = 0.05


@dataclass(frozen=True, eq=False)
class Reference:
    """A fitted probe, and what may be told of it."""

    probe: Probe
    metrics: ProbeMetrics


@dataclass(frozen=True, eq=False)
class PoolFit:
    """What a probe says of a pool.

    Attributes:
        posterior: probability of each bin of scores; None where every row is unlike the reference.
        probabilities: that of each row, `float32 [N]`, NaN for one that is unlike the reference or has no score.
        metrics: what the pool is made of; None where every row is unlike the reference.
        threshold: rows above it are removed; None where nothing can be decided.
        undecided: why not.
    """

    posterior: NDArray[np.float64] | None
    probabilities: NDArray[np.float32]
    metrics: MixtureMetrics | None
    threshold: float | None
    undecided: str | None


def learn_probe(
    rows: ReferenceRows, extractor: Extractor, lay_out: Callable[[Dataset], Dataset], pool: Embedded | None
) -> Reference:
    """Fit a probe on the rows of a reference. Collective; the same bits on any number of processes.

    Args:
        rows: the reference, with the built-in rows.
        extractor: reads rows at all features that may serve.
        lay_out: brings the rows of a source into the form in which the pool's are.
        pool: rows that stand in it are left out of the fit; None without.

    Raises:
        SAFTUndecidedError: too few rows of a class can be read and do not stand in the pool.
        SAFTInputError: the rows are all equal.
    """
    world, stored = extractor.world, extractor.features.names
    parts = [lay_out(part) for part in rows.parts]
    read = [extractor.embed(part, prompts=True) for part in parts]
    fresh = [one.survey.usable if pool is None else one.survey.usable & outside(one, pool) for one in read]
    harmful = np.concatenate(rows.harmful)
    known = sum(int((one.survey.usable & ~own).sum()) for one, own in zip(read, fresh, strict=True))
    names = [info.name for info in rows.sources]
    if few := _too_few(harmful, np.concatenate(fresh), known):
        raise SAFTUndecidedError(few + _unread(names, parts, read, extractor))
    whitening = _whitening(read, fresh, stored)
    size = len(stored) * whitening.components
    coordinates = np.concatenate([one.rows(one.compute(stored, whitening, size)) for one in read])
    source = np.repeat(np.arange(len(read)), [len(part) for part in parts])
    keys = np.concatenate([one.survey.prompts for one in read])
    prompts = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    used = np.concatenate(fresh) & ~np.isnan(coordinates).any(axis=1)
    if few := _too_few(harmful, used, known):
        raise SAFTUndecidedError(few + _unread(names, parts, read, extractor))
    probe: Probe = world.on_main(
        "fitting the probe",
        lambda: fit_probe(
            whitening, coordinates[used], harmful[used], names, source[used], prompts[used], few=rows.few
        ),
    )
    numbers = source[used], prompts[used]
    left_out = {name: bool(others(at, harmful[used], *numbers).any()) for at, name in enumerate(names)}
    return Reference(probe, _metrics(probe, rows, known, left_out))


def apply_probe(probe: Probe, scores: NDArray[np.float32], far: NDArray[np.bool_], fpr: float) -> PoolFit:
    """Explain a pool by a reference.

    Args:
        probe: of the reference.
        scores: of the pool's rows by it, `[N]`; NaN where a row has none.
        far: rows that are unlike the reference, `bool [N]`.
        fpr: share of the harmless rows that may be expected to be lost.
    """
    scored = ~np.isnan(scores)
    inside = scored & ~far
    probabilities = np.full(scores.shape, np.nan, dtype=np.float32)
    if not inside.any():
        nothing = "every row of the pool is unlike the reference: no distance is within that of its own rows"
        return PoolFit(None, probabilities, None, None, nothing)
    found = explain(probe.densities, scores[inside], fpr)
    undecided = found.undecided
    if far.sum() > UNLIKE * scored.sum():
        undecided = (
            f"{int(far.sum())} of {int(scored.sum())} rows lie outside what the reference holds (at most {UNLIKE:.0%} "
            "may): this pool is unlike the reference"
        )
    if probe.auroc < MIN_AUROC:
        undecided = (
            "the model's states do not tell the reference rows themselves apart: AUROC "
            f"{np.floor(1000 * probe.auroc) / 1000:.3f} over prompts that the probe has not seen, at least {MIN_AUROC} "
            "is needed"
        )
    threshold, posterior = found.threshold, found.posterior
    if threshold is None and undecided is None:
        # The harmful share may be 0. No row of the pool lies above this, and none of another dataset goes: a score
        # alone makes no row more likely harmful than not.
        threshold = float(max(scores[scored].max(), probe.densities.edges[-1]))
        posterior = np.minimum(posterior, 0.5)
    probabilities[inside] = posterior[probe.densities.bins(scores[inside])]
    metrics = MixtureMetrics(
        share=found.share,
        low=found.interval[0],
        high=found.interval[1],
        misfit=found.misfit,
        outside=int(far.sum()),
        rows=int(scored.sum()),
        unexplained=int(probe.unexplained(scores, probabilities).sum()),
        recall=found.recall,
        lost=found.lost,
        weights=tuple(found.weights.tolist()),
        above=() if found.threshold is None else tuple(probe.densities.shares_above(found.threshold).tolist()),
    )
    return PoolFit(posterior, probabilities, metrics, None if undecided else threshold, undecided)


def _too_few(harmful: NDArray[np.bool_], used: NDArray[np.bool_], in_pool: int) -> str:
    """What to say of too few rows; nothing where they are enough."""
    bad, good = int((harmful & used).sum()), int((~harmful & used).sum())
    if min(bad, good) >= ROWS:
        return ""
    return (
        f"of the reference {bad} harmful and {good} benign rows are left to fit a probe on, which needs {ROWS} of "
        f"each; {in_pool} rows stand in the pool too. Add rows of other sources"
    )


def _unread(names: list[str], parts: list[Dataset], read: list[Embedded], extractor: Extractor) -> str:
    """How many rows of which sources cannot be read as the pool is, and why the first cannot, for people."""
    said, readouts = "", extractor.features.readouts
    for name, part, one in zip(names, parts, read, strict=True):
        statuses = one.survey.statuses(readouts)
        if lost := [row for row, status in enumerate(statuses) if status is not RowStatus.OK]:
            why = why_unread(extractor.renderer, part, readouts, lost[0])
            said += f". Of {name} {len(lost)} of {len(part)} rows cannot be read. {why.rstrip('.')}"
    return said


def _whitening(read: list[Embedded], fresh: list[NDArray[np.bool_]], stored: tuple[str, ...]) -> Whitening:
    """Of a sample of the rows: what a probe reads does not gain from more."""
    world = read[0].world
    at = np.concatenate([np.flatnonzero(own) for own in fresh])
    part = np.repeat(np.arange(len(read)), [int(own.sum()) for own in fresh])
    if len(at) > _SAMPLED_ROWS:
        drawn = np.sort(np.random.default_rng(0).choice(len(at), _SAMPLED_ROWS, replace=False))
        at, part = at[drawn], part[drawn]

    def states(feature: str) -> NDArray[np.float32]:
        return np.concatenate(
            [
                one.compute((feature,), itemgetter(feature), one.width, only=one.plan.row_to_unique[at[part == number]])
                for number, one in enumerate(read)
            ]
        )

    sample = {feature: states(feature) for feature in stored}

    def solve() -> Whitening:
        finite = finite_rows(sample)
        return Whitening.of({feature: rows[finite] for feature, rows in sample.items()})

    return world.on_main("principal components", solve)


def _metrics(probe: Probe, rows: ReferenceRows, in_pool: int, left_out: dict[str, bool]) -> ProbeMetrics:
    """What may be told of a probe; `left_out`: the sources, and whether the rest can do without them."""
    above = probe.densities.shares_above(probe.densities.threshold(_CARD_FPR))
    counts = probe.densities.counts.sum(axis=1)
    components = []
    for name, harmful, count, share in zip(probe.components, probe.densities.harmful, counts, above, strict=True):
        source = name.rpartition(": ")[0]
        kind, alone = bool(harmful), left_out[source]
        part = ComponentMetrics(source=source, harmful=kind, rows=int(count), above=float(share), left_out=alone)
        components.append(part)
    own = [info.name for info in rows.sources[: rows.own]]  # the built-in rows are nobody's
    return ProbeMetrics(
        turned=tuple(name for name in own if left_out[name] and _is_turned(probe, name)),
        sources=rows.sources,
        components=tuple(components),
        in_pool=in_pool,
        auroc=probe.auroc,
        held_out_auroc=probe.held_out_auroc if all(part.left_out for part in components) else None,
        few=rows.few,
        general=not rows.own or any(info.benign and not info.harmful for info in rows.sources[: rows.own]),
    )


def _is_turned(probe: Probe, source: str) -> bool:
    """Whether a probe of the other sources clearly ranks the rows of a source against its labels."""
    held_out = dict(zip(probe.components, probe.densities.held_out, strict=True))
    bad, good = held_out.get(f"{source}: harmful"), held_out.get(f"{source}: benign")
    if bad is None or good is None:
        return False
    below = np.cumsum(good) - good / 2  # of the same bin half
    return ranks_the_other_way(float(bad @ below / (bad.sum() * good.sum())), int(bad.sum()), int(good.sum()))
