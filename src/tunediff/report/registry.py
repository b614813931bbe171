"""The figures and tables of a run: one file each in `figures/` or `tables/`, found by the declaration in it.

A file declares its drawing by one statement, `DRAWING = Drawing(...)`, and draws it by `draw(results, style)`. The
Snakefile needs the declarations at every start and in every job, so they are read without running the files: those
import pandas and matplotlib as any module does, and only the job that draws pays for it.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunediff.config.dictionaries import CrosscoderSettings
from tunediff.errors import TunediffError

if TYPE_CHECKING:
    from tunediff.pipeline.graph import Graph
    from tunediff.report.inputs import Inputs
    from tunediff.report.style import Drawn, Style

ROOMS = ("figures", "tables")  # folders beside this file
READS = {  # what a drawing may read: name of the attribute of `Inputs` -> what it is
    "latents": "latent tables, by dictionary",
    "evaluation": "held-out metrics, by dictionary",
    "examples": "what latents fire on, by dictionary",
    "losses": "both models' losses on the documents of chat-specific latents",
    "explanations": "explanations of latents and the windows they are scored on, by dictionary",
    "judgements": "in which windows explanations say that latents fire, by dictionary",
    "explanation_scores": "scores of explanations, a row per latent, explainer and judge",
    "explanation_means": "their means over latents, with intervals",
    "twins": "pairs of a chat-only and a base-only latent, by dictionary",
    "kl": "the KL experiment's means and intervals",
    "sets": "the KL experiment's sets of latents, by dictionary",
    "steering": "steering: measures of every arm, with intervals",
    "steering_texts": "answers with and without steering, side by side",
    "histories": "training histories, by dictionary that is trained here",
    "concepts": "labelled concepts and the latents that detect them",
    "seeds": "matches of latents between training seeds",
    "crosscoders": "facts of the crosscoders' manifests, by dictionary",
    "activations_train": "facts of the train activations",
    "activations_validation": "facts of the validation activations",
    "nulls": "counts of the nulls, where they have run",
    "pairs": "latent tables and metrics of the run's own pair and of every null",
    "scores": "scores of the planted benchmark, whose drawings these are",
}
SUMMARY_READS = (  # what `tunediff.report.summary` reads, as a drawing does
    *("kl", "sets", "steering", "latents", "evaluation", "crosscoders", "concepts", "nulls"),
    *("activations_train", "activations_validation"),
)

REPORT_READS = (  # what `tunediff.report.html` reads, beside the tokens, the tokenizer and all drawings
    *SUMMARY_READS,
    *("examples", "losses", "twins", "seeds", "steering_texts", "explanations", "judgements", "explanation_scores"),
)


@dataclass(frozen=True)
class Drawing:
    """A figure or table of a run."""

    path: str  # under the results, without suffix: figures/fig4
    module: str  # where `draw(results, style)` is: __name__
    title: str
    caption: str  # two to four sentences for the report; {key[subkey]} stands for a value of the config
    reads: tuple[str, ...]  # of `READS`
    by_norm: bool = False  # whether it shows only dictionaries that have Δnorm
    requires: Callable[["Graph"], bool] = lambda graph: True  # whether a run of such a config has it
    version: int = 1  # raised when the numbers change

    def __post_init__(self) -> None:
        unknown = [name for name in self.reads if name not in READS]
        if unknown:
            raise TunediffError(f"{self.module}: reads '{unknown[0]}'; choose among {', '.join(READS)}")

    @property
    def folder(self) -> str:
        """First part of the path: `figures`, `tables` or `nulls`."""
        return self.path.split("/")[0]

    @property
    def labels(self) -> dict[str, str]:
        """What the report's list says of it."""
        return {"name": self.path.split("/")[-1], "shows": self.title}

    @property
    def file(self) -> Path:
        """The file that declares and draws it."""
        return Path(__file__).parents[2].joinpath(*self.module.split(".")).with_suffix(".py")

    def exists(self, graph: "Graph") -> bool:
        """Return whether runs of a graph's config have it; the planted benchmark has those of its scores only."""
        planted = ("scores" in self.reads) == ("planted" in graph.config)
        return planted and (bool(graph.with_norms) or not self.by_norm) and self.requires(graph)

    def about(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Return title and caption for the report, with the values of a config and the dictionaries left out."""
        caption = self.caption.format_map(config)
        own = config.get("crosscoders", {}) if self.by_norm else {}
        left_out = [
            name for name, section in own.items() if CrosscoderSettings.of(section).reconstructs == "difference"
        ]
        if left_out:
            caption += f" Left out, as dictionaries of the difference have no Δnorm: {', '.join(left_out)}."
        return {"title": self.title, "caption": caption}

    def draw(self, results: "Inputs", style: "Style") -> "Drawn":
        """Return the figure and its numbers."""
        return import_module(self.module).draw(results, style)


def declared(file: Path, module: str) -> Drawing:
    """Return the drawing that a file declares, without running the file.

    Raises
    ------
    TunediffError
        It is not Python, declares none, or does so by more than literals, `Drawing` and `__name__`.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise TunediffError(f"{file}: line {error.lineno}: {error.msg}; correct it") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DRAWING":
            code = compile(ast.Expression(node.value), str(file), "eval")
            try:
                return eval(code, {"Drawing": Drawing, "__name__": module})
            except (NameError, TypeError) as error:
                raise TunediffError(
                    f"{file}: DRAWING cannot be read ({error}); it is read without running the file, so write its "
                    "values out"
                ) from error
    raise TunediffError(f"{file}: declares no DRAWING; add one, or move what figures share to {file.parents[1]}")


@cache
def drawings() -> dict[str, Drawing]:
    """Return every drawing by its path, in the order of the files' names."""
    here = Path(__file__).parent
    found: dict[str, Drawing] = {}
    for room in ROOMS:
        for file in sorted(here.joinpath(room).glob("[!_]*.py")):
            drawing = declared(file, f"{__package__}.{room}.{file.stem}")
            if drawing.path in found:
                raise TunediffError(f"{file}: {drawing.path} is drawn by {found[drawing.path].file} too; rename one")
            found[drawing.path] = drawing
    return found


def drawings_of(graph: "Graph") -> dict[str, Drawing]:
    """Return the drawings that runs of a graph's config have."""
    return {path: drawing for path, drawing in drawings().items() if drawing.exists(graph)}
