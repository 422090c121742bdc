# Each target makes the virtual environment it needs; nothing has to be installed first but Python 3.11 or newer.
PYTHON ?= python3
PROFILE ?= small
WORKERS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)
# TORCH=cpu installs the build of torch without CUDA, from PyTorch's own index.
TORCH ?=
# More for pytest, as in make test ARGS='tests/library -k riccati'.
ARGS ?=

BIN := .venv/bin
RUNTIME := .venv/installed-runtime
TEST := .venv/installed-test
BOOK := .venv/installed-book
PIP := -m pip install --quiet $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)
# One thread a process: on few cores, several processes of one thread beat one process of several.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# $(call venv,FOLDER): a Python that cannot make the environment is named before anything of it is there.
define venv
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo >&2 \
	  "$(PYTHON) ($$($(PYTHON) --version 2>&1)) cannot make $(1): it takes Python 3.11 or newer with its module venv" \
	  "(on Debian and Ubuntu: apt-get install python3-venv). Name another: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "installing into $(1), which takes minutes$(if $(filter cpu,$(TORCH)),,; on Linux torch brings CUDA, \
	gigabytes of it, and with TORCH=cpu it does not)"
	@$(PYTHON) -m venv $(1)
endef

.DEFAULT_GOAL := help
.PHONY: help reproduce test test-floor test-latest bench lint book pdf serve notebooks pair colab test-colab address lock clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

reproduce: $(RUNTIME)  ## Figure 1 from real digits into runs/figure1-PROFILE (PROFILE=tiny, small or paper)
	$(BIN)/se-core reproduce --profile $(PROFILE) --workers $(WORKERS)

test: $(TEST) $(BOOK) lint  ## every test, every cell of the book, style and types (ARGS='tests/library -k riccati')
	$(ONE_THREAD) $(BIN)/python -m pytest --nbval -n $(WORKERS) --dist loadfile $(ARGS)

test-floor:  ## the library's tests with the oldest versions allowed, in .venv-floor (Python 3.11 or 3.12)
	$(call venv,.venv-floor)
	$(PYTHON) tests/floors.py > .venv-floor/constraints.txt
	.venv-floor/bin/python $(PIP) --constraint .venv-floor/constraints.txt --editable '.[test]'
	$(ONE_THREAD) .venv-floor/bin/python -m pytest tests/library -n $(WORKERS) $(ARGS)

test-latest:  ## the library's tests with the newest versions allowed, in .venv-latest
	$(call venv,.venv-latest)
	.venv-latest/bin/python $(PIP) --upgrade --upgrade-strategy eager --editable '.[test]'
	$(ONE_THREAD) .venv-latest/bin/python -m pytest tests/library -n $(WORKERS) $(ARGS)

bench: $(TEST)  ## the benchmarks, as ratios
	$(ONE_THREAD) $(BIN)/python benchmarks/training_step.py
	$(ONE_THREAD) $(BIN)/python benchmarks/transport.py

lint: $(TEST)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

book: $(BOOK) colab  ## the book, from its committed outputs, into book/_build/html
	$(BIN)/sphinx-build -W -n -q -b html book book/_build/html
	@echo "the book is at $(CURDIR)/book/_build/html/index.html"

pdf: $(TEST) $(BOOK)  ## the whole book on paper, its solutions open: book/_build/smooth-encoders.pdf (needs Chromium)
	$(BIN)/python book/print.py

serve: book  ## the book at http://localhost:8000
	$(BIN)/python -m http.server --bind localhost --directory book/_build/html 8000

notebooks: $(BOOK)  ## execute book/src into book/notebooks (SE_PROFILE=tiny, small or paper; SE_DEVICE=cuda)
	$(ONE_THREAD) $(BIN)/python book/execute.py

lock:  ## constraints.txt anew: a pin that was deleted there comes back newest, the others stay
	rm -rf .venv-lock
	$(call venv,.venv-lock)
	.venv-lock/bin/python $(PIP) --constraint constraints.txt --editable '.[book,jax,test]'
	{ grep '^#' constraints.txt; .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude-editable \
	  | sed -E '/^(#|nvidia-|cuda-|triton)/d; s/\+.*//'; } > .venv-lock/constraints.txt
	cp .venv-lock/constraints.txt constraints.txt

pair: $(BOOK)  ## carry an edit of book/src to book/notebooks, or back, without executing
	$(BIN)/python book/pairing.py

colab: $(BOOK)  ## the package and the chapters for Colab, into dist/smooth-encoders-colab.zip
	$(BIN)/python book/bundle.py

test-colab: $(BOOK)  ## each chapter as on Colab: alone, without the package (COLAB=a Python with the packages of Colab)
	$(ONE_THREAD) $(BIN)/python tests/book/colab.py $(COLAB)

address: $(BOOK)  ## publish the address of the repository everywhere: URL=https://github.com/owner/name, URL= takes it back
	@$(if $(filter undefined,$(origin URL)),$(error say which: make address URL=https://github.com/owner/name, or URL=))
	$(BIN)/python book/address.py "$(URL)"

clean:  ## remove the environments and the caches; runs/ and data/ stay
	rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

$(RUNTIME): pyproject.toml constraints.txt
	$(call venv,.venv)
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[lab]'
	touch $@

$(TEST): $(RUNTIME)
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[test]'
	touch $@

$(BOOK): $(RUNTIME)
	$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[book]'
	touch $@
