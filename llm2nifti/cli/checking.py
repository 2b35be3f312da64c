"""Command that looks for damage in a dataset: check."""

from __future__ import annotations

import argparse
from typing import Any

from llm2nifti.cli.command import add_command, add_dataset, show, words


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    text = "say which files of a dataset are missing or damaged, and mend them"
    parser = add_command(commands, "check", _check, text, "llm2nifti check ds --repair")
    add_dataset(parser)
    add = parser.add_argument
    add("--repair", action="store_true", help="scan damaged runs again, analyse again")
    add("--accept", action="store_true", help="take files that you changed on purpose as they are")
    add("--model", type=words, help="where the model is, if it is a folder or file: to scan again")
    add("--stimuli", type=words, help="where your own stimuli are: to scan again")


def _check(args: argparse.Namespace) -> None:
    from llm2nifti.bids import checking
    from llm2nifti.study import repairing

    root = args.dataset
    problems = repairing.accept(root) if args.accept else repairing.check(root)
    if args.repair and (problems or repairing.is_unfinished(root)):
        where = {"model": args.model, "stimuli": args.stimuli}
        problems = repairing.repair(root, **where, quiet=args.quiet)
    rows = [{"file": str(p.path), "problem": p.text, "part": p.part} for p in problems]
    others = [str(path) for path in checking.foreign_files(root)]
    n_files = len(checking.expected(root))
    lines = [f"{row['file']}: {row['problem']}" for row in rows]
    lines.append(f"{n_files - len(rows)} of {n_files} files are as llm2nifti wrote them")
    if others:
        lines.append(f"files of others: {len(others)}, such as {others[0]}")
    show(args, {"n_files": n_files, "problems": rows, "others": others}, "\n".join(lines))
    if problems:
        what = repairing.advice(root, problems)
        raise repairing.DamageError(
            f"files of {root} that are missing or damaged: {len(rows)}; {what}"
        )
