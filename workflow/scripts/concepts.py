"""Score every latent as a detector of every labelled concept."""

from tunediff.data.activations import ActivationStore
from tunediff.data.corpora import labels
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.concepts import ConceptSettings, build_concepts
from tunediff.latents.table import LatentTable
from tunediff.pipeline.job import job

with job(snakemake) as work:
    labelled, device = labels(work.config["tokens"]["sources"].values()), work.device
    build_concepts(
        work.open_each(Crosscoder.load, "crosscoders", device, work.precision),
        work.open_each(LatentTable.read, "latents"),
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        work.open(TokenStore.open, "tokens"),
        labelled.chat_only,
        labelled.kind_of,
        ConceptSettings(seed=work.config["seed"]),
        work.out,
        key=work.own_key,
        device=device,
    )
