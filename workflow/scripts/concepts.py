"""Score every latent as a detector of every labelled concept."""

from pathlib import Path
from typing import TYPE_CHECKING

from tunediff.activations import ActivationStore
from tunediff.concepts import ConceptSettings, build_concepts
from tunediff.corpora import chat_concepts, concept_kinds
from tunediff.crosscoder import Crosscoder
from tunediff.latents import LatentTable
from tunediff.tokens import TokenStore
from tunediff.workflow import job, resolve_device

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
