# Every target starts from a bare clone: it makes .venv and installs what it needs, once.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-fast lint format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/package ## Compare seven optimizers on real data and write runs/demo/report.html (minutes)
	$(BIN)/lightning-opt study demo

test: $(VENV)/dev ## Run all tests
	$(BIN)/python -m pytest

test-fast: $(VENV)/dev ## Run the tests without the slow ones
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/dev ## Check style (ruff) and types (mypy, on the package as installed)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	rm -rf build && $(PIP) --no-deps --no-build-isolation --target build/lint .
	cd build/lint && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p lightning_opt

format: $(VENV)/dev ## Format the code and sort its imports
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## Remove .venv and everything built; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# Files that say what is installed; a change of the dependencies installs again.
$(VENV)/package: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing lightning_opt and its dependencies into $(VENV) (torch is large: minutes) ..."
	$(PIP) --editable .
	touch $@

$(VENV)/dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing lightning_opt and its tools into $(VENV) (torch is large: minutes) ..."
	$(PIP) --editable ".[dev]"
	touch $@ $(VENV)/package
