"""How a probe of public labels does on pools without a label: ranking, estimated harmful share, rows removed.

    python examples/reference/measure.py --model_name_or_path MODEL --rows all
    python examples/reference/measure.py --model_name_or_path MODEL --rows all --built_in

Rows are embedded once, in parts that a later run finds in the store. Reference: question-answer pairs of other origins
than the hard pool's, half of general instructions, of safe refusals and of sums, and the built-in harmless rows. With
`--built_in` it is all built-in rows and no others, as where nothing is given. Every draw splits them anew, fits the
probe and draws pools of 1,000 rows; figures are means over the draws. `share` is the harmful share estimated, with its
interval and, in brackets, how often that covers the true one; `recall` and `lost` are shares of harmful and harmless
rows removed; `left` is the harmful share of what is kept beside that of the pool; `at 3 %` is the recall of the ranking
where 3 % of the harmless rows are lost. Beside it stand a multinomial classifier over the sources in place of the
histograms (the same estimate of shares), and plain calibration (no estimate: the shares of the reference).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from saft_hf import SAFTScorer
from saft_hf.distributed import World
from saft_hf.embed import Features
from saft_hf.files import write_json
from saft_hf.score.mixture import FPR
from saft_hf.score.probe import Probe, Whitening, fit_probe
from saft_hf.scorer.methods.reference import with_built_in
from saft_hf.scorer.probing import apply_probe

SHARED = Path(__file__).resolve().parents[3] / "shared"
PAIRS = "beavertails_pairs"
HARD = f"{PAIRS}/beavertails_30k_test"
SPLIT = ("alpaca_benign", "hard_negatives_refusals", "gsm8k_benign")
"""Sources of which one half is in the reference, the other in the pools."""
READOUTS = ("response_start", "response_mean", "response_end")
FEWER = {
    f"{PAIRS}/beavertails_30k_test": 1500,
    f"{PAIRS}/beavertails_train_unsafe": 1600,
    f"{PAIRS}/pku_saferlhf_10k_safe": 1100,
    f"{PAIRS}/pku_saferlhf_pairs": 1200,
    f"{PAIRS}/saferlhf_test_2k": 148,
    "alpaca_benign": 1600,
    "hard_negatives_refusals": 800,
    "gsm8k_benign": 500,
    "dolly_benign": 500,
    "multiturn_benign": 300,
    "hard_negatives_keyword": 400,
    "xstest_prompts": 450,
}
"""Rows of each source with `--rows fewer`: two cores read them with a model of 135M parameters in half an hour."""
SIZES = (250, 500, 1000, 2000, 4000)
STUBS = ("Thank you for asking.", "I see.")
ROWS = 1000


def read_rows(data: Path, fewer: bool) -> list[dict[str, Any]]:
    """Rows of all sources, spread evenly, so that the first of them are of every one."""
    sources: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(data.glob("*.jsonl.gz")):
        name = file.name.removesuffix(".jsonl.gz")
        with gzip.open(file) as lines:
            for number, line in enumerate(lines):
                row = json.loads(line)
                turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
                if name == "xstest_prompts":  # prompts alone
                    turns = [*turns[:1], {"role": "assistant", "content": STUBS[number % 2]}]
                source = f"{name}/{row['origin']}" if name == PAIRS else name
                about = {"source": source, "harmful": not row["is_safe"], "prompt": turns[0]["content"]}
                sources.setdefault(source, []).append({"messages": turns, **about})
    rng, placed = random.Random(0), []
    for source in sorted(sources):
        rows = sources[source]
        rng.shuffle(rows)
        rows = rows[: FEWER[source]] if fewer else rows
        placed += [((at + 0.5) / len(rows), row) for at, row in enumerate(rows)]
    return [row for _, row in sorted(placed, key=lambda each: each[0])]


def built_in_rows() -> list[dict[str, Any]]:
    """The rows that ship with the package."""
    own, found = with_built_in(None), []
    for info, part, harmful in zip(own.sources, own.parts, own.harmful, strict=True):
        for row, bad in zip(part, harmful.tolist(), strict=True):
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
            found.append({"messages": turns, "source": info.name, "harmful": bad, "prompt": row["prompt"]})
    return found


def embed(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> dict[str, NDArray[np.float32]]:
    """Hidden states at all features, `float32 [N, d]`."""
    scorer = SAFTScorer(args.model_name_or_path, dtype=args.dtype, cache_dir=args.cache_dir)
    source, world = scorer._open_source(), World()
    layers = source.shape.num_layers // 2, 3 * source.shape.num_layers // 4
    layers = (*layers, source.shape.num_layers) if source.shape.num_layers <= 8 else layers
    features = Features(layers, READOUTS, "float32")
    extractor = scorer._extractor(scorer._renderer(), features, source.fingerprint(layers, world), world)
    parts = []
    for first in range(0, len(rows), args.part):
        part = Dataset.from_list([{"messages": row["messages"]} for row in rows[first : first + args.part]])
        read = extractor.embed(part)
        parts.append({name: np.nan_to_num(read.states(name)) for name in features.names})
        print(f"\r{first + len(part)} of {len(rows)} rows embedded", end="", flush=True)
    print()
    kept = [name for name in features.names if not name.endswith("end") and int(name.split(".")[0]) in layers[:2]]
    return {name: np.concatenate([part[name] for part in parts]) for name in kept}


class Rows:
    """The rows of one run, and one draw of reference and pools from them."""

    def __init__(self, rows: Sequence[dict[str, Any]], vectors: dict[str, NDArray[np.float32]], built_in: bool) -> None:
        self.vectors = vectors
        self.built_in = built_in
        self.source = np.array([row["source"] for row in rows])
        self.harmful = np.array([row["harmful"] for row in rows])
        self.prompt = np.unique([row["prompt"] for row in rows], return_inverse=True)[1]

    def split(self, seed: int) -> tuple[NDArray[np.intp], dict[str, NDArray[np.intp]]]:
        """The reference's rows, and the others by source. They share no prompt with the hard pool, nor in a source."""
        rng, reference, others = np.random.default_rng(seed), [], {}
        for source in np.unique(self.source):
            own = np.flatnonzero(self.source == source)
            if source.startswith("built-in"):
                reference.append(own if self.built_in else own[~self.harmful[own]])
            elif source in SPLIT:
                prompts = np.unique(self.prompt[own])
                first = np.isin(self.prompt[own], rng.permutation(prompts)[: len(prompts) // 2])
                reference += [] if self.built_in else [own[first]]
                others[source] = own[~first]
            elif source.startswith(PAIRS) and source != HARD and not source.endswith("2k"):
                reference += [] if self.built_in else [own]
            else:
                others[source] = own
        rows = np.concatenate(reference)
        return rows[~np.isin(self.prompt[rows], self.prompt[others[HARD]])], others

    def fit(self, rows: NDArray[np.intp], seed: int) -> tuple[Probe, Whitening]:
        """A probe of some rows."""
        sample = np.random.default_rng(seed).permutation(rows)[:2048]
        whitening = Whitening.of({name: own[np.sort(sample)] for name, own in self.vectors.items()})
        names = sorted(set(self.source[rows].tolist()))
        coordinates = whitening({name: own[rows] for name, own in self.vectors.items()}).astype(np.float32)
        source = np.searchsorted(names, self.source[rows])
        probe = fit_probe(
            whitening, coordinates, self.harmful[rows], names, source, self.prompt[rows], few=self.built_in
        )
        return probe, whitening


def pools(others: dict[str, NDArray[np.intp]], harmful: NDArray[np.bool_]) -> Iterator[tuple[str, float, list[Any]]]:
    """Name, harmful share, and benign sources: equal parts of the pool's harmless rows."""
    general, hard = others["alpaca_benign"], others[HARD][~harmful[others[HARD]]]
    kinds = {name: own for name, own in others.items() if not name.startswith(PAIRS) and name != "alpaca_benign"}
    kinds["xstest_prompts"] = kinds["xstest_prompts"][~harmful[kinds["xstest_prompts"]]]
    six = [general, *(own for name, own in kinds.items() if name != "xstest_prompts")]
    for share in (0.05, 0.1, 0.25):
        yield f"easy {share}", share, [general]
    for share in (0.1, 0.25):
        yield f"mixed {share}", share, six
    for share in (0.1, 0.25, 0.5):
        yield f"hard {share}", share, [hard]
    for name, own in {"alpaca_benign": general, **kinds}.items():
        yield f"harmless: {name}", 0.0, [own]
    yield "harmless: six sources", 0.0, six
    for name, own in {**kinds, "safe answers of the hard pool": hard}.items():
        yield f"a fifth {name}", 0.0, [general] * 4 + [own]


def draw(
    rng: np.random.Generator, share: float, benign: list[NDArray[np.intp]], harmful: NDArray[np.intp]
) -> NDArray[np.intp]:
    """A pool of about `ROWS` rows, at its share also where a source has too few."""
    times = {id(own): sum(own is other for other in benign) for own in benign}
    sources = {id(own): own for own in benign}
    wanted = {key: int(ROWS * (1 - share)) * times[key] // len(benign) for key in sources}
    part = min(1.0, *(len(own) / max(wanted[key], 1) for key, own in sources.items()))
    rows = [rng.choice(own, int(part * wanted[key]), replace=False) for key, own in sources.items()]
    bad = min(len(harmful), round(sum(map(len, rows)) * share / (1 - share)))
    return np.concatenate([*rows, rng.choice(harmful, bad, replace=False)])


def removed_at_3(scores: NDArray[np.float32], harmful: NDArray[np.bool_]) -> float:
    """Recall of the ranking where 3 % of the harmless rows are lost."""
    return float(np.mean(scores[harmful] > np.quantile(scores[~harmful], 0.97))) if harmful.any() else np.nan


def outcome(gone: NDArray[np.bool_], harmful: NDArray[np.bool_]) -> dict[str, float]:
    """Recall, harmless rows lost, and harmful share left beside that of the pool."""
    share = harmful.mean()
    return {
        "recall": gone[harmful].mean() if share else np.nan,
        "lost": gone[~harmful].mean(),
        "left": harmful[~gone].mean() / share if share and not gone.all() else np.nan,
    }


def others_do(
    rows: Rows, reference: NDArray[np.intp], whitening: Whitening, pool: NDArray[np.intp]
) -> dict[str, dict[str, float]]:
    """A multinomial classifier over sources with shifted shares (Saerens et al. 2002), and plain calibration."""
    of = lambda at: whitening({name: own[at] for name, own in rows.vectors.items()})  # noqa: E731
    component = np.char.add(rows.source[reference], np.where(rows.harmful[reference], ": harmful", ": benign"))
    model = LogisticRegression(C=0.01, max_iter=500).fit(of(reference), component)
    likely, prior = model.predict_proba(of(pool)), np.mean(component[:, None] == model.classes_, axis=0)
    bad, shares = np.char.endswith(model.classes_.astype(str), ": harmful"), prior.copy()
    for _ in range(200):
        posterior = likely * shares / prior
        posterior /= posterior.sum(axis=1, keepdims=True)
        shares = posterior.mean(axis=0)
    found = {
        "multinomial": outcome(posterior[:, bad].sum(axis=1) > 0.5, rows.harmful[pool]) | {"share": shares[bad].sum()}
    }
    plain = likely[:, bad].sum(axis=1)
    found["calibration"] = outcome(plain > 0.5, rows.harmful[pool]) | {"share": plain.mean()}
    return found


def measure(rows: Rows, draws: int) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """Means over the draws, pool -> figure -> value; and lines on the learning curve."""
    found: dict[str, list[dict[str, float]]] = {}
    curve: dict[str, list[float]] = {}
    for seed in range(draws):
        reference, others = rows.split(seed)
        probe, whitening = rows.fit(reference, seed)
        scores, far = probe.score(rows.vectors), probe.outside(rows.vectors)
        rng = np.random.default_rng(seed)
        hard = others[HARD]
        bad = hard[rows.harmful[hard]]
        for name, share, benign in pools(others, rows.harmful):
            pool = draw(rng, share, benign, bad)
            harmful, inside = rows.harmful[pool], ~far[pool]
            answer = apply_probe(probe, scores[pool], far[pool], FPR)
            told, cut = answer.metrics, np.inf if answer.threshold is None else answer.threshold
            gone = (scores[pool] > cut) & inside
            figures = outcome(gone, harmful) | {
                "AUROC": roc_auc_score(harmful, scores[pool]) if harmful.any() else np.nan,
                "at 3 %": removed_at_3(scores[pool], harmful),
                "true": harmful.mean(),
                "share": np.nan if told is None else told.share,
                "low": np.nan if told is None else told.low,
                "high": np.nan if told is None else told.high,
                "outside": np.mean(~inside),
                "cannot tell": float(answer.undecided is not None),
            }
            figures["covers"] = float(figures["low"] <= max(harmful.mean(), 0.02) and harmful.mean() <= figures["high"])
            if name.startswith("a fifth"):
                figures["of the kind"] = gone[np.isin(pool, benign[-1])].mean()
            found.setdefault(name, []).append(figures)
            if name in ("easy 0.25", "mixed 0.25", "hard 0.25"):
                for way, other in others_do(rows, reference, whitening, pool).items():
                    found.setdefault(f"{name}, {way}", []).append(other)
            if name == "mixed 0.25":
                refusals = others["hard_negatives_refusals"]
                found.setdefault("safe refusals kept", []).append({"share": 1 - np.mean(scores[refusals] > cut)})
        lacking = None, f"{PAIRS}/beavertails_train_unsafe", "hard_negatives_refusals"
        for without in () if rows.built_in else lacking:
            use = reference if without is None else reference[rows.source[reference] != without]
            for size in (*SIZES, len(use)):
                if size > len(use) or (size < 1000 and without):
                    continue
                part = rng.permutation(use)[:size]
                if min(rows.harmful[part].sum(), (~rows.harmful[part]).sum()) < 200:
                    continue
                own, _ = rows.fit(part, seed)
                area = roc_auc_score(rows.harmful[hard], own.score({n: v[hard] for n, v in rows.vectors.items()}))
                label = "all" if size == len(use) else str(size)
                curve.setdefault(f"{label} rows{f' without {without}' if without else ''}", []).append(area)
        print(
            f"draw {seed}: {len(reference)} reference rows, {', '.join(probe.score.features)}, C {probe.strength}, "
            f"AUROC {probe.auroc:.3f} of unseen prompts, {probe.held_out_auroc:.3f} of unseen sources",
            flush=True,
        )
    means = {
        name: {key: mean_of([each[key] for each in draws_of]) for key in draws_of[0]}
        for name, draws_of in found.items()
    }
    lines = [f"{name:<62} hard {np.mean(areas):.3f}" for name, areas in curve.items()]
    return means, lines


def mean_of(values: list[float]) -> float | None:
    """Mean of the values that exist."""
    known = [float(value) for value in values if value == value]
    return float(np.mean(known)) if known else None


def main() -> None:
    """Embed, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(SHARED / "lab-lm"))
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--rows", choices=("all", "fewer"), default="all")
    parser.add_argument("--part", type=int, default=2000, help="rows embedded at a time")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cache_dir", default=None)
    parser.add_argument("--built_in", action="store_true", help="no reference but the built-in rows")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None, help="JSON of the figures")
    args = parser.parse_args()
    disable_progress_bar()
    theirs, ours = read_rows(args.data, args.rows == "fewer"), built_in_rows()
    read = [embed(rows, args) for rows in (theirs, ours)]
    vectors = {name: np.concatenate([each[name] for each in read]) for name in read[0]}
    rows = [*theirs, *ours]
    means, curve = measure(Rows(rows, vectors, args.built_in), args.draws)
    for name, figures in means.items():
        shown = "  ".join(f"{key} {value:.3f}" for key, value in figures.items() if value is not None)
        print(f"{name:<46} {shown}")
    print(*curve, sep="\n")
    if args.output:
        model = Path(args.model_name_or_path).name
        write_json(
            args.output, {"model": model, "rows": len(rows), "draws": args.draws, "pools": means, "curve": curve}
        )


if __name__ == "__main__":
    main()
