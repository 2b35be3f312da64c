"""What does each command do? Handlers, which import what they need when they are called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2nifti import experiments
from llm2nifti.cli import plans
from llm2nifti.cli.options import as_options, option_of, plan_of, typed
from llm2nifti.defaults import PRESETS
from llm2nifti.plans import Attribution, Design, Json, ModelChoice, Plan, ScanPlan, Settings

if TYPE_CHECKING:  # --help stays fast
    from llm2nifti.bids import Session
    from llm2nifti.study.studyfile import StudyFile

Given = Mapping[str, Any]  # what was typed, by field
Printed = tuple[Any, str]  # as JSON, and as text
Handler = Callable[..., Printed | None]

SCANNED = (ModelChoice, Design, Settings, Attribution)
_WITH_STUDY_FILE = {"overwrite", "redo", "threads", "n_jobs", "dask", "json", "quiet"}


def plans_by_command() -> dict[str, tuple[type[Plan], ...]]:
    """Plans whose fields are the options of each command, the command's own first."""
    out = {plan.command: (plan, *more) for plan, (_, *more) in _COMMANDS.items()}
    for command, plan in experiments.commands().items():
        out[command] = (plan,) if plan.whole else (plan, *_SCANNING.get(command, (plans.Which,)))
    return {command: (*kinds, plans.Output) for command, kinds in out.items()}


def handler_of(command: str) -> Handler:
    """Function that does a command."""
    if command in _SCANNING:
        return _localize
    return {plan.command: row[0] for plan, row in _COMMANDS.items()}.get(command, _experiment)


def print_result(printed: Printed | None, *, as_json: bool) -> None:
    """Print JSON or text, as asked."""
    if printed is not None:
        content, text = printed
        print(json.dumps(content, indent=2, ensure_ascii=False) if as_json else text)


def print_line(content: Any) -> None:
    """Print one JSON line at once, for whoever reads the other end of a pipe.

    What some readers take for the end of a line is escaped.
    """
    text = json.dumps(content, ensure_ascii=False)
    for mark in "\u0085\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    print(text, flush=True)


def _rows(table: Any) -> Printed:
    """A table, row by row."""
    return table.to_dict(orient="records"), table.to_string(index=False)


def _session(dataset: str, given: Given) -> Session:
    """One model and session."""
    from llm2nifti import bids

    return bids.session(dataset, subject=given.get("subject"), session=given.get("session"))


def _experiment(dataset: str, given: Given, plan: Plan, *, verbose: int) -> Printed:
    """Measure what a plan asks for."""
    from llm2nifti.bids.sessions import sessions
    from llm2nifti.tell import as_text

    what = sessions(dataset) if plan.whole else _session(dataset, given)
    result = experiments.measure(what, plan, verbose=verbose)
    return result.content(), as_text(*result.sections())


def _localize(dataset: str, given: Given, plan: Any, *, verbose: int) -> Printed:
    """Measure a localizer; a model that was not scanned yet reads it first."""
    from llm2nifti import stimuli, study
    from llm2nifti.bids import checking
    from llm2nifti.study.plans import has_design, localizer_design

    how: Any = plan_of(plans.LocalizerScan, given)
    root, tasks = Path(dataset), plan.task or (next(iter(stimuli.LOCALIZERS)),)
    shown = Design(tasks=tasks, conditions=how.conditions, stimuli=how.stimuli, seed=plan.seed)
    # What was begun so is finished; a dataset of another design is measured as it is.
    is_new = how.overwrite or not checking.has_runs(root)
    if is_new or has_design(root, localizer_design(shown)):
        at = None if how.at == "all" else how.at
        more = {"sites": how.sites, "template": how.template, "seed": plan.seed}
        settings = Settings(mode="read", at=at, **more)
        model: Any = plan_of(ModelChoice, given)
        asked = ScanPlan(model, localizer_design(shown), settings)
        options = {"overwrite": how.overwrite, "threads": how.threads, "verbose": verbose}
        study.scan(root, [asked], **options)
    return _experiment(dataset, given, plan, verbose=verbose)


def _run(dataset: str, given: Given, options: plans.RunOptions, *, verbose: int) -> Printed:
    from llm2nifti import bids, report, study
    from llm2nifti.tell import as_text

    what = _what(dataset, given, options)
    if options.redo:
        study.forget(what.root)
    path = study.run(
        what.root, what.plans, measured=what.measured, verbose=verbose, **_how(options)
    )
    content = bids.read_summary(what.root)
    kind = report.Overview if "sessions" in content else report.SessionSummary
    text = as_text(*kind.of(content).sections())
    return content, f"{text}\n\n{study.tree(what.root)}\n\nreport: {path}"


def _scan(dataset: str, given: Given, options: plans.ScanOptions, *, verbose: int) -> Printed:
    from llm2nifti import bids, study

    what = _what(dataset, given, options)
    study.scan(what.root, what.plans, verbose=verbose, **_how(options))
    return _rows(bids.runs(what.root))


def _how(options: plans.ScanOptions) -> Json:
    """How a scan is done."""
    return {name: getattr(options, name) for name in ("overwrite", "threads", "n_jobs", "dask")}


def _what(dataset: str, given: Given, options: plans.ScanOptions) -> StudyFile:
    """What to scan: from a study file, or from the options."""
    from llm2nifti.experiments.nulls.plan import NullPlan
    from llm2nifti.study import StudyError
    from llm2nifti.study.studyfile import StudyFile, read_study

    path = Path(dataset)
    if path.suffix != ".toml" or path.is_dir():
        sizes = {**PRESETS[options.preset], **given}
        parts: Any = [plan_of(part, sizes) for part in SCANNED]
        plan = ScanPlan(parts[0], parts[1], parts[2], options.compress, **vars(parts[3]))
        measured = (NullPlan(n=options.n_null),) if isinstance(options, plans.RunOptions) else ()
        return StudyFile(path, (plan,), measured)
    names = {each.name: name for name, each in typed([type(options), *SCANNED]).items()}
    for name in sorted(set(given) - _WITH_STUDY_FILE):
        option = names.get(name, option_of(name))
        raise StudyError(f"{option} does not go with a study file: set it in {dataset}")
    return read_study(path)


def _report(dataset: str, given: Given, _: plans.ReportOptions, *, verbose: int) -> Printed:
    from llm2nifti import bids, report

    root, labels = Path(dataset), {k: given[k] for k in ("subject", "session") if k in given}
    sessions = bids.analysed(root)  # a folder without runs stays as it is
    with bids.locked(root):
        if labels or len(sessions) == 1:
            path = report.write(root, **labels, verbose=verbose)
        else:
            for subject, session in sessions:
                report.write(root, subject=subject, session=session, verbose=verbose)
            report.compare_sessions(root)
            path = report.write_overview(root)
        bids.writing.clear_work(root)
    return {"report": str(path)}, str(path)


def _check(dataset: str, _: Given, options: plans.CheckOptions, *, verbose: int) -> Printed:
    from llm2nifti.bids import checking
    from llm2nifti.study import repairing

    root = Path(dataset)
    problems = repairing.accept(root) if options.accept else repairing.check(root)
    if options.repair and (problems or repairing.is_unfinished(root)):
        where = {"model": options.model, "stimuli": options.stimuli}
        problems = repairing.repair(root, **where, verbose=verbose)
    rows = [{"file": str(p.path), "problem": p.text, "part": p.part} for p in problems]
    others = [str(path) for path in checking.foreign_files(root)]
    n_files = len(checking.expected(root))
    lines = [f"{row['file']}: {row['problem']}" for row in rows]
    lines.append(f"{n_files - len(rows)} of {n_files} files are as llm2nifti wrote them")
    if others:
        lines.append(f"files of others: {len(others)}, such as {others[0]}")
    printed = {"n_files": n_files, "problems": rows, "others": others}, "\n".join(lines)
    if problems:
        told = f"files of {root} that are missing or damaged: {len(rows)}"
        raise repairing.DamageError(f"{told}; {repairing.advice(root, problems)}", printed)
    return printed


def _where(dataset: str, given: Given, options: plans.WhereOptions, **_: Any) -> Printed:
    from llm2nifti import geometry

    brain = _session(dataset, given).brain
    if options.unit:
        address = geometry.find_unit(brain, options.unit)
    elif len(options.point) == 3:
        address = geometry.locate(brain, options.point, voxel=options.voxel)
    else:
        raise geometry.NoSuchUnitError(
            f"{len(options.point)} coordinates given; give X Y Z, or --unit MODULE:UNIT"
        )
    site, unit = address.site, address.unit
    content = {"layer": site.layer, "site": site.name, "module": site.module, "where": site.where}
    content |= {"unit": unit, "voxel": list(address.voxel), "mm": list(address.mm)}
    return content, str(address)


def _monitor(dataset: str, given: Given, options: plans.MonitorOptions, *, verbose: int) -> None:
    from llm2nifti.monitor import MonitorError

    with ExitStack() as stack:
        lines: Any = getattr(sys.stdin, "buffer", sys.stdin)  # a line may be no text
        try:
            if options.prompts != "-":
                lines = stack.enter_context(Path(options.prompts).open("rb"))
        except OSError as error:
            raise MonitorError(
                f"cannot read prompts from {options.prompts} ({error.strerror}); give a text "
                "file with one prompt a line, or - for standard input"
            ) from error
        from llm2nifti.monitor import answering

        session = _session(dataset, given)
        prepared = answering.prepared(session, options, rate=options.threshold, verbose=verbose)
        loaded, watching = stack.enter_context(prepared)
        if options.stop_when is not None:
            watching.stop_when(options.stop_when)  # an unknown name: an error before any answer
        names = ("n_tokens", "template", "stop_when")
        how = {name: getattr(options, name) for name in names}
        for answer in answering.answers(lines, loaded, watching, **how):
            content = asdict(answer)
            if "error" in content:
                content["error"] = as_options(content["error"])
            else:
                content["scores"] = {name: round(x, 4) for name, x in content["scores"].items()}
            if options.stop_when is None:
                content.pop("stopped", None)
            print_line(content)


def _target(dataset: str, given: Given, options: plans.TargetOptions, **_: Any) -> Printed:
    from llm2nifti import bids, surgery
    from llm2nifti.interventions.reloading import reload
    from llm2nifti.surgery.targets import rank_modules

    session = _session(dataset, given)
    table = rank_modules(session, options.network, model=reload(session.first, options))
    n = surgery.default_top(table) if options.top is None else options.top
    if not 0 < n <= len(table):
        raise surgery.SurgeryError(f"top is {n}; it must be from 1 to {len(table)} modules")
    chosen = table.head(n)
    content = {"network": options.network, "targets": chosen.to_dict(orient="records")}
    text = chosen.round({"share": 3, "mass": 1, "enrichment": 2}).to_string(index=False)
    text += f"\n{n} of {len(table)} modules"
    if options.out:
        config = surgery.lora_config(chosen["module"], r=options.r, alpha=options.lora_alpha)
        path = surgery.write_config(config, options.out, overwrite=options.overwrite)
        bids.write_tsv(options.out / "targets.tsv", options.out, table)
        content["adapter"] = str(path)
        text += f"; written: {path}"
    return content, text


def _models(*_: Any, **__: Any) -> Printed:
    from llm2nifti import models

    rows, text = _rows(models.known())
    folder = models.cache.cache_folder()
    return rows, f"{text}\ncache: {folder}. Any Hugging Face id, folder or .gguf file works too."


def _stimuli(_: Any, __: Given, options: plans.StimuliOptions, **___: Any) -> Printed:
    from llm2nifti import stimuli

    table = stimuli.load(options.stimuli, split=None, tasks=stimuli.BUNDLED)
    if options.out:
        from llm2nifti import bids, models
        from llm2nifti.media import medium_of
        from llm2nifti.scanner.likelihood import measures

        if options.out.exists() and not options.overwrite:
            raise bids.ExistsError(f"{options.out} is there already; use overwrite=True")
        if medium_of(table):
            raise stimuli.StimulusError("only prompts are measured; leave out --out")
        table = stimuli.measured(table, partial(measures, models.load(options.model)))
        text = table.to_csv(sep="\t", index=False, lineterminator="\n")
        bids.write_text(options.out, options.out.parent, text)
    return _rows(stimuli.describe(table))


# Experiments that scan what is not there yet: whose fields are options of theirs, too.
_SCANNING: dict[str, tuple[type[Plan], ...]] = {"localize": (plans.LocalizerScan, ModelChoice)}
# What does a command, and whose fields are its options besides those of its own plan.
_COMMANDS: dict[type[Plan], tuple[Any, ...]] = {
    plans.RunOptions: (_run, *SCANNED),
    plans.ScanOptions: (_scan, *SCANNED),
    plans.ReportOptions: (_report, plans.Which),
    plans.WhereOptions: (_where, plans.Which),
    plans.MonitorOptions: (_monitor, plans.Which),
    plans.TargetOptions: (_target, plans.Which),
    plans.CheckOptions: (_check,),
    plans.ModelsOptions: (_models,),
    plans.StimuliOptions: (_stimuli,),
}
