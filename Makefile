# make run and make test start from a bare clone: both install first.

VENV   := .venv
PYTHON := $(VENV)/bin/python
STAMP  := $(VENV)/.installed

.PHONY: install run test test-distributed check docs bench bench-reliability claims

install: $(STAMP)

# torch first and by its exact version, so that an index that serves a CPU build under that version can be used.
# Elsewhere it brings gigabytes of CUDA to a machine without a GPU: name an index of CPU builds in PIP_EXTRA_INDEX_URL.
$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet --constraint constraints.txt torch
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

run: install
	$(VENV)/bin/rlhf run

test: install
	$(PYTHON) -m pytest

test-distributed: install
	$(PYTHON) -m pytest -m distributed

check: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -m "not slow"

# The pages of docs/ as a site, in build/docs.
docs: install
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

# Side by side with what others offer, on one thread; the tables of record are benchmarks/*.md. About an hour.
bench: install
	for file in $(filter-out benchmarks/bench_reliability.py,$(wildcard benchmarks/bench_*.py)); do OMP_NUM_THREADS=1 $(PYTHON) $$file || exit 1; done

# Kills, damage, races, garbage, power cuts (root), and a plain Trainer beside; some rows: make bench-reliability ROWS=commit,damage
ROWS := commit,damage,locks,power,garbage,lives,together,nodes,plain
bench-reliability: install
	OMP_NUM_THREADS=1 $(PYTHON) benchmarks/bench_reliability.py --rows $(ROWS)

# The paper's claims as experiments over runs of three seeds, on all cores; some by name: make claims CLAIMS=B2,B3; ours
# about Ghost Attention: make claims CLAIMS=ours
# The default recipe was made on seeds 0 to 2, so others judge it.
RUNS := runs/tiny-3 runs/tiny-4 runs/tiny-5
claims: install
	$(PYTHON) -m benchmarks.claims $(CLAIMS) --runs $(RUNS)
