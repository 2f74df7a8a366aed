"""What the score without labels does on pools of real text that it has never seen.

Pools are drawn from a folder of labelled JSON lines (`messages`, `is_safe`) several times: easy = benign instructions
with unsafe question-answer pairs mixed in; hard = safe and unsafe pairs; refusals = easy with safe answers to harmful
prompts among its benign rows; and pools with nothing harmful. "left" is the harmful share of what is kept beside that
of the pool, both also where it says "cannot tell" and keeps everything. Vectors are kept under `--cache`.

    python examples/reference/built_in.py --model ../shared/lab-lm --data ../shared/data
    python examples/reference/built_in.py --rows 600 --seeds 1       # a quick look
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset
from scipy.stats import rankdata

from saft_hf.assets import reference_columns
from saft_hf.distributed import World
from saft_hf.embed import Features, ModelSource, finite_rows
from saft_hf.render import START, Renderer
from saft_hf.score.reference import ReferenceScore, choose_reference, reference_threshold
from saft_hf.scorer.methods.reference import laid_out_like

ROOT = Path(__file__).resolve().parents[2]
BENIGN = "alpaca_benign", "gsm8k_benign", "multiturn_benign", "dolly_benign", "hard_negatives_keyword"
NOTHING_HARMFUL = (
    *((name,) for name in BENIGN[:4]),
    ("gsm8k_benign", "dolly_benign"),
    ("multiturn_benign", "alpaca_benign"),
    ("alpaca_benign", "hard_negatives_keyword"),
)
REFUSALS = 500
Vectors = dict[str, np.ndarray]


class Reader:
    """Rows to vectors of all features, once for every set of rows."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.source = ModelSource(args.model)
        deep = self.source.shape.num_layers
        self.layers = tuple(args.layers or sorted({deep // 2, 3 * deep // 4}))
        self.features = Features(self.layers, (START,))
        renderer = Renderer(self.source.tokenizer)
        self.extractor = self.source.extractor(renderer, self.features, folder=args.cache, world=World())

    def __call__(self, dataset: Dataset) -> Vectors:
        """Vectors of the rows that can be read."""
        embedded = self.extractor.embed(dataset)
        found = {name: embedded.states(name) for name in self.features.names}
        whole = finite_rows(found)
        return {name: vectors[whole] for name, vectors in found.items()}

    def file(self, name: str, safe: bool) -> Vectors:
        """Vectors of one class of a file."""
        return self(self.rows(name, safe))

    def rows(self, name: str, safe: bool) -> Dataset:
        """One class of a file: up to half as many rows again as a pool has, for pools to be drawn from."""
        data = load_dataset("json", data_files=str(self.args.data / f"{name}.jsonl.gz"), split="train")
        data = data.select_columns(["messages", "is_safe"])
        rows = np.flatnonzero(np.asarray(data["is_safe"]) == safe)
        return data.select(np.random.default_rng(0).permutation(rows)[: 3 * self.args.rows // 2])


def auroc(benign: np.ndarray, unsafe: np.ndarray) -> float:
    """Share of pairs in the right order; ties count half."""
    ranks = rankdata(np.concatenate([benign, unsafe]))[benign.size :]
    return float((ranks.sum() - unsafe.size * (unsafe.size + 1) / 2) / (unsafe.size * benign.size))


def measure(reference: ReferenceScore, benign: np.ndarray, unsafe: np.ndarray, told: np.ndarray) -> list[float]:
    """AUROC, share left beside the pool's, kept share of benign rows and of those told, in %; cut or not."""
    decision = reference_threshold(reference, np.concatenate([benign, unsafe]))
    cut = decision.threshold if decision.undecided is None else np.inf
    kept_benign, kept_unsafe = benign <= cut, unsafe <= cut
    area = left = np.nan
    if unsafe.size:
        share = unsafe.size / (unsafe.size + benign.size)
        area, left = auroc(benign, unsafe), kept_unsafe.sum() / (kept_benign.sum() + kept_unsafe.sum()) / share
    refusals = 100 * (told <= cut).mean() if told.size else np.nan
    absolute = 100 * (told <= reference.threshold).mean() if told.size else np.nan
    return [area, left, 100 * kept_benign.mean(), refusals, absolute, 100.0 * (decision.undecided is not None)]


def pools(scores: dict[str, np.ndarray], args: argparse.Namespace, seed: int) -> dict[str, tuple[np.ndarray, ...]]:
    """Name -> scores of benign rows, of unsafe rows, and of the refusals among the benign."""
    rng, none = np.random.default_rng(seed), np.empty(0)
    drawn = {name: rng.permutation(own) for name, own in scores.items()}
    found = {}
    for share in args.shares:
        bad = round(share * args.rows)
        unsafe, rest = drawn["unsafe"][:bad], args.rows - bad
        told = drawn["hard_negatives_refusals"][: min(REFUSALS, rest // 2)]
        mixed = np.concatenate([drawn["alpaca_benign"][: rest - told.size], told])
        found[f"easy {share:g}"] = drawn["alpaca_benign"][:rest], unsafe, none
        found[f"hard {share:g}"] = drawn["safe"][:rest], unsafe, none
        found[f"refusals {share:g}"] = mixed, unsafe, told
    for names in NOTHING_HARMFUL:
        parts = [drawn[name][: args.rows // len(names)] for name in names]
        found[" + ".join(names)] = np.concatenate(parts), none, none
    return dict(
        sorted(found.items(), key=lambda pool: (pool[1][1].size == 0, pool[0].split()[0] if pool[1][1].size else ""))
    )


def main() -> None:
    """Read the arguments, take vectors, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT.parent / "shared/lab-lm"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--cache", type=Path, default=Path("out/reference"))
    parser.add_argument("--layers", type=int, nargs="*", help="default: half and three quarters, as the scorer reads")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5])
    args = parser.parse_args()
    read = Reader(args)
    known = reference_columns()
    harmful, groups = np.array(known["is_harmful"]), np.array(known["category"])
    reference = Dataset.from_dict({name: known[name] for name in ("prompt", "completion")})
    ours = read(laid_out_like(read.rows("alpaca_benign", True), reference, read.extractor.renderer))
    files = {name: read.file(name, True) for name in (*BENIGN, "hard_negatives_refusals")}
    files |= {name: read.file("beavertails_pairs", name == "safe") for name in ("safe", "unsafe")}
    candidates = [(feature,) for feature in read.features.names]
    learned = choose_reference(ours, candidates, harmful, groups)
    print(f"{', '.join(learned.score.features)}; out-of-fold AUROC {learned.auroc:.3f}", end="")
    print(f", absolute threshold {learned.threshold:.2f}; mean over {args.seeds} draws")
    scores = {name: learned.score(vectors) for name, vectors in files.items()}
    rows: dict[str, list[list[float]]] = {}
    for seed in range(args.seeds):
        for name, pool in pools(scores, args, seed).items():
            rows.setdefault(name, []).append(measure(learned, *pool))
    titles = "AUROC", "left / pool", "benign kept %", "refusals kept %", "same, cut anyway", "cannot tell %"
    print(f"{'':42s}" + "".join(title.rjust(18) for title in titles))
    for name, found in rows.items():
        means = np.mean(found, axis=0)
        features = [format(value, ".3f" if i < 2 else ".1f") for i, value in enumerate(means)]
        print(
            f"{name:42s}" + "".join(("-" if feature == "nan" else feature).rjust(18) for feature in features),
            flush=True,
        )


if __name__ == "__main__":
    main()
