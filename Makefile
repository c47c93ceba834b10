# make demo, make test: both create .venv where there is none and install the package into it.
# Another Python than python3: make demo PYTHON=python3.12. Options for pytest: make test ARGS="tests/prompts -x".
# Tests run in as many processes as there are cores, at most eight; in one, for a debugger: make test WORKERS=0.
# The versions that the tests ran with: make install PIP_ARGS="-c constraints.txt".

PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= outputs/demo
ARGS   ?=
WORKERS ?= logical
LABEL_PYTHON ?= python3.11
LABEL_VENV   ?= .venv-label
LABEL_DEMO   ?= outputs/label

BIN    := $(VENV)/bin
# A thread each: those of torch would only get in each other's way. Bytecode is written, or each process that a test
# starts would compile the package again. A file's tests stay in one process, as they share what is slow to make; files
# are taken in their order, the long ones of tests/bundles first.
PYTEST := -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
ALONE  := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1
STAMP  := $(VENV)/.installed
LABEL_STAMP := $(LABEL_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-processors label-install label-demo label-auxol-demo test-label lint typecheck bench bundles clean

help:
	@echo "make demo       run P2SAM on a phantom patient, into $(DEMO)"
	@echo "make test       run the tests"
	@echo "make test-fast  the tests but those that run whole bundles, and others that are slow"
	@echo "make test-processors  the tests that can differ, as on older processors"
	@echo "make label-demo a MONAI Label server on the phantom patient, its mask compared, up until Ctrl-C (CHECK=--check ends it), into $(LABEL_DEMO)"
	@echo "make label-auxol-demo a MONAI Label server that learns from submitted labels, into $(LABEL_DEMO)_auxol"
	@echo "make test-label the tests of MONAI Label, with real servers"
	@echo "make lint       ruff: rules and formatting"
	@echo "make typecheck  mypy"
	@echo "make bench      side-by-side measurements, by hand"
	@echo "make bundles    a zip for each bundle with its sha256, and folders for Hugging Face, into dist/bundles"
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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m monai.bundle run \
	  --config_file "['bundles/p2sam/configs/inference.yaml','bundles/p2sam/configs/evaluate.yaml']" \
	  --bundle_root bundles/p2sam --output_dir $(DEMO)
	@echo "pictures: $(DEMO)/overlays    masks: $(DEMO)/masks"

# Without the tests that run whole bundles, or take half a second and more: for the everyday.
test-fast: $(STAMP)
	$(ALONE) $(BIN)/python $(PYTEST) --ignore tests/label -m "not slow" $(ARGS)

test: $(STAMP)
	$(ALONE) $(BIN)/python $(PYTEST) --ignore tests/label $(ARGS)

# Each line is an older processor to torch, oneDNN, MKL and OpenBLAS; the first test run is without a limit.
AVX512 := ONEDNN_MAX_CPU_ISA=AVX512_CORE ATEN_CPU_CAPABILITY=avx512 MKL_ENABLE_INSTRUCTIONS=AVX512 OPENBLAS_CORETYPE=SkylakeX
AVX2   := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
SSE4   := ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem
HAS_AVX512 := $(shell grep -qsw avx512bw /proc/cpuinfo && echo yes)
CAN_DIFFER ?= tests/prompts tests/networks tests/inferers tests/engines

test-processors: $(STAMP)
	@for threads in 1 2; do for limit in "" $(if $(HAS_AVX512),"$(AVX512)") "$(AVX2)" "$(SSE4)"; do \
	  echo "== threads: $$threads $$limit"; \
	  env OMP_NUM_THREADS=$$threads $$limit $(BIN)/python -m pytest $(CAN_DIFFER) $(ARGS) || exit 1; \
	done; done

# MONAI Label has an environment of its own: it needs older NumPy and pydicom than we do, and Python 3.11. Without sam2,
# one of its optional models, which takes most of its install; setup.cfg lists its other dependencies.
label-install: $(LABEL_STAMP)

$(LABEL_VENV)/bin/python:
	@$(LABEL_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "MONAI Label needs Python 3.11: name it, make LABEL_PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(LABEL_PYTHON) -m venv $(LABEL_VENV) || { rm -rf $(LABEL_VENV); exit 1; }

$(LABEL_STAMP): setup.cfg pyproject.toml | $(LABEL_VENV)/bin/python
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[label]'
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps monailabel==0.8.5
	@touch $@

label-demo: $(LABEL_STAMP)
	$(LABEL_VENV)/bin/python -m monai_ext.label --demo $(CHECK) --output_dir $(LABEL_DEMO)

label-auxol-demo: $(LABEL_STAMP)
	$(LABEL_VENV)/bin/python -m monai_ext.label --online --demo --bundle bundles/auxol --output_dir $(LABEL_DEMO)_auxol

test-label: $(LABEL_STAMP)
	$(ALONE) $(LABEL_VENV)/bin/python $(PYTEST) tests/label $(ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

typecheck: $(STAMP)
	$(BIN)/python -m mypy

bench: $(STAMP)
	@failed=0; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || failed=1; done; exit $$failed

bundles: $(STAMP)
	$(BIN)/python release/bundles.py

clean:
	rm -rf $(DEMO) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find monai_ext tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
