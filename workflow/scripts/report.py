"""Build the report: one folder that a browser opens from the disk."""

import time
from functools import partial

from tunediff.models.pair import load_pair
from tunediff.models.tokenizers import pieces
from tunediff.pipeline.artifacts import provenance, seal
from tunediff.pipeline.job import job
from tunediff.report.html.build import build_report
from tunediff.report.inputs import Inputs

with job(snakemake) as work:
    started = time.time()
    models = work.config["models"]
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    facts = build_report(
        Inputs.of(snakemake), work.out, partial(pieces, pair.load_tokenizer()), keys=work.params.artifacts
    )
    seal(work.out, "report", work.own_key, facts, provenance(started))
