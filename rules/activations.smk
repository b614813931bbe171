# Residuals of both models on the same ids: one job per part.
rule activations:
    input:
        unpack(reads("{pair}activations/{split}/part-{part}")),
    output:
        **makes("activations", "{pair}activations/{split}/part-{part}"),
    log:
        f"{R}/logs/{{pair}}activations/{{split}}/part-{{part}}.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}activations/{{split}}/part-{{part}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["activations"],
        runtime=240,
        gpu=GPU,
        turn=1,  # of a group's parts, one at a time
    params:
        content_keys=keys("{pair}activations/{split}/part-{part}"),
    script:
        "../workflow/scripts/activations.py"
