"""What the other pages of the report say: figures, nulls, methods' numbers and provenance."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tunediff.interventions.steering_table import ARMS, verdicts
from tunediff.pipeline.artifacts import check, read_json
from tunediff.pipeline.keys import stored_key
from tunediff.report.html.text import shown
from tunediff.report.inputs import Inputs
from tunediff.report.registry import drawings
from tunediff.report.tables.table1 import NULL_KINDS

CONFIG_WIDTH = 110  # characters of a line of the config
ANSWER = 4000  # characters of an answer that are shown
ANSWERED = ("prompt", "unsteered", "steered")  # texts of a request


def copied_drawings(run: Inputs, out: Path) -> list[dict[str, str]]:
    """Copy PNG and CSV of every drawing below `out`; return how each is shown, figures first."""
    known, shown = drawings(), []
    for store in sorted(run.files.get("drawings", ()), key=_place):
        path = f"{store.parent.name}/{store.stem}"
        about = known[path].about(run.config)
        for file in (store, store.with_suffix(".png")):
            check(file, "drawing")
            target = out / "drawings" / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        place = f"drawings/{path}"
        shown.append({"name": path, **about, "png": f"{place}.png", "csv": f"{place}.csv"})
    return shown


def _place(path: Path) -> tuple[bool, bool, str]:
    """Return where a drawing comes: the paper's figures first, then other figures, then tables."""
    return path.parent.name != "figures", not path.name.startswith("fig"), path.name


def null_rows(run: Inputs) -> list[dict[str, Any]]:
    """Return the counts of the nulls, one row per pair and dictionary; none where they have not run."""
    if run.nulls is None:
        return []
    rows = []
    for row in run.nulls.to_dict("records"):
        pair = row["pair"] or "this pair"
        shares = [f"{100 * row[f'chat_specific_share{end}']:.1f}" for end in ("", "_low", "_high")]
        rows.append(
            {
                "pair": pair,
                "bound": NULL_KINDS.get(row["null_kind"], ""),
                "dictionary": row["crosscoder"],
                "chat_only": f"{row['chat_only']:,.0f}",
                "chat_specific": f"{row['chat_specific']:,.0f}",
                "interval": f"{row['chat_specific_interval']:,.0f}",
                "live": f"{row['live']:,.0f}",
                "share": f"{shares[0]} % [{shares[1]}, {shares[2]}]",
                "l0": f"{row['l0']:.1f}",
            }
        )
    return rows


def concept_rows(run: Inputs, name: str) -> list[dict[str, Any]]:
    """Return the labelled concepts that latents of a dictionary stand for, by latent."""
    if "concepts" not in run.files and "concepts" not in vars(run):
        return []
    table = run.concepts
    if not len(table):
        return []
    own = table[(table["crosscoder"] == name) & table["scored"].astype(bool) & (table["latent"] >= 0)]
    columns = ("latent", "concept", "among", "pool", "auroc", "auroc_among", "precision", "recall", "control_share")
    return json.loads(own[list(columns)].round(4).to_json(orient="records"))


def steered(run: Inputs, name: str) -> dict[str, Any]:
    """Return per steered latent of a dictionary what its steering measured, and answers side by side.

    `measures` are rows of `verdicts`; `answers` are per arm, α, positions and draw, with the texts of each request.
    """
    table, texts = run.steering, run.steering_texts
    of = texts[texts["crosscoder"] == name].sort_values(["latent", "positions", "alpha", "draw"], kind="stable")
    rows = verdicts(table[table["crosscoder"].isin([name, ""])])
    kept = [column for column in rows if column not in ("crosscoder", "place")]
    measures = json.loads(rows[kept].round(5).to_json(orient="records", double_precision=5)) if len(rows) else []
    found: dict[str, Any] = {}
    for latent, own in of.groupby("latent"):
        answers = []
        for (arm, alpha, positions, draw), each in own.groupby(["arm", "alpha", "positions", "draw"], sort=False):
            arm_text = f"{arm}: {ARMS[str(arm)]}" + (f", draw {draw}" if draw else "")
            columns = {key: [shown(text, lines=True, longest=ANSWER) for text in each[key]] for key in ANSWERED}
            answers.append({"arm": arm_text, "alpha": round(float(str(alpha)), 4), "positions": positions, **columns})
        found[str(latent)] = {
            "measures": [
                {k: v for k, v in row.items() if k != "latent"} for row in measures if row["latent"] == latent
            ],
            "answers": answers,
        }
    return found


def provenance(run: Inputs, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return what made the run: its config, versions, and per artifact its key, time and device.

    `keys` are the content keys of the run's artifacts by path under the results; those on disk with another key, made
    for another config, are left out.
    """
    artifacts, versions = [], dict[str, set[str]]()
    for path, key in keys.items():
        manifest = run.folder / f"{path}.json"
        if not manifest.is_file():
            continue
        if stored_key(manifest) != key:
            continue
        beside = run.folder / f"{path}.provenance.json"
        made = read_json(beside) if beside.is_file() else {}
        for package, version in {"python": made.get("python"), **made.get("packages", {})}.items():
            if version:
                versions.setdefault(package, set()).add(version)
        artifacts.append(
            {
                "path": path,
                "key": key,
                "seconds": f"{made['wall_seconds']:,.1f}" if "wall_seconds" in made else "–",
                "device": made.get("device", "–"),
                "machine": made.get("machine", "–"),
            }
        )
    return {
        "artifacts": artifacts,
        "versions": {package: ", ".join(sorted(found)) for package, found in sorted(versions.items())},
        "config": yaml.safe_dump(plain(run.config), sort_keys=False, allow_unicode=True, width=CONFIG_WIDTH),
    }


def plain(value: Any) -> Any:
    """Return a config's value with plain dicts and lists in it."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value
