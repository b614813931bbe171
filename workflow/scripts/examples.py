"""Find examples of what each latent of one crosscoder fires on."""

from tunediff.config.settings import ExampleSettings
from tunediff.data.activations import ActivationStore
from tunediff.data.tokens import TokenStore
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.profile import build_examples
from tunediff.latents.table import LatentTable
from tunediff.models.pair import load_pair
from tunediff.pipeline.job import job

with job(snakemake) as work:
    models, device = work.config["models"], work.device
    pair = work.open(load_pair, "models", models["layer"], models["dtype"])
    build_examples(
        work.open(Crosscoder.load, "crosscoder", device, work.precision),
        work.open(LatentTable.read, "latents"),
        ActivationStore(work.paths("validation"), key=work.key("validation")),
        work.open(TokenStore.open, "tokens"),
        pair.load_chat(device, upper=True),
        ExampleSettings(**work.config["examples"], seed=work.config["seed"]),
        work.out,
        key=work.own_key,
        device=device,
    )
