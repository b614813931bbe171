# One job per dictionary, NAME-seedN. All read the same batches in the same order, a function of seed and step alone.
# Checkpoints are in RESULTS/.work/KEY while a dictionary trains.
DEVICES = config["training"]["devices"]

if GRAPH.trained and DEVICES == 1:

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

elif GRAPH.trained:

    # The same script in several processes, each with its share of the latents and (where there are GPUs) one GPU. They
    # print to stdout. What torchrun itself says goes to NAME.torchrun.log, and to the terminal where they said nothing.
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
            gpu=GPU * DEVICES,
        params:
            python="python" if workflow.deployment_settings.deployment_method else sys.executable,
            script=ROOT / "workflow/scripts/train.py",
            own_threads=lambda wildcards, threads: max(1, threads // DEVICES),
            torchrun=f"{R}/logs/{{pair}}crosscoders/{{name}}.torchrun.log",
            given=lambda wildcards, input, output: given(
                input,
                output,
                content_keys=keys("{pair}crosscoders/{name}")(wildcards),
                training=GRAPH.training(wildcards.pair, wildcards.name),
            ),
        shell:
            "{params.python:q} -m torch.distributed.run --standalone --nproc-per-node {DEVICES} {params.script:q} "
            "{params.given:q} {log:q} {params.own_threads} 2> {params.torchrun:q} "
            "|| {{ [ -s {log:q} ] || cat {params.torchrun:q} >&2; exit 1; }}"
