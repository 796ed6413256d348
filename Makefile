# make run: train on the handwritten digits.  make test: lint, types and the whole suite.
# make bench: jaxsgd beside its peers, about half an hour.  All create their environment first; only Python 3.11 or newer and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: run test bench check format clean

run: $(VENV)/.run
	$(BIN)/jaxsgd fit digits

test: check
	$(BIN)/python -m pytest --quick
	$(BIN)/python -m pytest --dist worksteal tests/test_laws.py tests/data/test_host.py tests/loops/test_run.py

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.gradients
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

$(VENV)/.bench: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
