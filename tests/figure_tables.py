"""Tables as the stages write them, made from seeded random numbers that look like a real run."""

import numpy as np
import pandas as pd

LABELS = ("l1-seed0", "batchtopk-seed0")


def latent_table(
    seed: int = 0, shares: tuple[float, ...] = (0.14, 0.5, 0.12, 0.2, 0.04), size: int = 2048
) -> pd.DataFrame:
    """Return a latent table with the given share of chat-only, shared, base-only, other and dead latents."""
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
    ranked = np.isfinite(nu_r) & (np.minimum(nu_r, nu_e) > -0.1) & (np.maximum(nu_r, nu_e) < 2)
    rank = pd.Series(nu_r).where(ranked).rank() + pd.Series(nu_e).where(ranked).rank()
    return pd.DataFrame(
        {
            "latent": np.arange(size, dtype=np.int32),
            "norm_difference": difference.astype(np.float32),
            "cosine": cosine.astype(np.float32),
            "class_name": class_name,
            "dead": class_name == "dead",
            "frequency": frequency,
            "template_share": template,
            "nu_reconstruction": nu_r,
            "nu_error": nu_e,
            "rank_sum": rank.to_numpy(),
            "chat_specific": (nu_r < 0.5) & (nu_e < 0.2),
            "chat_specific_interval": (nu_r < 0.4) & (nu_e < 0.15),
        }
    )


def latent_tables() -> dict[str, pd.DataFrame]:
    """Return an L1-like table and a BatchTopK-like one with few chat-only latents and many dead ones."""
    return {LABELS[0]: latent_table(0), LABELS[1]: latent_table(1, (0.008, 0.74, 0.002, 0.13, 0.12))}


def without_chat_only() -> dict[str, pd.DataFrame]:
    """Return tables in which a whole class is missing, one of them with dead latents only."""
    return {LABELS[0]: latent_table(0, (0, 0.7, 0, 0.2, 0.1), 256), LABELS[1]: latent_table(1, (0, 0, 0, 0, 1), 64)}


def kl_summary() -> tuple[pd.DataFrame, dict]:
    """Return causal/summary.parquet and causal/sets.json with values near the paper's."""
    rng = np.random.default_rng(3)
    shared = {"none": (0.482, 1.69), "template": (0.239, 0.507), "chat": (0.0, 0.0)}
    own = {
        "all": (0.2, 0.37), "error": (0.31, 0.9),
        "latent_scaling_best": (0.225, 0.55), "latent_scaling_worst": (0.262, 1.2),
        "norm_difference_best": (0.241, 0.619), "norm_difference_worst": (0.242, 0.74),
    }  # fmt: skip
    own |= {f"{name}_additive": values for name, values in own.items() if name.endswith(("best", "worst"))}
    own |= {f"random_{i}": (0.46 + 0.004 * i, 1.6 + 0.01 * i) for i in range(5)}
    rows = []
    for label, means in (("", shared), *((label, own) for label in LABELS)):
        for intervention, pair in means.items():
            for positions, mean, none, tokens in (("all", pair[0], 0.482, 81234), ("first", pair[1], 1.69, 4608)):
                value = mean * (1 + (0.05 * rng.normal() if label else 0))
                spread = 0.04 * value
                rows.append(
                    {
                        "crosscoder": label, "intervention": intervention, "positions": positions, "mean": value,
                        "low": value - spread, "high": value + spread, "delta_none": value - none,
                        "delta_low": value - none - spread, "delta_high": value - none + spread,
                        "reduction": 1 - value / none, "reduction_low": 1 - (value + spread) / none,
                        "reduction_high": 1 - (value - spread) / none, "n_conversations": 512, "n_tokens": tokens,
                    }
                )  # fmt: skip
    sets = {label: {"latents": list(range(286)), "size": 286, "rule": "highest norm difference"} for label in LABELS}
    return pd.DataFrame(rows), sets


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


def evaluation(fve: float = 0.88, l0: float = 52.3, dead: float = 0.04) -> dict:
    """Return results/evaluation/NAME.json."""
    metrics = [
        {"metric": "fve", "model": model, "subset": subset, "value": fve - loss}
        for model, loss in (("base", 0), ("chat", 0.01), ("difference", 0.3))
        for subset in ("web", "chat", "template", "all")
    ]  # fmt: skip
    metrics += [{"metric": "l0", "model": "both", "subset": "all", "value": l0}]
    metrics += [{"metric": "dead_fraction", "model": "both", "subset": "all", "value": dead}]
    return {"metrics": metrics, "n_tokens": {"all": 1_000_000, "web": 500_000}}


def concepts() -> pd.DataFrame:
    """A concept table of two crosscoders and two seeds; one of three concepts is not planted."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "concept": concept,
            "planted": concept != "weather",
            "crosscoder": f"{kind}-seed{seed}",
            "pool": pool,
            "latent": 3,
        }
        for kind in ("l1", "batchtopk")
        for seed in (0, 1)
        for concept in ("refusal", "joke_onset", "weather")
        for pool in ("chat-specific", "all")
    ]
    table = pd.DataFrame(rows)
    for column in ("auroc", "precision", "recall"):
        table[column] = generator.uniform(0.5, 1, len(table))
    table["rank"] = generator.integers(1, 60, len(table)).astype(float)
    table["auroc_among_onsets"] = table["auroc"].where(table["concept"] == "joke_onset")
    return table
