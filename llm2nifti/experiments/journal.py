"""What was a result made from, and where are finished pieces of long work kept?

The pieces are in a file of lines, each written as soon as it is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm2nifti import __version__, bids
from llm2nifti.bids import Run, Session, checking, manifest
from llm2nifti.bids.sessions import Sessions
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.plans import Json, Plan
from llm2nifti.recording import Lines
from llm2nifti.stimuli import REST


class ResultJournal:
    """Results by key, each written when it comes; what an interruption cut off is dropped.

    `path` is a file of JSON lines, whose first says what `settings`, which decide the results, they
    were made with; ExperimentError if those were others, unless `overwrite` starts anew.
    """

    def __init__(self, path: Path, settings: Json, *, overwrite: bool = False) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self._lines = Lines(path)
        if overwrite or len(self._lines.contents) < 2:  # in the latter case nothing is lost
            self._lines.clear()
        else:
            self._check(self._lines.contents[0])
        self._results: Json = dict(self._lines.contents[1:])

    def __contains__(self, key: str) -> bool:
        """Whether the result is there."""
        return key in self._results

    def __len__(self) -> int:
        """Number of results."""
        return len(self._results)

    def __getitem__(self, key: str) -> Any:
        """Result of a key."""
        return self._results[key]

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """Result of a key, made and kept, on disk too, unless it is there."""
        if key not in self._results:
            result = make()
            settings = [] if self._lines.contents else [self._settings]
            if settings:
                manifest.record_journal(self.path)
            self._lines.append(*settings, [key, result])
            self._results[key] = result
        return self._results[key]

    def _check(self, kept: Json) -> None:
        """Raise ExperimentError where the kept settings differ."""
        changed = [
            f"{name} {kept.get(name)!r}, now {value!r}"
            for name, value in self._settings.items()
            if kept.get(name) != value
        ]
        if changed:
            raise ExperimentError(
                f"{self.path} was made with other settings ({'; '.join(changed)}); use the same, "
                "or overwrite=True to measure all of it again"
            )

    def finish(self) -> None:
        """Forget what is now kept elsewhere."""
        manifest.delete_journal(self.path)


def hash_texts(runs: Sequence[Run]) -> str:
    """SHA-256 of the prompts and answers of some runs, which a new scan may have changed."""
    digest = hashlib.sha256()
    for run in runs:
        shown = run.events[["trial_type", "prompt"]].to_csv(index=False)
        digest.update(shown.encode() + run.tokens["token_id"].to_csv(index=False).encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the analysis depends on."""
    packages = ("nilearn", "nibabel", "numpy", "pandas", "scipy", "scikit-learn")
    return {"llm2nifti": __version__, **{name: version(name) for name in packages}}


def made_from(session: Session | Sessions, plan: Plan) -> Json:
    """What decides a result: runs, plan and versions. Without a manifest nothing tells the runs."""
    runs: Json | str | None = None
    if isinstance(session, Session):
        runs = digest_of_runs(session, with_rest=bool(plan.asked.get("rest")))
    elif manifest.has_manifest(session.root):
        runs = {one.name: digest_of_runs(one) for one in session}
    return {"runs": runs, "plan": plan.asked, "versions": versions()}


def digest_of_runs(session: Session, *, with_rest: bool = False) -> str | None:
    """Digest of the runs of a session and of its untrained copy; None without a manifest."""
    if not manifest.has_manifest(session.root):
        return None
    subjects = (session.subject, bids.label(f"{session.subject}-untrained"))
    folders = [bids.folder_of(name, session.session) for name in subjects]
    but_task = None if with_rest else REST
    return checking.digest(session.root, ("run", "anatomy"), folders, but_task=but_task)
