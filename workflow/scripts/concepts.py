"""Score every latent as a detector of every labelled concept."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.data.activations import ActivationStore
from tunediff.data.corpora import labels
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.concepts import ConceptSettings, build_concepts
from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with job(snakemake) as work:
    labelled, device = labels(work.config["tokens"]["sources"].values()), work.device
    build_concepts(
        {name: Crosscoder.load(path, device, key=key) for name, path, key in work.each("crosscoders")},
        {name: LatentTable.read(path, key=key) for name, path, key in work.each("latents")},
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        TokenStore.open(work.path("tokens"), key=work.key("tokens")),
        labelled.chat_only,
        labelled.kind_of,
        ConceptSettings(seed=work.config["seed"]),
        Path(snakemake.output.store),
        key=work.own_key,
        device=device,
    )
