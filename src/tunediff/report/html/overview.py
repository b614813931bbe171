"""The first screen in words and numbers: the pair, the data, what was found beside its controls, how sure it is."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from tunediff.interventions.registry import BEST_RANDOM, MATCHED, RANKINGS
from tunediff.markup import firing_share, per_cent
from tunediff.report import style as look
from tunediff.report.html.latents import Dictionary
from tunediff.report.html.shards import column, rounded
from tunediff.report.html.text import Pieces, joined
from tunediff.report.inputs import Inputs
from tunediff.report.nulls import model_name
from tunediff.report.summary import change_text, warnings
from tunediff.report.tables.ranking import nu_texts, verdict
from tunediff.report.tables.table1 import CONTROL_NAMES, NULL_KINDS, null_pairs, table1

FIRST = 20  # latents of the ranking on the first screen
SNIPPETS = 2  # windows of each
AROUND = 12  # tokens of a snippet before and after its peak
NULLS_HOW = (
    "No null pair has run, so how many latents are called where nothing was learned is not known: snakemake nulls"
)


class Cell(NamedTuple):
    """A row of the comparison of dictionaries."""

    name: str
    values: list[str]
    note: str = ""


def pair_text(run: Inputs) -> dict[str, str]:
    """Return how the pair is named: base, chat and where they are read."""
    models = run.config["models"]
    return {
        "base": model_name(models["base"]),
        "chat": model_name(models["chat"]),
        "where": f"after block {models['layer']}" if "layer" in models else "",
    }


def data_text(run: Inputs) -> str:
    """Return what the latents were trained and measured on, in a sentence."""
    budgets = run.config.get("tokens", {}).get("budgets")
    if not budgets:
        return ""
    train = joined(f"{n:,} of {source}" for source, n in budgets["train"].items())
    validation = joined(f"{n:,} of {source}" for source, n in budgets["validation"].items())
    text = f"Dictionaries were trained on {train} tokens; what latents fire on is shown in {validation} held-out ones"
    conversations = run.config.get("conversations", {}).get("count")
    return f"{text}, and {conversations:,} conversations for the KL experiment." if conversations else f"{text}."


def found(run: Inputs) -> list[dict[str, Any]]:
    """Return per dictionary how many latents are called, beside controls and nulls, and what they do to the KL."""
    rows = table1(run.latents, run.evaluation, run.nulls).to_dict("records")
    return [
        {
            "name": row["crosscoder"],
            "kind": look.kind_name(row["crosscoder"]),
            "judged": run.latents[row["crosscoder"]].has_norm_taxonomy,
            "live": f"{row['latents'] - row['dead']:,.0f}",
            "called": _count(row, "chat_specific_any_class"),
            "confirmed": _count(row, "chat_specific_validation_any_class"),
            "interval": _count(row, "chat_specific_interval_any_class"),
            "reversed": f"{row['reversed']:,.0f}",
            "median_nu_activation": f"{row['nu_activation']:.2f}".replace("-", "−"),
            "controls": [
                {"name": name, "passing": _count(row, f"{key}_passing"), "of": _count(row, f"{key}_measured")}
                for key, name in CONTROL_NAMES.items()
            ],
            "nulls": [
                {
                    "name": pair,
                    "called": _count(row, f"null_{pair}_chat_specific"),
                    "bound": NULL_KINDS[row[f"null_{pair}_kind"]],
                }
                for pair in null_pairs(row)
                if isinstance(row[f"null_{pair}_kind"], str)
            ],
            "kl": list(kl_texts(run, row["crosscoder"])),
        }
        for row in rows
    ]


def _count(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:,.0f}" if name in row and math.isfinite(row[name]) else "–"


def _kl_rows(run: Inputs) -> dict[tuple[str, str, str], dict[Any, Any]]:
    kl = run.kl[run.kl["positions"] == "all"].fillna({"crosscoder": "", "ranking": ""})
    return {(row["crosscoder"], row["intervention"], row["ranking"]): row for row in kl.to_dict("records")}


def none_kl(run: Inputs) -> str:
    """Return the KL of the base model's activations, in nats per response token."""
    row = _kl_rows(run).get(("", "none", ""))
    return f"{row['mean']:.3f}" if row else "–"


def kl_texts(run: Inputs, name: str) -> Iterator[str]:
    """Yield what the latents of a dictionary carry of the KL, and at what energy, in sentences."""
    every = _kl_rows(run)
    if (name, "all", "") in every:
        yield f"All latents' differences together change it by {change_text(every[name, 'all', ''])}."
    ranking = next((key for key in ("latent_scaling", "nu_activation") if (name, f"{key}_best", key) in every), None)
    if ranking is None:
        return
    best, worst = (every.get((name, f"{ranking}_{side}", ranking)) for side in ("best", "worst"))
    if best is not None:
        text = f"The best half by {RANKINGS[ranking].label} of {run.sets[name]['name']}: {change_text(best)} with "
        text += f"{_energy(best)} of the edit energy"
        if worst is not None:
            text += f"; the worst half: {change_text(worst)} with {_energy(worst)}"
        yield f"{text}."
    matched = every.get((name, MATCHED.name, ranking))
    yield (
        f"At equal energy, best less worst: {change_text(matched, 'points')}."
        if matched is not None
        else "Halves of equal energy could not be formed, so best and worst are not compared at equal energy."
    )
    random = every.get((name, BEST_RANDOM.name, ranking))
    if random is not None:
        yield f"Best half less random latents of its energy: {change_text(random, 'points')}."


def _energy(row: Mapping[Any, Any]) -> str:
    return per_cent(row["energy_share"], 1)


def warning_texts(run: Inputs) -> list[str]:
    """Return the warnings of the summary, without the word."""
    return [line.removeprefix("WARNING ") for line in warnings(run)]


def comparison(run: Inputs) -> tuple[list[str], list[Cell]]:
    """Return the dictionaries' names and the rows that compare them."""
    table = table1(run.latents, run.evaluation, run.nulls)
    rows = table.to_dict("records")
    every = _kl_rows(run)

    def line(name: str, column: str, form: str = "count", note: str = "") -> Cell:
        return Cell(name, [_printed(row[column], form) for row in rows], note)

    def kl(name: str, intervention: str, ranking: str) -> Cell:
        found = [every.get((row["crosscoder"], intervention, ranking)) for row in rows]
        return Cell(name, ["–" if each is None else change_text(each) for each in found])

    cells = [
        line("latents", "latents"),
        line("dead", "dead_fraction", "share", "fire on no held-out token"),
        line("L0", "l0", "number", "latents per token"),
        *(line(f"FVE, {said}", f"fve_{model}", "fraction") for model, said in FVE_OF.items()),
        line("chat-only by Δnorm", "chat_only"),
        line("chat-specific", "chat_specific_any_class", note="in any class"),
        line("confirmed on held-out tokens", "chat_specific_validation_any_class"),
        line("95 % intervals below too", "chat_specific_interval_any_class"),
        line("reversed", "reversed", note="base uses the direction with the opposite sign"),
        *(
            Cell(f"control: pass {name}", [" of ".join(_count(row, f"{key}_{end}") for end in OF) for row in rows])
            for key, name in CONTROL_NAMES.items()
        ),
        *(
            Cell(f"null “{pair}”: chat-specific", [_count(row, f"null_{pair}_chat_specific") for row in rows],
                 NULL_KINDS[table[f"null_{pair}_kind"].dropna().iloc[0]])
            for pair in null_pairs(table)
        ),
        line("median ν^act", "nu_activation", "ratio"),
        kl("KL, all latents' differences", "all", ""),
        kl("KL, best half by Latent Scaling", "latent_scaling_best", "latent_scaling"),
        kl("KL, worst half by Latent Scaling", "latent_scaling_worst", "latent_scaling"),
    ]  # fmt: skip
    return list(table["crosscoder"]), cells


OF = ("passing", "measured")
FVE_OF = {"difference": "of the difference chat − base", "base": "of base", "chat": "of chat"}


def _printed(value: float, form: str) -> str:
    if not math.isfinite(value):
        return "–"
    if form == "share":
        return per_cent(value, 1)
    decimals = {"count": 0, "number": 1, "fraction": 3, "ratio": 2}[form]
    return f"{value:,.{decimals}f}".replace("-", "−")


# -- the first latents of the ranking ----------------------------------------------------------------------------------


def first_latents(dictionary: Dictionary, names: list[str], pieces: Pieces, token_id: Any) -> list[dict[str, Any]]:
    """Return the first of the ranking as the page lists them; `token_id` are all validation tokens."""
    table = dictionary.table
    stable = {} if dictionary.seeds is None else dictionary.seeds.groupby("latent")["stable"].first().to_dict()
    shown = []
    for row in table.first(FIRST).to_dict("records"):
        latent = int(row["latent"])
        r, error = (text.replace("–", "not measured") for text in nu_texts(row))
        shown.append(
            {
                "latent": latent,
                "label": names[latent],
                "class": row["class_name"],
                "delta": None if math.isnan(row["norm_difference"]) else round(row["norm_difference"], 2),
                "nu_r": r,
                "nu_e": error,
                "nu_a": None if math.isnan(row["nu_activation"]) else round(row["nu_activation"], 2),
                "fires": ", ".join(f"{source} {firing_share(row[f'frequency_{source}'])}" for source in table.sources),
                "template": None if math.isnan(row["template_share"]) else per_cent(row["template_share"]),
                "verdict": verdict(row),
                "stable": bool(stable[latent]) if latent in stable else None,
                "explained": None if dictionary.told is None else dictionary.told.listed(latent),
                "max": column([row["max_activation"]])[0],
                "snippets": snippets(dictionary, latent, pieces, token_id),
            }
        )
    return shown


def snippets(dictionary: Dictionary, latent: int, pieces: Pieces, token_id: Any) -> list[dict[str, Any]]:
    """Return a latent's strongest windows, cut to what is around the peak: pieces and activations."""
    if dictionary.examples is None:
        return []
    windows = dictionary.examples.of("windows", latent)
    windows = windows[windows["band"] == "strongest"].sort_values("place").head(SNIPPETS)
    found = []
    for start, peak, activation, source in zip(
        windows["start"], windows["peak"], windows["activation"], windows["source"], strict=True
    ):
        low, high = max(0, peak - start - AROUND), min(len(activation), peak - start + AROUND + 1)
        own = slice(start + low, start + high)
        found.append(
            {
                "source": source,
                "text": pieces.of(token_id[own]),
                "activation": rounded(activation[low:high]).tolist(),
                "peak": int(peak - start - low),
                "cut": [bool(low > 0), bool(high < len(activation))],
            }
        )
    return found


def seeds_of(matches: pd.DataFrame | None, name: str) -> pd.DataFrame | None:
    """Return the rows of seeds/matches.parquet of one dictionary, NAME-seedN; None where it has one seed only."""
    seed = look.seed_of(name)
    if matches is None or seed is None:
        return None
    own = matches[(matches["crosscoder"] == look.kind_of(name)) & (matches["seed"] == seed)]
    return own if len(own) else None
