# make demo: environment, then the whole chain to Figure 4 and the report. make test: the tests. make check: lint, types,
# format. make paper: all figures and tables of the demo, three seeds. make planted, make nulls: the two truth tests.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: env demo paper planted nulls test check docs stages lock

env: $(STAMP)

# without the stamp .venv is none, or one that was interrupted: pip takes half a package for a whole one, so it starts anew
$(STAMP): envs/requirements.lock pyproject.toml
	test -e $@ || $(PYTHON) -m venv --clear .venv
	rm -f $@
	$(BIN)/pip install --quiet --disable-pip-version-check -r envs/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: env
	$(BIN)/snakemake --cores all results/figures/fig4.pdf results/summary.txt results/report
	@echo "Report: open $(CURDIR)/results/report/index.html in a browser"

paper: env
	$(BIN)/snakemake --cores all --configfile config/config.yaml config/seeds.yaml

planted: env
	$(BIN)/snakemake --cores all --configfile config/planted.yaml

# the second start puts the nulls into table 1, the summary and the report
nulls: env
	$(BIN)/snakemake --cores all nulls
	$(BIN)/snakemake --cores all results/tables/table1.pdf results/summary.txt results/report

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy

# what is made from the code: schema and key tables from the settings, the graph of rules (its edges sorted: Snakemake
# prints them in another order each time)
docs: env
	$(BIN)/python -m tunediff.config.schema
	graph=$$($(BIN)/snakemake --rulegraph mermaid-js | grep -v '^[[:space:]]*style') && \
	{ echo "$$graph" | grep -v -e '-->'; echo "$$graph" | grep -e '-->' | sort -V; } > docs/rulegraph.mmd

# the record of every stage's code, see src/tunediff/pipeline/record.py
stages: env
	$(BIN)/python -m tunediff.pipeline.record

lock: env
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//; s/ @ .*//' > envs/requirements.lock
