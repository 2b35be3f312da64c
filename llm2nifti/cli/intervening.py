"""Commands that change a model while it runs: lesion, steer."""

from __future__ import annotations

import argparse
from typing import Any

from llm2nifti.cli.command import add_command, add_dataset, add_session, show


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    for add in (_add_lesion,):
        add(commands)


def add_model(parser: Any) -> None:
    """Options that say which model a dataset came from."""
    add_session(parser)
    parser.add_argument("--model", help="where the model is, if the dataset does not say it")
    parser.add_argument("--device", default="cpu", help="torch device such as cuda")


def _add_lesion(commands: Any) -> None:
    text = "take each network out of action and measure what that does to every task"
    example = "llm2nifti lesion ds --networks all; or: llm2nifti lesion ds --networks mask.nii.gz"
    parser = add_command(commands, "lesion", _lesion, text, example)
    add_dataset(parser)
    add = parser.add_argument
    add("--networks", default="all", help="all, tasks (a,b) or mask images, made in this space")
    add("--sites", default="", help="where, such as attn,mlp (default: all but the stream's)")
    add("--mode", default="mean", help="mean of control trials, zero, or resample")
    add("--share", type=float, default=0.01, help="share of these units, those with the largest t")
    add("--n-random", type=int, default=5, help="matched random networks for each network")
    add("--n-prompts", type=int, default=8, help="held-out prompts of each task and run")
    add("--seed", type=int, default=0, help="seed of the random networks")
    add("--full", action="store_true", help="mean and zero, 0.5 to 5 %%, and the stream: hours")
    add(
        "--untrained",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the same with the untrained copy",
    )
    add("--overwrite", action="store_true", help="forget what was measured before")
    add_model(parser)


def _lesion(args: argparse.Namespace) -> None:
    from llm2nifti import bids, study
    from llm2nifti.study import lesions

    sites = tuple(name.strip() for name in args.sites.split(",") if name.strip())
    first = lesions.Condition(sites, args.mode, args.share)
    conditions = [first, *(c for c in lesions.FULL if c != first)] if args.full else [first]
    sizes = lesions.Sizes(args.n_random, args.n_prompts, args.seed)
    with study.locked(args.dataset):
        content = lesions.lesion_dataset(
            args.dataset,
            conditions,
            sizes=sizes,
            which=args.networks,
            subject=args.subject,
            session=args.session,
            untrained=args.untrained,
            model_name=args.model,
            device=args.device,
            overwrite=args.overwrite,
            quiet=args.quiet,
        )
        bids.clear_work(args.dataset)
    show(args, content, lesions.table(content))
