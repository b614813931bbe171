# Residuals of both models on the same ids. One job makes all parts of a pair, the models loaded once; each is finished in
# the work folder, where a job that was killed finds it again.
PARTS = [path for split in SPLITS for path in GRAPH.parts(split)]


def harvest_of(ask):
    """What a function of an artifact's pattern gives for the parts of both splits, those of another config first."""

    def of(wildcards):
        merged = {}
        for split in SPLITS:
            parts = GRAPH.parts(split, wildcards.pair)
            own = ask(next((path for path in parts if path in CHANGED), parts[0]))(wildcards)
            for role, found in own.items():
                several = isinstance(found, list) and role in merged
                merged[role] = list(dict.fromkeys([*merged[role], *found])) if several else found
        return merged

    return of


rule activations:
    input:
        unpack(harvest_of(reads)),
    output:
        stores=[directory(f"{R}/{{pair}}{path}.zarr") for path in PARTS],
        manifests=[f"{R}/{{pair}}{path}.json" for path in PARTS],
    log:
        f"{R}/logs/{{pair}}activations.log",
    benchmark:
        f"{R}/benchmarks/{{pair}}activations.tsv"
    conda:
        "../envs/tunediff.yaml"
    threads: THREADS
    resources:
        mem_mb=MEMORY["activations"],
        runtime=1440,
        gpu=GPU,
    params:
        content_keys=harvest_of(keys),
        parts=lambda wildcards: GRAPH.harvested(wildcards.pair),
    script:
        "../workflow/scripts/activations.py"


def keep_parts():
    """Save the finished parts of jobs that will run, as Snakemake deletes all outputs of a job before it."""
    for job in workflow.dag.needrun_jobs():
        if job.rule.name == "activations" and not workflow.dag.reason(job).forced:
            set_aside({Path(path): key for path, key in GRAPH.harvested(job.wildcards.pair).items()}, Path(R) / ".work")
