# The matches between the seeds of a crosscoder.
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
            mem_mb=MEMORY["seeds"],
            runtime=240,
            gpu=GPU,
        params:
            content_keys=keys("seeds/matches"),
            dictionaries=GRAPH.trained_seeds,
        script:
            "../workflow/scripts/seed_matches.py"
