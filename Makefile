# make demo | test | test-smaller | test-bare | test-ray | bench | lint     each creates .venv when it is missing; make gpu takes python3 as it is
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
TORCH := $(shell grep -o '^torch==[^ ]*' constraints.txt)

# An NVIDIA GPU asks for the CUDA build of torch and for the GPU extras; anything else gets the CPU build, a tenth of the size.
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

.PHONY: demo test test-smaller test-bare test-ray bench lint gpu clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@$(BIN)/pfdiff demo

test: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# What asks the processor for bf16, AVX-512 or a second core, as on a smaller one that has none of them.
SMALLER := tests/engine/backends tests/engine/test_api.py tests/engine/test_devices.py tests/export/test_build.py \
  tests/export/test_to_onnx.py
test-smaller: $(VENV)/.installed-dev
	@PFDIFF_HIDE_CPU=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(SMALLER)

# Engines of pipelines in an environment of their own, from the wheel, where no library that built them is installed.
BARE := tests/export/test_prompts.py tests/export/test_lora_controlnet.py tests/export/families/test_latent_controls.py
test-bare: $(VENV)/bare/.installed
	@PFDIFF_BARE=$(CURDIR)/$(VENV)/bare/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(BARE) -m bare

$(VENV)/bare/.installed: $(VENV)/.installed-dev
	@echo "installing the wheel into $(VENV)/bare ..."
	@$(MAKE) -s VENV=$(VENV)/bare $(VENV)/bare/.torch
	@$(VENV)/bare/bin/python -m pip -qq --disable-pip-version-check install -c constraints.txt ".[text]"
	@touch $@

# pfdiff serve --ray: 39 packages of Ray Serve's that `make test` does without, and skips for.
test-ray: $(VENV)/.installed-dev
	@$(PIP) install -e '.[serve-ray]'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 0 tests/serving/test_on_ray.py tests/serving/test_app.py

bench: $(VENV)/.installed-dev
	@$(BIN)/python -m pfdiff.bench.regression; status=$$?; \
	  $(BIN)/pfdiff bench --report -o bench/results/report.md && exit $$status

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

# Needs no .venv and installs nothing: torch, triton, onnx, pytest and pytest-benchmark of the Python it is given.
# make gpu PARTS=tests | step,sampler | peers: each within 150 seconds; without PARTS all of them.
PARTS ?=
gpu:
	@$(PYTHON) bench/gpu.py $(PARTS)

clean:
	rm -rf $(VENV) build dist *.egg-info demo.png

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pfdiff needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; run make PYTHON=python3.11")'
	@echo "installing $(TORCH) into $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if [ -z "$(GPU)" ] && [ "$$(uname)" = Linux ]; then \
	  $(PIP) install "$(TORCH)+cpu" 2>/dev/null || { \
	    $(PIP) install uv && $(BIN)/uv pip install -q --python $(BIN)/python --torch-backend cpu "$(TORCH)"; }; \
	else $(PIP) install "$(TORCH)"; fi
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml engine/runtime/_cpu.cpp
	@echo "installing pfdiff into $(VENV) ..."
	@if [ -n "$(GPU)" ]; then \
	  $(PIP) install -c constraints.txt -e ".[triton,tensorrt]" || { \
	    echo "TensorRT could not be installed; going on without it" >&2; \
	    $(PIP) install -c constraints.txt -e ".[triton]"; }; \
	else $(PIP) install -c constraints.txt -e .; fi
	@mkdir -p $(VENV)/src && ln -sfn "$(CURDIR)" $(VENV)/src/pfdiff
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what tests and checks need ..."
	@$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@
