"""Build the report of a run: `build_report`."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from tunediff.pipeline.artifacts import building
from tunediff.report import style as look
from tunediff.report.html import overview, pages
from tunediff.report.html.corpus import SHARD, Corpus
from tunediff.report.html.explanations import told
from tunediff.report.html.headline import headline
from tunediff.report.html.latents import (
    BANDS,
    BLOCK,
    CODES,
    DETAILS,
    EVERYTHING,
    FIRST_RANKED,
    Detail,
    Dictionary,
    block,
    blocks,
    write_table,
)
from tunediff.report.html.shards import Shards, column, encoded
from tunediff.report.html.text import Pieces, joined, labels
from tunediff.report.inputs import Inputs
from tunediff.report.summary import steering

HERE = Path(__file__).parent
HEADLINE = "headline.txt"  # beside index.html, printed at the end of a run
WINDOW_BYTES = 240_000_000  # of all latents' shards; tables, texts and figures come on top
SAMPLED = 2  # blocks of each dictionary that their size is estimated on
TABLES = ("windows", "tokens", "histogram", "neighbours", "logits")


def build_report(
    run: Inputs,
    out: Path,
    decode: Callable[[Sequence[int]], Sequence[str]],
    *,
    keys: Mapping[str, str] | None = None,
    window_bytes: int = WINDOW_BYTES,
) -> dict[str, Any]:
    """Build the report of a run at `out`, a folder with index.html; return what is in it.

    `decode` gives the text of each token id alone (`tunediff.models.tokenizers.pieces`), `keys` are the content keys of
    the run's artifacts by path (for the provenance). `window_bytes` bounds the bytes of the latents' shards: of larger
    dictionaries, latents that are neither chat-specific nor among the first of the ranking are shown with fewer
    windows, and the page says so. What the run has not is said in words.
    """
    with building(out) as partial:
        partial.mkdir()
        return _build(run, partial, decode, keys or {}, window_bytes)


def _build(
    run: Inputs,
    out: Path,
    decode: Callable[[Sequence[int]], Sequence[str]],
    keys: Mapping[str, str],
    window_bytes: int,
) -> dict[str, Any]:
    shutil.copytree(HERE / "assets", out / "assets")
    shards, pieces, corpus = Shards(out / "data"), Pieces(decode), Corpus(run.tokens)
    dictionaries = [_dictionary(run, name) for name in run.latents]
    sources = run.tokens.sources
    detail = _detail(dictionaries, sources, window_bytes)
    names = {each.name: _labels(each, pieces) for each in dictionaries}
    first: dict[str, list[dict[str, Any]]] = {}
    steered: dict[str, dict[str, Any]] = {}
    for each in dictionaries:
        write_table(each, names[each.name], shards)
        first[each.name] = overview.first_latents(each, names[each.name], pieces, corpus.token_id)
        shards.write(f"first/{each.name}", first[each.name])
        _write_blocks(each, sources, detail, shards, pieces, corpus)
        shards.write(f"beside/{each.name}", _beside(run, each))
        if each.told is not None:
            for start, length in each.told.write(each.name, shards, run.tokens):
                corpus.cover(start, length, np.zeros(len(start), dtype=bool))
        if run.has("steering_texts"):
            steered[each.name] = pages.steered(run, each.name)
            shards.write(f"steering/{each.name}", steered[each.name])
    nulls = list(_write_nulls(run, shards, pieces, corpus))
    losses = run.losses if run.has("losses") else None
    written = corpus.write(shards, pieces, losses)
    known = sorted(pieces.known)
    shards.write("pieces", {"id": known, "text": [pieces.known[i] for i in known]})
    meta = {
        "dictionaries": {
            each.name: {**_about(each), "steered": list(map(int, steered.get(each.name, ())))} for each in dictionaries
        },
        "nulls": nulls,
        "null_models": null_models(run),
        "sources": sources,
        "bands": BANDS,
        "codes": CODES,
        "block": BLOCK,
        "shard": SHARD,
        "losses": written.losses,
        "detail": detail._asdict(),
        "whole": detail == EVERYTHING,
        "first_ranked": FIRST_RANKED,
        "context": next((_context(each) for each in dictionaries if each.examples is not None), None),
    }
    shards.write("meta", meta)
    (out / "index.html").write_text(_page(run, out, keys, meta), encoding="utf-8")
    (out / HEADLINE).write_text(f"{headline(run, first)}\n", encoding="utf-8")
    return {
        "latents": {each.name: len(each) for each in dictionaries},
        "detail": detail._asdict(),
        "positions": written.positions,
        "pieces": len(known),
        "data_bytes": shards.n_bytes,
    }


def _dictionary(run: Inputs, name: str) -> Dictionary:
    examples = run.examples.get(name) if run.has("examples") else None
    twins = run.twins.get(name) if run.has("twins") else None
    seeds = overview.seeds_of(run.seeds if run.has("seeds") else None, name)
    return Dictionary(name, run.latents[name], examples, twins, seeds, told(run, name))


def _context(dictionary: Dictionary) -> int | None:
    """Return how many tokens a window has on each side of its peak at most."""
    facts = {} if dictionary.examples is None else dictionary.examples.facts
    return facts.get("settings", facts).get("context")


def _labels(dictionary: Dictionary, pieces: Pieces) -> list[str]:
    if dictionary.examples is None:
        return [""] * len(dictionary)
    return labels(dictionary.examples.table("tokens"), pieces, len(dictionary))


def _tables(dictionary: Dictionary, first: int, size: int) -> dict[str, pd.DataFrame]:
    """Return the rows of some latents in every table of the examples."""
    examples = dictionary.examples
    return {} if examples is None else {name: examples.between(name, first, first + size) for name in TABLES}


def _kept(dictionary: Dictionary, windows: Any, whole: NDArray[np.bool_], detail: Detail) -> NDArray[np.bool_]:
    return detail.keeps(windows) | (whole[windows["latent"].to_numpy()] & EVERYTHING.keeps(windows))


def _detail(dictionaries: Sequence[Dictionary], sources: Sequence[str], window_bytes: int) -> Detail:
    """Return the most windows that fit: the sizes of a few blocks are measured for every choice."""
    shown = [each for each in dictionaries if each.examples is not None]
    for detail in DETAILS[:-1]:
        total = 0.0
        for each in shown:
            every, whole = list(blocks(len(each))), each.shown_whole()
            chosen = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, SAMPLED).astype(int))]
            size = {True: 0, False: 0}
            latents = sum(n for _, n in chosen)
            for first, n in chosen:
                tables = _tables(each, first, n)
                for all_of_it in size:
                    kept = (EVERYTHING if all_of_it else detail).keeps(tables["windows"])
                    size[all_of_it] += len(encoded(block(tables, first, n, kept, sources).value))
            n_whole = int(whole.sum())
            total += (n_whole * size[True] + (len(each) - n_whole) * size[False]) / latents
        if total <= window_bytes:
            return detail
    return DETAILS[-1]


def _write_blocks(
    dictionary: Dictionary,
    sources: Sequence[str],
    detail: Detail,
    shards: Shards,
    pieces: Pieces,
    corpus: Corpus,
) -> None:
    if dictionary.examples is None:
        return
    whole, called = dictionary.shown_whole(), dictionary.table.frame["chat_specific"].to_numpy()
    for first, size in blocks(len(dictionary)):
        tables = _tables(dictionary, first, size)
        kept = _kept(dictionary, tables["windows"], whole, detail)
        made = block(tables, first, size, kept, sources)
        shards.write(f"latents/{dictionary.name}/{first // BLOCK}", made.value)
        for name in ("tokens", "logits"):
            pieces.add(tables[name]["token_id"])
        corpus.cover(made.start, made.length, called[tables["windows"]["latent"].to_numpy()[kept]])


def _beside(run: Inputs, dictionary: Dictionary) -> dict[str, Any]:
    """Return what stands beside a dictionary's latents: concepts, all twins, matches in other seeds."""
    found: dict[str, Any] = {"concepts": pages.concept_rows(run, dictionary.name), "twins": [], "seeds": None}
    if dictionary.twins is not None:
        near = dictionary.twins[dictionary.twins["cosine"] > dictionary.twins.attrs["twin_cosine"]]
        ends = ("chat_only_latent", "base_only_latent", "cosine", "divergence")
        found["twins"] = [column(near[name]) for name in ends]
    if dictionary.seeds is not None:
        rows = dictionary.seeds.sort_values(["latent", "other_seed"])
        found["seeds"] = [column(rows[name]) for name in ("latent", "other_seed", "match", "cosine")]
    return found


def _write_nulls(run: Inputs, shards: Shards, pieces: Pieces, corpus: Corpus) -> Iterator[list[str]]:
    """Write the first latents of every null pair that has examples; yield the pairs and the names of dictionaries."""
    for (pair, name), (table, examples) in run.null_firsts.items():
        null = Dictionary(name, table, examples, None, None)
        first = overview.first_latents(null, _labels(null, pieces), pieces, corpus.token_id)
        shards.write(f"first/{pair}/{name}", first)
        yield [pair, name]


def _about(dictionary: Dictionary) -> dict[str, Any]:
    table = dictionary.table
    return {
        "kind": look.kind_name(dictionary.name),
        "of": look.kind_of(dictionary.name),
        "latents": len(table),
        "sources": list(table.sources),
        "norms": table.has_norm_taxonomy,
        "examples": dictionary.examples is not None,
        "twins": dictionary.twins is not None,
        "seeds": dictionary.seeds is not None,
        "explained": None if dictionary.told is None else dictionary.told.about(),
    }


def _page(run: Inputs, out: Path, keys: Mapping[str, str], meta: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("tunediff.report.html", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["nu"] = raised
    names, rows = overview.comparison(run)
    criterion = look.one_criterion(run.latents)
    twins = run.twins.values() if run.has("twins") else ()
    return environment.get_template("index.html.j2").render(
        pair=overview.pair_text(run),
        data=overview.data_text(run),
        found=overview.found(run),
        none_kl=overview.none_kl(run),
        warnings=overview.warning_texts(run),
        steering=list(steering(run)) if run.has("steering") else [],
        nulls_how=overview.NULLS_HOW,
        nulls_run=run.nulls is not None,
        null_models=meta["null_models"],
        nulls=pages.null_rows(run),
        meta=meta,
        comparison={"names": names, "rows": rows},
        drawings=pages.copied_drawings(run, out),
        provenance=pages.provenance(run, keys),
        criterion=criterion,
        twin_cosine=next((table.attrs.get("twin_cosine") for table in twins), None),
        stable_cosine=run.seeds.attrs.get("stable_cosine") if run.has("seeds") else None,
        joined=joined,
        version=version("tunediff"),
    )


def raised(text: str) -> Markup:
    """Return a text as HTML, the letters of ν^r and d^chat raised."""
    return Markup(re.sub(r"\^(r|ε|act|chat|base)\b", r"<sup>\1</sup>", str(escape(text))))


def null_models(run: Inputs) -> dict[str, str]:
    """Return base → chat of every null pair of the config."""
    names = {pair: [overview.model_name(of[side]) for side in ("base", "chat")] for pair, of in run.models.items()}
    return {pair: " → ".join(both) for pair, both in names.items() if pair}
