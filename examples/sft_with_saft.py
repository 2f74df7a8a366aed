"""Fine-tune on the rows that SAFT keeps: SFTTrainer with one word changed, and about 100 labelled rows.

python examples/sft_with_saft.py
"""

from datasets import load_dataset

from saft_hf import SAFTSFTConfig, SAFTSFTTrainer

train = load_dataset("PKU-Alignment/BeaverTails", split="30k_train").rename_column("response", "completion")
labelled = train.shuffle(seed=0).select(range(100))  # rows that people labelled, drawn at random: `is_safe`

trainer = SAFTSFTTrainer(
    model="Qwen/Qwen3-0.6B",
    args=SAFTSFTConfig(output_dir="qwen-saft"),
    train_dataset=train,
    saft_labelled=labelled,
)
print(trainer.saft_result)  # kept, removed, errored; the audit is in qwen-saft/_saft
trainer.train()
