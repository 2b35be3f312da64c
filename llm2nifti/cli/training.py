"""Commands about the weights that belong to a network: target, train."""

from __future__ import annotations

import argparse
from typing import Any

from llm2nifti.cli.command import (
    COUNT,
    POSITIVE,
    add_command,
    add_dataset,
    add_model,
    load_model,
    path,
    show,
    words,
)


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    for add in (_add_target, _add_train):
        add(commands)


def _add_options(parser: Any) -> None:
    """Options of both."""
    add_dataset(parser)
    add_model(parser)
    parser.add_argument("--top", type=COUNT, help="modules to train (default: a tenth of all)")
    parser.add_argument("--r", type=COUNT, default=8, help="rank of the LoRA updates")
    parser.add_argument("--alpha", type=POSITIVE, default=16, help="LoRA scale: alpha / r")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier output")


def _add_target(commands: Any) -> None:
    text = "rank modules by a network's mass, write peft's adapter_config.json"
    example = "llm2nifti target ds-units --network pathology --out adapter"
    parser = add_command(commands, "target", _target, text, example)
    _add_options(parser)
    parser.add_argument("--network", type=words, required=True, help="a task, or a NIfTI mask")
    parser.add_argument("--out", type=path, help="folder for adapter_config.json and targets.tsv")


def _target(args: argparse.Namespace) -> None:
    from llm2nifti import bids, surgery
    from llm2nifti.study import training

    session = bids.session(args.dataset, subject=args.subject, session=args.session)
    table = training.rank_modules(session, args.network, model=load_model(args, session.first))
    n = surgery.default_top(table) if args.top is None else args.top
    if not 0 < n <= len(table):
        raise surgery.SurgeryError(f"top is {n}; it must be from 1 to {len(table)} modules")
    chosen = table.head(n)
    content = {"network": args.network, "targets": chosen.to_dict(orient="records")}
    text = chosen.round({"share": 3, "mass": 1, "enrichment": 2}).to_string(index=False)
    text += f"\n{n} of {len(table)} modules"
    if args.out:
        config = surgery.lora_config(chosen["module"], r=args.r, alpha=args.alpha)
        path = surgery.write_config(config, args.out, overwrite=args.overwrite)
        bids.write_tsv(args.out / "targets.tsv", args.out, table)
        content["adapter"] = str(path)
        text += f"; written: {path}"
    show(args, content, text)


def _add_train(commands: Any) -> None:
    text = "fine-tune on one task: the network's modules against random ones and all"
    example = "llm2nifti train ds-units --task pathology"
    parser = add_command(commands, "train", _train, text, example)
    _add_options(parser)
    parser.add_argument("--task", type=words, required=True, help="whose text and network")
    parser.add_argument("--seeds", type=COUNT, default=3, help="trainings of each condition")
    parser.add_argument("--epochs", type=COUNT, default=4, help="passes over the texts")
    parser.add_argument("--n-texts", type=COUNT, default=48, help="held-out prompts of each task")
    parser.add_argument(
        "--rate",
        type=POSITIVE,
        action="append",
        default=[],
        help="learning rate to try; repeatable",
    )
    parser.add_argument("--stimuli", type=words, help="your own TSV, with both splits")
    parser.add_argument("--threads", type=COUNT, help="threads that torch computes with")


def _train(args: argparse.Namespace) -> None:
    from llm2nifti import bids
    from llm2nifti.report.training import training_section
    from llm2nifti.study import scanning, training
    from llm2nifti.surgery import Recipe
    from llm2nifti.tell import as_text

    session = bids.session(args.dataset, subject=args.subject, session=args.session)
    setup = training.Setup(
        top=args.top,
        n_seeds=args.seeds,
        n_texts=args.n_texts,
        rates=tuple(args.rate) or training.RATES,
        recipe=Recipe(epochs=args.epochs, r=args.r, alpha=args.alpha),
        stimuli_path=args.stimuli,
    )
    with scanning.torch_threads(args.threads):
        content = training.train(
            session,
            args.task,
            setup=setup,
            model=load_model(args, session.first),
            overwrite=args.overwrite,
            quiet=args.quiet,
        )
    show(args, content, as_text(training_section({content["task"]: content})))
