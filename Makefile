# make demo    set up what is needed and distil a real model; a second call is quick
# make test    set up what is needed and run every test
# make lint    ruff, mypy, import-linter
# make clients build, lint and test the clients in Go (wants Debian's packages, see clients/go/test.sh) and TypeScript
# make vllm    set up vLLM's CPU build in an environment of its own (3.4 GB) and run the tests that need it
# make short   the demo with a few prompts and a few steps (CI)
# make picture docs/images/report.png from the demo's report (wants chromium)
#
# PYTHON=python3.12 takes another interpreter, VENV=DIR another environment, CONSTRAINTS= (nothing) lets pip choose the
# build of torch, for a machine with a GPU.

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
CONSTRAINTS ?= constraints-cpu.txt
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin
PLUGINS := $(patsubst %/pyproject.toml,-e %,$(wildcard plugins/*/pyproject.toml))
PIP := $(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
MADE_OF := pyproject.toml $(wildcard constraints-cpu.txt plugins/*/pyproject.toml)
PYTEST ?= -n 2 --dist loadgroup
export HF_HUB_OFFLINE ?= 1

.PHONY: demo short test vllm lint clients clients-go clients-typescript picture clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo/prepare.py
	$(BIN)/limbeck run examples/demo/recipe.yaml
	@echo "The report is runs/gemma-half/report/index.html, the student is runs/gemma-half/student"

short: $(VENV)/.demo
	$(BIN)/python examples/demo/prepare.py
	rm -rf runs/gemma-short
	$(BIN)/limbeck run examples/demo/short.yaml
	$(BIN)/python examples/demo/check_short.py runs/gemma-short

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PYTEST)

# tests that share an engine run in one process; two engines that bind to the same core would halve each other
vllm: $(VLLM_VENV)/.vllm
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(VLLM_VENV)/bin/python -m pytest -q plugins -m vllm -n 2 --dist loadgroup

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(wildcard plugins/*/src)
	$(BIN)/mypy $(wildcard benchmarks/*.py)
	$(BIN)/lint-imports

clients: clients-go clients-typescript

clients-go: $(VENV)/.dev
	LIMBECK_PYTHON=$(abspath $(BIN)/python) clients/go/test.sh

clients-typescript: $(VENV)/.dev clients/typescript/node_modules
	cd clients/typescript && npm run --silent build && npm run --silent lint && LIMBECK_PYTHON=$(abspath $(BIN)/python) npm test --silent

clients/typescript/node_modules: clients/typescript/package-lock.json
	npm ci --silent --no-audit --no-fund --prefix clients/typescript
	touch $@

picture: docs/screenshot.sh
	docs/screenshot.sh runs/gemma-half/report/index.html docs/images/report.png

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "no Python found: install Python 3.11, 3.12 or 3.13, or give PYTHON="; exit 1; }
	$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit("Limbeck needs Python 3.11 to 3.13")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

$(VENV)/.demo: $(VENV)/.made $(MADE_OF)
	$(PIP) -e '.[demo]' -e plugins/limbeck-echo
	touch $@

$(VENV)/.dev: $(VENV)/.made $(MADE_OF)
	$(PIP) -e '.[dev]' $(PLUGINS)
	touch $@

$(VLLM_VENV)/.vllm: $(MADE_OF) plugins/limbeck-vllm/install-cpu.sh
	$(PYTHON) -m venv $(VLLM_VENV)
	plugins/limbeck-vllm/install-cpu.sh $(VLLM_VENV)/bin/python
	$(VLLM_VENV)/bin/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]' $(PLUGINS)
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps 'smg-grpc-proto>=0.4.27' 'smg-grpc-servicer>=0.14,<1'
	touch $@
