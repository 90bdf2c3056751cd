# The commands of this project. Every target installs what it needs into .venv first.
#   make demo         train a pocket-sized model and analyze it: minutes on two cores
#   make lint         formatting, lint, types, spelling
#   make docs         build the site into build/site: half a minute; offline, and strict about links
#   make docs-serve   show the site at http://127.0.0.1:8000, and build it anew when files change
#   make tutorials    execute the tutorials and write their pages (TUTORIALS=name for one of them)
#   make test         the default tests: about ten minutes on two cores
#   make test-all     the slow tests too, with XLA's full optimization: an hour or more
#   make test-peers   tests against other packages, each in its own environment under .peers/
#   make test-browser pages in Debian's Chromium, and our graphs in circuit-tracer's front end
#   make test-slurm   sweeps on a real Slurm, from Debian's packages, on this machine
#   make test-counts  record how many programs each test file compiles (see tests/compile_counts.py)
#   make studies-runs train what is missing of the runs that studies read: see experiments/runs.py
#   make clean        remove everything that make created, except runs/

# Python keeps compiled modules, also where the environment says that it must not: every worker and
# every process of the tests would compile this package and the tests again.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
PYTEST_ARGS ?=
RUNS_ARGS ?=
TUTORIALS ?=
# One process per core; all tests of a file run in the same process.
PARALLEL ?= -n auto --maxprocesses=8 --dist=loadfile

BIN := .venv/bin
INSTALLED := .venv/.installed
RUN := runs/pocket

# A peer is a package that we exchange files with: one pinned environment for each list.
PEERS := $(patsubst tests/peers/requirements/%.txt,.peers/%/.installed,$(wildcard tests/peers/requirements/*.txt))

PROSE := implicit_reasoning configs docs experiments results tests .ci .github $(wildcard *.md) Makefile

.PHONY: demo docs docs-serve tutorials test test-all test-peers test-browser test-slurm test-counts studies-runs lint clean venv

demo: $(INSTALLED)
	$(BIN)/python -m implicit_reasoning train --config=configs/composition.py:pocket --workdir=$(RUN)
	$(BIN)/python -m implicit_reasoning analyze --workdir=$(RUN)
	$(BIN)/python -m implicit_reasoning report --workdir=$(RUN)
	@echo
	@echo "The report is $(RUN)/report/index.html: open it in a browser."
	@echo "The curves in TensorBoard: $(BIN)/tensorboard --logdir runs"

test: $(INSTALLED)
	$(BIN)/python -m pytest -q $(PARALLEL) --programs=check --durations=20 $(PYTEST_ARGS)

# Every file alone, two at a time; programs that several files compile are compiled once.
test-counts: $(INSTALLED)
	find tests -name 'test_*.py' -not -path 'tests/peers/*' -not -path 'tests/slurm/*' \
		-not -path 'tests/browser/*' | sort | \
		JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.pytest_cache/programs xargs -P 2 -n 1 \
		$(BIN)/python -m pytest -q --programs=write $(PYTEST_ARGS)

# This -m overrides the "not slow" of pyproject.toml.
# The last command trains dictionaries on SAELens's synthetic data, beside SAELens: half an hour, and
# 5 GB in runs/.
test-all: $(INSTALLED) .peers/sae_lens/.installed
	TESTS=thorough $(BIN)/python -m pytest -q $(PARALLEL) -m "not peers and not slurm and not browser" --durations=20 $(PYTEST_ARGS)
	$(BIN)/python experiments/benchmarks/synth_sae_bench.py --out=runs/synth_sae_bench/found.json

test-peers: $(INSTALLED) $(PEERS)
	$(BIN)/python -m pytest -q -m peers tests/peers $(PYTEST_ARGS)

# The driver is playwright's, and the browser is Debian's: apt-get install chromium.
test-browser: $(INSTALLED) .peers/circuit_tracer/.installed .peers/front_end/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	$(BIN)/python -m pytest -q -m browser tests/browser $(PYTEST_ARGS)

# Slurm's programs are Debian's: apt-get install slurmctld slurmd slurm-client. It is started in a
# folder of its own, by root, and ends with the tests.
test-slurm: $(INSTALLED)
	$(BIN)/python -m pytest -q -m slurm tests/slurm $(PYTEST_ARGS)

# RUNS_ARGS="--study=grokking --jobs=4", say; runs of other studies are left alone.
studies-runs: $(INSTALLED)
	$(BIN)/python experiments/runs.py $(RUNS_ARGS)

# The variable turns off an advertisement that mkdocs-material prints. No --quiet: with it mkdocs does
# not count warnings, and --strict does nothing.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-serve: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --watch implicit_reasoning --watch results

# What executes notebooks is needed for nothing else, so it is installed here.
tutorials: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[tutorials]"
	$(BIN)/python docs/tutorials/execute.py $(TUTORIALS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $(PROSE)
	$(BIN)/python .ci/phrases.py
	$(BIN)/mypy

venv: $(INSTALLED)

# touch comes last: an installation that was cut short is started again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "implicit_reasoning needs Python 3.11 or newer, $(PYTHON) is %d.%d: use make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# They cannot share one: each pins versions that the others refuse. The lists are for Python 3.11
# (TransformerLens 2 asks for other versions on 3.12). PyTorch's build for CPUs is enough; where pip
# would take another, say where to find it with PIP_EXTRA_INDEX_URL.
.peers/%/.installed: tests/peers/requirements/%.txt
	rm -rf .peers/$*
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The libraries that circuit-tracer's front end loads from other hosts, from npm.
.peers/front_end/.installed: tests/browser/front_end/package.json tests/browser/front_end/package-lock.json
	rm -rf .peers/front_end
	mkdir -p .peers/front_end
	cp $^ .peers/front_end
	cd .peers/front_end && npm ci --silent --no-audit --no-fund --ignore-scripts
	@touch $@

clean:
	rm -rf .venv .peers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
