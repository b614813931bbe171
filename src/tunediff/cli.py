"""The `tunediff` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tunediff.errors import TunediffError

DESCRIPTION = """\
tunediff finds what fine-tuning changed inside a language model: crosscoders on the residual streams of a base model
and its chat-tuned version, Latent Scaling, and causal tests. The pipeline itself is run by Snakemake:

  snakemake --cores 2 results/figures/fig4.pdf       the embedded demo
  snakemake --cores 8 --configfile config/…yaml      another config

This command looks into what it made.
"""

EXAMPLES = """\
examples
  tunediff inspect results/tokens/train.zarr --documents 5       texts with their masks
  tunediff inspect results/activations/train/part-000.zarr       layout, norms, checksums
  tunediff inspect results/crosscoders/l1-seed0 --json
  tunediff inspect results/latents/l1-seed0.json                 a manifest stands for its artifact

exit status: 0 whole, 1 missing, unfinished or damaged (the file is named), 2 wrong usage
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("tunediff", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="show what is in an artifact and whether it is whole",
        description="Show layout, provenance, missing or damaged files and the main numbers of one artifact.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    inspect.add_argument("path", type=Path, help="a store (.zarr), table (.parquet), directory, or manifest (.json)")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.add_argument(
        "--checksums",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare every file's sha256 with the manifest (reads the whole store; default: yes)",
    )
    inspect.add_argument("--documents", type=int, default=2, metavar="N", help="documents of a token store to show (2)")
    inspect.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="tokenizer for them (default: the chat model's of these results)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    chosen = build_parser().parse_args(arguments)
    from tunediff.inspection import as_json, as_text, inspect

    try:
        result = inspect(chosen.path, chosen.checksums, chosen.documents, chosen.tokenizer)
        print(as_json(result) if chosen.json else as_text(result), flush=True)
    except TunediffError as error:
        print(f"tunediff: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `tunediff inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    for line in result.problems:
        print(f"tunediff: {line}", file=sys.stderr)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
