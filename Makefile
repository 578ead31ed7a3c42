# Every target sets itself up: it needs Python 3.11 to 3.13 and a package index.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
RUNS ?= runs/demo
# A process a core: nearly all of a test's time is compilation, which is single-threaded. In the order of the folders:
# in xdist's own, the files of few and long tests would come last, and a process would wait for another's.
PYTEST = $(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: demo test parity claims lint clean

demo: $(VENV)/.installed  ## train, attack, report and compare a natural and an ART network on data that ships with a dependency
	$(PY) launch/run.py --config=configs/art_digits.py:variant=natural --workdir=$(RUNS)/natural
	$(PY) launch/run.py --config=configs/art_digits.py:variant=art --workdir=$(RUNS)/art
	$(PY) launch/compare.py $(RUNS)/natural $(RUNS)/art --output=$(RUNS)/compare.html

test: $(VENV)/.installed-dev lint  ## the test suite, style and types
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

parity: $(VENV)/.installed-parity  ## the comparisons with PyTorch; installs PyTorch
	$(PYTEST) tests/parity

claims: $(VENV)/.installed  ## what each paper claims, small, over several seeds, as a table
	$(PY) launch/claims.py --output=docs/results/claims.md

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PY) -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/.installed-parity: $(VENV)/.installed-dev
	$(PY) -m pip install --quiet --editable ".[dev,parity]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
