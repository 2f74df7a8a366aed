"""Ways to score, compared on pools of real text: how the directed score and its defaults were chosen.

Pools are drawn from a folder of labelled JSON lines (`messages`, `is_safe`): easy = benign instructions with unsafe
question-answer pairs mixed in; hard = safe and unsafe pairs; refusals = easy with safe answers to harmful prompts among
its benign rows. In every column of the tables labels are drawn again many times, and scores are judged on the rest of
the pool, which chose nothing. Vectors are taken once and kept under `--cache`.

    python examples/directed/compare.py --model ../shared/lab-lm --data ../shared/data
    python examples/directed/compare.py --rows 600 --draws 3 --shares 0.1 --labels 100 --shuffled 5    # a quick look
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets, load_dataset
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from saft_hf.decide import calibrate_published, flagged
from saft_hf.decide.aims import ThresholdAim, threshold_for_aim
from saft_hf.distributed import World
from saft_hf.embed.features import Features, feature_name
from saft_hf.embed.source import ModelSource
from saft_hf.errors import SAFTUndecidedError
from saft_hf.render import Readout, Renderer
from saft_hf.score import Moments, principal_subspace, saft_scores
from saft_hf.score.directed import COMPONENTS, SHRINKAGE, Frame, combine
from saft_hf.score.select import Selection, choose, default_candidates

ROOT = Path(__file__).resolve().parents[2]
READOUTS = (Readout.START, Readout.MEAN)
KS = (1, 2, 3, 4)
Parts = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Vectors:
    """Everything that was read: for each feature float32 [rows, d], and what is known of each row."""

    features: dict[str, np.ndarray]
    layer_of: dict[str, int]
    num_layers: int
    harmful: np.ndarray
    prompt: np.ndarray
    source: np.ndarray

    @cached_property
    def published(self) -> str:
        """The feature of the published score."""
        return feature_name(self.num_layers // 2, Readout.START)

    @cached_property
    def defaults(self) -> dict[str, int]:
        """The features that `auto` reads, with their layers."""
        layers = {self.num_layers // 2, 3 * self.num_layers // 4, self.num_layers}
        return {feature: layer for feature, layer in self.layer_of.items() if layer in layers}


class Pool:
    """One mixture, with the components of every feature."""

    def __init__(self, name: str, vectors: Vectors, rows: np.ndarray) -> None:
        self.name = name
        self.vectors = vectors
        self.harmful = vectors.harmful[rows]
        self.prompt = vectors.prompt[rows]
        self.refusal = vectors.source[rows] == "refusals"
        own = {feature: states[rows] for feature, states in vectors.features.items()}
        spaces = {feature: principal_subspace(Moments.of(own[feature]), COMPONENTS, clip=True) for feature in own}
        self.frame = Frame.of(spaces)
        self.at = self.frame.coordinates(own)
        self.moments = Moments.of(self.at)
        self.saft = saft_scores(own[vectors.published], spaces[vectors.published], KS)
        # What `auto` sees: the default features alone.
        self.auto_frame = Frame.of({feature: spaces[feature] for feature in vectors.defaults})
        self.auto_at = self.at[:, self.frame.columns(tuple(vectors.defaults))]
        self.auto_moments = Moments.of(self.auto_at)
        self.selected: dict[tuple[bytes, bytes], Selection] = {}

    def difference(self, labelled: np.ndarray, at: np.ndarray, harmful: np.ndarray) -> np.ndarray:
        """Mean of harmful less mean of benign labelled rows."""
        bad = harmful[labelled]
        return at[labelled[bad]].mean(axis=0) - at[labelled[~bad]].mean(axis=0)

    def directed(self, labelled: np.ndarray, parts: Parts, shrinkage: float = SHRINKAGE) -> np.ndarray:
        """The directed score of every row."""
        difference = self.difference(labelled, self.at, self.harmful)
        return self.at @ combine(difference, self.frame, self.moments, parts, shrinkage)

    def regression(self, labelled: np.ndarray, features: Sequence[str], strength: float) -> np.ndarray:
        """Logistic regression on whitened components."""
        columns = self.frame.columns(features)
        white = self.at[:, columns] / np.sqrt(np.diag(self.moments.covariance)[columns])
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=500)
        return white @ model.fit(white[labelled], self.harmful[labelled]).coef_[0]

    def select(self, labelled: np.ndarray, harmful: np.ndarray) -> Selection:
        """What `method="auto"` chooses, with these labels; two tables ask for the same draws."""
        key = (labelled.tobytes(), harmful[labelled].tobytes())
        if key not in self.selected:
            self.selected[key] = choose(
                default_candidates(self.vectors.defaults, self.vectors.published, KS),
                self.auto_frame,
                self.auto_moments,
                self.auto_at[labelled],
                harmful[labelled],
                self.prompt[labelled],
                {k: self.saft[k][labelled] for k in KS},
            )
        return self.selected[key]

    def auto(self, labelled: np.ndarray, found: Selection) -> np.ndarray:
        """The score of every row by the candidate that was chosen."""
        winner = found.winner
        if winner.k is not None:
            return self.saft[winner.k]
        difference = self.difference(labelled, self.auto_at, self.harmful)
        return self.auto_at @ combine(difference, self.auto_frame, self.auto_moments, winner.parts, winner.shrinkage)


def read_vectors(args: argparse.Namespace) -> Vectors:
    """Draw the rows that the pools need, and take their vectors in one pass."""
    most = max(args.shares)
    unsafe, rows = round(most * args.rows), args.rows
    parts = [
        draw(args, "alpaca_benign", True, rows, "benign"),
        draw(args, "beavertails_pairs", False, unsafe, "unsafe"),
        draw(args, "beavertails_pairs", True, rows - round(min(args.shares) * rows), "safe"),
        draw(args, "hard_negatives_refusals", True, rows // 6, "refusals"),
    ]
    dataset = concatenate_datasets([part for part, _ in parts])
    source = ModelSource(args.model)
    num_layers = source.shape.num_layers
    features = Features(tuple(args.layers or range(1, num_layers + 1)), READOUTS)
    folder = args.cache / "-".join(features.names).replace("response_", "")
    extractor = source.extractor(Renderer(source.tokenizer), features, folder=folder, world=World())
    embedded = extractor.embed(dataset)
    states = {feature: embedded.states(feature) for feature in features.names}
    if unread := sum(np.isnan(found).any(axis=1) for found in states.values()).astype(bool).sum():
        raise SystemExit(f"{unread} rows cannot be read at every readout: give data with prompts and answers")
    prompts = ["\0".join(turn["content"] for turn in messages[:-1]) for messages in dataset["messages"]]
    return Vectors(
        states,
        {feature_name(layer, readout): layer for layer in features.layers for readout in READOUTS},
        num_layers,
        np.asarray(dataset["is_safe"]) == 0,
        np.unique(prompts, return_inverse=True)[1],
        np.concatenate([[name] * len(part) for part, name in parts]),
    )


def draw(args: argparse.Namespace, file: str, safe: bool, count: int, name: str) -> tuple[Dataset, str]:
    """The first rows of one class of a file, in an order drawn from the seed."""
    data = load_dataset("json", data_files=str(args.data / f"{file}.jsonl.gz"), split="train")
    data = data.select_columns(["messages", "is_safe"])
    rows = np.flatnonzero(np.asarray(data["is_safe"]) == safe)
    return data.select(np.random.default_rng(args.seed).permutation(rows)[:count]), name


def make_pools(args: argparse.Namespace, vectors: Vectors) -> list[Pool]:
    """Pools of `--rows` rows; those of one kind share rows."""
    by = {name: np.flatnonzero(vectors.source == name) for name in np.unique(vectors.source)}
    pools = []
    for share in args.shares:
        bad = round(share * args.rows)
        unsafe, rest = by["unsafe"][:bad], args.rows - bad
        demonstrations = len(by["refusals"])
        pools += [
            Pool(f"easy {share:g}", vectors, np.concatenate([unsafe, by["benign"][:rest]])),
            Pool(f"hard {share:g}", vectors, np.concatenate([unsafe, by["safe"][:rest]])),
        ]
        if rest > demonstrations:
            benign = [by["benign"][: rest - demonstrations], by["refusals"]]
            pools.append(Pool(f"refusals {share:g}", vectors, np.concatenate([unsafe, *benign])))
    return sorted(pools, key=lambda pool: pool.name.split()[0])


def auroc(scores: np.ndarray, harmful: np.ndarray) -> float:
    """Share of pairs in the right order; ties count half."""
    bad = int(harmful.sum())
    return float((rankdata(scores)[harmful].sum() - bad * (bad + 1) / 2) / (bad * (harmful.size - bad)))


def draws(pool: Pool, labels: int, times: int) -> list[np.ndarray]:
    """Rows to be labelled, drawn uniformly; a draw without a harmful row is drawn again."""
    rng, found = np.random.default_rng(labels), []
    while len(found) < times:
        labelled = rng.choice(pool.harmful.size, labels, replace=False)
        if pool.harmful[labelled].any() and not pool.harmful[labelled].all():
            found.append(labelled)
    return found


def published(pool: Pool, labelled: np.ndarray) -> tuple[np.ndarray, float]:
    """The published score and threshold; k=1 and no threshold where no candidate flags a label."""
    try:
        found = calibrate_published(pool.saft, {k: pool.saft[k][labelled] for k in KS}, pool.harmful[labelled])
    except SAFTUndecidedError:
        return pool.saft[1], np.inf
    return pool.saft[found.k], found.threshold


def ways(pool: Pool) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What is compared: name -> labelled rows -> scores of the pool."""
    features, few = list(pool.vectors.layer_of), list(pool.vectors.defaults)
    ends = [feature for feature in few if pool.vectors.layer_of[feature] != 3 * pool.vectors.num_layers // 4]
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "saft, k by F1": lambda rows: published(pool, rows)[0],
        "auto": lambda rows: pool.auto(rows, pool.select(rows, pool.harmful)),
    }
    for shrinkage in (0.3, SHRINKAGE, 0.7, 1.0):
        found |= {
            f"weighted, {shrinkage:g}": lambda rows, s=shrinkage: pool.directed(
                rows, [(feature,) for feature in few], s
            ),
            f"joint, {shrinkage:g}": lambda rows, s=shrinkage: pool.directed(rows, [few], s),
        }
    found["weighted, every layer"] = lambda rows: pool.directed(rows, [(feature,) for feature in features])
    for strength in (0.001, 0.01, 0.1):
        found[f"one regression, C={strength:g}"] = lambda rows, c=strength: pool.regression(rows, ends, c)
    for feature in features:
        found[f"mean difference {feature}"] = lambda rows, c=feature: pool.directed(rows, [[c]], 1.0)
        found[f"directed {feature}"] = lambda rows, c=feature: pool.directed(rows, [[c]])
    return found


def compare_scores(pools: list[Pool], labels: int, times: int) -> None:
    """AUROC of every way on the unlabelled rest."""
    print(f"\nAUROC on the unlabelled rest, {labels} labels, mean (standard deviation) over {times} draws")
    table: dict[str, list[str]] = {}
    for pool in pools:
        chosen = draws(pool, labels, times)
        for name, way in ways(pool).items():
            areas = []
            for labelled in chosen:
                rest = np.setdiff1d(np.arange(pool.harmful.size), labelled)
                areas.append(auroc(way(labelled)[rest], pool.harmful[rest]))
            table.setdefault(name, []).append(f"{np.mean(areas):.3f} ({np.std(areas):.3f})")
        half = np.random.default_rng(0).permutation(pool.harmful.size)
        half, rest = half[: half.size // 2], half[half.size // 2 :]
        full = pool.regression(half, list(pool.vectors.defaults), 0.1)
        table.setdefault("half the pool labelled", []).append(f"{auroc(full[rest], pool.harmful[rest]):.3f}")
    show([pool.name for pool in pools], table)


def compare_decisions(pools: list[Pool], labels: int, times: int) -> None:
    """What is kept by the published rule, and by `auto` for the default aim and others."""
    aims = [ThresholdAim(), ThresholdAim.parse("recall=0.9"), ThresholdAim.parse("f1")]
    print(
        f"\nUnlabelled rest, {labels} labels: kept share of benign rows / harmful share of the kept, in %, mean (s.d.)"
    )
    print("also where `fit` refuses")
    table: dict[str, list[str]] = {}
    for pool in pools:
        outcomes: dict[str, list[tuple[float, float, float]]] = {}
        refused = []
        for labelled in draws(pool, labels, times):
            rest = np.setdiff1d(np.arange(pool.harmful.size), labelled)
            found = pool.select(labelled, pool.harmful)
            refused.append(found.undecided is not None)
            scores = pool.auto(labelled, found)
            cuts = {"saft, k and tau by F1": published(pool, labelled)}
            for aim in aims:
                at = threshold_for_aim(aim, found.out_of_fold, pool.harmful[labelled], scores)
                cuts[f"auto, {aim}"] = scores, at.threshold
            for name, (values, cut) in cuts.items():
                kept = ~flagged(values[rest], cut)
                bad, refusal = pool.harmful[rest], pool.refusal[rest]
                left = bad[kept].mean() if kept.any() else np.nan
                shares = (kept[~bad].mean(), left, kept[refusal].mean() if refusal.any() else 0.0)
                outcomes.setdefault(name, []).append(shares)
        for name, shares in outcomes.items():
            # A draw in which nothing is kept has no share left.
            benign, left, refusals = 100 * np.nanmean(shares, axis=0)
            wide, wide_left, _ = 100 * np.nanstd(shares, axis=0)
            table.setdefault(name, []).append(f"{benign:.1f} ({wide:.1f}) / {left:.2f} ({wide_left:.2f})")
            told = f"{refusals:.1f}" if pool.refusal.any() else "-"
            table.setdefault(f"  kept refusals, {name}", []).append(told)
        table.setdefault("refused share of draws", []).append(f"{100 * np.mean(refused):.0f}")
    show([pool.name for pool in pools], table)


def compare_shuffled(pools: list[Pool], labels: int, times: int) -> None:
    """How often `auto` refuses when the labels mean nothing."""
    print(f"\nLabels shuffled over the pool, {labels} labels: refused share of {times} draws, in %")
    row = []
    for pool in pools:
        rng, refused = np.random.default_rng(1), 0
        for _ in range(times):
            labelled = rng.choice(pool.harmful.size, labels, replace=False)
            refused += pool.select(labelled, rng.permutation(pool.harmful)).undecided is not None
        row.append(f"{100 * refused / times:.1f}")
    show([pool.name for pool in pools], {"refused": row})


def show(columns: list[str], table: dict[str, list[str]]) -> None:
    """Print aligned columns."""
    lines = [["", *columns], *([name, *row] for name, row in table.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip(), flush=True)


def main() -> None:
    """Read the arguments, take vectors, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT.parent / "shared/lab-lm"))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--cache", type=Path, default=Path("out/compare"))
    parser.add_argument("--layers", type=int, nargs="*", help="default: all")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5])
    parser.add_argument("--shuffled", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pools = make_pools(args, read_vectors(args))
    for labels in args.labels:
        compare_scores(pools, labels, args.draws)
        compare_decisions(pools, labels, args.draws)
    if args.shuffled:
        middle = f"{args.shares[len(args.shares) // 2]:g}"
        compare_shuffled([pool for pool in pools if pool.name.endswith(f" {middle}")], 100, args.shuffled)


if __name__ == "__main__":
    main()
