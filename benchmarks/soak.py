"""Soak: what a run survives. Kills, flipped bytes, full disks, two heads, odd folders, fuzzed configs and inputs.

Run in the environment of `make env` from the checkout; all parts take about three hours on two cores. A line per part
says what was tried; the exit status is 1 where anything failed. Parts `disk` and `folders` mount file systems: root.
"""

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import soak_flips
import soak_fuzz
import soak_inputs
import soak_runs

# part -> times it is tried, what that counts, how it is run
PARTS: dict[str, tuple[int, str, Callable[[Path, int, argparse.Namespace], str]]] = {
    "kill": (
        100,
        "kills",
        lambda work, n, o: soak_runs.killed_runs(work, n, o.seed, o.cores, o.longest),
    ),
    "flips": (400, "flipped bytes", lambda work, n, o: soak_flips.flipped(work, n, o.seed, o.cores)),
    "disk": (20, "sizes", lambda work, n, o: soak_runs.full_disks(work, n, o.seed, o.cores)),
    "heads": (3, "second runs", lambda work, n, o: soak_runs.two_heads(work, n, o.seed, o.cores)),
    "folders": (1, "rounds", lambda work, n, o: soak_runs.folders(work, n, o.seed, o.cores)),
    "configs": (10_000, "configs", lambda work, n, o: soak_fuzz.configs(work, n, o.seed, o.cores)),
    "inputs": (500, "files and models", lambda work, n, o: soak_inputs.inputs(work, n, o.seed, o.cores)),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"parts to run: {', '.join(PARTS)} (all)")
    for name, (count, what, _) in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"{what} of part {name} ({count})")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice (0)")
    parser.add_argument("--cores", type=int, default=2, help="of runs, and worker processes (2)")
    parser.add_argument("--longest", type=float, default=40.0, help="seconds from a start to its kill, at most (40)")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="folder to work in (a temporary one, removed at the end)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return the exit status."""
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]}; there are {', '.join(PARTS)}")
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = (chosen.work or Path(temporary)).resolve()
        for name in chosen.parts or PARTS:
            _, _, run = PARTS[name]
            try:
                said = run(work, getattr(chosen, name), chosen)
            except soak_runs.SoakError as error:
                failed, said = failed + 1, f"FAILED: {error}"
            except Exception:  # a fault of the soak itself: the other parts go on
                failed, said = failed + 1, f"FAILED:\n{traceback.format_exc()}"
            print(f"{name}: {said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
