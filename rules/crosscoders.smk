# One job per dictionary, NAME-seedN. All read the same batches in the same order, a function of seed and step alone.
# Checkpoints are in RESULTS/.work/KEY while a dictionary trains.
if GRAPH.trained:

    rule train:
        input:
            unpack(reads("{pair}crosscoders/{name}")),
        output:
            **makes("train", "{pair}crosscoders/{name}"),
        log:
            f"{R}/logs/{{pair}}crosscoders/{{name}}.log",
        benchmark:
            f"{R}/benchmarks/{{pair}}crosscoders/{{name}}.tsv"
        wildcard_constraints:
            name="|".join(GRAPH.trained),
        conda:
            "../envs/tunediff.yaml"
        threads: THREADS
        resources:
            mem_mb=MEMORY["train"],
            runtime=2880,
            gpu=GPU,
        params:
            content_keys=keys("{pair}crosscoders/{name}"),
            training=lambda wildcards: GRAPH.training(wildcards.pair, wildcards.name),
        script:
            "../workflow/scripts/train.py"
