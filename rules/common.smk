# Config check, content keys and the helpers of all rules. Nothing heavy: this is read at every start.
import sys
from pathlib import Path

from tunediff.pipeline.artifacts import read_manifest
from tunediff.config.check import complete
from tunediff.errors import TunediffError
from tunediff.config.estimate import memory_mb, report, setting
from tunediff.pipeline.finished import is_finished
from tunediff.pipeline.plan import Plan, PlantedPlan

ROOT = Path(workflow.basedir)
# Jobs read this file too: they do not ask the hub for a model's size, and print no estimate.
MAIN = workflow.is_main_process

try:
    SHIPPED = ROOT / "resources/demo-pair"
    config, DERIVED = complete(config, SHIPPED)
    PLANTED = "planted" in config
    MakePlan = PlantedPlan if PLANTED else Plan
    PLAN = MakePlan(config, ROOT / "workflow/scripts", SHIPPED)
    KEYS = PLAN.keys
    SETTING = setting(config, SHIPPED, fetch=MAIN)
except TunediffError as error:
    print(error, file=sys.stderr)
    sys.exit(1)

R = config["results"]
GPU = 0 if config["planted" if PLANTED else "models"]["device"] == "cpu" else 1
MEMORY = memory_mb(SETTING)  # asked for, in MB, per kind of job (override in a profile)
FIGURES, TABLES = (
    [
        f"{R}/{name}.{suffix}"
        for name in KEYS
        if name.startswith(folder)
        for suffix in ("pdf", "png", "csv")
    ]
    for folder in ("figures/", "tables/")
)


# A pair of models has its artifacts in a folder: the run's own pair in RESULTS/, a null in RESULTS/nulls/NAME/.
PAIRS = ["", *(f"nulls/{null}/" for null in config["nulls"])]


def estimate():
    """What a whole run needs, to the terminal."""
    cores = workflow.resource_settings.cores or 1
    if cores == 1 and workflow.output_settings.dryrun:  # `-n` names no cores
        cores = workflow.resource_settings.max_threads or 8
    print(report(SETTING, DERIVED, PLAN.n_jobs, cores), file=sys.stderr)


if MAIN and workflow.output_settings.dryrun:
    estimate()


onstart:
    estimate()


wildcard_constraints:
    pair="|".join(f"({pair})" for pair in PAIRS),
    split="train|validation",
    part="[0-9]+",
    name="[a-z][a-z0-9_]*(-seed[0-9]+)?",


def store(path):
    """A store as a rule's input: its manifest, compared by content, says whether it changed; its own time does not."""
    return ancient(f"{R}/{path}")


def key(pattern):
    """The content key of an artifact as a rule's parameter."""
    return lambda wildcards: KEYS[pattern.format(**wildcards)]


def kept(pair, name):
    """Whether a dictionary was trained before and is kept under its key: then it waits for no training."""
    own_key = KEYS[f"{pair}crosscoders/{name}"]
    return is_finished(Path(R) / ".work" / own_key, own_key, checksums=False)


def parts(split, suffix, pair=""):
    """All parts of a split's activations: stores (.zarr) or manifests (.json); of any pair with `pair="{pair}"`."""
    return [
        f"{R}/{pair}activations/{split}/part-{i:03d}{suffix}"
        for i in range(PLAN.n_parts(split))
    ]


def each_dictionary(pattern):
    """The pattern for every crosscoder and seed."""
    return [f"{R}/{pattern}".format(name=name) for name in PLAN.dictionaries]


def each_trained(pattern):
    """The pattern for every crosscoder and seed that is trained here: published ones have no history."""
    return [f"{R}/{pattern}".format(name=name) for name in PLAN.trained]


def nulls_key():
    """The key of the nulls' counts where they have run for this very config, else nothing."""
    try:
        return read_manifest(
            Path(f"{R}/nulls/summary.csv"), "nulls", KEYS.get("nulls/summary", "none")
        ).key
    except TunediffError:
        return ""
