"""Command that makes a model smaller: prune."""

from __future__ import annotations

import argparse
from typing import Any

from llm2nifti.cli.command import (
    ANY_COUNT,
    COUNT,
    LEVEL,
    add_command,
    add_dataset,
    add_model,
    image,
    load_model,
    path,
    show,
    words,
)


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    text = "remove a network's weights, compare with removing as much otherwise, write the model"
    example = "llm2nifti prune ds-units --network pathology --share 0.05 --out small"
    parser = add_command(commands, "prune", _prune, text, example)
    add_dataset(parser)
    add = parser.add_argument
    add_what = parser.add_mutually_exclusive_group(required=True).add_argument
    add_what("--network", type=words, metavar="TASK", help="prune the network of this task")
    add_what("--mask", type=image, metavar="IMAGE", help="or the units of any NIfTI image")
    add("--out", type=path, required=True, help="new folder for the pruned model")
    add("--share", type=LEVEL, help="only this share of the units: those with the largest |t|")
    add("--keep", action="store_true", help="keep these units and prune all others")
    add("--n-random", type=COUNT, default=3, help="random controls of each kind")
    add(
        "--n-prompts",
        type=ANY_COUNT,
        default=8,
        help="held-out prompts of each task and run; 0: none",
    )
    add("--n-pairs", type=ANY_COUNT, default=10, help="pairs of speed measurements; 0: none")
    add("--overwrite", action="store_true", help="replace an earlier pruned model")
    add_model(parser)


def _prune(args: argparse.Namespace) -> None:
    from llm2nifti import bids
    from llm2nifti.report.pruning import pruning_section
    from llm2nifti.study import pruning
    from llm2nifti.tell import as_text

    session = bids.session(args.dataset, subject=args.subject, session=args.session)
    choice = pruning.Choice(
        task=args.network,
        mask=args.mask,
        share=args.share,
        keep=args.keep,
        n_random=args.n_random,
        n_prompts=args.n_prompts,
        n_pairs=args.n_pairs,
    )
    choice.check()
    model = load_model(args, session.first)
    how = {"overwrite": args.overwrite, "quiet": args.quiet}
    content = pruning.prune(session, model, choice, args.out, **how)
    show(args, content, f"{as_text(pruning_section(content))}\n\nwritten: {args.out}")
