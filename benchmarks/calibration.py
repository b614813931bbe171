"""Do 95 % bootstrap intervals of ν hold the true ν 95 % of the time?

Many small planted data sets, the planted latents themselves as the crosscoder, so that the true ν^ε and ν^r are known
in closed form (`PlantedPair.true_nu`). Documents are bursty and have noise of their own, so tokens of one document are
not independent: intervals over blocks of documents, as the pipeline makes them, are set beside intervals over blocks
of tokens, which must be too short. One line per kind, frequency and target.
"""

import argparse
import json
import time

import numpy as np
import pandas as pd
import torch

from tunediff.config.planted import PlantedArm
from tunediff.dictionaries.crosscoder import Crosscoder
from tunediff.latents.scaling import (
    ScalingSums,
    betas,
    bootstrap_nu,
    direction_terms,
    document_block,
    nu,
    scaling_directions,
)
from tunediff.validation.planted import PlantedPair, plant, planted_code, planted_crosscoder, sample

SETTINGS = PlantedArm(
    d_model=24,
    shared=8,
    chat_only=8,
    base_only=4,
    weaker=20,
    amplified=4,
    rotated=4,
    decoupled=8,
    frequency=(0.05, 0.01),
    shared_frequency=(0.05, 0.02),
    burstiness=0.5,
    noise=0.1,
    document_noise=0.1,
)


def sums_of(pair: PlantedPair, crosscoder: Crosscoder, n_documents: int, seed: int, n_blocks: int) -> list[ScalingSums]:
    """Return the sums of one data set, by blocks of documents and by blocks of tokens."""
    length = pair.settings.document_tokens
    drawn = sample(pair, n_documents * length, [seed, 99])
    counted = np.arange(len(drawn.strength)) % length > 0
    h, code = torch.from_numpy(drawn.activations[counted]), planted_code(drawn.strength[counted])
    reconstruction = crosscoder.decode(code)
    directions = scaling_directions(crosscoder)
    both = []
    for unit in (np.flatnonzero(counted) // length, np.flatnonzero(counted)):
        sums = ScalingSums.zeros(n_blocks, crosscoder.dict_size)
        sums.add(
            code, torch.cat([h, reconstruction], dim=1), directions, torch.from_numpy(document_block(unit, n_blocks))
        )
        both.append(sums)
    return both


def coverage(
    settings: PlantedArm = SETTINGS,
    data_sets: int = 200,
    n_documents: int = 512,
    n_blocks: int = 64,
    resamples: int = 1000,
    seed: int = 0,
    min_count: int = 32,
) -> pd.DataFrame:
    """Return one row per data set, concept, target and unit: whether the interval holds the true ν."""
    pair = plant(settings, seed)
    crosscoder = planted_crosscoder(pair)
    terms, truth = direction_terms(crosscoder), pair.true_nu()
    rows = []
    for number in range(data_sets):
        sums = sums_of(pair, crosscoder, n_documents, number, n_blocks)
        enough = sums[0].total().count[0].numpy() >= min_count
        for unit, own in zip(("documents", "tokens"), sums, strict=True):
            point = {target: nu(beta[0]) for target, beta in betas(own.total(), terms).items()}
            for target, (low, high) in bootstrap_nu(own, terms, resamples, number).items():
                frame = pair.concepts[["kind", "frequency"]].assign(
                    concept=np.arange(len(pair.concepts)), data_set=number, unit=unit, target=target,
                    low=low.numpy(), high=high.numpy(), truth=truth[target], point=point[target].numpy(),
                )  # fmt: skip
                rows.append(frame[enough & np.isfinite(truth[target])])
    table = pd.concat(rows, ignore_index=True)
    table["below"], table["above"] = table["high"] < table["truth"], table["low"] > table["truth"]
    return table.assign(holds=~table["below"] & ~table["above"], width=table["high"] - table["low"])


def report(table: pd.DataFrame) -> pd.DataFrame:
    """Return coverage by unit, target, kind and frequency, with the share of misses on each side."""
    by = ["unit", "target", "kind", "frequency"]
    grouped = table.groupby(by, sort=False)
    result = grouped.agg(
        intervals=("holds", "size"),
        coverage=("holds", "mean"),
        truth_above=("below", "mean"),
        truth_below=("above", "mean"),
        width=("width", "median"),
    )
    return result.reset_index()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-sets", type=int, default=200)
    parser.add_argument("--documents", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the planted pair")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    cases = coverage(
        SETTINGS, arguments.data_sets, arguments.documents, arguments.blocks, arguments.resamples, arguments.seed
    )
    totals = cases.groupby(["unit", "target"])["holds"].agg(["size", "mean"])
    if arguments.json:
        print(json.dumps({f"{unit} {target}": row["mean"] for (unit, target), row in totals.iterrows()}))
    else:
        print(report(cases).round(4).to_string(index=False))
        print(totals.rename(columns={"size": "intervals", "mean": "coverage"}).round(4).to_string())
        print(f"{time.process_time() - started:.0f} CPU seconds")
