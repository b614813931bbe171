"""The `tunediff` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunediff.errors import TunediffError

# as `tunediff.latents.examples.BANDS`, which takes a while to import
BANDS = ("strongest", "high", "middle", "low", "inactive", "inactive_hard")
DESCRIPTION = """\
tunediff finds what fine-tuning changed inside a language model: crosscoders on the residual streams of a base model
and its chat-tuned version, Latent Scaling, and causal tests. The pipeline itself is run by Snakemake:

  snakemake --cores 2 results/figures/fig4.pdf       the embedded demo
  snakemake --cores 8 --configfile config/…yaml      another config

This command checks a config, looks into what the pipeline made, shows single latents, tries prompts on them, exports
crosscoders, and says what explanations by a language model cost.
"""

EXAMPLES = """\
examples
  tunediff inspect results                                       a whole run: what is missing or damaged
  tunediff inspect results/tokens/train.zarr --documents 5       texts with their masks
  tunediff inspect results/activations/train/part-000.zarr       layout, norms, checksums
  tunediff inspect results/crosscoders/l1-seed0 --json
  tunediff inspect results/latents/l1-seed0.json                 a manifest stands for its artifact
  tunediff latent batchtopk-seed0/1234                           one latent: what it fires on
  tunediff latent l1-seed0/7 --band high --band inactive_hard --windows 5

exit status: 0 whole, 1 missing, unfinished or damaged (the file is named), 2 wrong usage
"""

TRY_EXAMPLES = """\
examples
  tunediff try batchtopk-seed0 "Tell me about the fox"
  tunediff try batchtopk-seed0 "The fox lives in the wood." --text --top 3
  tunediff try l1-seed0 "Who pays?" --results results/nulls/same

The models are those of the results; models of the hub must be in its cache or reachable. Exit status as `inspect`.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("tunediff", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="find the mistakes of a config before anything runs",
        description="Look at the models' config.json, the first rows of every source, packages and device, in seconds. "
        "Prints one line per mistake, or what was looked at. A start of Snakemake does the same for what it will run. "
        "Exit status: 0 nothing wrong, 1 a mistake.",
    )
    check.set_defaults(run=run_check)
    check.add_argument("config", type=Path, metavar="CONFIG", help="a config: config/….yaml")
    device = "do not look for the config's GPU: the jobs run on another machine"
    check.add_argument("--elsewhere", action="store_true", help=device)
    inspect = commands.add_parser(
        "inspect",
        help="show what is in an artifact and whether it is whole",
        description="Show layout, provenance, missing or damaged files and the main numbers of one artifact.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    inspect.set_defaults(run=run_inspect)
    add = inspect.add_argument
    add("path", type=Path, help="a store (.zarr), table, figure, directory, or manifest (.json); or all results")
    add("--json", action="store_true", help="print JSON")
    checksums = "compare every file's sha256 with the manifest (reads the whole store; default: yes)"
    add("--checksums", action=argparse.BooleanOptionalAction, default=True, help=checksums)
    add("--documents", type=int, default=2, metavar="N", help="documents of a token store to show (2)")
    tokenizer = "tokenizer for them (default: the chat model's of these results)"
    add("--tokenizer", type=Path, metavar="DIR", help=tokenizer)
    latent = commands.add_parser(
        "latent",
        help="show one latent: how chat-specific it is, its tokens, logits, neighbours and examples",
        description="Show one latent of finished results. A line of an example has the activation at its peak, the "
        "source, the document and the text; on a terminal active tokens are shaded, elsewhere the peak is in ⟦ ⟧.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    latent.set_defaults(run=run_latent)
    add = latent.add_argument
    add("latent", metavar="NAME/NUMBER", help="a latent of a dictionary: batchtopk-seed0/1234")
    add("--results", type=Path, default=Path("results"), metavar="DIR", help="folder of the results (results)")
    band = "windows of this band; may be repeated (strongest)"
    add("--band", action="append", choices=BANDS, help=band)
    add("--windows", type=int, default=10, metavar="N", help="windows of each band to show (10)")
    export = commands.add_parser(
        "export",
        help="write a crosscoder as the paper's library loads it",
        description="Write config.json and model.safetensors as the dictionary_learning library loads them: "
        "CrossCoder or BatchTopKCrossCoder.from_pretrained(OUT, from_hub=True).",
    )
    export.set_defaults(run=run_export)
    add = export.add_argument
    add("crosscoder", type=Path, metavar="NAME_DIR", help="a crosscoder: results/crosscoders/NAME")
    add("out", type=Path, metavar="OUT", help="directory to write")
    add("--k", type=int, metavar="K", help="k, where the crosscoder does not know its own")
    tolerance = "relative spread of thresholds · decoder norms that counts as one threshold (1e-5)"
    add("--tolerance", type=float, default=1e-5, help=tolerance)
    add("--push-to", metavar="HUB_ID", help="also upload to this hub repository (default: no upload)")
    add("--public", action="store_true", help="a repository that --push-to creates is public")
    add_try(commands)
    calls = commands.add_parser(
        "calls",
        help="show what a language model will be asked about latents, and what that costs",
        description="A dry run of the explanations of a config: requests, tokens and, where the config states them, "
        "prices. Nothing is asked. Replies that are kept already are not paid for again.",
    )
    calls.set_defaults(run=run_calls)
    calls.add_argument("config", type=Path, metavar="CONFIG", help="a config whose `explanations` name a model")
    return parser


def add_try(commands: Any) -> None:
    """Add `tunediff try`."""
    command = commands.add_parser(
        "try",
        help="show which chat-specific latents fire on a prompt of yours",
        description="Run both models on a prompt and show which chat-specific latents of a dictionary fire on which of "
        "its tokens, with the tokens they fire on in the validation data.",
        epilog=TRY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run_try)
    add = command.add_argument
    add("name", metavar="NAME", help="a dictionary of the results: batchtopk-seed0, say")
    add("prompt", metavar="PROMPT", help="your text")
    kind = command.add_mutually_exclusive_group()
    chat = "the prompt is a request of the user, rendered by the chat template up to the answer (default)"
    kind.add_argument("--chat", dest="text", action="store_false", default=False, help=chat)
    kind.add_argument("--text", action="store_true", help="the prompt is a plain text")
    add("--results", type=Path, default=Path("results"), metavar="DIR", help="folder of results (results)")
    add("--top", type=int, default=10, metavar="N", help="latents to show, the strongest first (10)")
    add("--device", default="cpu", help="where the models run: cpu, cuda, … (cpu)")


def run_check(chosen: argparse.Namespace) -> int:
    """Carry out `tunediff check`; return the exit status."""
    from tunediff.config.check import SHIPPED_PAIR, check
    from tunediff.config.preflight import preflight
    from tunediff.config.written import load

    found = preflight(check(load(chosen.config)), SHIPPED_PAIR, device=not chosen.elsewhere)
    for line in found.problems:
        print(f"tunediff: {line}", file=sys.stderr)
    if not found.problems:
        print(f"{chosen.config}: nothing wrong; looked at", "every key", *found.right, sep="\n  ", flush=True)
    return 1 if found.problems else 0


def run_inspect(chosen: argparse.Namespace) -> int:
    """Carry out `tunediff inspect`; return the exit status."""
    from tunediff.inspection import as_json, as_text, inspect

    result = inspect(chosen.path, chosen.checksums, chosen.documents, chosen.tokenizer)
    print(as_json(result) if chosen.json else as_text(result), flush=True)
    for line in result.problems:
        print(f"tunediff: {line}", file=sys.stderr)
    return 1 if result.problems else 0


def run_latent(chosen: argparse.Namespace) -> int:
    """Carry out `tunediff latent`; return the exit status."""
    from tunediff.results import open_results

    name, _, number = chosen.latent.rpartition("/")
    if not name or not number.isdecimal():
        raise TunediffError(f"{chosen.latent}: not NAME/NUMBER; write it as batchtopk-seed0/1234")
    card = open_results(chosen.results).latent(name, int(number))
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(card.text(chosen.band or [BANDS[0]], chosen.windows, colour), flush=True)
    return 0


def run_export(chosen: argparse.Namespace) -> int:
    """Carry out `tunediff export`; return the exit status."""
    from tunediff.dictionaries.crosscoder import Crosscoder
    from tunediff.dictionaries.exchange import export, push

    config = export(Crosscoder.load(chosen.crosscoder), chosen.out, chosen.k, chosen.tolerance)
    library = "BatchTopKCrossCoder" if "k" in config else "CrossCoder"
    print(f"{chosen.out}: {config['dict_size']} latents of {config['activation_dim']} × 2, for {library}")
    if chosen.push_to is not None:
        print(push(chosen.out, chosen.push_to, private=not chosen.public))
    return 0


def run_calls(chosen: argparse.Namespace) -> int:
    """Carry out `tunediff calls`; return the exit status."""
    from tunediff.config.check import check
    from tunediff.config.written import load
    from tunediff.explanations.calls import as_text, planned

    raw = load(chosen.config)
    if "models" not in raw:
        raise TunediffError(f"{chosen.config}: not a config of a run; give one with `models`")
    config = check(raw)
    print(as_text(planned(config), config["explanations"]["model"]))
    return 0


def run_try(chosen: argparse.Namespace) -> int:
    """Carry out `tunediff try`; return the exit status."""
    from transformers.utils.logging import disable_progress_bar

    from tunediff.results import open_results

    disable_progress_bar()
    if chosen.top < 1:
        raise TunediffError(f"--top: is {chosen.top}; give 1 or more")
    results = open_results(chosen.results)
    results.latents(chosen.name)  # an unknown name is told before the models are loaded
    print(results.prompt(chosen.prompt, text=chosen.text, device=chosen.device).firings(chosen.name, chosen.top))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    chosen = build_parser().parse_args(arguments)
    try:
        return chosen.run(chosen)
    except TunediffError as error:
        print(f"tunediff: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `tunediff inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
