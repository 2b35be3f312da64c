"""Commands that need a model: run, scan."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from llm2nifti import defaults
from llm2nifti.cli.command import COUNT, SEED, TEMPLATES, add_command, number, path, show, words

if TYPE_CHECKING:  # --help stays fast
    from llm2nifti.study.studyfile import StudyFile

_WITH_STUDY_FILE = {"dataset", "overwrite", "redo", "threads", "dask", "json", "quiet"}


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    for add in (_add_run, _add_scan):
        add(commands)


def _add_run(commands: Any) -> None:
    text = "scan, analyse and report: the whole experiment"
    example = "llm2nifti run ds; or: llm2nifti run study.toml --dask local:4"
    parser = add_command(commands, "run", _run, text, example)
    _add_scan_options(parser)
    parser.add_argument(
        "--n-null", type=COUNT, default=defaults.N_RELABELLINGS, help="relabellings of the null"
    )
    parser.add_argument(
        "--redo", action="store_true", help="analyse also what did not change since it was analysed"
    )


def _run(args: argparse.Namespace) -> None:
    from llm2nifti import study

    what = _what(args)
    if args.redo:
        study.forget(what.root)
    path = study.run(what.root, what.plans, n_null=what.n_null, **_how(args))
    summary = study.read_summary(what.root)
    table = study.overview_table if "sessions" in summary else study.table
    text = f"{table(summary)}\n\n{study.tree(what.root)}\n\nreport: {path}"
    show(args, summary, text)


def _add_scan(commands: Any) -> None:
    text = "record a model into a BIDS dataset"
    parser = add_command(
        commands, "scan", _scan, text, "llm2nifti scan ds --task pathology --no-untrained"
    )
    _add_scan_options(parser)


def _scan(args: argparse.Namespace) -> None:
    from llm2nifti import bids, study

    what = _what(args)
    study.scan(what.root, what.plans, **_how(args))
    table = bids.runs(what.root)
    show(args, table.to_dict(orient="records"), table.to_string(index=False))


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """Options that do not change what is recorded."""
    return {name: getattr(args, name) for name in ("overwrite", "quiet", "threads", "dask")}


def _add_scan_options(parser: Any) -> None:
    """Arguments of everything that scans."""
    parser.set_defaults(parser=parser)
    add = parser.add_argument
    add("dataset", type=path, help="folder of the BIDS dataset, or a study file (.toml)")
    add(
        "--model",
        type=words,
        default=defaults.DEFAULT_MODEL,
        help="bundled name, Hugging Face id, folder or .gguf file",
    )
    add(
        "--task",
        type=words,
        action="append",
        default=[],
        help="task to show; repeat for more (default: all)",
    )
    add("--stimuli", type=words, help="your own TSV with columns task and prompt, image or audio")
    add(
        "--split",
        choices=("evaluation", "development"),
        default="evaluation",
        help="split of the stimuli",
    )
    add("--n-runs", type=COUNT, default=defaults.N_RUNS, help="runs of each task")
    add("--n-blocks", type=COUNT, default=defaults.N_BLOCKS, help="on-blocks of a run")
    add(
        "--trials-per-block",
        type=COUNT,
        default=defaults.TRIALS_PER_BLOCK,
        help="on-block's prompts",
    )
    add("--n-frames", type=COUNT, default=defaults.N_FRAMES, help="generated tokens of a prompt")
    _add_recording_options(add)
    add("--compress", action="store_true", help="write .nii.gz: slower, hardly smaller")
    add("--overwrite", action="store_true", help="delete the dataset's old content first")
    add("--threads", type=COUNT, help="threads that torch computes with (default: its own choice)")
    add(
        "--dask",
        type=words,
        help="workers that do the work: local:N, or the address of a Dask scheduler",
    )


def _add_recording_options(add: Any) -> None:
    """Options of how a model is loaded and recorded."""
    add(
        "--sites",
        type=words,
        default="default",
        help="default, all, regex:PATTERN, or names such as attn,mlp",
    )
    add(
        "--mode",
        choices=("auto", "generate", "read"),
        default="auto",
        help="read: show the stimulus and generate nothing",
    )
    add(
        "--frames",
        choices=("auto", "token", "trial", "word", "last"),
        default="auto",
        help="one volume is a token, trial (its mean), word or last",
    )
    add(
        "--fused-qkv",
        choices=("contiguous", "interleaved"),
        help="layout of fused queries, keys, values",
    )
    add("--template", choices=TEMPLATES, default="auto", help="whether to use the chat template")
    add("--temperature", type=number(float, low=0), default=0.0, help="0 is greedy")
    add("--seed", type=SEED, default=0, help="seed of the design and of the sampling")
    add("--batch-size", type=COUNT, default=defaults.BATCH_SIZE, help="prompts generated together")
    add(
        "--device", type=words, default="cpu", help="torch device such as cuda, or auto for several"
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="type of the weights",
    )
    add("--trust-remote-code", action="store_true", help="run code from the model's repository")
    add(
        "--untrained",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also scan an untrained copy on the same tokens, as a baseline",
    )


def _what(args: argparse.Namespace) -> StudyFile:
    """What to scan: from a study file, or from the options."""
    from llm2nifti.study import StudyError
    from llm2nifti.study.studyfile import StudyFile, read_study

    if args.dataset.suffix != ".toml" or args.dataset.is_dir():
        return StudyFile(args.dataset, (_plan(args),), getattr(args, "n_null", 0))
    for name in sorted(_given(args) - _WITH_STUDY_FILE):
        option = name.replace("_", "-")
        raise StudyError(f"--{option} does not go with a study file: set it in {args.dataset}")
    return read_study(args.dataset)


def _given(args: argparse.Namespace) -> set[str]:
    """Names of the arguments that were typed, be it with the value of the default."""
    blank = argparse.Namespace(**dict.fromkeys(vars(args)))  # what is there, no default replaces
    typed = args.parser.parse_args(args.argv[1:], blank)
    return {name for name, value in vars(typed).items() if value is not None}


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
        mode=args.mode,
        frames=args.frames,
        fused_qkv=args.fused_qkv,
    )
    return Plan(model, design, settings, args.compress)
