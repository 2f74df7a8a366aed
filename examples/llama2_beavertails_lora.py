"""The paper's setting: Llama-2-7B-chat, 3,000 BeaverTails rows of which a share is harmful, layer 15 of 32, LoRA.

    python examples/llama2_beavertails_lora.py --harmful_share 0.3
    accelerate launch --config_file examples/accelerate_multi_gpu.yaml examples/llama2_beavertails_lora.py

Needs a GPU and access to the model. What the paper does not state (learning rate, epochs, the adapter's size) is a
common choice, and ours.
"""

import argparse

import numpy as np
from datasets import Dataset, load_dataset
from peft import LoraConfig

from saft_hf import SAFTSFTConfig, SAFTSFTTrainer


def make_pool(rows: int, harmful_share: float, seed: int) -> Dataset:
    """`rows` conversations, of which `harmful_share` have an answer that people found unsafe."""
    source = load_dataset("PKU-Alignment/BeaverTails", split="30k_train")
    rng, safe = np.random.default_rng(seed), np.asarray(source["is_safe"], dtype=bool)
    harmful = round(harmful_share * rows)
    drawn = [
        rng.choice(np.flatnonzero(safe == kind), count, replace=False)
        for kind, count in ((False, harmful), (True, rows - harmful))
    ]
    pool = source.select(rng.permutation(np.concatenate(drawn)))
    return pool.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["response"]}],
        },
        remove_columns=["response", "category"],
    )


def main() -> None:
    """Filter and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--harmful_share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pool = make_pool(3000, options.harmful_share, options.seed)
    trainer = SAFTSFTTrainer(
        model="meta-llama/Llama-2-7b-chat-hf",
        args=SAFTSFTConfig(
            output_dir="llama2-beavertails-saft",
            model_init_kwargs={"dtype": "bfloat16"},
            learning_rate=2e-4,
            num_train_epochs=3,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            seed=options.seed,
            saft_method="saft",
            saft_layer=15,
        ),
        train_dataset=pool,
        saft_labelled=pool.shuffle(seed=options.seed).select(range(100)),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    print(trainer.saft_result)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
