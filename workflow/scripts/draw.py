"""Draw one figure or table of the registry."""

from pathlib import Path

from tunediff.pipeline.artifacts import seal
from tunediff.pipeline.job import job
from tunediff.report.inputs import Inputs
from tunediff.report.registry import drawings
from tunediff.report.style import Style, save

with job(snakemake) as work:
    drawing, style, out = drawings()[work.wildcards.drawing], Style(**work.config["figures"]), snakemake.output
    save(drawing.draw(Inputs.of(snakemake), style), Path(out.pdf).with_suffix(""), style)
    seal(Path(out.store), "drawing", work.own_key, {"title": drawing.title}, beside=(".pdf", ".png"))
