"""Print README's performance table: every row against its reference in the same run (a quiet machine, ~5 minutes).

Run in the environment of `make env`, after `make demo` (the last two rows read the demo's benchmarks/ and results/).
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import latent_scaling
import pandas as pd
import reading
import training_step

ROOT = Path(__file__).resolve().parents[1]


def training_row() -> str:
    """Sparse BatchTopK step against the dense one."""
    r = training_step.run()
    ours, reference = f"{r['tokens_per_second']:,.0f} tokens/s", f"dense: {r['tokens_per_second_dense']:,.0f} tokens/s"
    result = f"{r['ratio']:.1f}× (≥ 2×), loss curves equal to {r['max_relative_loss_difference']:.0e}"
    return f"| BatchTopK step, d 512, F 16,384, N 1,024, k 32 | {ours} | {reference} | {result} |"


def scaling_row() -> str:
    """Latent Scaling against encoding alone."""
    r = latent_scaling.run()
    ours, reference = f"{r['pass_ms']:.0f} ms a batch", f"encoding: {r['encode_ms']:.0f} ms"
    result = f"{r['ratio']:.2f}× (≤ 1.3×), equal to the definition to {r['max_difference']:.0e}"
    return f"| Latent Scaling, all latents and targets, same shape | {ours} | {reference} | {result} |"


def reading_row(codec: str) -> str:
    """Shuffled batches against a plain memory map."""
    r = reading.run(codec=codec)
    ours = f"{r['pairs_per_second'] / 1e3:,.0f} k pairs/s ({r['gigabytes_per_second']:.2f} GB/s)"
    reference = f"memory map: {r['memory_map_gigabytes_per_second']:.2f} GB/s"
    share = f"{r['share_of_memory_map']:.0%} of it (≥ 150 k pairs/s)"
    return f"| Shuffled batches from the store, d 128, {codec} | {ours} | {reference} | {share} |"


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
    rows = [
        training_row,
        scaling_row,
        lambda: reading_row("crc32c"),
        lambda: reading_row("blosc"),
        demo_row,
        dry_run_row,
    ]
    for row in rows:
        print(row(), flush=True)


if __name__ == "__main__":
    main()
