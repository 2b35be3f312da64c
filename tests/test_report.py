"""Does the page tell the whole story, alone, safely, and the same way each time?"""

from __future__ import annotations

import doctest
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llm2nifti import bids, geometry, glm, paradigm, report, study
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.identification.result import IdentificationResult, Naming
from llm2nifti.experiments.repeatability.result import Pair, paper_pair
from llm2nifti.geometry import Site
from llm2nifti.recording import TOKEN_COLUMNS, Recording
from llm2nifti.tell import wording

EVIL = "<script>alert(1)</script>"
TASKS = ("medicalimaging", "pathology")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or google-chrome on the PATH"
)
VOID = {"meta", "link", "img", "br", "hr", "input", "col"}
FETCHING = {"src", "srcset", "poster", "data", "action", "background", "formaction", "ping"}


def tiny_brain() -> geometry.ModelBrain:
    sites = [Site("embed", 0, "wte", 30)]
    for layer in (1, 2, 3):
        sites.append(Site("attn", layer, f"h.{layer}.attn", 30, side="left"))
        sites.append(Site("resid", layer, f"h.{layer}", 30))
        sites.append(Site("mlp", layer, f"h.{layer}.mlp", 30, side="right"))
    return geometry.layout(sites)


def record(design: paradigm.Paradigm, *, untrained: bool = False) -> Recording:
    """Noise, with an effect of pathology in the trained model; hostile text everywhere."""
    brain = tiny_brain()
    rng = np.random.default_rng([design.run, untrained, *design.task.encode()])
    values = rng.normal(size=(design.n_trials, design.n_frames, brain.n_units)).astype(np.float32)
    is_task = (design.trials["trial_type"] == design.task).to_numpy()
    if design.task == "pathology" and not untrained:
        values[is_task, :, :40] += 2
    trials = design.trials.copy()
    trials.loc[is_task.argmax(), "prompt"] = f"{EVIL} {design.task} {design.run}"
    n_tokens = design.n_trials * design.n_frames
    model = {
        "Subject": "tiny-untrained" if untrained else "tiny",
        "Name": f"tiny {EVIL}",
        "Revision": EVIL,
        "WeightsHash": "random weights, seed 0" if untrained else "0123abc",
        "Architecture": "TinyForCausalLM",
        "Parameters": 12345,
        "DType": "float32",
        "Device": "cpu",
    }
    return Recording(
        values=values.reshape(-1, brain.n_units),
        paradigm=replace(design, trials=trials),
        brain=brain,
        tokens=pd.DataFrame({name: np.zeros(n_tokens) for name in TOKEN_COLUMNS}),
        responses=[EVIL] * design.n_trials,
        rendered=[f"user: {prompt}" for prompt in trials["prompt"]],
        info={
            "Model": model,
            "Settings": {"sites": "default", "temperature": 0.0},
            "ChatTemplate": True,
            "Decoding": "greedy",
            "Threads": 1,
            "Versions": {"llm2nifti": "0"},
        },
        norms=rng.random(brain.n_units).astype(np.float32) + 0.1,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Analysed dataset of two tasks, two runs and an untrained copy; tests do not change it."""
    root = tmp_path_factory.mktemp("report") / "ds"
    designs = paradigm.experiment(TASKS, n_runs=2, n_blocks=2, trials_per_block=8, n_frames=2)
    for design in designs:
        for untrained in (False, True):
            bids.write(record(design, untrained=untrained), root)
    study.analyse(bids.session(root), n_null=10, verbose=0)
    report.write(root, verbose=0)
    return root


@pytest.fixture
def changeable(dataset: Path, tmp_path: Path) -> Path:
    """Copy of the dataset."""
    return shutil.copytree(dataset, tmp_path / "ds")


def page_of(root: Path) -> str:
    return (root / bids.DERIVATIVES / "report.html").read_text("utf-8")


class Page(HTMLParser):
    """What a browser would load, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.scripts = 0
        self.ids: list[str] = []
        self.without_alt = 0
        self.texts: list[str] = []
        self.documents: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        values = {name: value or "" for name, value in attributes}
        self.scripts += tag == "script"
        self.without_alt += tag == "img" and not values.get("alt")
        for name, value in values.items():
            if name in FETCHING or (name in ("href", "xlink:href") and tag != "a"):
                self.loads.append(value)
            elif name == "href":
                self.links.append(value)
            elif name == "srcdoc":
                self.documents.append(value)
            elif name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_writes_the_page_and_every_figure_as_png_and_svg(dataset: Path):
    path = dataset / bids.DERIVATIVES / "report.html"
    assert path.exists()
    figures = dataset / bids.DERIVATIVES / "figures"
    stems = {file.stem for file in figures.glob("*.png")}
    assert stems == {file.stem for file in figures.glob("*.svg")}
    assert {"design", "floor_plan", "atlas", "similarity_r", "confusion"} <= stems
    assert {f"{kind}_{task}" for kind in ("map", "layers") for task in TASKS} <= stems
    assert page_of(dataset).count("<img ") == len(stems)


def test_page_is_well_formed_and_accessible(dataset: Path):
    page = Page(page_of(dataset))
    assert page.open == []
    assert page.without_alt == 0
    assert len(set(page.ids)) == len(page.ids)
    inner = [link.removeprefix("#") for link in page.links if link.startswith("#")]
    assert len(inner) == 10
    assert set(inner) <= set(page.ids)


def test_hostile_text_of_the_data_is_escaped(dataset: Path):
    text = page_of(dataset)
    assert EVIL not in text
    assert Page(text).scripts == 0
    shown = "".join(Page(text).texts)
    assert f"tiny {EVIL}" in shown  # the model's name
    assert f"user: {EVIL} medicalimaging 1" in shown  # what the model read
    assert html.escape(EVIL) in text


def test_sentences_of_the_page_have_a_space_between_them(dataset: Path):
    shown = " ".join(Page(page_of(dataset)).texts)
    assert re.findall(r"[a-z)][.:;,][A-Z]\w*", shown) == []


def test_page_loads_nothing_from_outside(dataset: Path):
    pages = [Page(page_of(dataset))]
    pages += [Page(document) for document in pages[0].documents]
    assert len(pages) == 1 + len(TASKS)
    for page in pages:
        assert all(load.startswith("data:") for load in page.loads)
    assert "@import" not in page_of(dataset)
    assert not re.search(r"url\(\s*['\"]?(?!data:)", page_of(dataset).split("</style>")[0])


def test_same_dataset_gives_same_bytes(changeable: Path):
    folder = changeable / bids.DERIVATIVES
    files = [folder / "report.html", *sorted((folder / "figures").iterdir())]
    before = {file: file.read_bytes() for file in files}
    assert report.write(changeable, verbose=0) == folder / "report.html"
    assert {file: file.read_bytes() for file in files} == before


def test_dataset_without_summary_is_refused_with_advice(changeable: Path):
    path = changeable / bids.DERIVATIVES / "summary.json"
    path.write_text('{"tasks": ', "utf-8")
    with pytest.raises(bids.DamagedFileError, match=r"summary.json: line 1"):
        report.write(changeable)
    path.unlink()
    with pytest.raises(
        report.ReportError, match=r"summary\.json is missing.*llm2nifti run"
    ) as info:
        report.write(changeable)
    assert isinstance(info.value, ValueError)
    assert "\n" not in str(info.value)


def test_missing_map_is_named(changeable: Path):
    stem = "*_task-pathology_space-*_stat-t_statmap.nii.gz"
    path = next((changeable / bids.DERIVATIVES).rglob(stem))
    path.unlink()
    with pytest.raises(ExperimentError, match=re.escape(str(path))):
        report.write(changeable, verbose=0)


def test_absent_parts_of_the_summary_are_explained(changeable: Path):
    summary = bids.read_summary(changeable)
    null = {**summary["null"], "pseudo_tasks": {"not_possible": f"too few {EVIL}"}}
    absent = {"similarity": None, "identification": None, "untrained": None}
    bids.update_summary(changeable, null=null, **absent)
    report.write(changeable, verbose=0)
    text = page_of(changeable)
    assert "Repeatability needs at least 2 runs" in text
    assert "Identification needs at least 2 tasks" in text
    assert f"Pseudo-tasks were not possible: too few {html.escape(EVIL)}." in text


def test_numbers_of_the_page_are_those_of_the_summary(dataset: Path):
    summary = bids.read_summary(dataset)
    shown = " ".join("".join(Page(page_of(dataset)).texts).split())
    for numbers in summary["tasks"].values():
        assert f"{numbers['n_active']} of 300 units" in shown
    assert summary["tasks"]["pathology"]["n_active"] > 20
    names = ("accuracy", "chance")
    accuracy, chance = (summary["identification"]["trials"][name] for name in names)
    assert f"{100 * accuracy:.1f} % are named right" in shown
    assert f"guessing gives {100 * chance:.1f} %" in shown
    assert f"{summary['untrained']['similarity']['same_task_r']:.2f}".replace("-", "−") in shown


def test_threshold_of_the_map_is_read_from_the_network(dataset: Path):
    run = bids.read(dataset, task="pathology")
    maps = glm.fit([run, bids.read(dataset, task="pathology", run=2)])
    t = np.abs(maps.contrast("pathology - control").t())
    n_active = bids.read_summary(dataset)["tasks"]["pathology"]["n_active"]
    lowest = np.sort(t)[-n_active]
    assert f"|t| ≥ {lowest:.2f}, the smallest |t| inside the network" in page_of(dataset)


def test_images_newer_than_the_summary_are_said_to_be(changeable: Path):
    run = bids.session(changeable)[0]
    values = np.zeros(run.brain.n_units, np.uint8)
    values[:3] = 1
    path = run.paths.network()
    bids.write_img(path, changeable, geometry.to_img(run.brain, values))
    report.write(changeable, verbose=0)
    assert "The network image now holds 3 units, the summary says" in page_of(changeable)


@pytest.mark.parametrize("is_read", [False, True])
def test_page_speaks_of_images_and_responses_only_where_there_are(changeable: Path, is_read: bool):
    design = bids.read_summary(changeable)["design"]
    mode = "read" if is_read else "generate"
    medium = "images" if is_read else "prompts"
    bids.update_summary(changeable, design={**design, "mode": mode, "shown": medium})
    report.write(changeable, verbose=0)
    shown = " ".join(page_of(changeable).split())
    assert ("A model was shown images in a block design" in shown) == is_read
    assert ("blocks of control prompts about unrelated everyday topics" in shown) != is_read
    assert (">Response</th>" in shown) != is_read
    assert ("reads the tokens that the trained model generated" in shown) != is_read


def test_pair_of_the_paper_is_ranked_by_the_numbers():
    pair = Pair(["pathology", "medicalimaging"], 0.3, 0.1)
    others = [
        Pair(["archeology", "paleontology"], 0.4, 0.05),
        Pair(["archeology", "pathology"], 0.1, 0.02),
    ]
    assert paper_pair(others) is None
    assert "only pair" in str(paper_pair([pair]))
    answer = paper_pair([others[0], pair, others[1]])
    assert "ranks 2 of 3 by the correlation of maps and 1 of 3 by Dice" in str(answer)
    assert "by one of the two measures" in str(answer)
    answer = paper_pair([others[0], replace(pair, dice=0.0), others[1]])
    assert "the most similar pair is archeology and paleontology" in str(answer)


def test_smallest_p_is_said_only_where_it_matters():
    def told(tasks, n_runs):
        n = len(tasks)
        named = Naming(1.0, n * n_runs, 1 / n, 0.1, tasks, np.eye(n).tolist())
        return repr(IdentificationResult(named, named))

    assert "cannot be below about 0.06" in " ".join(told(["a", "b"], 4).split())
    assert "cannot be below" not in told(list("abcdef"), 3)


def test_examples_in_docstrings_hold():
    assert doctest.testmod(wording).failed == 0


PROBE = """<script>
for (const d of document.querySelectorAll("details")) d.open = true;
addEventListener("load", () => setTimeout(() => parent.postMessage(JSON.stringify({
  images: document.images.length,
  broken: [...document.images].filter(i => !i.naturalWidth).length,
  scroll: document.documentElement.scrollWidth,
  client: document.documentElement.clientWidth}), "*"), 500));
</script>"""
WRAPPER = """<!DOCTYPE html><title>none</title><body style="margin:0">
<script>
addEventListener("message", e => {{ if (String(e.data)[0] == "{{") document.title = e.data; }});
</script><iframe src="page.html" width="{width}" height="2000" style="border:0"></iframe>"""


def check_page(page: Path, tmp_path: Path, width: int = 1280) -> None:
    """Render a report in headless Chromium: every image loads, nothing scrolls sideways."""
    text = page.read_text("utf-8")
    (tmp_path / "page.html").write_text(text + PROBE, "utf-8")
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(WRAPPER.format(width=width), "utf-8")
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", "--window-size=1280,2000", "--virtual-time-budget=10000",
        f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}",
    ]  # fmt: skip
    command = [str(CHROMIUM), *options, "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    seen = json.loads(html.unescape(title[1]))
    assert seen["images"] == text.count("<img ")
    assert seen["broken"] == 0
    assert seen["client"] == width
    assert seen["scroll"] <= seen["client"]


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_browser_shows_every_image_without_sideways_scrolling(
    dataset: Path, tmp_path: Path, width: int
):
    check_page(dataset / bids.DERIVATIVES / "report.html", tmp_path, width)
