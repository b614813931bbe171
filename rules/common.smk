# Config check, content keys and the helpers of all rules. Nothing heavy: this is read at every start.
import sys
from pathlib import Path

from tunediff.config import check, load_schema
from tunediff.demo import DEMO_MODELS
from tunediff.errors import TunediffError
from tunediff.finished import is_finished
from tunediff.plan import Plan, PlantedPlan

ROOT = Path(workflow.basedir)

try:
    config = check(config, load_schema(ROOT / "workflow/schemas/config.schema.yaml"))
    PLANTED = "planted" in config
    MakePlan = PlantedPlan if PLANTED else Plan
    PLAN = MakePlan(config, ROOT / "workflow/scripts", ROOT / "resources/demo-pair")
    KEYS = PLAN.keys
except TunediffError as error:
    print(error, file=sys.stderr)
    sys.exit(1)

R = config["results"]
GPU = 0 if config["planted" if PLANTED else "models"]["device"] == "cpu" else 1
# Memory asked for, in MB: the demo's models are tiny, others are taken as 2-8 B parameters (override in a profile).
DEMO = PLANTED or config["models"]["base"] in DEMO_MODELS
MODEL_MB = 2000 if DEMO else 24000
SHARD_MB = 500 if DEMO else 8000
TRAIN_MB = 3000 if DEMO else 48000
CROSSCODER_MB = 2000 if DEMO else 24000
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
