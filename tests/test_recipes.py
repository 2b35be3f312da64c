"""The recipes of docs/nilearn-recipes.md run in plain nilearn and do what the page says."""

from __future__ import annotations

import ast
import re
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
from nilearn.decomposition import CanICA
from nilearn.glm.first_level import FirstLevelModel
from nilearn.mass_univariate import permuted_ols
from tests_support import make_recording

from llm2nifti import bids, geometry, glm

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "nilearn-recipes.md").read_text("utf-8")
PYTHON = re.compile(r"```python\n(.*?)```", re.S)
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
PREAMBLE, *RECIPES = [title for title, text in SECTIONS.items() if PYTHON.search(text)]
LIBRARIES = {"matplotlib", "nibabel", "nilearn", "numpy", "pandas", "pathlib", "sklearn"}

pytestmark = pytest.mark.filterwarnings(
    "ignore", "error::UserWarning:llm2nifti", "error::RuntimeWarning:llm2nifti"
)


def code(title: str) -> str:
    return "\n".join(PYTHON.findall(SECTIONS[title]))


def execute(title: str, namespace: dict) -> dict:
    exec(compile(code(title), title, "exec"), namespace)
    return namespace


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two runs of two tasks, each with an effect of its own in noise; question frames differ."""
    root = tmp_path_factory.mktemp("recipes") / "ds"
    for seed, task in enumerate(("pathology", "archeology")):
        rng = np.random.default_rng(seed)
        effect, frame_effects = (
            rng.normal(size=35),
            rng.normal(size=(8, 35)) + np.resize([0, 5, -5], 35),
        )
        for run in (1, 2):
            recording = make_recording(task, run, seed=10 * seed + run)
            table = recording.paradigm.trials
            shifts = np.outer(table["trial_type"] == task, effect)
            shifts += frame_effects[np.unique(table["question_frame"], return_inverse=True)[1]]
            values = recording.values + np.repeat(shifts, 3, axis=0).astype(np.float32)
            bids.write(replace(recording, values=values), root)
    return root


@pytest.fixture
def here(dataset, monkeypatch):
    """The folder that holds the dataset `ds` is the working directory."""
    monkeypatch.chdir(dataset.parent)
    yield dataset.parent
    plt.close("all")


@pytest.fixture
def preamble(here):
    return execute(PREAMBLE, {})


def test_the_page_runs_in_one_namespace(here, capsys):
    namespace: dict = {}
    for title in (PREAMBLE, *RECIPES):
        execute(title, namespace)
    assert len(PYTHON.findall(PAGE)) == len(RECIPES) + 1 == 9
    assert namespace["decoder"].cv_scores_
    for name in ("carpet", "design", "map"):
        assert plt.imread(here / f"{name}.png").std() > 0.05


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_needs_the_preamble_alone(preamble, title, capsys):
    execute(title, preamble)
    printed = capsys.readouterr().out.splitlines()
    shown = re.search(r"```text\n(.*?)```", SECTIONS[title], re.S)[1].splitlines()
    assert len(printed) == len(shown)
    for ours, theirs in zip(printed, shown, strict=True):  # the same lines, with other numbers
        assert re.findall("[a-z]{4,}", ours)[:1] == re.findall("[a-z]{4,}", theirs)[:1]


@pytest.mark.parametrize("title", [PREAMBLE, *RECIPES])
def test_recipes_import_nothing_of_llm2nifti(title):
    nodes = list(ast.walk(ast.parse(code(title))))
    imported = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= LIBRARIES
    words = [node.value for node in nodes if isinstance(node, ast.Constant)]
    assert words.count("llm2nifti") == (title == PREAMBLE)  # the folder of the derivatives


def test_links_and_contents_lead_somewhere():
    anchors = [anchor(title) for title in SECTIONS]
    assert re.findall(r"^- \[.*\]\(#(.*)\)$", PAGE, re.M) == anchors
    for target in re.findall(r"\]\(([^)]*)\)", PAGE):
        assert target[1:] in anchors if target[0] == "#" else (ROOT / "docs" / target).exists()
    for path in (ROOT / "README.md", ROOT / "docs" / "first_level.md"):
        assert "nilearn-recipes.md)" in path.read_text("utf-8")
    assert "docs/first_level.md)" in (ROOT / "README.md").read_text("utf-8")


def test_an_image_in_another_space_stops_the_preamble(dataset, tmp_path, monkeypatch):
    shutil.copytree(dataset, tmp_path / "ds")
    (path,) = tmp_path.glob("ds/derivatives/llm2nifti/sub-*/anat/*_dseg.nii.gz")
    atlas, moved = nib.load(path), nib.load(path).affine.copy()
    moved[0, 3] += 1
    nib.save(nib.Nifti1Image(np.asarray(atlas.dataobj), moved), path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError):
        execute(PREAMBLE, {})


def test_signs_and_rotations_change_means_of_labels_and_not_their_geometry(preamble, capsys):
    recipe = execute(RECIPES[0], preamble)
    rng, rotated = np.random.default_rng(0), [v.astype(float) for v in recipe["values"]]
    for index in recipe["regions"]["index"]:
        columns = recipe["label"] == index
        turn = np.linalg.qr(rng.normal(size=(columns.sum(), columns.sum())))[0]
        for values in rotated:
            values[:, columns] = values[:, columns] @ turn
    assert set(recipe["sign"]) == {-1, 1}
    for changed in (recipe["turned"], rotated):
        pairs = recipe["pairs"]
        means, grams = (
            [recipe[name](values)[pairs] for values in (recipe["values"], changed)]
            for name in ("connectivity", "geometry")
        )
        assert abs(means[1] - means[0]).max() > 0.1
        np.testing.assert_allclose(grams[1], grams[0], atol=1e-6)
        assert grams[0].std() > 0.01


def test_a_direction_of_the_stream_has_one_sign_in_all_labels(preamble, capsys):
    recipe = execute(RECIPES[0], preamble)
    for number in range(7):
        i, j, k = recipe["units"].loc[recipe["units"]["unit"] == number, ["i", "j", "k"]].T.values
        assert len(i) == len(recipe["regions"])
        assert set(recipe["sign_img"][i, j, k]) == {recipe["signs"][number]}


def test_first_level_is_that_of_llm2nifti(preamble, capsys):
    recipe = execute("Design matrix and first level", preamble)
    stats = glm.fit(list(bids.session("ds").of("pathology"))).contrast("pathology - control")
    z = {
        name: geometry.from_img(stats.brain, recipe[name].compute_contrast("pathology"))
        for name in ("model", "default", "drift", "both")
    }
    np.testing.assert_allclose(
        z.pop("model"), geometry.from_img(stats.brain, stats.z_img), atol=1e-5
    )
    for name, other in z.items():
        assert abs(other - geometry.from_img(stats.brain, stats.z_img)).max() > 0.3, name


def test_prompts_without_a_frame_keep_the_contrast_a_difference_of_means(preamble):
    table = preamble["tables"][0].copy()
    on = (table["trial_type"] == "pathology").to_numpy()
    table.loc[on, "question_frame"] = np.nan
    model = FirstLevelModel(mask_img=preamble["mask"], noise_model="ols", signal_scaling=False)
    model.fit(preamble["images"][0], design_matrices=preamble["design"](table, "pathology"))
    effect = model.compute_contrast("pathology", output_type="effect_size")
    values = preamble["values"][0]
    expected = values[on].mean(axis=0) - values[~on].mean(axis=0)
    np.testing.assert_allclose(preamble["masker"].transform(effect), expected, atol=1e-4)


@pytest.mark.parametrize("t_r", [0.72, 1, 2, 8])
def test_rows_in_the_middle_of_volumes_give_exact_regressors(preamble, t_r):
    preamble["t_r"] = t_r
    for n in range(40, 60):
        table = preamble["tables"][0].iloc[np.arange(n) % 32].reset_index(drop=True)
        table["onset"], table["duration"] = np.arange(n) * t_r, t_r
        X = preamble["design"](table, "pathology")
        assert list(X["pathology"]) == list((table["trial_type"] == "pathology").astype(float))
        assert np.linalg.matrix_rank(X) == X.shape[1]


def test_second_level_of_t_finds_too_much(preamble, capsys):
    recipe = execute("Second level over runs", preamble)
    of_z, of_t = (float(x) for x in re.findall(r"([\d.]+)%", capsys.readouterr().out))
    assert of_z == 0 < of_t
    effects = [recipe["masker"].transform(img) for img in recipe["effects"]]
    t = np.mean(effects, axis=0) / (np.std(effects, axis=0, ddof=1) / np.sqrt(2))
    stat = recipe["second"].compute_contrast("mean", output_type="stat")
    np.testing.assert_allclose(recipe["masker"].transform(stat), t, rtol=1e-3)


def test_run_dummies_keep_what_differences_of_runs_drown(preamble, capsys):
    recipe = execute("Permutation tests over prompts", preamble)
    values, runs = np.vstack(recipe["values"]), recipe["runs_alone"]
    t = {}
    for name, columns in {"with": runs, "without": None}.items():
        for shift in (0, 20):
            out = permuted_ols(
                recipe["is_task"], values + shift * runs, confounding_vars=columns, n_perm=0
            )
            t[name, shift] = abs(out["t"]).max()
    assert t["with", 20] == pytest.approx(t["with", 0], rel=1e-3)
    assert t["without", 20] < 0.5 * t["without", 0]


def test_components_need_the_mask(preamble):
    with pytest.raises(ValueError, match="empty"):
        CanICA(n_components=5).fit([str(image) for image in preamble["images"]])


def test_decoding_finds_the_task_and_no_shuffled_labels(preamble, capsys):
    execute("Decoding", preamble)
    lines = capsys.readouterr().out.splitlines()
    task, shuffled = (re.findall(r"[01]\.\d\d", line) for line in lines)
    assert min(map(float, task)) > 0.8 > max(map(float, shuffled))
    assert len(task) == len(preamble["tables"])  # each run is held out


def test_carpet_groups_of_one_run_respond_in_the_other(preamble, capsys):
    execute("Carpet plot", preamble)
    printed = re.findall(r"z ([+-][\d.]+) \(task\), ([+-][\d.]+)", capsys.readouterr().out)
    (less_on, less_off), (more_on, more_off) = [[float(x) for x in pair] for pair in printed]
    assert less_on < less_off
    assert more_on > more_off
