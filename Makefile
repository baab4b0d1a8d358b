# Set-up and everyday commands; `make` alone lists them. Options, given as `make env NAME=value`:
#   PYTHON       interpreter of the virtual environment, 3.11 or 3.12 (default: python3)
#   TORCH_INDEX  package index for torch alone, such as PyTorch's own index of CPU wheels (default: pip's)
#   PYTEST_ARGS  more arguments for pytest
#   STUDY, PORT  of `make ui` and `make rates` (default: demo, 5000)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
STUDY ?= demo
PORT ?= 5000
BASE_PYTHON := $(shell command -v $(PYTHON))
# pip 26 reads the lock in a third of the time that the pip of Python 3.11 needs (25 s against 70 s on 2 cores).
PIP := pip==26.3
# One hash cannot fit all builds of torch (CPU, each CUDA release), so it is installed by its pin in pyproject.toml.
TORCH := $(shell sed -n 's/^ *"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)

# Two test processes at a time; each takes whole files, whose tests share what they make, in the order of `testpaths`.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder --durations=30

# Snakemake's shell commands find `openspectra` and `python` of the environment, and no module from outside it.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONPATH
# After the installation nothing asks the network.
demo rates readme test test-slow test-gpu lint: export HF_HUB_OFFLINE := 1
demo rates readme test test-slow test-gpu lint: export HF_DATASETS_OFFLINE := 1

.PHONY: help env demo ui rates readme test test-slow test-gpu lint clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

env: .venv/installed  ## build the virtual environment in .venv

.venv/installed: envs/lock.txt pyproject.toml
	@test -n "$(BASE_PYTHON)" && "$(BASE_PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	  || { echo "make env: $(PYTHON) is not Python 3.11 or 3.12; name one: make env PYTHON=/path/to/python3.11"; exit 1; }
	@command -v c++ >/dev/null || { echo "make env: no C++ compiler (c++); install g++ or clang: two packages are compiled here"; exit 1; }
	@test -x .venv/bin/pip || "$(BASE_PYTHON)" -m venv --clear .venv
	@.venv/bin/python -m pip install --quiet $(PIP)
	@echo "[1/4] $(TORCH)$(if $(TORCH_INDEX), from the given index)"
	@test -n "$(TORCH_INDEX)" || command -v nvidia-smi >/dev/null \
	  || echo "      no NVIDIA GPU found: TORCH_INDEX=<index of CPU wheels> can save gigabytes of CUDA libraries"
	@.venv/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@echo "[2/4] everything else, from envs/lock.txt"
	@.venv/bin/python -m pip install --quiet --no-deps --require-hashes -r envs/lock.txt
	@echo "[3/4] openspectra"
	@.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@echo "[4/4] gptqmodel's extension, compiled once per machine"
	@.venv/bin/python -m openspectra.quantization.warm_up >.venv/warm_up.log 2>&1 \
	  || { tail -n 20 .venv/warm_up.log; echo "      not built (all of the cause: .venv/warm_up.log); it only saves time, quantizing works without it"; }
	@touch $@

demo: env  ## run the demo study; its report opens in any browser
	@snakemake --cores all --quiet host rules --config study=demo
	@echo
	@echo "Report:    $(CURDIR)/reports/demo/index.html"
	@echo "Tracking:  make ui    (in $(CURDIR))"

ui: env  ## MLflow's UI of a study, on this machine: make ui STUDY=demo PORT=5000
	@openspectra track ui $(STUDY) --port $(PORT)

rates: env  ## sweep a study's peak rates and record the table that it reads: make rates STUDY=demo, or tbt
	@snakemake report --cores all --quiet host rules --config study=$(STUDY)-rates
	@{ echo "# make rates STUDY=$(STUDY), $$(date -u +%F), $$(nproc) cores, $$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)"; \
	  cat reports/$(STUDY)-rates/rates.csv; } > resources/$(STUDY)-rates.csv

readme: demo  ## write the demo's tables into README.md
	@mkdir -p resources/demo && cp reports/demo/{models,scores,gaps}.csv resources/demo
	@openspectra tables resources/demo README.md

test: env  ## every test that is not slow
	@python -m pytest -m "not slow and not gpu" $(WORKERS) $(PYTEST_ARGS)

test-slow: env  ## the slow tests
	@python -m pytest -m slow $(WORKERS) $(PYTEST_ARGS)

test-gpu: env  ## the tests that need one or two CUDA GPUs; they skip elsewhere
	@python -m pytest -m gpu $(PYTEST_ARGS)

lint: env  ## ruff on the Python files, Snakemake's own lint on the workflow
	@ruff check .
	@ruff format --check .
	@snakemake --lint

clean:  ## remove the environment and caches; results, reports and logs stay
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
