"""Where are the files of a run? Labels become folders and names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

DERIVATIVES = Path("derivatives") / "llm2nifti"
DESCRIPTION = "dataset_description.json"
REPORT = "report.html"
_MARK = "_desc-trial_bold.json"  # ends the name of the sidecar that is written last
_TRIAL_RUN = re.compile(
    r"sub-(?P<subject>[0-9A-Za-z]+)(_ses-(?P<session>[0-9A-Za-z]+))?_task-(?P<task>[0-9A-Za-z]+)"
    rf"_run-(?P<run>\d+)_space-(?P<space>[0-9A-Za-z]+){re.escape(_MARK)}"
)


class EmptyPathError(ValueError):
    """A path is an empty text, which would mean the current folder."""


class LabelError(ValueError):
    """A name has no letter or digit to make a BIDS label of."""


def as_root(root: Path | str) -> Path:
    """Root of a dataset; EmptyPathError if it is empty, such as a variable that was not set."""
    if not str(root).strip():
        raise EmptyPathError(f"root is {root!r}; name the folder of the dataset")
    return Path(root)


def label(text: str) -> str:
    """Turn any name into a BIDS label: its ASCII letters and digits.

    Examples
    --------
    >>> label("smollm2-135m"), label("facebook/galactica-125m")
    ('smollm2135m', 'facebookgalactica125m')
    """
    cleaned = re.sub(r"[^0-9A-Za-z]", "", text)
    if not cleaned:
        raise LabelError(f"{text!r} has no ASCII letter or digit to make a BIDS label of")
    return cleaned


def folder_of(subject: str, session: str = "") -> Path:
    """Folder of a model, or of one of its sessions, relative to a dataset.

    Examples
    --------
    >>> folder_of("mymodel", "seed0").as_posix()
    'sub-mymodel/ses-seed0'
    """
    folder = Path(f"sub-{subject}")
    return folder / f"ses-{session}" if session else folder


@dataclass(frozen=True)
class RunPaths:
    """Where the files of one run are; model, task, space and session are BIDS labels."""

    root: Path
    subject: str
    task: str
    run: int
    space: str  #: of the derivative files
    suffix: str = ".nii"  #: or .nii.gz, of the 4D images
    session: str = ""  #: empty for a model without sessions

    @property
    def folder(self) -> Path:
        """Folder of the model or session, relative to the dataset or its derivatives."""
        return folder_of(self.subject, self.session)

    @property
    def who(self) -> str:
        """Model and session as in file names."""
        return "_".join(self.folder.parts)

    @property
    def stem(self) -> str:
        """What the names of the run's files begin with."""
        return f"{self.who}_task-{self.task}_run-{self.run}"

    def raw(self, ending: str) -> Path:
        """File of the raw run, such as ``bold.json``."""
        return self.root / self.folder / "func" / f"{self.stem}_{ending}"

    def derivative(self, ending: str) -> Path:
        """File of the derivative run, such as ``desc-trial_bold.nii``."""
        return self._derived("func", self.stem, ending)

    def anat(self, ending: str) -> Path:
        """File of the anatomy, such as ``dseg.nii.gz``: each session has its own weights."""
        return self._derived("anat", self.who, ending)

    def parts(self, method: str, prefix: str = "") -> dict[str, Path]:
        """Maps, parcels, names of parcels and time courses of all runs of a session together."""
        return {
            "components": self.anat(f"desc-{prefix}{method}_components.nii.gz"),
            "parcels": self.anat(f"desc-{prefix}kmeans_dseg.nii.gz"),
            "names": self.anat(f"desc-{prefix}kmeans_dseg.tsv"),
            "courses": self._derived("func", self.who, f"desc-{prefix}{method}_timeseries.tsv"),
        }

    def stat_map(self, stat: str, *, only_run: bool = False, contrast: str = "") -> Path:
        """Statistical map of this run, or of all runs of its task together.

        With the label of a `contrast`, of all runs that it is made of.
        """
        stem = self.stem if only_run else f"{self.who}_task-{self.task}"
        ending = f"stat-{stat}_statmap.nii.gz"
        if contrast:
            return self._derived("func", self.who, f"contrast-{contrast}_{ending}")
        return self._derived("func", stem, f"contrast-{self.task}VsControl_{ending}")

    def network(self, *, only_run: bool = False, desc: str = "network", contrast: str = "") -> Path:
        """Network mask: under ``anat``, because nilearn takes every mask under ``func``."""
        stem = f"{self.who}_run-{self.run}" if only_run else self.who
        ending = f"label-{contrast or self.task}_desc-{desc}_mask.nii.gz"
        return self._derived("anat", stem, ending)

    def _derived(self, kind: str, stem: str, ending: str) -> Path:
        folder = self.root / DERIVATIVES / self.folder / kind
        return folder / f"{stem}_space-{self.space}_{ending}"

    @property
    def bold(self) -> Path:
        """Token-level 4D image."""
        return self.raw(f"bold{self.suffix}")

    @property
    def trial_bold(self) -> Path:
        """Prompt-level 4D image."""
        return self.derivative(f"desc-trial_bold{self.suffix}")

    @property
    def needed(self) -> list[Path]:
        """Files that every run has; the prompt-level sidecar is written last."""
        raw = [self.bold, self.raw("bold.json"), self.raw("events.tsv")]
        endings = ["desc-brain_mask.nii.gz", "desc-brain_mask.json"]
        endings += ["desc-tokens_timeseries.tsv", "desc-tokens_timeseries.json"]
        endings += [f"desc-trial_bold{self.suffix}", "desc-trial_bold.json"]
        return [*raw, *map(self.derivative, endings)]

    @property
    def anatomy(self) -> list[Path]:
        """Files that the runs of a session share."""
        endings = ("dseg.nii.gz", "dseg.tsv", "units.tsv", "dseg.json", "T1w.nii.gz", "T1w.json")
        return list(map(self.anat, endings))

    def as_stored(self) -> RunPaths:
        """The same run with the suffix that its images have on disk."""
        packed = replace(self, suffix=".nii.gz")
        return packed if packed.trial_bold.exists() and not self.trial_bold.exists() else self


def complete_runs(root: Path, pattern: str) -> Iterator[RunPaths]:
    """Runs whose last file is there, by a pattern in the derivatives such as ``sub-*/func/*``."""
    for path in sorted((root / DERIVATIVES).glob(f"{pattern}{_MARK}")):
        match = _TRIAL_RUN.fullmatch(path.name)
        if match:
            labels = match.groupdict(default="")
            yield RunPaths(root=root, run=int(labels.pop("run")), **labels).as_stored()
