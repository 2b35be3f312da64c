"""What tells whether a result is still that of its runs?"""

from __future__ import annotations

from importlib.metadata import version

from llm2nifti import __version__, bids
from llm2nifti.bids import Session, checking, manifest


def versions() -> dict[str, str]:
    """Versions of what the analysis depends on."""
    packages = ("nilearn", "nibabel", "numpy", "pandas", "scipy", "scikit-learn")
    return {"llm2nifti": __version__, **{name: version(name) for name in packages}}


def digest_of_runs(session: Session) -> str | None:
    """Digest of the runs of a session and of its untrained copy; None without a manifest."""
    if not manifest.has_manifest(session.root):
        return None
    subjects = (session.subject, bids.label(f"{session.subject}-untrained"))
    folders = [bids.folder_of(name, session.session) for name in subjects]
    return checking.digest(session.root, ("run", "anatomy"), folders)
