"""Where are the files of a run? Labels become folders and names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DERIVATIVES = Path("derivatives") / "llm2nifti"
REPORT = "report.html"


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
    """Where the files of one run are.

    Attributes
    ----------
    root : Path
        Root of the dataset.
    subject, task : str
        BIDS labels.
    run : int
        Number of the run.
    space : str
        Space label of the derivative files.
    suffix : str
        ``.nii`` or ``.nii.gz`` of the 4D images.
    session : str
        BIDS label; empty for a model without sessions.
    """

    root: Path
    subject: str
    task: str
    run: int
    space: str
    suffix: str = ".nii"
    session: str = ""

    @property
    def _who(self) -> str:
        return "_".join(folder_of(self.subject, self.session).parts)

    @property
    def _stem(self) -> str:
        return f"{self._who}_task-{self.task}_run-{self.run}"

    @property
    def _derived(self) -> Path:
        return self.root / DERIVATIVES / folder_of(self.subject, self.session)

    def raw(self, ending: str) -> Path:
        """File of the raw run, such as ``bold.json``."""
        folder = self.root / folder_of(self.subject, self.session) / "func"
        return folder / f"{self._stem}_{ending}"

    def derivative(self, ending: str) -> Path:
        """File of the derivative run, such as ``desc-trial_bold.nii``."""
        return self._derived / "func" / f"{self._stem}_space-{self.space}_{ending}"

    def anat(self, ending: str) -> Path:
        """File of the anatomy, such as ``dseg.nii.gz``: each session has its own weights."""
        return self._derived / "anat" / f"{self._who}_space-{self.space}_{ending}"

    def stat_map(self, stat: str, *, only_run: bool = False) -> Path:
        """Statistical map of this run, or of all runs of its task together."""
        run = f"_run-{self.run}" if only_run else ""
        name = (
            f"{self._who}_task-{self.task}{run}_space-{self.space}"
            f"_contrast-{self.task}VsControl_stat-{stat}_statmap.nii.gz"
        )
        return self.trial_bold.parent / name

    def network(self, *, only_run: bool = False, desc: str = "network") -> Path:
        """Network mask: under ``anat``, because nilearn takes every mask under ``func``."""
        run = f"_run-{self.run}" if only_run else ""
        name = f"{self._who}{run}_space-{self.space}_label-{self.task}_desc-{desc}_mask.nii.gz"
        return self._derived / "anat" / name

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
        derived = [self.derivative(ending) for ending in endings]
        return [*raw, *derived, self.trial_bold, self.derivative("desc-trial_bold.json")]

    @property
    def anatomy(self) -> list[Path]:
        """Files that the runs of a session share."""
        endings = ["dseg.nii.gz", "dseg.tsv", "units.tsv", "dseg.json", "T1w.nii.gz", "T1w.json"]
        return [self.anat(ending) for ending in endings]
