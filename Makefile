# `make demo` and `make test` need nothing but Python 3.11 or newer: the environment makes itself and is kept.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check format wheel bench bench-stage1 bench-quick soak clean

demo: $(READY)  ## fit both stages on real purchases, print the tables and three households' lists
	$(BIN)/python examples/complete_journey.py

test: $(READY)  ## the test suite, in two processes: most of it keeps one core busy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(READY)  ## formatting, lint, types, dependency rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(READY)  ## build the wheel and import it where nothing else is installed
	$(BIN)/python .ci/check_wheel.py

bench: $(READY)  ## every scenario; needs RECSYS_DATA, takes hours (each "no text" is a fit more), goes on where it was stopped
	$(BIN)/python benchmarks/run_all.py

bench-stage1: $(READY)  ## stage 1 alone against the frozen encoder, and on cold items; the same holds for it
	$(BIN)/python benchmarks/run_all.py --stage1

bench-quick: $(READY)  ## the two smallest scenarios, one fit each, under 15 minutes; needs RECSYS_DATA
	$(BIN)/python benchmarks/run_all.py --quick

soak: $(READY)  ## hundreds of killed writers under readers, 100 swaps under requests
	RECSYS_SOAK=1 $(BIN)/python -m pytest tests/rebuild/test_crash.py tests/rebuild/test_job_crash.py tests/rebuild/test_watcher.py -s

clean:
	rm -rf .venv dist build results

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)
