# make demo   train a small model from nothing and show what came out
# make test   the test suite without what takes long; make test-slow: the rest
PYTHON ?= python3
VENV := .venv
WORKERS ?= 2  # processes that share the tests out, a file at a time
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INPUTS := pyproject.toml constraints.txt hatch_build.py

.PHONY: demo test test-slow lint format wheel clean

demo: $(VENV)/.user
	$(BIN)/slm train quickstart
	@echo
	@echo "Open runs/quickstart/report.html in a browser. The commands above are in $(BIN); activate it with: . $(BIN)/activate"

test: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "slm needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # half an environment would pass for one next time

$(VENV)/.user: $(BIN)/python $(INPUTS)
	$(PIP) install -q -c constraints.txt -e '.[hf]'
	@touch $@

$(VENV)/.dev: $(BIN)/python $(INPUTS)
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.user

clean:
	rm -rf $(VENV) build dist runs data .pytest_cache .mypy_cache .ruff_cache .hypothesis
