# /// script
# requires-python = ">=3.11"
# dependencies = ["saft-hf[plots]"]
# ///
"""Filter a dataset with nothing installed before: `saft-hf filter` in one file, for `uv run` and hosted jobs.

    uv run examples/uv/saft_filter.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
        --dataset_name me/rows --labelled_rows 100 --push_to_hub me/rows-filtered

    hf jobs uv run --flavor a10g-small --secrets HF_TOKEN examples/uv/saft_filter.py ...

`--help` lists the options. Until the package is on an index: `uv run --with . ...` from a clone.
"""

import sys

from saft_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["filter", "--output_dir", "filtered", *sys.argv[1:]]))
