"""How does one run become files? Token-level raw run, prompt-level derivative run, anatomy."""

from __future__ import annotations

import filecmp
import os
import shutil
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import pandas as pd

from llm2nifti import __version__, geometry
from llm2nifti.bids import checking, dataset, files, manifest
from llm2nifti.bids.paths import DERIVATIVES, REPORT, LabelError, RunPaths, as_root, label
from llm2nifti.media import MEDIA, medium_of
from llm2nifti.paradigm import Paradigm
from llm2nifti.recording import REDUCED, TOKEN_COLUMNS, Recording
from llm2nifti.stimuli import CONDITIONS, CONTROL, REST
from llm2nifti.stimuli.measures import MEASURES
from llm2nifti.stimuli.tables import OF_DESIGN, OF_EVENTS, ROLE

_LEVELS = {"task": "condition of the task {}", CONTROL: "condition that {} is compared with"}


def write(
    recording: Recording, root: Path | str, *, overwrite: bool = False, compress: bool = False
) -> RunPaths:
    """Write a recording as a run of a BIDS dataset.

    Parameters
    ----------
    recording : Recording
        From `llm2nifti.scanner.scan`.
    root : path-like
        Root of the dataset; created if needed.
    overwrite : bool, default=False
        Replace the run if it is there.
    compress : bool, default=False
        Write 4D images as ``.nii.gz``: slower to write and read, and hardly smaller.

    Raises
    ------
    ExistsError
        If the run is there already, or the folder holds something else.

    Examples
    --------
    >>> bids.write(recording, root="ds")  # doctest: +SKIP
    """
    root = as_root(root)
    dataset.check_folder(root)
    model = recording.info.get("Model", {})
    session = str(model.get("Session") or "")
    paths = RunPaths(
        root=root,
        subject=label(str(model.get("Subject", "model"))),
        task=label(recording.paradigm.task),
        run=recording.paradigm.run,
        space=recording.brain.space,
        suffix=".nii.gz" if compress else ".nii",
        session=label(session) if session else "",
    )
    intact = checking.is_intact(paths)
    if intact and not overwrite:
        raise files.ExistsError(
            f"{paths.trial_bold} is there already; choose another folder or use overwrite=True"
        )
    # A run that is new or mended leaves what experiments measured; one that is replaced does not.
    _remove(paths, with_results=intact)
    with files.shared(root):  # other processes may write other runs
        dataset.write_dataset_files(root)
        dataset.describe_model(root, paths.subject, paths.session, recording.info)
        _write_events_json(paths, recording)
        _write_anatomy(paths, recording)
    _write_raw(paths, recording)
    _write_derivative(paths, recording)
    return paths


def _remove(paths: RunPaths, *, with_results: bool) -> None:
    """Delete what an earlier write left, the sidecar that marks completeness first."""
    func, whole = paths.trial_bold.parent, paths.root / DERIVATIVES
    old = [
        paths.derivative("desc-trial_bold.json"),
        *paths.bold.parent.glob(f"{paths.stem}_*"),
        *func.glob(f"{paths.stem}_*"),
        # What was made of all runs of the task no longer fits, nor does the summary.
        *func.glob(f"{paths.who}_task-{paths.task}_space-*"),
        *paths.anat("").parent.glob(f"*_label-{paths.task}_*"),
    ]
    of_several = sorted(func.glob(f"{paths.who}_space-{paths.space}_contrast-*"))
    labels = {path.name.partition("_contrast-")[2].partition("_")[0] for path in of_several}
    old += of_several
    old += [p for name in labels for p in paths.anat("").parent.glob(f"*_label-{name}_*")]
    for folder in (whole, whole / paths.folder):
        if paths.task != REST:  # which the analysis of tasks leaves out
            old += [folder / dataset.SUMMARY.name, folder / REPORT]
        old += dataset.results_of(folder) if with_results else []
    if with_results:  # components and parcels
        of_all_runs = f"{paths.who}_space-{paths.space}_desc-*"
        old += [*func.glob(of_all_runs), *paths.anat("").parent.glob(of_all_runs)]
    manifest.remove(paths.root, dict.fromkeys(old))


def _events(recording: Recording, task: str) -> pd.DataFrame:
    """Rows of events.tsv: the paradigm's trials with the responses.

    Types of trials are the label of the task and the control, or conditions of the task's own.
    """
    events = recording.paradigm.events
    if ROLE not in events:
        events["trial_type"] = [CONTROL if t == CONTROL else task for t in events["trial_type"]]
    events["response"] = recording.responses
    first = ["onset", "duration", "trial_type", "block", "stim_id", "prompt", "response"]
    if medium_of(events):
        events["stim_file"] = stimulus_names(events)
        first.insert(4, "stim_file")
    columns = [*first, "question_frame", "topic", "concept"]
    return events[[*columns, *further_columns(events)]]


def further_columns(trials: pd.DataFrame) -> list[str]:
    """Columns of trials that only some stimuli have, such as measures of the prompts."""
    known = {*dataset.COLUMNS["events"], *MEDIA, *OF_EVENTS}
    return [name for name in trials if name not in known]


def stimulus_names(trials: pd.DataFrame) -> list[str]:
    """Names that images or sounds get under ``stimuli/``, made of their column ``stim_id``.

    LabelError if an identifier has no ASCII letter or digit, or two would give the same name.
    """
    names: list[str] = []
    owners: dict[str, str] = {}
    medium = medium_of(trials)
    for stim_id, file in zip(trials["stim_id"], trials[medium], strict=True):
        names.append(f"{label(stim_id)}{Path(file).suffix.lower()}")
        other = owners.setdefault(names[-1].lower(), stim_id)
        if other != stim_id:
            raise LabelError(
                f"{MEDIA[medium]} {other!r} and {stim_id!r} would both be called {names[-1]}: "
                "names keep only letters and digits of the stim_id, so rename one"
            )
    return names


def copy_shown(root: Path, trials: pd.DataFrame, *, only_known: bool = False) -> None:
    """Keep the images or sounds that were shown with the dataset, as far as it lacks them.

    `only_known` are those that it had before: they were lost or damaged.
    """
    medium = medium_of(trials)
    if not medium:
        return
    for name, file in zip(stimulus_names(trials), trials[medium], strict=True):
        path = root / "stimuli" / name
        if only_known and manifest.name_of(root, path) not in manifest.written(root):
            continue
        if not path.exists() or not filecmp.cmp(file, path, shallow=False):
            with files.atomic(path, root) as temporary:
                shutil.copyfile(file, temporary)


def _write_events_json(paths: RunPaths, recording: Recording) -> None:
    """Root sidecar that explains the columns of a task's events."""
    task, title, medium = paths.task, recording.paradigm.task, medium_of(recording.paradigm.trials)
    path = paths.root / f"task-{task}_events.json"
    if path.exists():
        return
    content = deepcopy(dataset.COLUMNS["events"])
    levels = {task: f"prompts about {title}", CONTROL: "prompts about unrelated everyday topics"}
    if task == REST:
        levels = {REST: "free generation from an empty prompt"}
    if medium:
        levels = {task: f"{MEDIA[medium]} of {title}", CONTROL: f"control {MEDIA[medium]}"}
    trials = recording.paradigm.trials
    if ROLE in trials:
        sides = dict(zip(trials["trial_type"], trials[ROLE], strict=True))
        levels = {name: _LEVELS[side].format(title) for name, side in sorted(sides.items())}
    content["trial_type"]["Levels"] = levels
    program = {"OperatingSystem": "n/a", "SoftwareName": "llm2nifti"}
    content["StimulusPresentation"] = {**program, "SoftwareVersion": __version__, "Code": "n/a"}
    known = MEASURES | CONDITIONS | OF_DESIGN
    for name in further_columns(trials):
        content[name] = {"Description": known.get(name, "further column of the stimuli")}
    if ROLE in trials:
        content[ROLE]["Levels"] = {side: text.format(title) for side, text in _LEVELS.items()}
    if medium:
        shown = f"File of the {MEDIA[medium].removesuffix('s')} that was shown, under stimuli/"
        content["stim_file"] = {"Description": shown}
    files.write_json(path, paths.root, content)


def _write_raw(paths: RunPaths, recording: Recording) -> None:
    """Token-level run with events and sidecar."""
    root, t_r, trials = paths.root, recording.t_r, recording.trials()
    n_volumes = len(recording.values)
    files.write_frames(paths.bold, root, recording.brain, trials, n_volumes=n_volumes, t_r=t_r)
    files.write_json(paths.raw("bold.json"), root, _sidecar(recording, t_r))
    copy_shown(root, recording.paradigm.trials)
    files.write_tsv(paths.raw("events.tsv"), root, _events(recording, paths.task))


def _sidecar(recording: Recording, t_r: float) -> dict[str, object]:
    """What a reader of the run has to know; that of trials says otherwise what a volume is."""
    paradigm = recording.paradigm
    counts = recording.counts.tolist()
    medium = medium_of(paradigm.trials)
    what, shown = _described(paradigm), "the prompts alone"
    if paradigm.task == REST:
        what, shown = "Free generation from an empty prompt, one seed a trial.", "no prompt"
        if recording.rendered[0]:
            shown += f"; it reads {recording.rendered[0]!r}"
    return {
        "TaskName": label(paradigm.task),
        "TaskDescription": (
            f"{what} The participant is a language model: nothing here is BOLD signal and no one "
            "took part; the suffix serves the tools."
        ),
        "Instructions": f"n/a: the model is shown {shown}",
        **({"Stimuli": MEDIA[medium]} if medium else {}),
        **({"TrialOrder": paradigm.order} if paradigm.order != "blocks" else {}),
        "RepetitionTime": t_r,
        "FrameTimeConvention": f"a frame lasts {paradigm.t_r:g} s by convention",
        "Frames": recording.frames,
        "NumberOfFramesPerTrial": paradigm.n_frames,
        "NumberOfVolumesPerTrial": counts[0] if len(set(counts)) == 1 else counts,
        "Sites": list(dict.fromkeys(site.name for site in recording.brain.sites)),
        **recording.info,
    }


def _described(paradigm: Paradigm) -> str:
    """What a run shows, in a sentence."""
    medium = medium_of(paradigm.trials)
    on, off = f"prompts about {paradigm.task}", "prompts about unrelated topics"
    if medium:
        on, off = f"{MEDIA[medium]} of {paradigm.task}", f"control {MEDIA[medium]}"
    if ROLE in paradigm.trials:
        by_side = paradigm.trials.groupby(ROLE)["trial_type"].unique()
        on, off = (" and ".join(sorted(by_side[side])) for side in ("task", CONTROL))
    if paradigm.order == "events":
        return f"Trials of {on} (on) and of {off} (off) come in random order."
    if paradigm.order == "mixed":
        return f"Blocks of {on} among {off} (on) alternate with blocks of {off} alone (off)."
    return f"Blocks of {on} (on) alternate with {off} (off)."


def _write_derivative(paths: RunPaths, recording: Recording) -> None:
    """Prompt-level run, mask and token measures; the run's sidecar comes last."""
    root, brain, paradigm = paths.root, recording.brain, recording.paradigm
    t_r = paradigm.t_r * paradigm.n_frames
    sources = [f"bids:raw:{manifest.name_of(root, paths.bold)}"]
    mask = {
        "Type": "Brain",
        "Sources": sources,
        "Description": "All voxels that hold a unit.",
        "SpatialReference": _reference(paths),
    }
    files.write_img(paths.derivative("desc-brain_mask.nii.gz"), root, geometry.mask_img(brain))
    files.write_json(paths.derivative("desc-brain_mask.json"), root, mask)
    files.write_tsv(paths.derivative("desc-tokens_timeseries.tsv"), root, recording.tokens)
    measures: dict[str, object] = {"SamplingFrequency": 1 / paradigm.t_r, "StartTime": 0}
    measures |= {name: {"Description": text} for name, text in TOKEN_COLUMNS.items()}
    files.write_json(paths.derivative("desc-tokens_timeseries.json"), root, measures)
    if recording.frames in REDUCED:
        _link(paths.trial_bold, paths.bold, root)
    else:
        n_trials, means = len(recording.counts), recording.means()
        files.write_frames(paths.trial_bold, root, brain, means, n_volumes=n_trials, t_r=t_r)
    if paradigm.frame_counts is not None:  # trials last differently: here, each is one volume
        events = _events(recording, paths.task)
        events["onset"], events["duration"] = [i * t_r for i in range(len(events))], t_r
        files.write_tsv(paths.derivative("desc-trial_events.tsv"), root, events)
    what = "its last token" if recording.frames == "last" else "the mean of its frames"
    if at := recording.info.get("Settings", {}).get("at"):
        what = f"the mean of the tokens at {at} of the prompt"
    sidecar = {
        **_sidecar(recording, t_r),
        "FrameTimeConvention": f"a trial lasts {t_r:g} s by convention",
        "Frames": recording.frames if recording.frames in REDUCED else "trial",
        "NumberOfVolumesPerTrial": 1,
        "StartTime": t_r / 2,  # nilearn then takes the middle of a frame, exact for these designs
        "SkullStripped": True,
        "SpatialReference": _reference(paths),
        "Description": f"One volume a trial: {what}.",
        "Sources": sources,
        "Rendered": recording.rendered,  # frozen: some chat templates contain today's date
    }
    del sidecar["NumberOfFramesPerTrial"]  # of the raw run: here a volume is a trial
    files.write_json(paths.derivative("desc-trial_bold.json"), root, sidecar)


def _link(path: Path, source: Path, root: Path) -> None:
    """Make a second name for a file that already has the content, or a copy where there is none."""
    with files.atomic(path, root) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, temporary)


def _reference(paths: RunPaths) -> str:
    """URI of the image that defines the space."""
    return f"bids::{manifest.name_of(paths.root / DERIVATIVES, paths.anat('T1w.nii.gz'))}"


def _write_anatomy(paths: RunPaths, recording: Recording) -> None:
    """Atlas, units table and anatomical image of the subject or session, once."""
    root, brain, norms = paths.root, recording.brain, recording.norms
    if checking.are_intact(root, paths.anatomy):
        return
    anatomy = geometry.mask_img(brain) if norms is None else geometry.anatomy_img(brain, norms)
    files.write_img(paths.anat("dseg.nii.gz"), root, geometry.dseg_img(brain))
    files.write_img(paths.anat("T1w.nii.gz"), root, anatomy)
    files.write_tsv(paths.anat("dseg.tsv"), root, geometry.lut(brain))
    files.write_tsv(paths.anat("units.tsv"), root, geometry.units_table(brain))
    common = {"SpatialReference": _reference(paths), "Sources": []}
    atlas = {**common, "Description": "Atlas by layer and site.", "Manual": False}
    files.write_json(paths.anat("dseg.json"), root, atlas | dataset.COLUMNS["sites"])
    text = "Log norm of the weights that write into each unit, scaled to 300..1000."
    t1w = {**common, "SkullStripped": True, "Description": text}
    files.write_json(paths.anat("T1w.json"), root, t1w)


def clear_work(root: Path, *, recordings: bool = False) -> None:
    """Delete temporary files from the work folder of a dataset that no other process writes to.

    The manifest is tidied, too. Recordings that an interruption cut off stay, to be resumed, unless
    they are asked for.
    """
    for path in (root / manifest.WORK).glob("*"):
        if path == root / manifest.ASIDE:
            continue
        if path.is_dir():
            if recordings or not (path / "plan.json").exists():
                shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":  # ours, while we hold it
            path.unlink(missing_ok=True)
    manifest.settle(root)
    with suppress(OSError):
        (root / manifest.WORK).rmdir()
