# make demo, make test: both create .venv where there is none and install the package into it.
# Another Python than python3: make demo PYTHON=python3.12. Options for pytest: make test ARGS="tests/prompts -x".

PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= outputs/demo
ARGS   ?=

BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint typecheck bench clean

help:
	@echo "make demo       run P2SAM on a phantom patient, into $(DEMO)"
	@echo "make test       run the tests"
	@echo "make lint       ruff: rules and formatting"
	@echo "make typecheck  mypy"
	@echo "make bench      side-by-side measurements, by hand"
	@echo "make clean      remove caches and $(DEMO); $(VENV) stays"

install: $(STAMP)

# A virtual environment that could not be finished would look finished to the next call.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.10 to 3.13 is needed: name one, make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# torch and torchvision come as pip finds them: with CUDA on Linux, and they run on the CPU too.
$(STAMP): setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m monai.bundle run \
	  --config_file "['bundles/p2sam/configs/inference.yaml','bundles/p2sam/configs/evaluate.yaml']" \
	  --bundle_root bundles/p2sam --output_dir $(DEMO)
	@echo "pictures: $(DEMO)/overlays    masks: $(DEMO)/masks"

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

typecheck: $(STAMP)
	$(BIN)/python -m mypy

bench: $(STAMP)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

clean:
	rm -rf $(DEMO) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find monai_ext tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
