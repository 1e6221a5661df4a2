# make setup | demo | test | test-all | coverage | lint | docs | dist.  A fresh machine needs python3 (3.11 to 3.13) with pip, and make.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
UV := $(or $(shell command -v uv),$(VENV)/bin/uv)
WORKERS ?= 2
export NO_ALBUMENTATIONS_UPDATE = 1

.PHONY: setup demo test test-all coverage lint docs dist clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	test -x $(UV) || $(RUN) -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --compile-bytecode --python $(RUN) --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Three U-Nets that differ only in their long skips, on pictures generated here. No network, no GPU, no W&B account.
demo: setup
	HF_HUB_OFFLINE=1 $(RUN) -m unetseg.train --multirun data=synthetic model.skip=concat,add,none \
		wandb.mode=offline output=runs/demo

PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal

# What a change needs at once, in a few minutes: all but the tests in tests/slow.txt.
test: setup
	$(PYTEST) -m "not slow" $(ARGS)

test-all: setup
	$(PYTEST) $(ARGS)

# What the tests run of the package, line by line and branch by branch.
coverage: setup
	$(MAKE) test-all ARGS="--cov --cov-report= $(ARGS)"
	$(RUN) -m coverage report

lint: setup
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(RUN) -m mypy

# The site, into site/. `.venv/bin/mkdocs serve` shows it while you write.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

dist: setup
	$(UV) build --quiet --python $(RUN)

clean:
	rm -rf site $(VENV) .pytest_cache .mypy_cache .ruff_cache dist
