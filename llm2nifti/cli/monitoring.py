"""Commands of networks at work: monitor, detect."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm2nifti import defaults
from llm2nifti.cli.command import (
    COUNT,
    LEVEL,
    SHARE,
    TEMPLATES,
    add_command,
    add_dataset,
    add_model,
    add_session,
    as_options,
    path,
    show,
    show_line,
    words,
)

RATE = 0.05  # see llm2nifti.networks.readout, which is too heavy for --help


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    _add_monitor(commands)
    _add_detect(commands)


def _add_monitor(commands: Any) -> None:
    text = "answer prompts, one a line, and say as JSON lines which networks are active"
    example = "llm2nifti monitor --networks ds prompts.txt; or: echo 'What is a senate?' | "
    example += "llm2nifti monitor --networks ds --stop-when politicalscience"
    parser = add_command(commands, "monitor", _monitor, text, example)
    parser.add_argument(
        "prompts",
        type=words,
        nargs="?",
        default="-",
        help="text file, one prompt a line; - is standard input",
    )
    parser.add_argument(
        "--networks", type=path, required=True, metavar="DATASET", help="whose networks to watch"
    )
    add_model(parser)
    parser.add_argument(
        "--n-tokens", type=COUNT, default=defaults.N_FRAMES, help="most tokens of an answer"
    )
    parser.add_argument(
        "--threshold",
        type=LEVEL,
        default=RATE,
        metavar="RATE",
        help="share of control prompts that a network's threshold lets pass",
    )
    parser.add_argument(
        "--stop-when", type=words, metavar="NAME", help="end answers once it is active"
    )
    parser.add_argument(
        "--template", choices=TEMPLATES, default="auto", help="whether to use the chat template"
    )


def _monitor(args: argparse.Namespace) -> None:
    from llm2nifti.monitor import MonitorError

    with ExitStack() as stack:
        lines: Any = getattr(sys.stdin, "buffer", sys.stdin)  # a line may be no text
        if args.prompts != "-":
            try:
                lines = stack.enter_context(Path(args.prompts).open("rb"))
            except OSError as error:
                raise MonitorError(
                    f"cannot read prompts from {args.prompts} ({error.strerror}); give a text file "
                    "with one prompt a line, or - for standard input"
                ) from error
        from llm2nifti.study import monitoring

        loaded, watching = stack.enter_context(
            monitoring.prepared(
                args.networks,
                model=args.model,
                device=args.device,
                trust_remote_code=args.trust_remote_code,
                subject=args.subject,
                session=args.session,
                rate=args.threshold,
                quiet=args.quiet,
            )
        )
        if args.stop_when is not None:
            watching.stop_when(args.stop_when)  # an unknown name is an error before any answer
        options = {"n_tokens": args.n_tokens, "template": args.template}
        for answer in monitoring.answers(
            lines, loaded, watching, stop_when=args.stop_when, **options
        ):
            content = asdict(answer)
            if "error" in content:
                content["error"] = as_options(content["error"])
            else:
                content["scores"] = {name: round(x, 4) for name, x in content["scores"].items()}
            if args.stop_when is None:
                content.pop("stopped", None)
            show_line(content)


def _add_detect(commands: Any) -> None:
    text = "measure how well, and how early, networks tell what a prompt is about"
    parser = add_command(commands, "detect", _detect, text, "llm2nifti detect ds")
    add_dataset(parser)
    add_session(parser)
    parser.add_argument("--share", type=SHARE, default=0.01, help="share of units in a network")
    parser.add_argument("--threshold", type=LEVEL, default=RATE, help="false-positive rate")
    parser.add_argument("--n-boot", type=COUNT, default=1000, help="bootstrap draws of intervals")
    parser.add_argument(
        "--redo", action="store_true", help="measure also what did not change since it was measured"
    )


def _detect(args: argparse.Namespace) -> None:
    from llm2nifti import bids
    from llm2nifti.report.detection import detection_section
    from llm2nifti.study import detection
    from llm2nifti.tell import as_text

    who = {"subject": args.subject, "session": args.session}
    with bids.locked(args.dataset):
        if args.redo:
            detection.forget(args.dataset, **who)
        content = detection.detect(
            args.dataset,
            **who,
            share=args.share,
            rate=args.threshold,
            n_boot=args.n_boot,
            quiet=args.quiet,
        )
    show(args, content, as_text(detection_section(content)))
