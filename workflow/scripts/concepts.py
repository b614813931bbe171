"""Score every latent as a detector of every labelled concept."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.data.activations import ActivationStore
from tunediff.data.corpora import chat_concepts, concept_kinds
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.concepts import ConceptSettings, build_concepts
from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job, resolve_device

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

config, params, read = snakemake.config, snakemake.params, snakemake.input
device = resolve_device(config["models"]["device"])
with job(snakemake):
    build_concepts(
        {Path(p).name: Crosscoder.load(Path(p), device, key=params.own_keys[Path(p).name]) for p in read.crosscoders},
        {Path(p).stem: LatentTable.read(Path(p), key=params.latent_keys[Path(p).stem]) for p in read.latents},
        ActivationStore([Path(p) for p in read.validation], key=params.validation_key),
        TokenStore.open(Path(read.tokens), key=params.tokens_key),
        chat_concepts(config["tokens"]["sources"]),
        concept_kinds(config["tokens"]["sources"]),
        ConceptSettings(seed=config["seed"]),
        Path(snakemake.output.store),
        key=params.key,
        device=device,
    )
