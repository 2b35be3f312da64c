"""The lesion experiment on a small dataset of a tiny model, one lesion done again by hand."""

from __future__ import annotations

import copy
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

from llm2nifti import bids, cli, experiments, geometry, glm, models, report
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.journal import ResultJournal
from llm2nifti.experiments.lesions.measure import Condition, Targets
from llm2nifti.experiments.lesions.plan import LesionPlan, SteerPlan
from llm2nifti.interventions import InterventionError
from llm2nifti.interventions.bench import Bench
from llm2nifti.interventions.reloading import reload
from llm2nifti.models import ModelError
from llm2nifti.plans import WithModel
from llm2nifti.study import analyse, repairing
from llm2nifti.tell import as_text

SIZES = {"n_random": 2, "n_prompts": 3}
FEW = {"n_random": 1, "n_prompts": 2}


def measure(root, plan=LesionPlan, **changes):
    return experiments.measure(bids.session(root), plan(**changes), verbose=0)


def targets_of(root, folder, *, n_random=2, n_prompts=3, tasks=("archeology", "pathology")):
    bench = Bench(models.load(folder), bids.session(root), n_prompts)
    return Targets(bench, list(tasks), [], n_random)


@pytest.fixture(scope="module")
def folder(tiny_folders):
    return str(tiny_folders["llama"])


@pytest.fixture(scope="module")
def root(tmp_path_factory, folder):
    """Two tasks, two runs, with the untrained copy, analysed."""
    root = tmp_path_factory.mktemp("lesions") / "ds"
    sizes = ["--n-runs", "2", "--n-blocks", "2", "--trials-per-block", "4", "--n-frames", "3"]
    tasks = ["--task", "pathology", "--task", "archeology"]
    assert cli.main(["scan", str(root), "--model", folder, *tasks, *sizes, "--quiet"]) == 0
    analyse(bids.session(root), n_null=20, verbose=0)
    return root


@pytest.fixture(scope="module")
def content(root, folder):
    return measure(root, **SIZES, model=folder)


def by_hand(root, folder, content):
    """Change of pathology's text in run 1, from weights and transformers' loss alone."""
    runs = bids.session(root).of("pathology")
    contrast = glm.run_contrast(runs[1].values(), runs[1].events, "pathology - control")
    t = np.abs(np.nan_to_num(np.ravel(contrast.stat())))
    brain = runs[0].brain
    added = np.concatenate([np.full(s.n_units, s.name in ("attn", "mlp")) for s in brain.sites])
    k = round(0.01 * added.sum())
    chosen = np.argsort(-np.where(added, t, -1), kind="stable")[:k]
    others = [run for run in bids.session(root) if run.run == 2]
    control = np.concatenate(
        [r.values()[(r.events["trial_type"] == "control").to_numpy()] for r in others]
    ).mean(axis=0)
    model = models.load(folder)
    lesioned = copy.deepcopy(model.module)
    for site in brain.sites:
        layer = lesioned.get_submodule(site.module)
        units = [u for u in chosen - brain.slice_of(site).start if 0 <= u < site.n_units]
        if not units:
            continue
        target = next(m for m in reversed(list(layer.modules())) if isinstance(m, torch.nn.Linear))
        value = torch.from_numpy(control[brain.slice_of(site)][units])
        target.bias = torch.nn.Parameter(torch.zeros(site.n_units))
        target.weight.data[units], target.bias.data[units] = 0, value
    run = runs[0]
    rows = np.flatnonzero((run.events["trial_type"] == "pathology").to_numpy())
    rows = rows[np.linspace(0, len(rows) - 1, 3).round().astype(int)]
    tokens = [list(t) for _, t in run.tokens.groupby("trial")["token_id"]]
    out = []
    for row in rows:
        prompt = model.tokenizer(run.events["prompt"].iloc[row])["input_ids"]
        ids = torch.tensor([[*prompt, *tokens[row]]])
        with torch.no_grad():
            losses = [float(m(input_ids=ids, labels=ids).loss) for m in (model.module, lesioned)]
        out.append(losses[0] - losses[1])
    return out


def test_an_effect_equals_the_same_lesion_made_in_the_weights(root, folder, content):
    path = next((root / bids.DERIVATIVES).glob("sub-tiny*llama_lesion_evaluations.jsonl"))
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    found = next(
        change["pathology"]
        for key, change in lines
        if json.loads(key)[-3:] == [1, "pathology", "lesion"]
    )
    np.testing.assert_allclose(found, by_hand(root, folder, content), atol=2e-5)
    assert np.abs(found).max() > 1e-4


def test_the_result_has_every_cell_with_its_controls(root, content):
    kept = json.loads((root / bids.DERIVATIVES / "lesion.json").read_text())
    assert kept == content.content()
    for group in (kept, kept["untrained"]):
        effects = group["conditions"][0]["effects"]
        assert set(effects) == {"archeology", "pathology"}
        for name in effects:
            assert set(effects[name]) == {"archeology", "pathology", "control"}
            cell = effects[name]["control"]
            assert len(cell["random"]) == 2
            assert cell["interval"][0] <= cell["delta"] <= cell["interval"][1]
            assert cell["n_texts"] == 6
    assert content.first.sites == ("attn", "mlp")
    assert content.held_out
    text = as_text(*content.sections())
    assert "pathology" in text
    assert "The untrained copy: lesions change" in text


def test_lesion_mass_is_what_was_asked_for(root, folder):
    targets, runs = targets_of(root, folder), bids.session(root)
    condition = Condition(("attn", "mlp"), "mean", 0.05)
    made = {
        k: targets.network(condition, "pathology", 1, k) for k in ("lesion", "bottom", "random0")
    }
    n = round(0.05 * sum(s.n_units for s in runs[0].brain.sites if s.name in ("attn", "mlp")))
    for network in made.values():
        assert network.n_units == n
        active = network.profile().query("n_active > 0")
        assert set(active["site"]) <= {"attn", "mlp"}
    assert not (made["lesion"].units & made["bottom"].units).any()
    assert not (made["lesion"].units & made["random0"].units).any()


def test_an_interrupted_sweep_goes_on_where_it_was(root, folder, content, monkeypatch):
    done = []

    def change(self, *args, **options):
        done.append(args)
        if len(done) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    original = Bench.change
    monkeypatch.setattr(Bench, "change", change)
    options = {**SIZES, "model": folder}
    kept = (root / bids.DERIVATIVES / "lesion.json").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        measure(root, share=(0.05,), **options)
    assert (root / bids.DERIVATIVES / "lesion.json").read_bytes() == kept
    n_before = len(done) - 1
    measure(root, share=(0.05,), **options)
    n_all = 2 * 2 * 2 * 4  # models, folds, networks; lesion, bottom, two random
    assert len(done) - 1 - n_before == n_all - n_before
    measure(root, **options)  # was all there
    assert len(done) - 1 == n_all
    with pytest.raises(ExperimentError, match="other settings"):
        measure(root, n_random=1, n_prompts=3, model=folder)


def test_a_mask_drawn_by_hand_is_lesioned(root, folder, tmp_path, capsys):
    brain = bids.session(root)[0].brain
    units = np.zeros(brain.n_units, np.float32)
    units[brain.slice_of(next(s for s in brain.sites if s.name == "mlp"))][:5] = 1
    nib.save(geometry.to_img(brain, units), tmp_path / "drawn.nii.gz")
    options = ["--n-random", "1", "--n-prompts", "2", "--quiet", "--model", folder]
    mask = str(tmp_path / "drawn.nii.gz")
    assert cli.main(["lesion", str(root), "--network", mask, "--mode", "zero", *options]) == 0
    printed = capsys.readouterr().out
    assert "drawn" in printed
    assert "whether they have seen these texts is not known" in " ".join(printed.split())
    wrong = nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4))
    nib.save(wrong, tmp_path / "wrong.nii.gz")
    mask = str(tmp_path / "wrong.nii.gz")
    assert cli.main(["lesion", str(root), "--network", mask, *options]) == 2
    assert f"has shape (3, 3, 3), space {brain.space} has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "nothing"], "neither a task of the dataset (archeology, pathology)"),
        (["--sites", "router"], "has no site 'router'; it was scanned with embed, attn"),
        (
            ["--share", "0"],
            "--share is '0'; it must be a number above 0 and at most 0.5",
        ),
        (
            ["--mode", "median"],
            "--mode is 'median'; it must be mean, zero or resample",
        ),
        (["--mode", "steer"], "--mode is 'steer'"),
        (
            ["--n-random", "0"],
            "--n-random is '0'; it must be a whole number of at least 1",
        ),
    ],
)
def test_bad_requests_are_one_line(root, folder, capsys, options, message):
    assert cli.main(["lesion", str(root), "--model", folder, "--quiet", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_model_has_to_be_the_one_that_was_scanned(root, tiny_folders):
    run = bids.session(root)[0]
    with pytest.raises(InterventionError, match="other weights"):
        reload(run, WithModel(model=str(tiny_folders["mistral"])))
    with pytest.raises(ModelError, match="say where it is with model="):
        reload(run)


def test_what_an_interruption_cut_off_is_dropped(tmp_path):
    path = tmp_path / "x_evaluations.jsonl"
    kept = ResultJournal(path, {"a": 1})
    kept.get("first", lambda: [1.5])
    path.write_text(path.read_text() + '["second", [2')
    again = ResultJournal(path, {"a": 1})
    assert again["first"] == [1.5]
    assert "second" not in again
    assert again.get("second", lambda: [2.5]) == [2.5]
    assert ResultJournal(path, {"a": 1})["second"] == [2.5]
    assert len(ResultJournal(path, {"a": 2}, overwrite=True)) == 0
    assert ResultJournal(path, {"a": 1})["second"] == [2.5]  # until something new is measured


def test_evaluations_appear_with_the_first_result(tmp_path):
    path = tmp_path / "x_evaluations.jsonl"
    ResultJournal(path, {"a": 1})
    assert not path.exists()
    path.write_text('{"a": 1}\n["fir')  # killed in its first write
    ResultJournal(path, {"a": 2}).get("first", lambda: 1)
    assert path.read_text() == '{"a": 2}\n["first", 1]\n'


def test_the_report_tells_of_the_lesions(root, content):
    text = report.write(root, verbose=0).read_text()
    assert "What happens without a network?" in text
    assert text.count("<img") >= 2
    assert "The untrained copy: lesions change" in text


def test_steering_adds_the_effect_of_the_other_runs(root, folder):
    targets = targets_of(root, folder)
    bench = targets.bench
    condition = Condition(("attn", "mlp"), "steer", 0.05, 2.0)
    acting = targets.acting(condition, 1, "pathology", "lesion")
    found = bench.change(1, acting)["pathology"]
    run = next(r for r in bench.session if (r.task, r.run) == ("pathology", 2))
    contrast = glm.run_contrast(run.values(), run.events, "pathology - control")
    effect = np.ravel(contrast.effect_size())
    units = targets.network(condition, "pathology", 1, "lesion").units
    module = copy.deepcopy(bench.model.module)
    for site in run.brain.sites:
        inside = run.brain.slice_of(site)
        if not units[inside].any():
            continue
        layers = list(module.get_submodule(site.module).modules())
        linear = next(m for m in reversed(layers) if isinstance(m, torch.nn.Linear))
        added = torch.from_numpy(np.where(units, 2 * effect, 0)[inside]).float()
        linear.bias = torch.nn.Parameter(added)
    texts = bench.texts[1]["pathology"]
    expected = []
    for text in texts:
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            losses = [
                float(m(input_ids=ids, labels=ids).loss) for m in (module, bench.model.module)
            ]
        expected.append(losses[1] - losses[0])
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert np.abs(found).max() > 1e-4


def test_random_steering_adds_the_same_values_elsewhere(root, folder):
    targets = targets_of(root, folder)
    condition = Condition(("attn", "mlp"), "steer", 0.05)
    own, other = (
        targets._effect(condition, "pathology", 1, targets.network(condition, "pathology", 1, k), k)
        for k in ("lesion", "random1")
    )
    for site in targets.bench.brain.sites:
        inside = targets.bench.brain.slice_of(site)
        np.testing.assert_array_equal(np.sort(own[inside]), np.sort(other[inside]))
    assert not ((own != 0) & (other != 0)).any()


def test_the_steer_command_measures_and_answers(root, folder, capsys):
    options = ["--model", folder, "--quiet", "--n-random", "2", "--n-prompts", "3"]
    assert cli.main(["steer", str(root), "--strength", "3", *options]) == 0
    assert "is added 3.0 times" in " ".join(capsys.readouterr().out.split())
    kept = json.loads((root / bids.DERIVATIVES / "steer.json").read_text())
    assert kept["conditions"][0]["strength"] == 3
    assert "double_dissociations" not in kept["conditions"][0]
    asked = ["--network", "pathology", "--prompt", "What is <b>it</b>?", "--strength", "400"]
    assert cli.main(["steer", str(root), *asked, "--model", folder, "--json", "--quiet"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [a["strength"] for a in answers] == [0, 400]
    assert answers[0]["response"] != answers[1]["response"]
    assert cli.main(["steer", str(root), "--prompt", "Hm", "--model", folder]) == 2
    assert "the effect of one task; name it" in capsys.readouterr().err


def test_the_dataset_stays_valid(root, content, validate):
    assert (root / bids.DERIVATIVES / "lesion.json").exists()
    validate(root)


def test_fewer_prompts_than_tasks_are_enough(root, folder):
    targets = targets_of(root, folder, n_random=1, n_prompts=1)
    counts = {task: len(texts) for task, texts in targets.bench.texts[1].items()}
    assert counts == {"archeology": 1, "pathology": 1, "control": 1}
    condition = Condition(("mlp",), "zero", 0.05)
    acting = targets.acting(condition, 1, "pathology", "lesion")
    assert len(targets.bench.change(1, acting)["control"]) == 1


def test_steering_and_lesions_and_masks_are_kept_apart(root, folder, tmp_path):
    """What one of them forgets, the others keep; of masks, earlier modes stay, too."""
    whole = shutil.copytree(root, tmp_path / "ds")
    sizes = {**FEW, "model": folder}
    alone = {"sites": "mlp", "untrained": False, **sizes}
    lesion = measure(whole, **alone, overwrite=True)
    measure(whole, SteerPlan, **alone, overwrite=True)
    assert measure(whole, **alone).first.effects == lesion.first.effects
    brain = bids.session(whole)[0].brain
    mask = geometry.to_img(brain, (np.arange(brain.n_units) % 50 == 0).astype(np.uint8))
    for folder_name in ("a", "b"):
        (tmp_path / folder_name).mkdir()
        nib.save(mask, tmp_path / folder_name / "mask.nii.gz")
    which = str(tmp_path / "a" / "mask.nii.gz")
    measure(whole, network=which, mode="mean", **sizes)
    found = measure(whole, network=which, mode="zero", **sizes)
    assert [c.mode for c in found.conditions] == ["zero", "mean"]
    assert found.first.sites == ()
    with pytest.raises(ExperimentError, match="leave the sites out"):
        measure(whole, network=which, sites="mlp", **sizes)
    with pytest.raises(ExperimentError, match="no effect to steer along"):
        measure(whole, SteerPlan, network=which, **sizes)
    with pytest.raises(InterventionError, match="two masks are named 'mask'"):
        measure(whole, network=f"{which},{tmp_path / 'b' / 'mask.nii.gz'}", **sizes)


def test_evaluations_of_other_texts_are_not_taken_for_these(root, folder, tmp_path):
    whole = shutil.copytree(root, tmp_path / "ds")
    how = {**FEW, "model": folder, "sites": "mlp", "untrained": False}
    measure(whole, overwrite=True, **how)
    events = bids.session(whole)[0].paths.raw("events.tsv")
    shown = events.read_text("utf-8")
    events.write_text(shown.replace("What", "Which", 1), "utf-8")
    repairing.accept(whole)
    with pytest.raises(ExperimentError, match=r"other settings .*texts"):
        measure(whole, **how)
    kept = next((whole / bids.DERIVATIVES).glob("sub-*llama_lesion_evaluations.jsonl"))
    kept.write_text(kept.read_text().splitlines(keepends=True)[0])  # nothing would be lost
    measure(whole, **how)


def test_a_model_that_read_has_its_prompts_judged(tiny_folders, tmp_path):
    how = ["--mode", "read", "--n-runs", "2", "--n-blocks", "2", "--trials-per-block", "4"]
    what = ["--task", "pathology", "--no-untrained", "--quiet"]
    for kind in ("llama", "t5"):
        model = ["--model", str(tiny_folders[kind])]
        assert cli.main(["scan", str(tmp_path / kind), *model, *what, *how]) == 0
    runs = bids.session(tmp_path / "llama")
    texts = Bench(models.load(str(tiny_folders["llama"])), runs, 3).texts[1]["pathology"]
    shown = runs[0].events.query("trial_type == 'pathology'")["prompt"].tolist()
    tokenizer = models.load(str(tiny_folders["llama"])).tokenizer
    assert all(tokenizer.decode(text.ids).strip() in shown for text in texts)
    with pytest.raises(InterventionError, match="only read"):
        Bench(models.load(str(tiny_folders["t5"])), bids.session(tmp_path / "t5"), 3)


def test_steered_answers_take_one_share_and_the_whole_prompt(root, folder, capsys):
    asked = ["--network", "pathology", "--prompt", "Hm", "--model", folder, "--quiet"]
    for option in (["--spare-template"], ["--share", "0.1", "--share", "0.2"]):
        assert cli.main(["steer", str(root), *asked, *option]) == 2
        assert "--prompt goes with one share" in capsys.readouterr().err
