"""What a run shows, from its tables, in plain words: the most important first."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tunediff.config.dictionaries import L0_TOLERANCE
from tunediff.interventions.registry import AREA, BEST_RANDOM, RANKINGS, pairs
from tunediff.interventions.steering_table import verdicts
from tunediff.latents.concepts import detected
from tunediff.markup import firing_share, per_cent
from tunediff.report import style as look
from tunediff.report.inputs import Inputs
from tunediff.report.tables.ranking import nu_texts, passing_text, ranking, unranked_text, verdict
from tunediff.report.tables.table1 import CONTROL_NAMES, NULL_KINDS, NULLS_NOT_RUN, null_pairs, table1

SHOWN_RANKED = 5  # latents of the ranking shown per crosscoder; all of the table where none passes the criterion
ONE_DIMENSION = 0.5  # share of a variance above which FVE is mostly one dimension's


def summary(run: Inputs) -> str:
    """Return what the run shows: what was found, how far to trust it, and where the figures are."""
    parts = (
        _found, _fve, warnings, _outliers, _classes, _ranking, _kl, steering, _concepts,
        lambda run: [f"Figures: {run.folder}/figures/fig4.pdf and beside it; tables: {run.folder}/tables"],
    )  # fmt: skip
    return "\n".join(line for part in parts for line in part(run))


def _rows(run: Inputs) -> list[dict[Any, Any]]:
    return table1(run.latents, run.evaluation, run.nulls).to_dict("records")


# -- parts: each yields lines ------------------------------------------------------------------------------------------


def _found(run: Inputs) -> Iterator[str]:
    yield "Found: " + "; ".join(f"{name}: {passing_text(table)}" for name, table in run.with_norms.items()) + "."
    yield f"  Chat-specific: {look.one_criterion(run.latents).text}, fitted on train tokens."
    for row in _rows(run):
        if not run.latents[row["crosscoder"]].has_norm_taxonomy:
            median = f"median ν^act {row['nu_activation']:.2f}"
            yield f"  {row['crosscoder']}: of the difference alone, so not judged by these; {median}."
            continue
        confirmed = (
            f"{row['chat_specific_validation_any_class']:,.0f} confirmed on validation tokens, "
            f"{row['chat_specific_interval_any_class']:,.0f} with 95 % intervals below too; "
        )
        passing = [
            f"{row[f'{control}_passing']:,.0f} of {row[f'{control}_measured']:,.0f} pass {name}"
            for control, name in CONTROL_NAMES.items()
        ]
        text = f"{confirmed if row['chat_specific_any_class'] else ''}controls: {', '.join(passing)}"
        called = [
            f"{pair} {row[f'null_{pair}_chat_specific']:,.0f} ({NULL_KINDS[row[f'null_{pair}_kind']]})"
            for pair in null_pairs(row)
            if isinstance(row[f"null_{pair}_kind"], str)  # a published dictionary is not trained in the nulls
        ]
        text += f"; chat-specific in the nulls: {', '.join(called)}" if called else ""
        yield f"  {row['crosscoder']}: {text}."
    if run.nulls is None:
        yield f"  {NULLS_NOT_RUN[0].upper()}{NULLS_NOT_RUN[1:]}."


def _fve(run: Inputs) -> Iterator[str]:
    each = [f"{row['crosscoder']} {_value(row, 'difference')}" for row in _rows(run)]
    yield f"FVE of the difference (chat − base), held out: {'; '.join(each)}."
    for row in _rows(run):
        name = row["crosscoder"]
        asked = _asked_l0(run.crosscoders[name])
        l0 = f"L0 {row['l0']:.1f}" + (f" (asked: {asked:g})" if asked is not None else "")
        final = run.crosscoders[name].get("final")
        l0 += f", {final['l0']:.1f} at the end of training" if final is not None else ""
        yield (
            f"  {name}: base {_value(row, 'base')}, chat {_value(row, 'chat')}; {l0}; dead "
            f"{per_cent(row['dead_fraction'])}."
        )


def _value(row: Mapping[str, Any], model: str) -> str:
    if not math.isfinite(row[f"fve_{model}"]):
        return "not reconstructed"
    standardised = row[f"fve_standardised_{model}"]
    beside = f" (standardised {standardised:.3f})" if math.isfinite(standardised) else ""
    return f"{row[f'fve_{model}']:.3f}{beside}".replace("-", "−")


def _asked_l0(facts: Mapping[str, Any]) -> float | None:
    settings = facts.get("settings", {})
    return settings.get("target_l0") or settings.get("k")


def warnings(run: Inputs) -> Iterator[str]:
    """Yield one line per reason not to trust a dictionary's numbers."""
    for row in _rows(run):
        name = row["crosscoder"]
        rests = []
        for model in ("difference", "base", "chat"):
            share = row[f"largest_dimension_share_{model}"]
            if share > ONE_DIMENSION:
                dimension = row[f"largest_dimension_{model}"]
                which = f"dimension {dimension:.0f}" if math.isfinite(dimension) else "one dimension"
                standardised = row[f"fve_standardised_{model}"]
                rests.append(f"{model}: {which} holds {per_cent(share)}, standardised FVE {standardised:.3f}")
        if rests:
            yield f"WARNING {name}: FVE rests on one dimension (by its share of the variance: {'; '.join(rests)})."
        asked = _asked_l0(run.crosscoders[name])
        if asked is not None and not abs(row["l0"] / asked - 1) <= L0_TOLERANCE:
            yield f"WARNING {name}: L0 is {row['l0']:.1f} on held-out tokens, {asked:g} was asked; compare it by L0."
        for text in run.crosscoders[name].get("warnings", ()):
            yield f"WARNING {name}: {text}"


def _outliers(run: Inputs) -> Iterator[str]:
    for split, found in run.outliers.items():
        if found is None:
            yield f"Outlier tokens, {split}: not looked for (activations.outlier_factor is null)."
            continue
        each = [
            f"{source} {n:,} of {found.of[source]:,} ({firing_share(n / max(1, found.of[source]))})"
            for source, n in found.tokens.items()
        ]
        norms = ", ".join(f"{model} {norm:,.{'4g' if norm < 1000 else '0f'}}" for model, norm in found.norm.items())
        yield (f"Outlier tokens, {split}, left out: {', '.join(each)}; norm above {found.factor:g} medians ({norms}).")


def _classes(run: Inputs) -> Iterator[str]:
    criterion = look.one_criterion(run.latents)
    yield "Latents by Δnorm:"
    for row in _rows(run):
        if row["crosscoder"] not in run.with_norms:
            continue
        frame = run.latents[row["crosscoder"]].frame
        chat_only = frame[frame["class_name"] == "chat-only"]
        decoupled = int((chat_only["nu_reconstruction"] >= criterion.nu_reconstruction_below).sum())
        shrunk = int((chat_only["nu_error"] >= criterion.nu_error_below).sum())
        yield (
            f"  {row['crosscoder']}: {row['chat_only']:,.0f} chat-only ({row['chat_specific']:,.0f} chat-specific; "
            f"{decoupled:,} decoupled, ν^r ≥ {criterion.nu_reconstruction_below:g}; {shrunk:,} shrunk, "
            f"ν^ε ≥ {criterion.nu_error_below:g}), {row['shared']:,.0f} shared, {row['base_only']:,.0f} base-only, "
            f"{row['other']:,.0f} other, {row['dead']:,.0f} dead; of all, {row['reversed']:,.0f} reversed "
            f"(a ν under {look.signed(criterion.lowest)})."
        )


def _ranking(run: Inputs) -> Iterator[str]:
    table = ranking(run.with_norms)
    yield "First of the ranking by rank(ν^r) + rank(ν^ε), ν with 95 % intervals (more: tables/ranking):"
    for name, latents in run.with_norms.items():
        rows = table[table["crosscoder"] == name].to_dict("records")
        yield f"  {name}: {passing_text(latents)}{unranked_text(rows)}"
        for row in rows[:SHOWN_RANKED] if latents.frame["chat_specific"].any() else rows:
            r, error = nu_texts(row)
            fires = ", ".join(f"{source} {firing_share(row[f'frequency_{source}'])}" for source in latents.sources)
            called = {"no": "", "confirmed": ", chat-specific and confirmed"}
            yield (
                f"    {row['place']}. latent {row['latent']}, {row['class_name']}, Δnorm {row['norm_difference']:.2f}, "
                f"ν^r {r}, ν^ε {error}, fires on {fires}, {per_cent(row['template_share'])} of it on "
                f"template tokens{called.get(verdict(row), ', chat-specific, not confirmed')}"
            )


def _kl(run: Inputs) -> Iterator[str]:
    kl = run.kl[run.kl["positions"] == "all"].fillna({"crosscoder": "", "ranking": ""})
    every = {(row["crosscoder"], row["intervention"], row["ranking"]): row for row in kl.to_dict("records")}
    none, template = every["", "none", ""], every["", "template", ""]
    yield (
        f"KL to the chat model, nats per response token: base activation {none['mean']:.3f}, template tokens restored "
        f"{template['mean']:.3f}. Changes of it, a minus is nearer to chat, with 95 % intervals over conversations:"
    )
    for name in run.latents:
        whole = change_text(every[name, "all", ""])
        yield f"  {name}: all latents' differences added {whole}. Sets within {run.sets[name]['name']}:"
        ranked = {ranking for crosscoder, _, ranking in every if crosscoder == name}
        labels = {key: ranking.label for key, ranking in RANKINGS.items() if key in ranked}
        for key, printed in {**labels, "": "beside the rankings"}.items():
            if key and RANKINGS[key].baseline:
                continue
            for left, right, difference in pairs(key):
                best, pair = every.get((name, left, key)), every.get((name, difference.name, key))
                places = (name, right, key), (name, right, ""), ("", right, "")
                worst = next((every[place] for place in places if place in every), None)
                if best is None or worst is None or pair is None:
                    yield f"    {printed}, {difference.text}: none"
                    continue
                yield (
                    f"    {printed}, {difference.text}: {change_text(best)} with "
                    f"{per_cent(best['energy_share'], 1)} of the edit energy against {change_text(worst)} with "
                    f"{per_cent(worst['energy_share'], 1)}; "
                    f"difference {change_text(pair, 'points')}"
                )
            random = every.get((name, BEST_RANDOM.name, key))
            if random is not None:
                yield f"    {printed}, {BEST_RANDOM.text}: {change_text(random, 'points')}"
        areas = [(RANKINGS[key], every.get((name, AREA, key))) for key in labels]
        values = [
            f"{ranking.label}{' (the baseline)' if ranking.baseline else ''} {change_text(row, 'points')}"
            for ranking, row in areas
            if row is not None
        ]
        if values:
            yield f"    KL against energy, area under the curve less that of random orders: {', '.join(values)}"
        for note in run.sets[name].get("notes", ()):
            yield f"    {note}"


def change_text(row: Mapping[Any, Any], unit: str = "%") -> str:
    """Return a reduction as a change of None's KL with its interval: 0.22 -> −22 % [−23, −21]."""
    decimals = 0 if unit == "%" else 1
    numbers = (round(-100 * row[name], decimals) for name in ("reduction", "reduction_high", "reduction_low"))
    value, low, high = (f"{x:+.{decimals}f}".replace("-", "−") if x else "0" for x in numbers)
    return f"{value} {unit} [{low}, {high}]"


def steering(run: Inputs) -> Iterator[str]:
    """Yield whether steering by a latent moves the rate of its own kind of answer beyond all controls, line by line."""
    table = run.steering
    cells = verdicts(table)
    n = int(table.loc[table["arm"] == "unsteered", "n"].max())
    told = f"Steering, {n} requests answered with α · max · d^chat added to the chat model's residuals"
    if not (table["measure"] == "rate").any():
        yield f"{told}: no kinds of answers are labelled; KL, loss and repetition beside controls: tables/steering."
        return
    latents = cells.drop_duplicates(["crosscoder", "latent"])
    own = int((latents["kind"] != "").sum())
    moving = cells[cells["moves"] != ""]
    found = len(moving.drop_duplicates(["crosscoder", "latent"]))
    yield (
        f"{told}: {found or 'none'} of {own} latents with a kind of answer of their own (of {len(latents)} steered) "
        f"{'move' if found > 1 else 'moves'} its rate beyond the unsteered answers and every control of equal dose "
        f"(Wilson's 95 % intervals apart){':' if found else '.'}"
    )
    for row in moving.to_dict("records"):
        rate, low, high = (per_cent(row[name]) for name in ("rate", "low", "high"))
        yield (
            f"  {row['crosscoder']} latent {row['latent']} {row['moves']} {row['kind']} from "
            f"{per_cent(row['unsteered'])} to {rate} [{low}, {high}] at α = {row['alpha']:g} ({row['positions']} "
            f"positions; {per_cent(row['dose_share'])} of the residuals' norm); controls within "
            f"{per_cent(row['control_low'])} and {per_cent(row['control_high'])}"
        )


def _concepts(run: Inputs) -> Iterator[str]:
    found = detected(run.concepts)
    if not found:
        yield "Labelled concepts: the corpora carry no labels, so none was scored."
        return
    each = [f"{name} {of.n_detected} of {of.n_scored} ({', '.join(of.names) or 'none'})" for name, of in found.items()]
    auroc, share = (run.concepts.attrs[name] for name in ("detected_auroc", "detected_share"))
    yield (
        f"Labelled concepts whose onset a chat-specific latent of its own detects (held-out AUROC ≥ {auroc:g} "
        f"among all tokens and among the onsets compared with; at most {per_cent(share)} of pools of "
        f"other latents that fire as often do as well): {'; '.join(each)}."
    )
