# Each line is a command that a person could type; `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export OMP_WAIT_POLICY = passive
export OMP_NUM_THREADS = 1

.PHONY: help demo test check format

help:
	@echo "make demo    create $(VENV), install, train and attack the defenses on bundled data"
	@echo "make test    create $(VENV) if absent, install, run ruff, mypy and pytest"
	@echo "make check   ruff and mypy only"

$(VENV)/installed: pyproject.toml requirements-dev.txt $(wildcard plugins/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(VENV)/installed
	$(BIN)/phalanx quickstart --out phalanx-quickstart
	@echo "The report lies in phalanx-quickstart/report/report.html"

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -n 2

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
