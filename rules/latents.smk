# Per crosscoder: the latent table with Latent Scaling, and from the same pass the twins and the metrics of what the
# dictionary reconstructs.
rule latents:
    input:
        unpack(reads("{pair}latents/{name}")),
    output:
        **makes("latents", "{pair}latents/{name}"),
    log:
        f"{R}/logs/{{pair}}latents/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}latents/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["latents"],
        runtime=240,
        gpu=GPU,
    params:
        content_keys=keys("{pair}latents/{name}"),
    script:
        "../workflow/scripts/latents.py"
