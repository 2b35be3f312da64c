"""Command line: arguments become one library call.

Exit codes: 0 done, 2 wrong usage or input, 1 failure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm2nifti import __version__, defaults

Handler = Callable[[argparse.Namespace], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        args.handler(args)
    except KeyboardInterrupt:
        hint = "" if getattr(args, "overwrite", False) else "; the same command resumes"
        print(f"interrupted{hint}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, LookupError) as error:
        if os.environ.get("LLM2NIFTI_DEBUG"):
            raise
        print(f"llm2nifti {args.command}: {_one_line(error)}", file=sys.stderr)
        is_ours = type(error).__module__.startswith("llm2nifti")
        return getattr(error, "exit_code", 2 if is_ours else 1)
    except Exception as error:  # whatever it is, a person gets one line
        if os.environ.get("LLM2NIFTI_DEBUG"):
            raise
        print(f"llm2nifti {args.command}: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: BaseException) -> str:
    """Message of an error on one line; a full disk says what to do."""
    if isinstance(error, OSError) and error.errno == 28:
        where = error.filename or "while writing"
        return f"the disk is full ({where}); free some space, then run the same command again"
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    return text or type(error).__name__


def build_parser() -> argparse.ArgumentParser:
    """Parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="llm2nifti",
        description="Task fMRI for language models: scan a transformer into a BIDS dataset and "
        "analyse it with nilearn.",
        epilog="example: llm2nifti run ds",
    )
    parser.add_argument("--version", action="version", version=f"llm2nifti {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_run, _add_scan, _add_glm, _add_networks, _add_null, _add_report):
        add(commands)
    for add in (_add_where, _add_models, _add_stimuli):
        add(commands)
    return parser


def _command(commands: Any, name: str, handler: Handler, text: str, example: str) -> Any:
    """Add a command with its example, ``--json`` and ``--quiet``."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    return parser


def _add_dataset(parser: Any) -> None:
    """Argument: the dataset."""
    parser.add_argument("dataset", type=Path, help="folder of the BIDS dataset")


def _add_scan_options(parser: Any) -> None:
    """Options of everything that scans."""
    add = parser.add_argument
    add(
        "--model",
        default=defaults.DEFAULT_MODEL,
        help="bundled name, Hugging Face id, folder or .gguf file",
    )
    add("--task", action="append", default=[], help="task to show; repeat for more (default: all)")
    add("--stimuli", help="your own TSV with columns task and prompt")
    add("--split", default="evaluation", help="split of the stimuli: evaluation or development")
    add("--n-runs", type=int, default=defaults.N_RUNS, help="runs of each task")
    add("--n-blocks", type=int, default=defaults.N_BLOCKS, help="on-blocks of a run")
    add(
        "--trials-per-block", type=int, default=defaults.TRIALS_PER_BLOCK, help="on-block's prompts"
    )
    add("--n-frames", type=int, default=defaults.N_FRAMES, help="generated tokens of a prompt")
    add("--sites", default="default", help="default, all, regex:PATTERN, or names such as attn,mlp")
    add("--template", default="auto", help="chat template: auto, chat or none")
    add("--temperature", type=float, default=0.0, help="0 is greedy")
    add("--seed", type=int, default=0, help="seed of the design and of the sampling")
    add("--batch-size", type=int, default=defaults.BATCH_SIZE, help="prompts generated together")
    add("--device", default="cpu", help="torch device, such as cuda")
    add("--dtype", default="float32", help="float32, bfloat16 or float16")
    add("--trust-remote-code", action="store_true", help="run code from the model's repository")
    add(
        "--untrained",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also scan an untrained copy on the same tokens, as a baseline",
    )
    add("--compress", action="store_true", help="write .nii.gz: slower, hardly smaller")
    add("--overwrite", action="store_true", help="delete the dataset's old content first")


def _plan(args: argparse.Namespace) -> Any:
    """Plan from the options."""
    from llm2nifti.scanner import Settings
    from llm2nifti.study.scanning import Design, ModelChoice, Plan

    design = Design(
        tasks=tuple(args.task),
        n_runs=args.n_runs,
        n_blocks=args.n_blocks,
        trials_per_block=args.trials_per_block,
        n_frames=args.n_frames,
        seed=args.seed,
        stimuli_path=args.stimuli,
        split=args.split,
    )
    model = ModelChoice(
        name=args.model,
        device=args.device,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
        untrained=args.untrained,
    )
    settings = Settings(
        sites=args.sites,
        template=args.template,
        batch_size=args.batch_size,
        temperature=args.temperature,
        seed=args.seed,
    )
    return Plan(model, design, settings, args.compress)


def _print(args: argparse.Namespace, content: Any, text: str) -> None:
    """Print JSON or text, as asked."""
    print(json.dumps(content, indent=2, ensure_ascii=False) if args.json else text)


# -- run, scan -------------------------------------------------------------------------------------


def _add_run(commands: Any) -> None:
    text = "scan, analyse and report: the whole experiment"
    parser = _command(commands, "run", _run, text, "llm2nifti run ds")
    _add_dataset(parser)
    _add_scan_options(parser)
    parser.add_argument(
        "--n-null", type=int, default=defaults.N_RELABELLINGS, help="relabellings of the null"
    )


def _run(args: argparse.Namespace) -> None:
    from llm2nifti import study

    path = study.run(
        args.dataset,
        _plan(args),
        overwrite=args.overwrite,
        n_null=args.n_null,
        quiet=args.quiet,
    )
    summary = study.read_summary(args.dataset)
    text = f"{study.table(summary)}\n\n{study.tree(args.dataset)}\n\nreport: {path}"
    _print(args, summary, text)


def _add_scan(commands: Any) -> None:
    text = "record a model into a BIDS dataset"
    parser = _command(
        commands, "scan", _scan, text, "llm2nifti scan ds --task pathology --no-untrained"
    )
    _add_dataset(parser)
    _add_scan_options(parser)


def _scan(args: argparse.Namespace) -> None:
    from llm2nifti import bids, study

    study.scan(args.dataset, _plan(args), overwrite=args.overwrite, quiet=args.quiet)
    table = bids.runs(args.dataset)
    _print(args, table.to_dict(orient="records"), table.to_string(index=False))


# -- analysis --------------------------------------------------------------------------------------


def _runs(args: argparse.Namespace) -> Any:
    """Runs of the dataset's model, of the tasks asked for."""
    from llm2nifti import bids

    runs = bids.read_all(args.dataset, subject=args.subject)
    wanted = {bids.label(task) for task in args.task}
    unknown = wanted - {run.task for run in runs}
    if unknown:
        known = ", ".join(dict.fromkeys(run.task for run in runs))
        raise bids.NoSuchRunError(f"no task {min(unknown)!r} in the dataset; there are: {known}")
    return [run for run in runs if not wanted or run.task in wanted]


def _add_analysis_options(parser: Any) -> None:
    """Options of everything that analyses."""
    _add_dataset(parser)
    parser.add_argument("--task", action="append", default=[], help="only this task; repeatable")
    parser.add_argument("--subject", help="model to analyse (default: the only trained one)")


def _add_glm(commands: Any) -> None:
    text = "fit nilearn's GLM, write statistical maps and networks"
    parser = _command(commands, "glm", _glm, text, "llm2nifti glm ds --task pathology --alpha 0.01")
    _add_analysis_options(parser)
    parser.add_argument("--alpha", type=float, default=0.05, help="level of the threshold")
    parser.add_argument(
        "--height-control",
        default="fdr",
        help="threshold: fdr, bonferroni, fpr, top or permutation (max-T)",
    )
    parser.add_argument("--top", type=float, default=0.01, help="share of units that top keeps")
    parser.add_argument("--one-sided", action="store_true", help="only units that respond more")
    parser.add_argument(
        "--frames", default="trial", help="trial, or token (AR(1), as in the paper)"
    )


def _glm(args: argparse.Namespace) -> None:
    from llm2nifti import bids, glm, study

    runs = _runs(args)
    with study.locked(args.dataset):
        numbers = study.analyse_maps(
            runs,
            alpha=args.alpha,
            height_control=args.height_control,
            top=args.top,
            two_sided=not args.one_sided,
            frames=args.frames,
            quiet=args.quiet,
        )
        summary = study.read_summary(args.dataset)
        if "tasks" in summary and args.frames == "trial":  # the report reads maps and numbers
            study.update_summary(args.dataset, tasks={**summary["tasks"], **numbers})
        bids.clear_work(args.dataset)
    text = study.table({"tasks": numbers})
    if args.frames == "token":
        rate = glm.token_level(runs[0]).summary()
        numbers["token_level_null"] = rate
        text += (
            f"\ntoken level: {rate['below_05']:.1%} of units pass p < .05 where nothing is there "
            "(nominal 5 %); the prompt is the unit of inference"
        )
    _print(args, numbers, text)


def _add_networks(commands: Any) -> None:
    text = "repeatability, overlap and identification of the tasks' networks"
    parser = _command(commands, "networks", _networks, text, "llm2nifti networks ds")
    _add_analysis_options(parser)


def _networks(args: argparse.Namespace) -> None:
    from llm2nifti import study

    runs = _runs(args)
    content = {"similarity": study.analyse_similarity(runs, quiet=args.quiet)}
    if len({run.task for run in runs}) > 1:
        content["identification"] = study.analyse_identification(runs)
    _print(args, content, study.networks_table(content))


def _add_null(commands: Any) -> None:
    text = "false positive rates: relabelled controls and pseudo-tasks"
    parser = _command(commands, "null", _null, text, "llm2nifti null ds --n 200")
    _add_analysis_options(parser)
    parser.add_argument("--n", type=int, default=defaults.N_RELABELLINGS, help="relabellings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the relabellings")


def _null(args: argparse.Namespace) -> None:
    from llm2nifti import study

    content = study.analyse_null(_runs(args), n=args.n, seed=args.seed, quiet=args.quiet)
    _print(args, content, study.null_table(content))


def _add_report(commands: Any) -> None:
    text = "make the figures and the report of an analysed dataset"
    parser = _command(commands, "report", _report, text, "llm2nifti report ds")
    _add_dataset(parser)


def _report(args: argparse.Namespace) -> None:
    from llm2nifti import bids, report, study

    bids.runs(args.dataset)  # a folder without runs stays as it is
    with study.locked(args.dataset):
        path = report.write(args.dataset, quiet=args.quiet)
        bids.clear_work(args.dataset)
    _print(args, {"report": str(path)}, str(path))


# -- looking things up -----------------------------------------------------------------------------


def _add_where(commands: Any) -> None:
    text = "say which unit lives in a voxel, or which voxel holds a unit"
    parser = _command(
        commands, "where", _where, text, "llm2nifti where ds --unit model.layers.3.mlp:17"
    )
    _add_dataset(parser)
    parser.add_argument("point", type=float, nargs="*", metavar="X Y Z", help="mm coordinates")
    parser.add_argument("--voxel", action="store_true", help="X Y Z is a voxel index, not mm")
    parser.add_argument("--unit", help="MODULE:UNIT, such as model.layers.3.mlp:17")
    parser.add_argument("--subject", help="model (default: the only trained one)")


def _where(args: argparse.Namespace) -> None:
    from llm2nifti import bids, geometry

    brain = bids.read_all(args.dataset, subject=args.subject)[0].brain
    if args.unit:
        address = geometry.find_unit(brain, args.unit)
    elif len(args.point) == 3:
        address = geometry.locate(brain, args.point, voxel=args.voxel)
    else:
        raise geometry.NoSuchUnitError(
            f"{len(args.point)} coordinates given; give X Y Z, or --unit MODULE:UNIT"
        )
    site = address.site
    content = {
        "layer": site.layer,
        "site": site.name,
        "module": site.module,
        "where": site.where,
        "unit": address.unit,
        "voxel": list(address.voxel),
        "mm": list(address.mm),
    }
    _print(args, content, str(address))


def _add_models(commands: Any) -> None:
    text = "list the models that are known and cached"
    _command(commands, "models", _models, text, "llm2nifti models")


def _models(args: argparse.Namespace) -> None:
    from llm2nifti import models

    table = models.known()
    note = f"cache: {models.cache_location()}. Any Hugging Face id, folder or .gguf file works too."
    _print(args, table.to_dict(orient="records"), f"{table.to_string(index=False)}\n{note}")


def _add_stimuli(commands: Any) -> None:
    text = "list the stimulus sets, or check your own"
    parser = _command(commands, "stimuli", _stimuli, text, "llm2nifti stimuli --stimuli mine.tsv")
    parser.add_argument("--stimuli", help="your own TSV with columns task and prompt")


def _stimuli(args: argparse.Namespace) -> None:
    from llm2nifti import stimuli

    table = stimuli.describe(stimuli.load(args.stimuli, split=None))
    _print(args, table.to_dict(orient="records"), table.to_string(index=False))


if __name__ == "__main__":
    raise SystemExit(main())
