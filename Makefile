# Each target makes the virtual environment it needs; nothing has to be installed first but Python 3.11 or newer.
PYTHON ?= python3
PROFILE ?= small
WORKERS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)

BIN := .venv/bin
RUNTIME := .venv/installed-runtime
TEST := .venv/installed-test
BOOK := .venv/installed-book
# One thread a process: on few cores, several processes of one thread beat one process of several.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help reproduce test bench lint book pdf serve notebooks clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

reproduce: $(RUNTIME)  ## Figure 1 from real digits into runs/figure1-PROFILE (PROFILE=tiny, small or paper)
	$(BIN)/se-core reproduce --profile $(PROFILE) --workers $(WORKERS)

test: $(TEST) $(BOOK) lint  ## every test, every cell of the book, and the checks of style and types
	$(ONE_THREAD) $(BIN)/python -m pytest --nbval -n $(WORKERS) --dist loadfile

bench: $(TEST)  ## the benchmarks, as ratios
	$(ONE_THREAD) $(BIN)/python benchmarks/training_step.py
	$(ONE_THREAD) $(BIN)/python benchmarks/transport.py

lint: $(TEST)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

book: $(BOOK)  ## the book, from its committed outputs, into book/_build/html
	$(BIN)/sphinx-build -W -n -q -b html book book/_build/html
	@echo "the book is at $(CURDIR)/book/_build/html/index.html"

pdf: $(TEST) $(BOOK)  ## the whole book on paper, its solutions open: book/_build/smooth-encoders.pdf (needs Chromium)
	$(BIN)/python book/print.py

serve: book  ## the book at http://localhost:8000
	$(BIN)/python -m http.server --bind localhost --directory book/_build/html 8000

notebooks: $(BOOK)  ## execute book/src into book/notebooks (SE_PROFILE=tiny, small or paper)
	$(ONE_THREAD) $(BIN)/python book/execute.py

clean:  ## remove the environment and the caches; runs/ and data/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(RUNTIME): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(TEST): $(RUNTIME)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(BOOK): $(RUNTIME)
	$(BIN)/python -m pip install --quiet --editable '.[book]'
	touch $@
