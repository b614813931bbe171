"""The table of steering: its columns, the arms, and whether a latent moves the rate of its own kind of answer.

Written by `tunediff.interventions.steering`; nothing here imports torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunediff.errors import TunediffError

ARMS = {  # what is added, at α times the norm of max_j · d_j^chat
    "unsteered": "nothing",
    "steered": "the latent's chat direction",
    "sign_flip": "minus that direction",
    "base_row": "the latent's base direction",
    "shared": "the direction of a shared latent that fires as often",
    "random": "a random direction",
    "base_model": "the latent's chat direction, to the base model",
    "ablation": "minus f_j times the latent's chat direction, where it fires",
    "ablation_random": "minus f_j times a random direction of that norm, where it fires",
}
CONTROLS = ("sign_flip", "base_row", "shared", "random")  # of the same dose, in the chat model
MEASURES = {
    "kl": "KL(chat ‖ steered) on the unsteered chat answers, nats a token",
    "nll": "loss of the answers under the unsteered chat model, nats a token",
    "repetition": "share of the 3-grams of an answer that it had before",
    "logit_shift": "mean change of the latent's 15 highest direct logits, over that of all logits",
    "rate": "share of the answers that are of a kind",
}
COLUMNS = {
    "crosscoder": "string",  # "" of the unsteered answers
    "latent": "int32",  # −1 of the unsteered answers
    "place": "int32",  # in the ranking, 1 first; 0 of the unsteered answers
    "arm": "string",  # of `ARMS`
    "model": "string",  # chat or base: whose answers these are
    "direction": "int32",  # the latent whose decoder row is added; −1 of random ones and of none
    "draw": "int32",  # of the random directions
    "alpha": "float32",
    "positions": "string",  # all, prompt; of an ablation: firing, elsewhere
    "cosine": "float32",  # of what is added with the latent's chat direction
    "dose": "float32",  # norm of what is added to the residual stream
    "dose_share": "float32",  # over the mean norm of that model's residuals
    "measure": "string",  # of `MEASURES`
    "kind": "string",  # of answer, for a rate; else ""
    "own": "bool",  # whether that kind is the latent's own
    "value": "float64",
    "low": "float64",  # 95 %: Wilson's of a rate, else percentiles of a bootstrap over requests
    "high": "float64",
    "n": "int32",  # requests
}
TEXTS = {
    **{name: COLUMNS[name] for name in ("crosscoder", "latent", "arm", "draw", "alpha", "positions")},
    "request": "int32",  # number of the conversation
    **dict.fromkeys(("prompt", "unsteered", "steered"), "string"),
}
CELL = ["crosscoder", "latent", "place", "alpha", "positions"]  # what an arm and its controls share


def checked(frame: pd.DataFrame, columns: Mapping[str, str], where: str) -> pd.DataFrame:
    """Return a table with exactly these columns, in this order; `TunediffError` names the first that is wrong."""
    remedy = "delete it and run snakemake again"
    for name in (*columns, *map(str, frame)):
        if name not in frame or name not in columns:
            wrong = "missing" if name not in frame else "is not of a table of steering"
            raise TunediffError(f"{where}: column '{name}' {wrong}; {remedy}")
        found = "string" if pd.api.types.is_string_dtype(frame[name].dtype) else str(frame[name].dtype)
        if found != columns[name]:
            raise TunediffError(f"{where}: column '{name}' is {found} instead of {columns[name]}; {remedy}")
    return frame[list(columns)]


def typed(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Return rows as a table of these columns."""
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype({name: "str" if kind == "string" else kind for name, kind in columns.items()})


def read_steering(path: Path) -> pd.DataFrame:
    """Read and check steering.parquet; `TunediffError`: columns or types are others."""
    return checked(pd.read_parquet(path), COLUMNS, str(path))


def read_texts(path: Path) -> pd.DataFrame:
    """Read and check steering.texts.parquet; `TunediffError`: columns or types are others."""
    return checked(pd.read_parquet(path), TEXTS, str(path))


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per latent, α and positions: its measures beside those of the controls, and whether it moves.

    `rate` is that of the latent's own kind of answer ("" and NaN where it has none), `control_low` and `control_high`
    the outermost ends of the intervals of the unsteered answers and of all controls of the same dose. `moves` is
    "raises" where the whole interval of the rate is above `control_high`, "lowers" where it is below `control_low`,
    else "". Measures of random directions are means over draws.
    """
    steered = table[~table["arm"].isin(["unsteered", "ablation", "ablation_random"])]
    unsteered = table[(table["arm"] == "unsteered") & (table["model"] == "chat")]
    rows = []
    for cell, own in steered.groupby(CELL, sort=False):
        latent = own[own["arm"] == "steered"]
        row = dict(zip(CELL, cell, strict=True)) | latent.iloc[0][["dose", "dose_share"]].to_dict()
        for measure in MEASURES:
            if measure != "rate":
                of = own[own["measure"] == measure]
                row[measure] = of.loc[of["arm"] == "steered", "value"].mean()
                row[f"{measure}_random"] = of.loc[of["arm"] == "random", "value"].mean()
        rates = own[(own["measure"] == "rate") & own["own"]]
        row |= dict.fromkeys(("rate", "low", "high", "unsteered", "control_low", "control_high"), np.nan)
        row |= {"kind": "", "moves": ""}
        if len(rates):
            rate = rates[rates["arm"] == "steered"].iloc[0]
            without = unsteered[(unsteered["measure"] == "rate") & (unsteered["kind"] == rate["kind"])].iloc[0]
            against = pd.concat([rates[rates["arm"].isin(CONTROLS)], without.to_frame().T])
            low, high = float(against["low"].min()), float(against["high"].max())
            row |= {"kind": rate["kind"], "rate": rate["value"], "low": rate["low"], "high": rate["high"]}
            row |= {"unsteered": without["value"], "control_low": low, "control_high": high}
            row["moves"] = "raises" if rate["low"] > high else "lowers" if rate["high"] < low else ""
        rows.append(row)
    return pd.DataFrame(rows)
