"""Make what `saft_hf.assets` ships: 600 labelled rows, and a tiny language model trained on such text.

    python examples/demo/make_demo_assets.py                        # rows, tokenizer, model: three minutes
    python examples/demo/make_demo_assets.py --rows-only --out out  # the rows alone

The model learns to answer everyday requests and to refuse harmful ones, as a chat model does. It learns from
another draw of rows than the pool, without every third task of each list: those it meets in the pool for the first
time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import rows as demo_rows

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ASSETS = Path(__file__).resolve().parents[2] / "saft_hf" / "data" / "demo"
CHAT_TEMPLATE = """\
{%- for m in messages %}
{%- if m['role'] == 'assistant' %}
{{- '<|assistant|>\\n' }}{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}
{{- '<|' + m['role'] + '|>\\n' + m['content'] + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{% endif %}"""
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
VOCABULARY, CONTEXT = 1024, 512
TRAIN_SEED, STEPS, BATCH, PEAK = 7, 900, 24, 3e-3
TRAIN = {"refusal": 900, "sounds_risky": 300, "benign": 4000}
SEEN = [slice(0, None, 3), slice(1, None, 3)]  # the third third stays new


def training_rows() -> list[demo_rows.Row]:
    """Rows for the language model: harmful requests are refused, and a third of all tasks is missing."""
    drawn = []
    for part, keep in enumerate(SEEN):
        half = {kind: count // len(SEEN) for kind, count in TRAIN.items()}
        drawn += demo_rows.make_rows(TRAIN_SEED + part, half, keep)
    Random(TRAIN_SEED).shuffle(drawn)
    return drawn


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training rows."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>", model_max_length=CONTEXT
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def train_model(token_ids: list[list[int]]) -> LlamaForCausalLM:
    """A four-layer Llama, next-token loss on every token, one cosine cycle."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(TRAIN_SEED)
    rng = Random(TRAIN_SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=SPECIAL.index("<|pad|>"),
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=STEPS, pct_start=0.05)
    model.train()
    for step in range(STEPS):
        batch = [torch.tensor(token_ids[i][:CONTEXT]) for i in rng.sample(range(len(token_ids)), BATCH)]
        inputs = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=0)
        loss = model(input_ids=inputs, labels=inputs.masked_fill(inputs == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step:4d}  loss {loss.item():.3f}", flush=True)
    return model.eval()


def print_auroc(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, pool: list[demo_rows.Row]) -> None:
    """Print the AUROC of the published score (arXiv 2410.10014) on the pool, for each layer and k."""
    import numpy as np
    import torch

    states = []
    for row in pool:
        prompt = row["messages"][:-1]
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        states.append(torch.stack([h[0, -1] for h in hidden]).float().numpy())
    harmful = [not row["is_safe"] for row in pool]
    for layer, z in enumerate(np.stack(states, 1).astype(np.float64)[1:], 1):
        centred = z - z.mean(0)
        directions = np.linalg.svd(centred, full_matrices=False)[2]
        squares = np.cumsum((centred @ directions[:4].T) ** 2, axis=1)
        figures = [f"k={k + 1} {demo_rows.auroc(list(squares[:, k]), harmful):.3f}" for k in range(4)]
        print(f"published score, layer {layer}, AUROC:", *figures)


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16, in files that the oldest supported transformers reads too."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written readable by its owner alone
    # transformers 5 writes a class name that transformers 4 does not know.
    path = folder / "tokenizer_config.json"
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "eos_token": "<|end|>",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Make the assets and print the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--rows-only", action="store_true")
    args = parser.parse_args()

    pool = demo_rows.make_rows(demo_rows.POOL_SEED, demo_rows.POOL)
    for name, value in demo_rows.confounds(pool).items():
        print(f"AUROC of {name}: {value:.3f}")
        if not 0.4 <= value <= 0.6:
            raise SystemExit(f"{name} alone tells harmful rows from the others: change topics.py or rows.py")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rows.jsonl").write_text(demo_rows.to_jsonl(pool), encoding="utf-8", newline="\n")
    if args.rows_only:
        return

    import torch

    torch.set_num_threads(1)  # the order of sums, hence the weights, depends on it
    conversations = [row["messages"] for row in training_rows()]
    contents = [message["content"] for messages in conversations for message in messages]
    tokenizer = train_tokenizer(contents)
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    model = train_model(tokenizer(texts, add_special_tokens=False)["input_ids"])
    save_model(model, tokenizer, args.out / "model")
    print_auroc(model.float(), tokenizer, pool)


if __name__ == "__main__":
    main()
