"""Command that makes a model smaller: prune."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llm2nifti.cli.command import add_command, add_dataset, add_session, show


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    text = "remove a network's weights, compare with removing as much otherwise, write the model"
    example = "llm2nifti prune ds-units --network pathology --share 0.05 --out small"
    parser = add_command(commands, "prune", _prune, text, example)
    add_dataset(parser)
    add = parser.add_argument
    add("--network", metavar="TASK", help="prune the network of this task")
    add("--mask", type=Path, metavar="IMAGE", help="prune the units of any NIfTI image, instead")
    add("--out", type=Path, required=True, help="new folder for the pruned model")
    add("--share", type=float, help="only this share of the units: those with the largest |t|")
    add("--keep", action="store_true", help="keep these units and prune all others")
    add("--n-random", type=int, default=3, help="random controls of each kind")
    add("--n-texts", type=int, default=24, help="held-out texts of each task and run; 0: no test")
    add("--n-pairs", type=int, default=10, help="pairs of speed measurements; 0: none")
    add("--model", help="the model that was scanned (default: as the dataset names it)")
    add("--device", default="cpu", help="torch device such as cuda")
    add("--overwrite", action="store_true", help="replace an earlier pruned model")
    add_session(parser)


def _prune(args: argparse.Namespace) -> None:
    from llm2nifti import bids, models
    from llm2nifti.study import losses, pruning

    runs = bids.read_all(args.dataset, subject=args.subject, session=args.session)
    choice = pruning.Choice(
        task=args.network,
        mask=args.mask,
        share=args.share,
        keep=args.keep,
        n_random=args.n_random,
        n_texts=args.n_texts,
        n_pairs=args.n_pairs,
    )
    choice.check()
    scanned = runs[0].sidecar["Model"]
    model = models.load(args.model or scanned["Name"], device=args.device, dtype=scanned["DType"])
    how = {"overwrite": args.overwrite, "quiet": args.quiet}
    content = pruning.prune(runs, model, choice, args.out, **how)
    show(args, content, f"{losses.pruning_table(content)}\n\nwritten: {args.out}")
