"""Print the table of docs/speed.md: every row against its reference in the same run (a quiet machine, ~8 minutes).

Run in the environment of `make env`. After `make demo` two rows more read the demo's results/. GB beside a time are
peak memory (`measured.peak_memory`).
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import latent_scaling
import pandas as pd
import passes
import reading
import scaling
import training_step

ROOT = Path(__file__).resolve().parents[1]


def training_rows() -> list[str]:
    """A BatchTopK step against dense PyTorch and the paper's arithmetic."""
    return [
        training_step.row(shape, training_step.run(shape, steps, warmup=warmup))
        for shape, steps, warmup in zip(training_step.SHAPES, (12, 4), (2, 1), strict=True)
    ]


def passes_rows() -> list[str]:
    """The passes of the analysis against encoding alone."""
    made = []
    for shape, batches, n_tokens in zip(training_step.SHAPES, (20, 10), (65_536, 16_384), strict=True):
        made += passes.rows(shape, passes.run(shape, batches, n_tokens))
    return made


def scaling_row() -> str:
    """Latent Scaling against its definition."""
    r = latent_scaling.run()
    return f"| Latent Scaling's β of all targets | | the definition | equal to {r['max_difference']:.0e} |"


def reading_row(codec: str, d_model: int) -> str:
    """Shuffled batches against a plain memory map."""
    n, pool = (1_048_576, 128) if d_model < 1024 else (65_536, 32)
    r = reading.run(n, d_model, codec=codec, pool_chunks=pool, rounds=3 if codec == "crc32c" else 1)
    ours = f"{r['pairs_per_second'] / 1e3:,.0f} k pairs/s ({r['gigabytes_per_second']:.2f} GB/s)"
    reference = f"memory map: {r['memory_map_gigabytes_per_second']:.2f} GB/s"
    share = f"{r['share_of_memory_map']:.0%} of it (≥ {150 if d_model < 1024 else 100} k pairs/s)"
    what = f"Shuffled batches from the store, d {d_model}, {codec}"
    return f"| {what} | {ours}, {r['peak_gigabytes']:.1f} GB | {reference} | {share} |"


def demo_row() -> str:
    """Wall time and memory of the finished demo, job by job."""
    files = sorted((ROOT / "results/benchmarks").rglob("*.tsv"))
    jobs = pd.concat([pd.read_csv(path, sep="\t") for path in files])
    seconds, memory = jobs["s"].sum(), jobs["max_rss"].max() / 1024
    ours = f"{seconds / 60:.1f} min in {len(jobs)} jobs, {memory:.1f} GB"
    return f"| Whole demo, all figures and tables (jobs added up) | {ours} | target | ≤ 10 min, ≤ 4 GB |"


def dry_run_row() -> str:
    """`snakemake -n` on the finished demo."""
    seconds, idle = [], True
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "snakemake", "-n"], cwd=ROOT, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        idle &= "Nothing to be done" in done.stdout + done.stderr
    says = "nothing to do" if idle else "there is work to do"
    return (
        f"| `snakemake -n` on the finished demo | {statistics.median(seconds):.1f} s | target | ≤ 5 s; it says {says} |"
    )


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| what | ours | reference | result (target) |\n|---|---|---|---|", flush=True)
    rows: list[Callable[[], list[str]]] = [
        training_rows,
        passes_rows,
        lambda: [scaling_row()],
        *(lambda c=c, d=d: [reading_row(c, d)] for d in (128, 2304) for c in ("crc32c", "blosc")),  # type: ignore[misc]
        lambda: scaling.rows(scaling.run()),
    ]
    if (ROOT / "results/benchmarks").is_dir():
        rows += [lambda: [demo_row()], lambda: [dry_run_row()]]
    for row in rows:
        print("\n".join(row()), flush=True)


if __name__ == "__main__":
    main()
