"""Shared fixtures: tiny random models, the official BIDS validator, one real run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Before torch and transformers are imported: a test never waits for a hub, and one of several
# test processes computes with a core of its own.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

import tiny

from llm2nifti import bids, cli, models, stimuli

collect_ignore = ["campaign"]  # scripts, which tests/test_campaign.py runs
LONGEST = (
    "notebooks",
    "default_model",
    "campaign",
    "cluster",
    "study",
    "study_models",
    "benchmarks",
)


def pytest_collection_modifyitems(items):
    """Files that take longest come first, so that two processes end at nearly the same time."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """Folders of tiny models, by kind, made when asked for."""
    base = tmp_path_factory.mktemp("tiny")

    class Folders(dict):
        def __missing__(self, kind):
            self[kind] = tiny.save(base / f"tiny-{kind.replace('_', '')}", kind)
            return self[kind]

    return Folders()


@pytest.fixture(scope="session")
def tiny_models(tiny_folders):
    """Load a tiny model by kind, each once."""
    loaded: dict[str, models.LoadedModel] = {}

    def get(kind):
        if kind not in loaded:
            loaded[kind] = models.load(str(tiny_folders[kind]))
        return loaded[kind]

    return get


@pytest.fixture(scope="session")
def image_table(tmp_path_factory):
    """Stimuli of drawn images."""
    return stimuli.load(tiny.draw_images(tmp_path_factory.mktemp("images"), n=8))


@pytest.fixture(scope="session")
def tiny_model(tiny_folders):
    """A tiny Llama, loaded."""
    return models.load(str(tiny_folders["llama"]))


@pytest.fixture(scope="session")
def real_model():
    """The default model."""
    return models.load()


@pytest.fixture(scope="session")
def validate():
    """Call the official validator on both datasets: no errors, and no warnings with our config."""
    program = Path(sys.executable).with_name("bids-validator-deno")
    if not program.exists():
        found = shutil.which("bids-validator-deno")
        assert found, "bids-validator-deno is missing: pip install '.[test]'"
        program = Path(found)

    def issues(folder: Path, *options: str) -> list[dict]:
        done = subprocess.run(
            [program, folder, "--format", "json", *options],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 16), done.stderr
        return json.loads(done.stdout)["issues"]["issues"]

    def check(root: Path) -> None:
        for folder in (root, root / bids.DERIVATIVES):
            plain = issues(folder)
            assert not [i for i in plain if i["severity"] == "error"], plain
            configured = issues(folder, "--config", str(folder / bids.dataset.VALIDATOR_CONFIG))
            assert not [i for i in configured if i["severity"] in ("error", "warning")], configured

    return check


@pytest.fixture(scope="session")
def real_dataset(tmp_path_factory, capfd_session):
    """The dataset that `llm2nifti run ds` makes with its defaults, and what it printed."""
    root = tmp_path_factory.mktemp("real") / "ds"
    with capfd_session() as printed:
        code = cli.main(["run", str(root), "--quiet"])
    assert code == 0
    return root, printed[0]


@pytest.fixture(scope="session")
def capfd_session():
    """Capture standard output in a session fixture."""
    import contextlib
    import io

    @contextlib.contextmanager
    def capture():
        buffer, result = io.StringIO(), [""]
        with contextlib.redirect_stdout(buffer):
            yield result
        result[0] = buffer.getvalue()

    return capture
