"""Commands that change a model while it runs: lesion, steer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm2nifti.cli.command import (
    COUNT,
    FINITE,
    SEED,
    add_command,
    add_dataset,
    add_model,
    number,
    show,
    words,
)

if TYPE_CHECKING:  # --help stays fast
    from llm2nifti.study.conditions import Condition


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    for add in (_add_lesion, _add_steer):
        add(commands)


def _add_measuring(parser: Any) -> None:
    """Options of what is measured on held-out text."""
    add = parser.add_argument
    add("--sites", default="", help="where, such as attn,mlp (default: all but the stream's)")
    add(
        "--share",
        type=number(float, above=0, high=0.5),
        action="append",
        help="share of these units, those with the largest t; repeat for more (default: 0.01)",
    )
    add("--spare-template", action="store_true", help="let it read the chat template undisturbed")
    add("--n-random", type=COUNT, default=5, help="matched random networks for each network")
    add("--n-prompts", type=COUNT, default=8, help="held-out prompts of each task and run")
    add("--seed", type=SEED, default=0, help="seed of the random networks")
    add(
        "--untrained",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the same with the untrained copy",
    )
    add("--overwrite", action="store_true", help="forget what was measured before")
    add_model(parser)


def _add_lesion(commands: Any) -> None:
    text = "take each network out of action and measure what that does to every task"
    example = "llm2nifti lesion ds --networks all; or: llm2nifti lesion ds --networks mask.nii.gz"
    parser = add_command(commands, "lesion", _lesion, text, example)
    add_dataset(parser)
    add = parser.add_argument
    add(
        "--networks",
        type=words,
        default="all",
        help="all, tasks (a,b) or mask images, made in this space",
    )
    add(
        "--mode",
        choices=("mean", "zero", "resample"),
        default="mean",
        help="what takes the place of values: the mean of control trials, zero, or other values",
    )
    add("--full", action="store_true", help="mean and zero, 0.5 to 5 %%, and the stream: hours")
    _add_measuring(parser)


def _add_steer(commands: Any) -> None:
    text = "push the model along a task's effect: its answers, or what that does to every task"
    example = (
        "llm2nifti steer ds --networks pathology --strength 2 --prompt 'What shall we do today?'"
    )
    parser = add_command(commands, "steer", _steer, text, example)
    add_dataset(parser)
    add = parser.add_argument
    add("--networks", type=words, default="all", help="all, or tasks (a,b); one task with --prompt")
    add("--strength", type=FINITE, default=1.0, help="how often the effect is added; < 0 is away")
    add(
        "--prompt",
        type=words,
        action="append",
        default=[],
        help="show answers to this; repeat for more",
    )
    add("--n-tokens", type=COUNT, default=40, help="most tokens of an answer")
    _add_measuring(parser)


def _lesion(args: argparse.Namespace) -> None:
    from llm2nifti.study import conditions as how

    conditions = [
        how.Condition(_sites(args), args.mode, share, spare_template=args.spare_template)
        for share in _shares(args)
    ]
    if args.full:
        conditions += [condition for condition in how.FULL if condition not in conditions]
    _measure(args, conditions)


def _steer(args: argparse.Namespace) -> None:
    from llm2nifti.study import conditions as how

    if args.prompt:
        _show_answers(args)
        return
    given = (args.strength, args.spare_template)
    _measure(args, [how.Condition(_sites(args), "steer", s, *given) for s in _shares(args)])


def _shares(args: argparse.Namespace) -> list[float]:
    """Shares of units, each once."""
    return list(dict.fromkeys(args.share or [0.01]))


def _sites(args: argparse.Namespace) -> tuple[str, ...]:
    """Names of sites."""
    return tuple(name.strip() for name in args.sites.split(",") if name.strip())


def _measure(args: argparse.Namespace, conditions: Sequence[Condition]) -> None:
    """Intervene and show what that does to held-out text."""
    from llm2nifti import bids
    from llm2nifti.report.lesions import lesion_section, steer_section
    from llm2nifti.study import conditions as how
    from llm2nifti.study import intervening
    from llm2nifti.tell import as_text

    bids.runs(args.dataset)  # a folder without runs stays as it is
    with bids.locked(args.dataset):
        content = intervening.intervene(
            args.dataset,
            conditions,
            sizes=how.Sizes(args.n_random, args.n_prompts, args.seed),
            which=args.networks,
            subject=args.subject,
            session=args.session,
            untrained=args.untrained,
            model_name=args.model,
            device=args.device,
            trust_remote_code=args.trust_remote_code,
            overwrite=args.overwrite,
            quiet=args.quiet,
        )
        bids.clear_work(args.dataset)
    section = steer_section if conditions[0].mode == "steer" else lesion_section
    show(args, content, as_text(section(content)))


def _show_answers(args: argparse.Namespace) -> None:
    """Answers with and without steering."""
    from llm2nifti import bids, study
    from llm2nifti.study import steering

    if args.spare_template or len(_shares(args)) > 1:
        raise study.StudyError("with --prompt there is one --share, and no --spare-template")
    answers = steering.steered_answers(
        bids.session(args.dataset, subject=args.subject, session=args.session),
        args.networks,
        args.prompt,
        [0.0, args.strength],
        n_tokens=args.n_tokens,
        sites=_sites(args),
        share=_shares(args)[0],
        model_name=args.model,
        device=args.device,
        trust_remote_code=args.trust_remote_code,
        quiet=args.quiet,
    )
    lines = [f"{a['prompt']}\n  strength {a['strength']:g}: {a['response']}" for a in answers]
    show(args, answers, "\n".join(lines))
