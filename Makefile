# Every target starts from a bare machine: Python >= 3.11 and make. uv is used where it is on PATH, else pip.
PYTHON ?= python3
VENV := .venv
VENV_MIN := .venv-min
VENV_DOCS := .venv-docs
BIN := $(VENV)/bin
# Two files at a time, in their order: most tests use one core, or wait for processes to start.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test test-min test-gpu lint fix docs bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## score and filter the rows that ship with the package, offline
	HF_HUB_OFFLINE=1 $(BIN)/saft-hf demo

test: $(VENV)/.installed  ## run all tests on the tested versions (constraints.txt)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-min: $(VENV_MIN)/.installed  ## run the smoke tests on the lowest supported versions (constraints-min.txt)
	HF_HUB_OFFLINE=1 $(VENV_MIN)/bin/python -m pytest -m smoke $(SIDE_BY_SIDE)

test-gpu: $(VENV)/.installed  ## run the tests that need a CUDA device (install its torch first)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu -rA

lint: $(VENV)/.installed  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/.installed  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV_DOCS)/.installed  ## build the pages of docs/ and the API into site/, with every warning an error
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict

bench: $(VENV)/.installed  ## speed: beside the plain way, of batch rules and system prompts, on two processes, beside training
	HF_HUB_OFFLINE=1 $(BIN)/python examples/benchmarks/bench.py
	HF_HUB_OFFLINE=1 $(BIN)/python examples/benchmarks/batch_rules.py
	HF_HUB_OFFLINE=1 $(BIN)/python examples/benchmarks/prefix.py
	HF_HUB_OFFLINE=1 $(BIN)/python examples/benchmarks/scaling.py
	HF_HUB_OFFLINE=1 $(BIN)/python examples/benchmarks/epoch.py

clean:  ## remove the environments, caches and builds
	rm -rf $(VENV) $(VENV_MIN) $(VENV_DOCS) site dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call environment,folder,constraints,what): make the environment where it is missing, then install.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "saft_hf needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(1) ($(2)); this takes a few minutes the first time."
	@if command -v uv >/dev/null; then \
		{ test -x $(1)/bin/python || uv venv --python "$$(command -v $(PYTHON))" $(1); } && \
		uv pip install --python $(1)/bin/python -c $(2) $(3); \
	else \
		{ test -x $(1)/bin/python || $(PYTHON) -m venv $(1); } && \
		$(1)/bin/python -m pip install -c $(2) $(3); \
	fi
	@touch $@
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call environment,$(VENV),constraints.txt,-e '.[dev]')
	@touch $(VENV)/.demo

$(VENV)/.demo: pyproject.toml constraints.txt
	$(call environment,$(VENV),constraints.txt,-e '.[plots]')

$(VENV_MIN)/.installed: pyproject.toml constraints-min.txt
	$(call environment,$(VENV_MIN),constraints-min.txt,-e '.[test]')

# Not the package, which would bring torch: docstrings are read from its files.
$(VENV_DOCS)/.installed: pyproject.toml constraints.txt
	$(call environment,$(VENV_DOCS),constraints.txt,$$($(PYTHON) -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])'))
