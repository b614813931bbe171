# Pairs of latents: twins within a crosscoder, and the matches between the seeds of one.
rule twins:
    input:
        unpack(reads("twins/{name}")),
    output:
        **makes("twins", "twins/{name}"),
    log:
        f"{R}/logs/twins/{{name}}.log",
    benchmark:
        f"{R}/benchmarks/twins/{{name}}.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["latents"],
        runtime=120,
        gpu=GPU,
    params:
        content_keys=keys("twins/{name}"),
    script:
        "../workflow/scripts/twin_pairs.py"


if GRAPH.trained:

    rule seeds:
        input:
            unpack(reads("seeds/matches")),
        output:
            **makes("seeds", "seeds/matches"),
        log:
            f"{R}/logs/seeds/matches.log",
        benchmark:
            f"{R}/benchmarks/seeds/matches.tsv"
        conda:
            "../envs/tunediff.yaml"
        threads: THREADS
        resources:
            mem_mb=MEMORY["latents"],
            runtime=240,
            gpu=GPU,
        params:
            content_keys=keys("seeds/matches"),
            dictionaries=GRAPH.trained_seeds,
        script:
            "../workflow/scripts/seed_matches.py"
