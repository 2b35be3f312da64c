"""Commands that need a dataset alone: glm, networks, null, report."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from llm2nifti import defaults
from llm2nifti.cli.command import (
    COUNT,
    LEVEL,
    SEED,
    add_command,
    add_dataset,
    add_session,
    show,
    words,
)

if TYPE_CHECKING:  # --help stays fast
    from llm2nifti.bids import Session


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    for add in (_add_glm, _add_networks, _add_null, _add_report):
        add(commands)


def _session(args: argparse.Namespace) -> Session:
    """One model and session, and its tasks that are asked for."""
    from llm2nifti import bids

    session = bids.session(args.dataset, subject=args.subject, session=args.session)
    return session.only(args.task)


def _add_analysis_options(parser: Any) -> None:
    """Options of everything that analyses."""
    add_dataset(parser)
    parser.add_argument(
        "--task", type=words, action="append", default=[], help="only this task; repeatable"
    )
    add_session(parser)


def _add_glm(commands: Any) -> None:
    text = "fit nilearn's GLM, write statistical maps and networks"
    parser = add_command(
        commands, "glm", _glm, text, "llm2nifti glm ds --task pathology --alpha 0.01"
    )
    _add_analysis_options(parser)
    parser.add_argument("--alpha", type=LEVEL, default=0.05, help="level of the threshold")
    parser.add_argument(
        "--height-control",
        choices=("fdr", "bonferroni", "fpr", "top", "permutation"),
        default="fdr",
        help="threshold; permutation is max-T",
    )
    parser.add_argument("--top", type=LEVEL, default=0.01, help="share of units that top keeps")
    parser.add_argument("--one-sided", action="store_true", help="only units that respond more")
    parser.add_argument(
        "--frames",
        choices=("trial", "token"),
        default="trial",
        help="fit trials, or tokens (AR(1), as in the paper)",
    )
    parser.add_argument(
        "--dask",
        type=words,
        help="workers that fit the slabs of large runs: local:N, or a scheduler's address",
    )


def _glm(args: argparse.Namespace) -> None:
    from llm2nifti import bids, glm, networks, study

    session = _session(args)
    with bids.locked(args.dataset), study.mapped(args.dask) as mapper:
        numbers = study.analyse_maps(
            session,
            networks.Rule(args.height_control, args.alpha, args.top, not args.one_sided),
            mapper=mapper,
            frames=args.frames,
            quiet=args.quiet,
        )
        who = (session.subject, session.session)
        summary = study.read_summary(args.dataset, who)
        if "tasks" in summary and args.frames == "trial":  # the report reads maps and numbers
            tasks = {**summary["tasks"], **numbers}  # no longer what `run` makes: no options
            study.update_summary(args.dataset, who, tasks=tasks, options=None)
        bids.clear_work(args.dataset)
    text = study.table({"tasks": numbers})
    if "tasks" in summary:
        text += (
            f"\nthe report is of the maps before: llm2nifti report {args.dataset} makes it again"
        )
    if args.frames == "token":
        rate = glm.token_level(session.first).summary()
        numbers["token_level_null"] = rate
        text += (
            f"\ntoken level: {rate['below_05']:.1%} of units pass p < .05 where nothing is there "
            "(nominal 5 %); the prompt is the unit of inference"
        )
    show(args, numbers, text)


def _add_networks(commands: Any) -> None:
    text = "repeatability, overlap and identification of the tasks' networks"
    parser = add_command(commands, "networks", _networks, text, "llm2nifti networks ds")
    _add_analysis_options(parser)


def _networks(args: argparse.Namespace) -> None:
    from llm2nifti import study

    session = _session(args)
    content = {"similarity": study.analyse_similarity(session, quiet=args.quiet)}
    if len(session.tasks) > 1:
        content["identification"] = study.analyse_identification(session)
    show(args, content, study.networks_table(content))


def _add_null(commands: Any) -> None:
    text = "false positive rates: relabelled controls and pseudo-tasks"
    parser = add_command(commands, "null", _null, text, "llm2nifti null ds --n 200")
    _add_analysis_options(parser)
    parser.add_argument("--n", type=COUNT, default=defaults.N_RELABELLINGS, help="relabellings")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the relabellings")


def _null(args: argparse.Namespace) -> None:
    from llm2nifti import study
    from llm2nifti.report.nulls import null_section
    from llm2nifti.tell import as_text

    content = study.analyse_null(_session(args), n=args.n, seed=args.seed, quiet=args.quiet)
    show(args, content, as_text(null_section(content)))


def _add_report(commands: Any) -> None:
    text = "make the figures and the report of an analysed dataset"
    parser = add_command(commands, "report", _report, text, "llm2nifti report ds")
    add_dataset(parser)
    add_session(parser)


def _report(args: argparse.Namespace) -> None:
    from llm2nifti import bids, report, study

    sessions = bids.analysed(args.dataset)  # a folder without runs stays as it is
    with bids.locked(args.dataset):
        if args.subject or args.session is not None or len(sessions) == 1:
            labels = {"subject": args.subject, "session": args.session}
            path = report.write(args.dataset, **labels, quiet=args.quiet)
        else:
            for subject, session in sessions:
                report.write(args.dataset, subject=subject, session=session, quiet=args.quiet)
            study.compare_sessions(args.dataset)
            path = report.write_overview(args.dataset)
        bids.clear_work(args.dataset)
    show(args, {"report": str(path)}, str(path))
