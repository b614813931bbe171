# make demo: environment, then the whole chain to Figure 4. make test: the tests. make check: lint, types, format.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: env demo test check lock

env: $(STAMP)

$(STAMP): envs/requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r envs/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: env
	$(BIN)/snakemake --cores all results/figures/fig4.pdf results/summary.txt
	@cat results/summary.txt

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy

lock: env
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//; s/ @ .*//' > envs/requirements.lock
