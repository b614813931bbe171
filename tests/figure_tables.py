"""Tables as the stages write them, made from seeded random numbers that look like a real run."""

import math
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from tunediff.explanations.scores import N_BOOTSTRAP, OVERALL, PER_LATENT, SCORED, overall
from tunediff.interventions.steering_table import COLUMNS, typed
from tunediff.latents.criterion import Criterion
from tunediff.latents.metrics import Evaluation
from tunediff.latents.table import LatentTable
from tunediff.report.inputs import Inputs
from tunediff.report.nulls import null_rates
from tunediff.validation.truth import RULES, Scores

LABELS = ("l1-seed0", "batchtopk-seed0")
SOURCES = ("web", "chat")
OTHER = Criterion(0.37, 0.13, -0.06, 1.7)  # nothing of it is a default
NULLS = {"same": {"base": "demo-chat", "chat": "demo-chat"}, "reseeded": {"base": "demo-chat", "chat": "demo-retuned"}}
CONFIG = {
    "results": "r", "seed": 0, "models": {"base": "base", "chat": "chat"}, "nulls": NULLS,
    "conversations": {"count": 512},
}  # fmt: skip


def given(seed: int = 0, **found: Any) -> Inputs:
    """Return the results of a run that has read just these, by their attribute."""
    results = Inputs({}, {**CONFIG, "seed": seed})
    vars(results).update(found)
    return results


def all_results(criterion: Criterion | None = None) -> dict[str, Any]:
    """Return something of everything that a drawing may read."""
    latents, metrics = latent_tables(criterion), {label: evaluation() for label in LABELS}
    kl, sets = kl_summary()
    return {
        "latents": latents,
        "evaluation": metrics,
        "twins": twin_tables(),
        "kl": kl,
        "sets": sets,
        "histories": histories(),
        "concepts": concepts(),
        "seeds": pd.DataFrame(columns=["crosscoder", "seed", "latent", "class_name", "chat_specific", "stable"]),
        "steering": steering_table(),
        "explanation_scores": explanation_scores(),
        "explanation_means": explanation_means(),
        "crosscoders": {label: {} for label in LABELS},
        "outliers": {"train": None, "validation": None},
        "nulls": nulls_table(criterion),
        "pairs": dict.fromkeys(("", *NULLS), (latents, metrics)),
        "scores": scores(criterion),
    }


def latent_table(
    seed: int = 0,
    shares: tuple[float, ...] = (0.14, 0.5, 0.12, 0.2, 0.04),
    size: int = 2048,
    criterion: Criterion | None = None,
) -> LatentTable:
    """Return a latent table with the given share of chat-only, shared, base-only, other and dead latents."""
    criterion = criterion or Criterion()
    rng = np.random.default_rng(seed)
    names = np.array(["chat-only", "shared", "base-only", "other", "dead"])
    class_name = rng.choice(names, size, p=shares)
    low = {"chat-only": 0.9, "shared": 0.4, "base-only": 0.0, "other": 0.6, "dead": 0.45}
    high = {"chat-only": 1.0, "shared": 0.6, "base-only": 0.1, "other": 0.9, "dead": 0.55}
    share = rng.beta(3, 3, size)
    difference = np.array([low[c] + (high[c] - low[c]) * s for c, s in zip(class_name, share, strict=True)])
    flip = (class_name == "other") & (rng.random(size) < 0.5)
    difference[flip] = 1 - difference[flip]
    chat, shared = class_name == "chat-only", class_name == "shared"
    specific = chat & (rng.random(size) < 0.4)
    decoupled = chat & ~specific
    nu_r = rng.normal(1.0, 0.12, size)
    nu_e = rng.normal(0.95, 0.15, size)
    nu_r[specific], nu_e[specific] = rng.normal(0.1, 0.12, specific.sum()), rng.normal(0.06, 0.06, specific.sum())
    nu_r[decoupled], nu_e[decoupled] = rng.normal(0.7, 0.3, decoupled.sum()), rng.normal(0.25, 0.2, decoupled.sum())
    rare = (rng.random(size) < 0.03) | (class_name == "dead")
    nu_r[rare] = nu_e[rare] = np.nan
    cosine = np.where(shared, 1 - rng.beta(1.5, 12, size), rng.uniform(-0.4, 0.8, size))
    frequency = 10 ** rng.normal(-2.6, 0.6, size).clip(-5.5, -0.1)
    frequency[class_name == "dead"] = 0
    template = np.where(chat, rng.beta(0.5, 0.7, size), rng.beta(0.5, 4, size))
    template[class_name == "dead"] = np.nan
    columns = {
        "latent": np.arange(size),
        "norm_difference": difference,
        "cosine": cosine,
        "class_name": class_name,
        "dead": class_name == "dead",
        "frequency": frequency,
        "frequency_web": frequency / 20,
        "frequency_chat": frequency * 1.95,
        "template_share": template,
    }
    measured = {
        "": (nu_r, nu_e),
        "_low": (nu_r - 0.05, nu_e - 0.04),
        "_high": (nu_r + 0.05, nu_e + 0.04),
        "_validation": (nu_r + rng.normal(0, 0.08, size), nu_e + rng.normal(0, 0.05, size)),
        "_random": (rng.normal(0.9, 0.4, size), rng.normal(0.9, 0.5, size)),
        "_shuffled": (rng.normal(0.9, 0.35, size), rng.normal(0.9, 0.45, size)),
    }
    for suffix, both in measured.items():
        columns |= {f"nu_reconstruction{suffix}": both[0], f"nu_error{suffix}": both[1]}
    return judged(pd.DataFrame(columns), criterion)


def judged(frame: pd.DataFrame, criterion: Criterion) -> LatentTable:
    """Return a whole latent table of the given columns: calls by the criterion, in plain words; others empty."""

    def inside(suffix: str) -> pd.Series:
        both = frame[[f"nu_reconstruction{suffix}", f"nu_error{suffix}"]]
        return (both >= criterion.lowest).all(axis=1) & (both <= criterion.highest).all(axis=1)

    def passes(suffix: str) -> pd.Series:
        below = frame[f"nu_reconstruction{suffix}"] < criterion.nu_reconstruction_below
        return inside(suffix) & below & (frame[f"nu_error{suffix}"] < criterion.nu_error_below)

    both = frame[["nu_reconstruction", "nu_error"]]
    frame = frame.assign(
        rank_sum=both.where(inside("")).rank().sum(axis=1, skipna=False),
        chat_specific=passes(""),
        chat_specific_validation=passes("") & passes("_validation"),
        chat_specific_interval=passes("") & passes("_high"),
        reversed=both.notna().all(axis=1) & (both < criterion.lowest).any(axis=1),
    )
    empty = {"float32": np.nan, "int32": 0, "int64": 0, "bool": False}
    whole = {
        name: frame[name].astype("str" if dtype == "string" else dtype) if name in frame else empty[dtype]
        for name, dtype in LatentTable.schema(SOURCES).items()
    }
    table = pd.DataFrame(whole, index=frame.index)
    return LatentTable(
        table.astype({n: d for n, d in LatentTable.schema(SOURCES).items() if d != "string"}), SOURCES, criterion
    )


def latent_tables(criterion: Criterion | None = None) -> dict[str, LatentTable]:
    """Return an L1-like table and a BatchTopK-like one with few chat-only latents and many dead ones."""
    few = (0.008, 0.74, 0.002, 0.13, 0.12)
    return {LABELS[0]: latent_table(0, criterion=criterion), LABELS[1]: latent_table(1, few, criterion=criterion)}


def without_chat_only() -> dict[str, LatentTable]:
    """Return tables in which a whole class is missing, one of them with dead latents only."""
    return {LABELS[0]: latent_table(0, (0, 0.7, 0, 0.2, 0.1), 256), LABELS[1]: latent_table(1, (0, 0, 0, 0, 1), 64)}


def nulls_table(criterion: Criterion | None = None) -> pd.DataFrame:
    """Return the rates of a pair, of an exact null and of a contaminated one."""
    pair = latent_tables(criterion), {label: evaluation() for label in LABELS}
    return null_rates({"": pair, "same": pair, "reseeded": pair}, {"same": "exact", "reseeded": "contaminated"})


def kl_summary() -> tuple[pd.DataFrame, dict]:
    """Return causal/summary.parquet and causal/kl.sets.json with values near the paper's."""
    rng = np.random.default_rng(3)
    shared = [("none", "", 0, 0, np.nan, 0.482, 1.69), ("template", "", 0, 0, np.nan, 0.239, 0.507)]
    shared.append(("chat", "", 0, 0, np.nan, 0.0, 0.0))
    # intervention, ranking, draw, point, energy share, mean over all and over the first 9 tokens
    own = [("all", "", 0, 0, 1.0, 0.2, 0.37), ("error", "", 0, 0, 1.0, 0.31, 0.9)]
    means = {"latent_scaling": (0.225, 0.55, 0.262, 1.2), "norm_difference": (0.241, 0.619, 0.242, 0.74)}
    for ranking, (best, best_first, worst, worst_first) in means.items():
        for suffix in ("", "_additive"):
            own.append((f"{ranking}_best{suffix}", ranking, 0, 0, 0.145, best, best_first))
            own.append((f"{ranking}_worst{suffix}", ranking, 0, 0, 0.063, worst, worst_first))
        own += [("matched_random", ranking, i, 0, 0.14, 0.3 + 0.004 * i, 0.7 + 0.01 * i) for i in range(5)]
        own.append(("matched_random_mean", ranking, 0, 0, 0.14, 0.308, 0.72))
    strength = {"norm_difference": 0.7, "latent_scaling": 0.6, "energy": 0.5, "random": 0.9}
    for ranking, power in strength.items():
        for draw in range(3 if ranking == "random" else 1):
            for point, share in enumerate((0.02, 0.1, 0.4, 0.7), 1):
                part = share**power * (1 + 0.03 * draw)
                own.append(("prefix", ranking, draw, point, share, 0.482 - 0.28 * part, 1.69 - 1.3 * part))
    rows = []
    for label, edits in (("", shared), *((label, own) for label in LABELS)):
        for intervention, ranking, draw, point, share, *pair in edits:
            for positions, mean, none, tokens in (("all", pair[0], 0.482, 81234), ("first", pair[1], 1.69, 4608)):
                value = mean * (1 + (0.05 * rng.normal() if label else 0))
                spread = 0.04 * value
                rows.append(
                    {
                        "crosscoder": label, "intervention": intervention, "ranking": ranking, "draw": draw,
                        "point": point, "n_latents": 143, "positions": positions, "mean": value,
                        "low": value - spread, "high": value + spread,
                        "reduction": 1 - value / none, "reduction_low": 1 - (value + spread) / none,
                        "reduction_high": 1 - (value - spread) / none, "energy": 1e4 * share, "energy_share": share,
                        "n_conversations": 512, "n_tokens": tokens,
                    }
                )  # fmt: skip
    table = pd.DataFrame(rows)
    return pd.concat([table, kl_comparisons(table)], ignore_index=True), {label: kl_sets(label) for label in LABELS}


def kl_comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons of a summary: the first crosscoder has no energy-matched halves by Latent Scaling."""
    rng = np.random.default_rng(6)
    rows = []
    for label in LABELS:
        for ranking in ("norm_difference", "latent_scaling", "energy"):
            for name in ("best_minus_worst", "matched_best_minus_worst", "best_minus_random", "area_over_random"):
                missing = ranking == "energy" or (label, ranking) == (LABELS[0], "latent_scaling")
                if missing and name.startswith("matched"):
                    continue
                for positions in ("all", "first"):
                    value, spread = rng.uniform(-0.02, 0.12), rng.uniform(0.01, 0.03)
                    rows.append(
                        {
                            "crosscoder": label, "intervention": name, "ranking": ranking, "draw": 0, "point": 0,
                            "positions": positions, "mean": -0.482 * value, "low": -0.482 * (value + spread),
                            "high": -0.482 * (value - spread), "reduction": value, "reduction_low": value - spread,
                            "reduction_high": value + spread, "energy_share": 0.01,
                            "n_conversations": 512, "n_tokens": 81234 if positions == "all" else 4608,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows, columns=table.columns)


def kl_sets(label: str) -> dict:
    """Return what causal/kl.sets.json says of a crosscoder."""
    chat_only = 286 if label == LABELS[0] else 17
    name = f"the 286 live latents of highest norm difference ({chat_only} of them chat-only)"
    return {"latents": list(range(286)), "size": 286, "half": 143, "name": name, "rule": name, "notes": []}


STEERED = {11: "joke", 12: "refusal", 13: ""}  # latents of `steering_table`, and the kind of their own


def steering_table(moved: bool = True) -> pd.DataFrame:
    """Return steering.parquet: latent 11 raises jokes at both α where `moved`, 12 nothing, 13 is of no kind."""
    rng = np.random.default_rng(7)
    arms = {"steered": 0, "base_model": 0, "sign_flip": 0, "base_row": 0, "shared": 0, "random": 3}
    rows: list[dict[str, Any]] = []

    def add(crosscoder: str, latent: int, arm: str, draw: int, alpha: float, positions: str, rate: float) -> None:
        dose = 10.0 * alpha
        row = {
            "crosscoder": crosscoder, "latent": latent, "place": max(0, latent - 10), "arm": arm, "draw": draw,
            "model": "base" if arm == "base_model" else "chat", "direction": latent, "alpha": alpha,
            "positions": positions, "cosine": 1.0, "dose": dose, "dose_share": dose / 28, "n": 64,
        }  # fmt: skip
        for measure, value in (("kl", 0.1 + alpha), ("nll", 0.9), ("repetition", 0.02), ("logit_shift", 1.5)):
            value *= 1 + 0.1 * rng.normal()
            ends = {"value": value, "low": 0.9 * value, "high": 1.1 * value}
            rows.append(row | ends | {"measure": measure, "kind": "", "own": False})
        for kind in ("joke", "refusal"):
            of = rate if kind == STEERED.get(latent, kind) else 0.2
            ends = {"value": of, "low": max(0.0, of - 0.1), "high": min(1.0, of + 0.1)}
            own = kind == STEERED.get(latent)
            rows.append(row | ends | {"measure": "rate", "kind": kind, "own": own})

    for model in ("chat", "base"):
        add("", -1, "unsteered", 0, 0.0, "all", 0.1)
        for row in rows[-6:]:
            row["model"] = model
    for label in LABELS:
        for latent in STEERED:
            for positions in ("all", "prompt"):
                for alpha in (0.25, 0.5):
                    for arm, draws in arms.items():
                        for draw in range(max(1, draws)):
                            rate = 0.8 if (arm, latent, moved) == ("steered", 11, True) else 0.15
                            add(label, latent, arm, draw, alpha, positions, rate)
            for arm, value in (("ablation", 0.3), ("ablation_random", 0.04)):
                for where, factor in (("firing", 1.0), ("elsewhere", 0.1)):
                    add(label, latent, arm, 0, np.nan, where, np.nan)
                    del rows[-5:]  # KL alone
                    rows[-1] |= {"value": factor * value, "low": 0.0, "high": 1.0}
    return typed(rows, COLUMNS)


def twin_tables() -> dict[str, pd.DataFrame]:
    """Return pairs with twins for the first crosscoder and without for the second."""
    rng = np.random.default_rng(4)
    near, far = 37, 400
    both = pd.DataFrame(
        {
            "chat_only_latent": np.arange(near + far),
            "base_only_latent": np.arange(near + far) + 1000,
            "cosine": np.r_[rng.uniform(0.91, 0.99, near), rng.uniform(-0.2, 0.6, far)],
            "divergence": np.r_[rng.beta(3, 3, near), rng.beta(8, 1, far)],
        }
    )
    both.attrs["twin_cosine"] = 0.9
    return {LABELS[0]: both, LABELS[1]: both.iloc[near + 300 :].reset_index(drop=True)}


def histories() -> dict[str, pd.DataFrame]:
    """Return training histories of three crosscoders, two of them seeds of one kind."""
    rng = np.random.default_rng(5)
    result = {}
    for label, final in (("l1-seed0", 53), ("l1-seed1", 55), ("batchtopk-seed0", 20)):
        step = np.arange(10, 1510, 10)
        decay = np.exp(-step / 200)
        noise = rng.normal(0, 0.01, len(step))
        result[label] = pd.DataFrame(
            {
                "step": step,
                "tokens": step * 2048,
                "loss": 2.5 * decay + 0.3 + noise + (final > 50) * 0.5,
                "reconstruction": 2.4 * decay + 0.2 + noise,
                "fve_base": 0.985 - 1.6 * decay + noise / 5,
                "fve_chat": 0.98 - 1.7 * decay + noise / 5,
                "l0": final + (600 * decay if final > 50 else 0 * decay),
                "dead_fraction": 0.12 * (1 - decay) * (final < 50),
            }
        )
    return result


def evaluation(fve: float = 0.88, l0: float = 52.3, dead: float = 0.04) -> Evaluation:
    """Return results/evaluation/NAME.json."""
    metrics = [
        {"metric": "fve", "model": model, "subset": subset, "value": fve - loss}
        for model, loss in (("base", 0), ("chat", 0.01), ("difference", 0.3))
        for subset in ("web", "chat", "template", "all")
    ]  # fmt: skip
    for name, values in (
        ("fve_standardised", (0.5, 0.48, 0.31)), ("largest_dimension_share", (0.88, 0.86, 0.2)),
        ("largest_dimension", (347, 347, 12)),
    ):  # fmt: skip
        metrics += [
            {"metric": name, "model": model, "subset": "all", "value": value}
            for model, value in zip(("base", "chat", "difference"), values, strict=True)
        ]
    metrics += [{"metric": "l0", "model": "both", "subset": "all", "value": l0}]
    metrics += [{"metric": "dead_fraction", "model": "both", "subset": "all", "value": dead}]
    return Evaluation(metrics, {"all": 1_000_000, "web": 500_000})


def scores(criterion: Criterion | None = None) -> Scores:
    """Return planted scores of two arms, two crosscoders and two seeds."""
    rng = np.random.default_rng(7)
    kinds = {"chat-only": 1.0, "weaker": 0.5, "decoupled": 1.0, "shared": 1.0, "base-only": 1.0}
    concepts, crosscoders = [], []
    for arm in ("main", "null"):
        for seed in (0, 1):
            for name in ("l1", "batchtopk"):
                of = {"arm": arm, "seed": seed, "crosscoder": name}
                for kind, factor in kinds.items():
                    for frequency in (0.01, 0.05):
                        row = {"kind": kind, "factor": factor, "frequency": frequency, "parts": 1, "found": True}
                        row |= {
                            f"{what}_{rule}": bool(rng.random() < 0.5) for what in ("chat", "right") for rule in RULES
                        }
                        concepts.append(of | row)
                quality = ["found", "reversed", "fve_base", "fve_chat", "auroc_norm_difference", "auroc_rank_sum"]
                quality += [f"{q}_{rule}" for q in ("recall", "precision", "false_positives") for rule in RULES]
                quality += ["false_base_norm_difference", "false_base_nu_point"]
                sizes = {"dict_size": 512, "l0": 12.5, "live": 500}
                crosscoders.append(of | sizes | {column: rng.random() for column in quality})
    return Scores(pd.DataFrame(concepts), pd.DataFrame(), pd.DataFrame(crosscoders), criterion or Criterion())


def concepts() -> pd.DataFrame:
    """A concept table of two crosscoders and two seeds; weather is no chat concept, weddings are a kind of joke."""
    generator = np.random.default_rng(0)
    among = {
        "refusal": "all tokens",
        "joke_wedding_onset": "joke_onset",
        "joke_onset": "answer_onset",
        "weather": "all tokens",
    }
    rows = [
        {
            "concept": concept,
            "chat_concept": concept != "weather",
            "among": other,
            "crosscoder": f"{kind}-seed{seed}",
            "pool": pool,
            "scored": True,
            "latent": 3,
            "n_live": 1000 + 10 * seed,
        }
        for kind in ("l1", "batchtopk")
        for seed in (0, 1)
        for concept, other in among.items()
        for pool in ("chat-specific", "all")
    ]
    table = pd.DataFrame(rows)
    for column in ("auroc", "auroc_among", "precision", "recall"):
        table[column] = generator.uniform(0.5, 1, len(table))
    table["rank"] = generator.integers(1, 60, len(table)).astype(float)
    table["control_median"] = generator.uniform(0.5, 0.7, len(table))
    table["control_high"] = table["control_median"] + generator.uniform(0, 0.3, len(table))
    table["control_share"] = np.where(np.arange(len(table)) % 3 == 0, 0.2, 0.01)
    table.attrs |= {"detected_auroc": 0.9, "detected_share": 0.05}
    return table


BANDS_OF_WINDOWS = ("high", "middle", "low", "inactive", "inactive_hard")


def explanation_row(
    dictionary: str, latent: int, explainer: str = "lexical", judge: str = "rule", score: float = 0.7, **more: Any
) -> dict[str, Any]:
    """Return a row of explanation_scores; `status` says why where it is not scored, and then there is no score."""
    scored = more.get("status", SCORED) == SCORED
    value = score if scored else math.nan
    row = {
        "dictionary": dictionary, "group": "ranked", "latent": latent, "explainer": explainer, "judge": judge,
        "of": latent, "text": '"?" in an answer (60 % of the texts in which it is active, 7 % of others)',
        "status": SCORED, "n_active": 30 if scored else 0, "n_silent": 30 if scored else 0, "n_missing": 0,
        "balanced_accuracy": value, "balanced_accuracy_low": value - 0.08, "balanced_accuracy_high": value + 0.08,
        "auroc": value + 0.01, **{f"accuracy_{band}": value for band in BANDS_OF_WINDOWS},
        "order_effect": 0.02 if judge == "llm" else math.nan, "rank_sum": float(latent), "frequency": 0.01,
    }  # fmt: skip
    return dict.fromkeys(PER_LATENT, math.nan) | row | more


def as_scores(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return rows of `explanation_row` as that table."""
    return pd.DataFrame(rows, columns=list(PER_LATENT)).astype(PER_LATENT)


EXPLAINED_BY = {("lexical", "rule"): 0.74, ("lexical", "llm"): 0.71, ("llm", "llm"): 0.82, ("label", "rule"): 0.93}
CONTROLS = {
    ("lexical of another", "rule"): 0.52, ("label of another", "rule"): 0.5, ("llm of another", "llm"): 0.53,
    ("generic", "rule"): 0.5, ("generic", "llm"): 0.49,
}  # fmt: skip


@cache
def _explanations() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return scores of 50 ranked latents and others, by rules and by a language model, and their means."""
    rng = np.random.default_rng(8)
    groups = {"ranked": range(50), "shared": range(50, 70), "random": range(12), "untrained": range(12)}
    lower = {"ranked": 0, "shared": 0.05, "random": 0.12, "untrained": 0.15}
    rows = []
    for label in LABELS:
        for group, latents in groups.items():
            for latent in latents:
                made = dict(EXPLAINED_BY)
                if latent % 2 or group in ("random", "untrained"):  # five with a label in each fifth
                    del made["label", "rule"]
                if group == "ranked" and latent < 12:
                    made |= CONTROLS
                for (explainer, judge), mean in made.items():
                    score = float(np.clip(mean - lower[group] + rng.normal(0, 0.06), 0.3, 1))
                    bands = dict(zip(BANDS_OF_WINDOWS, (0.2, 0, -0.35, 0.15, 0.05), strict=True))
                    parts = {f"accuracy_{band}": float(np.clip(score + by, 0, 1)) for band, by in bands.items()}
                    of = {"group": group, "frequency": float(10 ** rng.normal(-2.3, 0.4))} | parts
                    if group == "ranked" and latent == 7:
                        of = {"group": group, "status": "2 windows to explain from, 5 needed"}
                    rows.append(explanation_row(label, latent, explainer, judge, score, **of))
    frame = as_scores(rows)
    resampled = {
        i: {
            measure: rng.normal(frame[measure].iloc[i], 0.04, N_BOOTSTRAP) for measure in ("balanced_accuracy", "auroc")
        }
        for i in frame.index[frame["status"] == SCORED]
    }
    return frame, overall(frame, resampled, 0)[list(OVERALL)]


def explanation_scores() -> pd.DataFrame:
    """Return explanation_scores/scores.parquet of explanations by rules and by a language model."""
    return _explanations()[0].copy()


def explanation_means() -> pd.DataFrame:
    """Return explanation_scores/scores.overall.parquet."""
    return _explanations()[1].copy()
