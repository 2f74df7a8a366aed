"""SAFT as published on real labelled text: AUROC, k, threshold, kept and still harmful, for each pool and readout.

    python examples/measure_saft.py

Pools, 3,000 rows each, drawn with `--seed`: hard(0.25) are question-answer pairs with risky prompts in both classes,
a quarter of them harmful; easy(0.25) are harmless instructions with a quarter of harmful pairs mixed in. k and the
threshold are chosen on 100 rows drawn uniformly; AUROC and the still-harmful share are taken on the other rows.

`difference` compares every score with an independent computation: the whole model with its head, and
`numpy.linalg.svd` of the centred vectors. It is relative to the largest score.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from datasets.utils.logging import disable_progress_bar
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from saft_hf import SAFTScorer, SAFTUndecidedError
from saft_hf.files import write_json
from saft_hf.scorer import SCORE

SHARED = Path(__file__).resolve().parents[2] / "shared"
READOUTS = ("response_start", "response_mean", "response_end")
SHARE = 0.25
TOLERANCE = 1e-5
PLAIN_BATCH = 8


def make_pool(name: str, data: Path, rows: int, rng: np.random.Generator) -> Dataset:
    """hard(0.25) or easy(0.25), shuffled."""

    def read(file: str) -> Dataset:
        found = load_dataset("json", data_files=str(data / f"{file}.jsonl.gz"), split="train")
        return found.select_columns(["messages", "is_safe"])

    def draw(dataset: Dataset, is_safe: bool, count: int) -> Dataset:
        places = np.flatnonzero(np.asarray(dataset["is_safe"]) == is_safe)
        return dataset.select(np.sort(rng.choice(places, count, replace=False)))

    pairs = read("beavertails_pairs")
    benign = pairs if name == "hard" else read("alpaca_benign")
    harmful = round(SHARE * rows)
    both = concatenate_datasets([draw(pairs, False, harmful), draw(benign, True, rows - harmful)])
    return both.select(rng.permutation(rows))


def plain_vectors(model_name: str, pool: Dataset, layer: int) -> dict[str, np.ndarray]:
    """Every readout of every row, `float64 [N, d]`, with nothing of this package."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32).eval()
    encoded = [
        tokenizer.apply_chat_template(row, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        for row in pool["messages"]
    ]
    ids = [row["input_ids"][:1024] for row in encoded]
    response = [np.flatnonzero(row["assistant_masks"][:1024]) for row in encoded]
    vectors = {readout: np.zeros((len(ids), model.config.hidden_size)) for readout in READOUTS}
    order = np.argsort([len(row) for row in ids], kind="stable")
    for rows in np.array_split(order, -(-len(order) // PLAIN_BATCH)):
        longest = max(len(ids[row]) for row in rows)
        padded = torch.tensor([ids[row] + [0] * (longest - len(ids[row])) for row in rows])
        mask = torch.tensor([[1] * len(ids[row]) + [0] * (longest - len(ids[row])) for row in rows])
        with torch.no_grad():
            output = model(input_ids=padded, attention_mask=mask, output_hidden_states=True)
        for row, states in zip(rows, output.hidden_states[layer].double().numpy(), strict=True):
            vectors["response_start"][row] = states[response[row][0] - 1]
            vectors["response_mean"][row] = states[response[row]].mean(axis=0)
            vectors["response_end"][row] = states[response[row][-1]]
    return vectors


def plain_scores(vectors: np.ndarray, k: int) -> np.ndarray:
    """METHOD, written down: centre, singular vectors, mean squared projection on the first k."""
    centred = vectors - vectors.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:k]
    scores: np.ndarray = ((centred @ directions.T) ** 2).mean(axis=1)
    return scores


def measure(model: str, layer: int, readout: str, pool: Dataset, labelled: np.ndarray, vectors: np.ndarray) -> dict:
    """Fit, filter and score one pool at one readout."""
    with tempfile.TemporaryDirectory() as folder:
        scorer = SAFTScorer(model, method="saft", layer=layer, readout=readout, dtype="float32", cache_dir=folder)
        scorer.fit(pool, labelled=pool.select(labelled), on_undecided="keep")
        scores = np.asarray(scorer.score_dataset(pool)[SCORE])
        try:
            kept = scorer.filter(pool).kept_indices
            outcome = ""
        except SAFTUndecidedError as error:
            kept, outcome = np.arange(len(pool)), f"refused: {error}"
    if scorer.summary_.undecided:
        outcome = f"undecided: {scorer.summary_.undecided}"
    harmful = ~np.asarray(pool["is_safe"], dtype=bool)
    rest = np.setdiff1d(np.arange(len(pool)), labelled)
    kept_rest = np.intersect1d(kept, rest)
    expected = plain_scores(vectors, scorer.k_)
    return {
        "auroc": float(roc_auc_score(harmful[rest], scores[rest])),
        "k": scorer.k_,
        "tau": scorer.threshold_,
        "kept": len(kept),
        "still": float(harmful[kept_rest].mean()),
        "difference": float(np.abs(scores - expected).max() / expected.max()),
        "outcome": outcome,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", default=str(SHARED / "lab-lm"))
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of the labelled files")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--rows", type=int, default=3000, help="rows of each pool")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"--data: there is no folder {options.data}.")
    disable_progress_bar()
    print(f"{options.rows} rows a pool, {options.labels} labels, layer {options.layer}, seed {options.seed}")
    print(
        f"{'pool':<12}{'readout':<16}{'AUROC':>7}{'k':>4}{'tau':>11}{'kept':>15}{'still harmful':>15}{'difference':>12}"
    )
    table: dict[str, dict] = {}
    for name in ("hard", "easy"):
        rng = np.random.default_rng(options.seed)
        pool = make_pool(name, options.data, options.rows, rng)
        labelled = rng.choice(options.rows, options.labels, replace=False)
        vectors = plain_vectors(options.model_name_or_path, pool, options.layer)
        for readout in READOUTS:
            found = measure(options.model_name_or_path, options.layer, readout, pool, labelled, vectors[readout])
            tau = "-" if found["tau"] is None else f"{found['tau']:.4g}"
            kept = f"{found['kept']:,} ({found['kept'] / options.rows:.1%})"
            print(
                f"{name + f'({SHARE})':<12}{readout:<16}{found['auroc']:>7.3f}{found['k']:>4}{tau:>11}"
                f"{kept:>15}{found['still']:>15.1%}{found['difference']:>12.1e}  {found['outcome']}",
                flush=True,
            )
            table[f"{name}({SHARE}), {readout}"] = {**found, "kept share": found["kept"] / options.rows}
    if options.json is not None:
        write_json(options.json, table)
    worst = max(found["difference"] for found in table.values())
    if worst > TOLERANCE:
        sys.exit(f"The scores differ from the independent computation by {worst:.1e}, more than {TOLERANCE:.0e}.")


if __name__ == "__main__":
    main()
