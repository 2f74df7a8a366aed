"""`python -m saft_hf` and `accelerate launch -m saft_hf`: the same as the command `saft-hf`."""

from saft_hf.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
