"""Draw one figure or table of the registry."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.pipeline.artifacts import seal
from tunediff.pipeline.job import job
from tunediff.report.inputs import Results
from tunediff.report.registry import drawings
from tunediff.report.style import Style, save

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

out, params = snakemake.output, snakemake.params
with job(snakemake):
    drawing, style = drawings()[params.drawing], Style(**snakemake.config["figures"])
    save(drawing.draw(Results.of(snakemake), style), Path(out.pdf).with_suffix(""), style)
    if hasattr(out, "manifest"):  # what later jobs read back
        seal(Path(out.csv), drawing.folder, params.key, {"title": drawing.title})
