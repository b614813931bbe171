# Residuals of both models on the same ids: one job per part.
rule activations:
    input:
        models=store("{pair}models"),
        hooks=f"{R}/{{pair}}hooks.json",
        tokens=store("tokens/{split}.zarr"),
        manifest=f"{R}/tokens/{{split}}.json",
    output:
        store=directory(f"{R}/{{pair}}activations/{{split}}/part-{{part}}.zarr"),
        manifest=f"{R}/{{pair}}activations/{{split}}/part-{{part}}.json",
    log:
        f"{R}/logs/{{pair}}activations/{{split}}-{{part}}.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}activations/{{split}}-{{part}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: 8
    resources:
        mem_mb=MEMORY["activations"],
        runtime=240,
        gpu=GPU,
    params:
        key=key("{pair}activations/{split}/part-{part}"),
        models_key=key("{pair}models"),
        tokens_key=key("tokens/{split}"),
    script:
        "../workflow/scripts/activations.py"
