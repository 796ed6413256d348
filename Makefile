# make run: train on the handwritten digits.
# make test: lint, types and the quick tests.  make test-all: the same, then the tests that are slow, need other libraries, or compare bits.
# make docs: the documentation, into site/; any warning fails.  make docs-serve: the same at http://127.0.0.1:8000, rebuilt on each change.
# make bench: jaxsgd beside its peers, about an hour.  All create their environment first; only Python 3.11 or newer and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: run test test-all bench docs docs-serve check format clean

run: $(VENV)/.run
	$(BIN)/jaxsgd fit digits

test: check
	$(BIN)/python -m pytest --group quick

test-all: $(VENV)/.test-all test
	$(BIN)/python -m pytest --group slow
	$(BIN)/python -m pytest --group bits --dist worksteal

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the variable turns off a notice, not a warning, that Material for MkDocs is maintained until May 2027
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.limits
	$(BIN)/python -m benchmarks.libraries
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.gradients
	$(BIN)/python -m benchmarks.convolutions
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.devices

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxsgd needs Python 3.11 or newer; give PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# a stamp for each set of extras, made anew when the project file changes
$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[cli]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.test-all: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test-all]'
	touch $@

$(VENV)/.bench: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache
