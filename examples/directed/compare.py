"""The published score and the one that is learned from labels, on pools of real text.

Pools are mixed from a folder of labelled JSON lines (`messages`, `is_safe`), each with unsafe question-answer pairs in
it: easy = benign instructions; hard = safe pairs; refusals = easy with safe answers to harmful prompts among its benign
rows; six = six benign sources in equal parts. Labels are drawn again many times, and scores are judged on the rest of
the pool, which chose nothing. Vectors are taken once and kept in `--cache`.

    python examples/directed/compare.py --model ../shared/lab-lm --data ../shared/data
    python examples/directed/compare.py --rows 600 --draws 3 --shares 0.1 --shuffled 5    # a quick look
    python examples/directed/compare.py --features ../shared/models/vectors --rows 1000   # vectors that are there
    ... --draws 200 --shuffled 0 --aims fpr=0.05 fpr=0.05@0.9    # what a confidence costs in recall
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets, load_dataset

from saft_hf.decide import ThresholdAim, calibrate_published, flagged, threshold_for_aim
from saft_hf.distributed import World
from saft_hf.embed import Features, ModelSource, finite_rows
from saft_hf.errors import SAFTUndecidedError
from saft_hf.files import write_json
from saft_hf.render import MEAN, START, Renderer
from saft_hf.score import COMPONENTS, Frame, Moments, fit_direction, principal_subspace, saft_scores, with_differences
from saft_hf.score.direction import Direction, auroc

ROOT = Path(__file__).resolve().parents[2]
KS = (1, 2, 3, 4)
REFUSALS = "hard_negatives_refusals"
SIX = ("alpaca_benign", "dolly_benign", "gsm8k_benign", "multiturn_benign", REFUSALS, "hard_negatives_keyword")
ABOUT = ("harmful", "prompt", "source")
"""Arrays beside the vectors: the label, the number of the prompt, where the row comes from."""
Arrays = dict[str, np.ndarray]


class Pool:
    """One mixture: `features`, and the published score at `published`."""

    def __init__(self, arrays: Arrays, rows: np.ndarray, features: list[str], published: str) -> None:
        self.harmful, self.prompt, self.source = (arrays[name][rows] for name in ABOUT)
        own = {feature: arrays[feature][rows] for feature in {*features, published}}
        self.saft = saft_scores(own[published], principal_subspace(Moments.of(own[published]), max(KS)), KS)
        stored = {feature: own[feature] for feature in features}
        vectors = with_differences(stored)
        self.frame = Frame.of({name: principal_subspace(Moments.of(x), COMPONENTS) for name, x in vectors.items()})
        self.at = self.frame.coordinates(stored)
        self.moments = Moments.of(self.at)

    def draw(self, rng: np.random.Generator, labels: int) -> np.ndarray:
        """Rows to be labelled, drawn uniformly; a draw of one class is drawn again."""
        while True:
            labelled = rng.choice(self.harmful.size, labels, replace=False)
            if len(np.unique(self.harmful[labelled])) == 2:
                return labelled

    def published(self, labelled: np.ndarray) -> np.ndarray:
        """The published score, with k by F1; k=1 where no threshold flags a label."""
        known = {k: self.saft[k][labelled] for k in KS}
        try:
            k = calibrate_published(self.saft, known, self.harmful[labelled]).best.k
        except SAFTUndecidedError:
            k = 1
        return self.saft[k]

    def fit(self, labelled: np.ndarray, harmful: np.ndarray) -> Direction:
        """What `method="directed"` learns."""
        return fit_direction(self.frame, self.moments, self.at[labelled], harmful, self.prompt[labelled])

    def measure(self, labelled: np.ndarray, aims: list[str]) -> dict[str, float]:
        """Metrics on the rows that have no label, by the first aim, and what the other aims lose and find."""
        direction = self.fit(labelled, self.harmful[labelled])
        scores = self.at @ direction.weights
        rest = np.setdiff1d(np.arange(self.harmful.size), labelled)
        bad, removed = self.harmful[rest], {}
        for aim in aims:
            try:
                cut = threshold_for_aim(
                    ThresholdAim.parse(aim), direction.out_of_fold, self.harmful[labelled], scores
                ).threshold
            except SAFTUndecidedError:  # too few benign labels
                cut = np.inf
            removed[aim] = flagged(scores[rest], cut)
        kept = ~removed[aims[0]]
        sources = {name: self.source[rest] == name for name in np.unique(self.source[~self.harmful])}
        return {
            "AUROC, saft, k by F1": float(auroc(self.published(labelled)[rest], bad)),
            "AUROC, directed": float(auroc(scores[rest], bad)),
            "left": float(bad[kept].mean()) if kept.any() else float("nan"),
            "benign lost": float((~kept[~bad]).mean()),
            **{f"benign lost, {aim}": float(gone[~bad].mean()) for aim, gone in removed.items()},
            **{f"recall, {aim}": float(gone[bad].mean()) for aim, gone in removed.items()},
            **{f"  of {name}": float((~kept[own & ~bad]).mean()) for name, own in sources.items()},
            "undecided": float(direction.undecided is not None),
        }


def read_ready(folder: Path) -> Arrays:
    """Vectors that are there: principal components of `mean.L` and `start.L`; differences of them mean nothing."""
    ready, rows = np.load(folder / "features.npz"), np.load(folder / "rows.npz")
    pairs = np.where(rows["y"], "unsafe", "safe")
    about = {
        "harmful": rows["y"],
        "prompt": rows["prompt"],
        "source": np.where(rows["src"] == "beavertails_pairs", pairs, rows["src"]),
    }
    layers = sorted({int(name.split(".")[1]) for name in ready.files if name.startswith("mean.")})
    names = [(layer, kind) for layer in layers for kind in ("start", "mean")]
    return {f"{layer}.{kind}": ready[f"{kind}.{layer}"].astype(np.float32) for layer, kind in names} | about


def read_model(args: argparse.Namespace) -> Arrays:
    """Vectors of a model, at half and three quarters of its layers unless told otherwise."""
    if args.cache.exists():
        return dict(np.load(args.cache))
    benign = args.rows - round(min(args.shares) * args.rows)
    parts = [
        draw(args, "beavertails_pairs", False, round(max(args.shares) * args.rows)).map(lambda _: {"source": "unsafe"}),
        draw(args, "beavertails_pairs", True, benign).map(lambda _: {"source": "safe"}),
        draw(args, SIX[0], True, benign),
        *(draw(args, name, True, args.rows // 6) for name in SIX[1:]),
    ]
    dataset = concatenate_datasets(parts)
    source = ModelSource(args.model)
    layers = args.layers or [source.shape.num_layers // 2, 3 * source.shape.num_layers // 4]
    features = Features(tuple(layers), (START, MEAN))
    folder = args.cache.parent / args.cache.stem
    embedded = source.extractor(Renderer(source.tokenizer), features, folder=folder, world=World()).embed(dataset)
    prompts = ["\0".join(turn["content"] for turn in messages[:-1]) for messages in dataset["messages"]]
    states = {feature: embedded.states(feature) for feature in features.names}
    arrays = states | {
        "harmful": np.asarray(dataset["is_safe"]) == 0,
        "prompt": np.unique(prompts, return_inverse=True)[1],
        "source": np.asarray(dataset["source"]),
    }
    read = finite_rows(states)
    arrays = {name: array[read] for name, array in arrays.items()}
    np.savez(args.cache, **arrays)
    return arrays


def draw(args: argparse.Namespace, file: str, safe: bool, count: int) -> Dataset:
    """The first rows of one class of a file, in an order drawn from the seed."""
    data = load_dataset("json", data_files=str(args.data / f"{file}.jsonl.gz"), split="train")
    data = data.select_columns(["messages", "is_safe"])
    rows = np.random.default_rng(args.seed).permutation(np.flatnonzero(np.asarray(data["is_safe"]) == safe))[:count]
    return data.select(rows).map(lambda _: {"source": file})


def mixtures(args: argparse.Namespace, source: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of each pool, of `--rows`, as far as there are enough; those of one kind share rows."""
    by = {name: np.flatnonzero(source == name) for name in np.unique(source)}
    pools = {}
    for kind in ("easy", "hard", "refusals", "six"):
        for share in args.shares:
            bad = round(share * args.rows)
            rest, refusals = args.rows - bad, args.rows // 6
            benign = {
                "easy": {SIX[0]: rest},
                "hard": {"safe": rest},
                "refusals": {SIX[0]: rest - refusals, REFUSALS: refusals},
                "six": dict.fromkeys(SIX, rest // 6),
            }
            parts = {"unsafe": bad} | benign[kind]
            if all(0 < count <= len(by.get(name, ())) for name, count in parts.items()):
                pools[f"{kind} {share:g}"] = np.concatenate([by[name][:count] for name, count in parts.items()])
    return pools


def main() -> None:
    """Read the arguments, take vectors, print a line for each pool."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT.parent / "shared/lab-lm"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--cache", type=Path, default=Path("out/compare.npz"), help="vectors; read where it is there")
    parser.add_argument("--features", type=Path, help="folder of ready vectors, in place of a model")
    parser.add_argument("--layers", type=int, nargs="*", help="default: half and three quarters of the way")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--labels", type=int, nargs="+", default=[100])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5])
    parser.add_argument("--aims", nargs="+", default=["fpr=0.05"], help="of the threshold; the first gives `left`")
    parser.add_argument("--shuffled", type=int, default=20, help="draws with labels that mean nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the means")
    args = parser.parse_args()
    arrays = read_model(args) if args.features is None else read_ready(args.features)
    features = [name for name in arrays if name not in ABOUT]
    if args.layers:
        features = [name for name in features if int(name.split(".")[0]) in args.layers]
    result: dict[str, dict[str, float]] = {}
    for labels in args.labels:
        for name, rows in mixtures(args, arrays["source"]).items():
            pool = Pool(arrays, rows, features, features[0])
            rng, shuffled = np.random.default_rng(labels), np.random.default_rng(1)
            draws = [pool.measure(pool.draw(rng, labels), args.aims) for _ in range(args.draws)]
            metrics = {key: [metrics[key] for metrics in draws] for key in draws[0]}
            metrics["undecided, labels shuffled"] = [
                float(pool.fit(rows[:labels], shuffled.permutation(pool.harmful)[:labels]).undecided is not None)
                for rows in (shuffled.permutation(pool.harmful.size) for _ in range(args.shuffled))
            ]
            means = result[f"{name}, {labels} labels"] = {"harmful": float(pool.harmful.mean())}
            print(f"{name}, {labels} labels: mean (standard deviation) over {args.draws} draws, {', '.join(features)}")
            for key, values in metrics.items():
                if values:
                    means[key] = round(float(np.nanmean(values)), 4)
                    line = f"  {key:40s} {means[key]:.4f} ({np.nanstd(values):.4f})"
                    if key.startswith("benign lost, fpr") and (most := ThresholdAim.parse(key.split(", ")[1]).value):
                        means[f"draws above, {key}"] = above = float(np.mean(np.array(values) > most))
                        line += f"; more than {most:g} in {above:.0%} of the draws"
                    print(line, flush=True)
    if args.json is not None:
        write_json(args.json, {"command": shlex.join(sys.argv[1:]), "means": result})


if __name__ == "__main__":
    main()
