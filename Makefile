# Each line is a command that a person could type; `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
BENCH_VENV ?= .venv-bench
export OMP_WAIT_POLICY = passive
export OMP_NUM_THREADS = 1

.PHONY: help demo test check format bench agreement validity

help:
	@echo "make demo    create $(VENV), install, train and attack the defenses on bundled data"
	@echo "make test    create $(VENV) if absent, install, run ruff, mypy and pytest"
	@echo "make check   ruff and mypy only"
	@echo "make bench   create $(BENCH_VENV); our attacks' cost beside other libraries', half an hour,"
	@echo "             and what pruning saves, minutes"
	@echo "make agreement   the same environment; our attacks' strength beside torchattacks', hours"
	@echo "make validity    the same environment; verdicts on models whose masking is known, the"
	@echo "             standard protocol beside AutoAttack, kills, two processes, memory; hours"
	@echo "             all three need PHALANX_DATA and PHALANX_WEIGHTS, go on where they stopped, and"
	@echo "             write to bench/results"

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
	$(BIN)/pytest -n 2 --dist worksteal

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BENCH_VENV)/installed: pyproject.toml bench/requirements.txt
	test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	touch $@

bench: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m bench.compression
	$(BENCH_VENV)/bin/python -m bench.benchmark

# glibc gives the memory of large tensors back after every pass; kept, a ResNet-18 loop takes 16 %
# less time. Not for `bench`, which measures what users get.
agreement: export MALLOC_TRIM_THRESHOLD_ = 20000000000
agreement: export MALLOC_MMAP_THRESHOLD_ = 20000000000
agreement: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m bench.agreement

validity: $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python -m bench.shards
	$(BENCH_VENV)/bin/python -m bench.evaluation_memory
	$(BENCH_VENV)/bin/python -m bench.kills
	$(BENCH_VENV)/bin/python -m bench.standard --work $(BENCH_VENV)/standard
	$(BENCH_VENV)/bin/python -m bench.verdicts
