# Config check, the graph and what rules take from it. Nothing heavy: this is read at every start.
import json
import os
import sys
from functools import cache
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


# What was made by another config is made again: it reads a file that is newer than all results.
KEYED, CHANGED = GRAPH.on_disk() if MAIN else (frozenset(), frozenset())
MARKER = Path(R) / ".work/made-by-another-config"
if CHANGED:
    try:
        MARKER.parent.mkdir(parents=True, exist_ok=True)
        # Snakemake takes a newer file of the same content for an unchanged one.
        MARKER.write_text(f"{time_ns()}\n")
    except OSError as error:
        say(f"{MARKER}: {error.strerror}; results of another config are there, so this folder must be written to")
        sys.exit(1)


@cache
def is_whole(path):
    """Whether an artifact is on disk as this config makes it."""
    suffixes = STAGES[GRAPH.artifacts[path].stage].suffixes
    return path in KEYED and all(Path(f"{R}/{path}{suffix}").exists() for suffix in suffixes)


def is_forced():
    """Whether the command line names jobs that run although nothing has changed."""
    asked = workflow.dag_settings
    return bool(asked.forcerun or asked.forceall or asked.forcetargets or asked.force_incomplete)


def reads(*patterns):
    """The inputs of the job that makes the artifacts of these patterns: stores by role, and all their manifests.

    What is whole needs nothing: its inputs are named as far as they are there, and as `ancient`, so no time of a file,
    copy or fresh checkout makes it again. What is missing or changed has plain inputs: Snakemake then runs it after any
    job before it that runs, which it would not for an `ancient` file that is there.
    """

    def of(wildcards):
        made = [pattern.format(**wildcards) for pattern in patterns]
        changed, done = any(path in CHANGED for path in made), [is_whole(path) for path in made]
        mark = ancient if not changed and (any(done) or not MAIN) else str
        finished = all(done) and not is_forced()
        found = {"changed": [str(MARKER)]} if changed else {}
        for path in made:
            stores, manifests = GRAPH.inputs(path)
            for role, files in {**stores, "manifests": manifests}.items():
                kept = [mark(file) for file in files if not finished or Path(file).exists()]
                found[role] = list(dict.fromkeys([*found.get(role, []), *kept]))
        return found

    return of


def makes(stage, pattern):
    """The outputs of an artifact's job: its manifest, and store(s) beside it."""
    paths = []
    for suffix in STAGES[stage].suffixes:
        path = f"{R}/{pattern}{suffix}"
        paths.append(directory(path[:-1]) if path.endswith("/") else path)
    return dict(zip(("store", "more", "further"), paths)) | {"manifest": f"{R}/{pattern}.json"}


def keys(*patterns):
    """The keys that a job's artifact gets ("own", the last one's) and that the stores it reads must have."""
    return lambda wildcards: {
        of: key for pattern in patterns for of, key in GRAPH.expected(pattern.format(**wildcards)).items()
    }


def given(input, output, **params):
    """What a script gets that a rule's shell starts, as JSON (`tunediff.pipeline.job.from_shell`)."""
    named = [
        {name: str(paths) if isinstance(paths, str) else [*map(str, paths)] for name, paths in each.items()}
        for each in (input, output)
    ]
    values = dict(zip(("input", "output"), named), params=params, config=config, wildcards={})
    return json.dumps(values, default=str)


def keep_parts():
    """Save the finished parts of jobs that will run, as Snakemake deletes all outputs of a job before it."""
    for job in workflow.dag.needrun_jobs():
        if job.rule.name == "activations" and not workflow.dag.reason(job).forced:
            set_aside({Path(path): key for path, key in GRAPH.harvested(job.wildcards.pair).items()}, Path(R) / ".work")
