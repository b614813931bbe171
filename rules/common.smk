# Config check, the graph and what rules take from it. Nothing heavy: this is read at every start.
import json
import os
import sys
from pathlib import Path
from time import time_ns

from tunediff.config.check import complete
from tunediff.config.estimate import memory_mb, sees_gpu, setting
from tunediff.config.preflight import preflight
from tunediff.config.estimate import report as estimate_text  # `report` marks outputs
from tunediff.config.written import check_files
from tunediff.errors import TunediffError
from tunediff.pipeline import cluster
from tunediff.pipeline.artifacts import read_manifest, require, set_aside
from tunediff.pipeline.graph import NULLS, SPLITS, STAGES, Graph, PlantedGraph
from tunediff.pipeline.running import Running, killed_lines
from tunediff.report.registry import drawings_of

ROOT = Path(workflow.basedir)
# Jobs read this file too: they do not ask the hub for a model's size, and print no estimate.
MAIN = workflow.is_main_process

try:
    if MAIN:
        check_files(workflow.configfiles, Path(str(config.get("results", "results"))))
    SHIPPED = ROOT / "resources/demo-pair"
    config, DERIVED = complete(config, SHIPPED)
    PLANTED = "planted" in config
    GRAPH = (PlantedGraph if PLANTED else Graph)(config, SHIPPED)
    SETTING = setting(config, SHIPPED, fetch=MAIN)
except TunediffError as error:
    print(error, file=sys.stderr)
    sys.exit(1)

R = config["results"]
RUNNING = Running(Path(R))
DEVICE = config["planted" if PLANTED else "models"]["device"]
# One job at a time has the GPU (profiles/default). A machine without one runs several; a cluster's head cannot see.
CLUSTER = workflow.resource_settings.nodes is not None
GPU = int(DEVICE.startswith("cuda") or (DEVICE == "auto" and (CLUSTER or sees_gpu())))
# Of a large job. On one machine two run side by side: two dictionaries are trained faster so than one after the other.
THREADS = max(1, min(8, (workflow.resource_settings.cores or 16) // 2))
ALL_THREADS = min(8, workflow.resource_settings.cores or 16)  # of the job that nearly all others wait for
MEMORY = memory_mb(SETTING)  # asked for, in MB, per kind of job (override in a profile)


def estimate():
    """What a whole run needs, to the terminal."""
    cores = workflow.resource_settings.cores or 1
    if cores == 1 and workflow.output_settings.dryrun:  # `-n` names no cores
        cores = workflow.resource_settings.max_threads or 8
    print(estimate_text(SETTING, DERIVED, GRAPH.n_jobs, cores), file=sys.stderr)


if MAIN and workflow.output_settings.dryrun:
    estimate()


def check_inputs():
    """End the run here where models, texts, packages or the device are not what its jobs need."""
    jobs = list(workflow.dag.needrun_jobs())
    names = {f"{job.wildcards.get('pair', '')}{job.rule.name}" for job in jobs}
    own = not workflow.deployment_settings.deployment_method  # else jobs run in other environments
    here = workflow.local_exec and any(job.resources.get("gpu") for job in jobs)
    found = preflight(config, SHIPPED, names, environment=own, device=here)
    for line in found.problems:
        print(line, file=sys.stderr)
    if found.problems:
        sys.exit(1)


def say(line):
    print(line, file=sys.stderr, flush=True)


def join_cluster():
    """Wait for the jobs of an earlier run and plan again with what they made; then watch those of this run."""
    cluster.check_accounting(workflow.executor_settings.status_command)
    if cluster.wait_for(Path.cwd(), say):
        os.execv(sys.executable, sys.orig_argv)
    cluster.watch(Path.cwd(), say)


onstart:  # of a run: not of -n, --report and the like, which work beside one
    try:
        RUNNING.start()
        if workflow.executor_plugin.name == "slurm":
            join_cluster()
    except TunediffError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    check_inputs()
    if not PLANTED:
        keep_parts()
    estimate()


onsuccess:
    # what changed, in ten lines
    report = Path(R) / "report"
    if "report" in GRAPH.on_disk()[0] and (report / "headline.txt").is_file():
        try:
            require(report, read_manifest(report), ["headline.txt"])
            print((report / "headline.txt").read_text(encoding="utf-8"), end="")
            if (Path(R) / "summary.txt").is_file():
                print(f"All numbers: {R}/summary.txt")
        except TunediffError as error:
            print(error, file=sys.stderr)


onerror:
    texts = [Path(file).read_text(encoding="utf-8", errors="replace") for file in log if Path(file).is_file()]
    for line in killed_lines("\n".join(texts), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        print(line, file=sys.stderr)


wildcard_constraints:
    pair="|".join(f"({pair})" for pair in GRAPH.pairs),
    split="train|validation",
    part="[0-9]+",
    name="[a-z][a-z0-9_]*(-seed[0-9]+)?",


# What was made by another config is made again: it reads a file that is newer than all results. All other inputs are
# `ancient`, so times of files, copies and fresh checkouts rebuild nothing: what is missing is made where it is needed.
CHANGED = GRAPH.on_disk()[1] if MAIN else frozenset()
MARKER = Path(R) / ".work/made-by-another-config"
if CHANGED:
    try:
        MARKER.parent.mkdir(parents=True, exist_ok=True)
        # Snakemake takes a newer file of the same content for an unchanged one.
        MARKER.write_text(f"{time_ns()}\n")
    except OSError as error:
        say(f"{MARKER}: {error.strerror}; results of another config are there, so this folder must be written to")
        sys.exit(1)


def reads(pattern):
    """The inputs of an artifact's job: stores by role, and all their manifests."""

    def of(wildcards):
        path = pattern.format(**wildcards)
        stores, manifests = GRAPH.inputs(path)
        mark = str if path in CHANGED else ancient
        found = {role: [mark(store) for store in paths] for role, paths in stores.items()}
        found["manifests"] = [mark(manifest) for manifest in manifests]
        return found | ({"changed": str(MARKER)} if path in CHANGED else {})

    return of


def makes(stage, pattern):
    """The outputs of an artifact's job: its manifest, and store(s) beside it."""
    paths = []
    for suffix in STAGES[stage].suffixes:
        path = f"{R}/{pattern}{suffix}"
        paths.append(directory(path[:-1]) if path.endswith("/") else path)
    return dict(zip(("store", "more", "further"), paths)) | {"manifest": f"{R}/{pattern}.json"}


def keys(pattern):
    """The keys that a job's own artifact gets ("own") and that the stores it reads must have."""
    return lambda wildcards: GRAPH.expected(pattern.format(**wildcards))


def given(input, output, **params):
    """What a script gets that a rule's shell starts, as JSON (`tunediff.pipeline.job.from_shell`)."""
    named = [
        {name: str(paths) if isinstance(paths, str) else [*map(str, paths)] for name, paths in each.items()}
        for each in (input, output)
    ]
    values = dict(zip(("input", "output"), named), params=params, config=config, wildcards={})
    return json.dumps(values, default=str)


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


def keep_parts():
    """Save the finished parts of jobs that will run, as Snakemake deletes all outputs of a job before it."""
    for job in workflow.dag.needrun_jobs():
        if job.rule.name == "activations" and not workflow.dag.reason(job).forced:
            set_aside({Path(path): key for path, key in GRAPH.harvested(job.wildcards.pair).items()}, Path(R) / ".work")
