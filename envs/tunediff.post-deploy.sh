#!/usr/bin/env bash
# Run by Snakemake inside the new conda environment, from the folder snakemake was started in.
set -euo pipefail
pip install -r envs/requirements.lock
pip install --no-deps --editable .
