# Two commands from a bare machine:   make book   and   make test
# They need Python 3.11 or newer, a C compiler, make and a package index, and install the rest into .venv.

PYTHON    ?= $(shell for p in python3.11 python3 python3.12 python3.13; do $$p -c '$(IS_NEW)' 2>/dev/null && echo $$p && break; done)
PROFILE   ?= laptop
STRUCTURE ?= adk_open
CORES     ?= 4

IS_NEW := import sys; sys.exit(sys.version_info < (3, 11))

# The scripts that pip writes, and Snakemake, take these for more than characters.
ODD := $(strip $(foreach c,{ } " ` $$,$(findstring $(c),$(CURDIR))))
$(if $(ODD),$(error the path of this folder has $(ODD) in it, which not every tool can take: rename it, $(CURDIR)))

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The environment's own tools and kernel come first, whatever else the machine has installed.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONNOUSERSITE := 1
unexport JUPYTER_PATH PYTHONPATH PYTHONHOME

# Snakemake needs a home that it can write to, which a user of a container may not have.
ifneq ($(shell test -w "$${HOME:-}" && echo writable),writable)
export HOME := $(CURDIR)/.venv/home
endif

# What was given, for bash: any character of a path stands for itself.
given = '$(subst ','\'',$(value $(1)))'

BOOK_READY  := .venv/.ready-book
TEST_READY  := .venv/.ready-test
BENCH_READY := .venv/.ready-bench
CLUSTER_READY := .venv/.ready-cluster

PARALLEL  := OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile
NOTEBOOKS := pytest -p no:cacheprovider --nbval-lax --nbval-current-env
WHOLE     := -m "not slow and not launch and not cluster"

.PHONY: help book pdf address test test-all test-types check-types test-slow test-book test-launch test-cluster bench lint format lock clean distclean

help: ## Show this list
	@echo "make <target> [PROFILE=smoke|laptop|full|paper] [STRUCTURE=adk_open|<PDB ID>|<file>] [CORES=4] [PYTHON=python3.11]"
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 14

book: $(BOOK_READY) ## Compute every figure of PROFILE and build the book
	snakemake --cores $(CORES) --config profile="$(PROFILE)" structure=$(call given,STRUCTURE)
	@echo "The book: $(CURDIR)/book/_build/html/index.html"

pdf: $(BOOK_READY) ## Print the book to results/book.pdf; needs a Chromium
	snakemake --cores $(CORES) --config profile="$(PROFILE)" structure=$(call given,STRUCTURE) -- results/book.pdf
	@echo "The book: $(CURDIR)/results/book.pdf"

address: $(BOOK_READY) ## Write where this repository is on GitHub, ADDRESS or the clone's origin, into notebooks and README
	python workflow/scripts/write_address.py $(ADDRESS)

test: lint ## Run ruff, a quick test of each part and one notebook: five minutes
	$(PARALLEL)
	OMP_NUM_THREADS=2 $(NOTEBOOKS) notebooks/02_projection.ipynb

test-all: lint check-types ## Run the whole test suite, each call of the library checked, and every notebook: what CI runs
	$(PARALLEL) $(WHOLE) --ignore=tests/library
	$(PARALLEL) -m "mistyped and not slow" tests/library
	OMP_NUM_THREADS=1 $(NOTEBOOKS) -n 2 --dist loadscope notebooks
	$(MAKE) test-types test-launch

test-types: $(TEST_READY) ## Run the library's tests, each call checked against its annotations
	$(PARALLEL) $(WHOLE) -p tests.typechecked tests/library

check-types: $(TEST_READY) ## Let basedpyright read the annotations: no error
	basedpyright

test-slow: $(TEST_READY) ## Run the long tests, which count what they try for the book
	OMP_NUM_THREADS=2 pytest -m slow --keep-counts

test-book: $(TEST_READY) ## Run the tests that look at a built book
	pytest -n 2 --dist worksteal $(WHOLE) tests/book

test-launch: $(TEST_READY) ## Open notebooks alone in a fresh environment, as Colab does
	pytest -m launch tests/launch

test-cluster: $(CLUSTER_READY) ## Run shards through a SLURM of Debian that it starts, where root may install it
	pytest -m cluster tests/cluster

bench: $(BENCH_READY) ## Time it side by side with others; leave the machine alone meanwhile
	python -m benchmarks

lint: $(TEST_READY)
	ruff check .
	ruff format --check .

format: $(TEST_READY) ## Let ruff put the code into shape
	ruff check --fix .
	ruff format .

lock: | $(BIN)/python ## Pin and hash the requirements; LOCK=--upgrade for newer versions
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/python requirements/lock.py $(LOCK)

clean: ## Remove results, the book and caches; keep .venv
	rm -rf results book/_build book/notebooks book/generated build dist *.egg-info
	rm -rf .snakemake .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too
	rm -rf .venv

$(BIN)/python:
	@$(or $(PYTHON),false) -c '$(IS_NEW)' \
	    || { echo "Python 3.11 or newer is needed$(if $(PYTHON),; '$(PYTHON)' is not). Say where: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv \
	    || { rm -rf .venv; echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs the package python3-venv"; exit 1; }

# Redone only when the requirements change. A file whose hash is not listed is refused, and what is built
# is built with listed tools. The editable install makes edits of the library live.
LISTED := $(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation --requirement

$(BOOK_READY): pyproject.toml $(addprefix requirements/,build.txt torch_cpu.txt torch.txt book.txt) | $(BIN)/python
	$(LISTED) requirements/build.txt
	$(LISTED) requirements/torch_cpu.txt 2> .venv/torch_cpu.log \
	    || { grep '^ERROR' .venv/torch_cpu.log || true; echo "The CPU build of torch was not to be had; taking the package index's"; $(LISTED) requirements/torch.txt; }
	$(LISTED) requirements/book.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	@touch $@

$(TEST_READY): $(BOOK_READY) requirements/test.txt
	$(LISTED) requirements/test.txt
	$(BIN)/python -m pip check
	@touch $@

$(CLUSTER_READY): $(TEST_READY)
	@command -v slurmctld > /dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null \
	    || { apt-get -qq update && apt-get -qq install -y --no-install-recommends slurmctld slurmd slurm-client; } \
	    || echo "SLURM was not to be had: its test will be skipped"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt "snakemake-executor-plugin-slurm==2.8.0"
	@touch $@

$(BENCH_READY): $(BOOK_READY) benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/requirements.txt
	@touch $@
