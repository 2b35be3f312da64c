"""The training experiment on a tiny model: what is held out, what is counted, what resumes."""

from __future__ import annotations

import functools
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import tiny
from tests_support import assert_same, contents, make_dataset

from llm2nifti import bids, cli, experiments, models, networks, stimuli, study
from llm2nifti.experiments.errors import ExperimentError
from llm2nifti.experiments.journal import ResultJournal
from llm2nifti.experiments.maps.plan import GlmPlan
from llm2nifti.experiments.training.measure import Trainings, measure
from llm2nifti.experiments.training.plan import TrainPlan
from llm2nifti.experiments.training.summary import summarise
from llm2nifti.geometry import from_img
from llm2nifti.interventions import InterventionError
from llm2nifti.interventions.reloading import read_network
from llm2nifti.plans import Design, ModelChoice, PlanError, ScanPlan, Settings
from llm2nifti.surgery import SurgeryError
from llm2nifti.surgery.finetuning import n_trained
from llm2nifti.surgery.targets import rank_modules
from llm2nifti.tell import as_text

TASK = "randomstrings"  # a random model tells them from prompts
SETUP = {"task": TASK, "top": 2, "seeds": 2, "n_texts": 8, "epochs": 2}
SETUP |= {"learning_rate": (0.01, 0.03)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama of 6 layers, so that there are others to draw from."""
    return tiny.save(tmp_path_factory.mktemp("deep") / "tiny-deep", num_hidden_layers=6)


@pytest.fixture(scope="module")
def deep(folder):
    return models.load(str(folder))


@pytest.fixture(scope="module")
def scanned(folder, tmp_path_factory):
    """Two runs of two tasks of a tiny model, at units that own weights."""
    root = tmp_path_factory.mktemp("training") / "ds"
    design = Design(
        tasks=(TASK, "pathology"), n_runs=2, n_blocks=4, trials_per_block=10, n_frames=2
    )
    choice = ModelChoice(name=str(folder), untrained=False)
    study.scan(root, ScanPlan(choice, design, Settings(sites="heads,mlp_hidden")), verbose=0)
    experiments.measure(bids.session(root), GlmPlan(), verbose=0)
    return root


@pytest.fixture
def dataset(scanned, tmp_path):
    return shutil.copytree(scanned, tmp_path / "ds")


def experiment_of(root, model, **changes):
    plan = TrainPlan(**{**SETUP, **changes})
    return Trainings(bids.session(root), model, TASK, plan)


def train(root, model, **changes):
    plan = TrainPlan(**{**SETUP, **changes})
    return measure(bids.session(root), plan, model=model, verbose=0)


def test_held_out_prompts_made_no_network_and_share_nothing_with_training(scanned, deep):
    experiment = experiment_of(scanned, deep, n_texts=5000)  # all there are
    assert [(run.task, run.run) for run in experiment.made_from] == [(TASK, 1)]
    shown = set(experiment.made_from[0].events["prompt"])
    assert len(shown) > 30
    trained = experiment.training
    assert set(trained["task"]) == {TASK}
    sizes = {split: stimuli.load(split=split)["task"].value_counts() for split in stimuli.SPLITS}
    assert len(trained) == TrainPlan(task=TASK).n_training < sizes["development"][TASK]
    for task, rows in experiment.held_out.items():
        assert not shown & set(rows["prompt"])
        assert set(rows["split"]) == {"evaluation"}
        assert not set(rows["topic"]) & set(trained["topic"])
        n_shown = {TASK: 40, "control": 56}.get(task, 0)
        assert len(rows) == sizes["evaluation"][task] - n_shown


def test_random_modules_have_as_many_weights_and_are_not_the_networks(scanned, deep):
    experiment = experiment_of(scanned, deep)
    own = experiment.draw("network", 0)
    kinds = sorted(name.rpartition(".")[2] for name in own)
    drawn = [experiment.draw("random", seed) for seed in range(8)]
    for names in drawn:
        assert sorted(name.rpartition(".")[2] for name in names) == kinds
        assert not set(names) & set(own)
        sizes = [n_trained(deep, some, 8) for some in (names, own)]
        assert sizes[0] == sizes[1]
    assert len({tuple(names) for names in drawn}) > 2
    assert len(experiment.draw("all", 0)) == 24


def test_the_experiment_writes_its_results_and_learns(dataset, deep):
    result = train(dataset, deep)
    content = result.content()[TASK]
    path = dataset / bids.DERIVATIVES / "training.json"
    assert json.loads(path.read_text()) == {TASK: json.loads(json.dumps(content))}
    assert not (dataset / bids.WORK).exists()
    for numbers in content["conditions"].values():
        assert numbers["change"][TASK]["value"] < -0.05  # random characters have frequencies
        assert str(numbers["rate"]) in numbers["rates"]
    weights = {name: numbers["n_weights"] for name, numbers in content["conditions"].items()}
    assert weights["network"] == weights["random"] < weights["all"]
    assert "network - random" in as_text(*result.sections())
    with pytest.raises(bids.ExistsError, match="overwrite=True"):
        train(dataset, deep, seeds=3)


def test_interrupted_it_goes_on_where_it_was(dataset, tmp_path, deep, monkeypatch):
    whole = shutil.copytree(dataset, tmp_path / "whole")
    expected = train(whole, deep)
    done = []
    real = Trainings.train

    @functools.wraps(real)
    def count(self, condition, seed, rate):
        done.append((condition, seed))
        return real(self, condition, seed, rate)

    @functools.wraps(real)
    def stop_after_three(self, condition, seed, rate):
        if len(done) == 3:
            raise KeyboardInterrupt
        return count(self, condition, seed, rate)

    monkeypatch.setattr(Trainings, "train", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, deep)
    monkeypatch.setattr(Trainings, "train", count)
    found = train(dataset, deep)
    assert len(done) == len(set(done)) == 6
    assert found == expected


def test_one_line_says_what_is_wrong(scanned, deep, tmp_path):
    with pytest.raises(bids.NoSuchRunError, match="no task 'nothing'"):
        train(scanned, deep, task="nothing")
    with pytest.raises(ExperimentError, match="top is 13; of 24 modules"):
        experiment_of(scanned, deep, top=13).check()
    plain = make_dataset(tmp_path / "plain")
    with pytest.raises(SurgeryError, match="--sites heads,mlp_hidden"):
        rank_modules(bids.session(make_masks(plain)), "pathology", model=deep)
    mine = tmp_path / "mine.tsv"
    mine.write_text(f"task\tprompt\n{TASK}\tabc def\n{TASK}\txyz uvw\n")
    with pytest.raises(ExperimentError, match="column split"):
        experiment_of(scanned, deep, stimuli=str(mine)).check()


def make_masks(root):
    """Write a network of the first task by hand."""
    run = bids.session(root)[0]
    signs = (np.arange(run.brain.n_units) % 3 == 0).astype(np.int8)
    for other in bids.session(root):
        network = networks.Network(other.task, other.brain, signs)
        bids.write_img(other.paths.network(), root, network.mask_img())
    return root


def test_networks_are_read_by_task_or_file(scanned, tmp_path):
    runs = bids.session(scanned)
    mask = nib.load(next(run for run in runs if run.task == TASK).paths.network())
    found = read_network(runs, TASK)
    assert (found.units == (from_img(runs[0].brain, mask) != 0)).all()
    path = tmp_path / "drawn.nii.gz"
    nib.save(mask, path)
    assert (read_network(runs, str(path)).units == found.units).all()
    with pytest.raises(InterventionError, match=r"'nowhere\.nii' is neither a task"):
        read_network(runs, "nowhere.nii")
    fresh = bids.session(make_dataset(tmp_path / "fresh"))
    with pytest.raises(InterventionError, match="llm2nifti glm"):
        read_network(fresh, "pathology")


def test_target_writes_what_peft_reads(scanned, folder, tmp_path, capsys):
    from peft import PeftConfig

    command = ["target", str(scanned), "--network", TASK, "--model", str(folder)]
    out = ["--out", str(tmp_path / "adapter")]
    assert cli.main([*command, *out, "--top", "3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    names = [row["module"] for row in printed["targets"]]
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert set(config.target_modules) == set(names)
    assert len(names) == 3
    network = read_network(bids.session(scanned), TASK)
    profile = network.profile().sort_values("n_active", ascending=False).iloc[0]
    assert printed["targets"][0]["n_units"] == profile["n_active"]
    assert len(bids.read_tsv(tmp_path / "adapter" / "targets.tsv")) == 24
    assert cli.main([*command, *out]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--top", "25"]) == 2
    assert "top is 25" in capsys.readouterr().err


def test_train_prints_its_table(dataset, folder, capsys):
    command = ["train", str(dataset), "--task", TASK, "--model", str(folder)]
    sizes = ["--top", "1", "--seeds", "1", "--epochs", "1", "--n-texts", "4"]
    sizes += ["--learning-rate", "0.01"]
    assert cli.main([*command, *sizes, "--quiet"]) == 0
    assert "Change of the loss" in capsys.readouterr().out
    results = json.loads((dataset / bids.DERIVATIVES / "training.json").read_text())
    assert results[TASK]["conditions"]["all"]["rates"] == {"0.01": None}  # nothing to choose


def planted_pieces(effects, *, n_seeds=3, n_prompts=40):
    """Trainings with known changes of the loss, the same for every prompt."""
    base = {name: np.linspace(3, 5, n_prompts).tolist() for name in ("a", "b", "c", "control")}
    pieces = {
        (condition, seed): {
            "losses": {name: (np.array(base[name]) + by_task[name]).tolist() for name in base},
            "epochs": [2.0],
            "modules": ["m"],
            "n_weights": 5,
        }
        for condition, by_task in effects.items()
        for seed in range(n_seeds)
    }
    return {"losses": base}, pieces


def test_planted_changes_come_out():
    effects = {
        "network": {"a": -1.0, "b": -0.25, "c": 0.0, "control": 0.5},
        "random": {"a": -0.5, "b": 0.0, "c": 0.0, "control": 0.0},
        "all": {"a": -2.0, "b": -1.0, "c": -1.0, "control": -1.0},
    }
    base, pieces = planted_pieces(effects)
    rates = {name: {0.1: {"loss": 2.0}, 0.2: {"loss": 1.0}} for name in effects}
    content = summarise({"task": "a"}, rates, base, pieces)
    change = content["conditions"]["network"]["change"]
    assert change["a"]["value"] == pytest.approx(-1)
    assert change["other tasks"]["value"] == pytest.approx(-0.125)
    assert change["task more than other tasks"]["value"] == pytest.approx(-0.875)
    assert change["control"]["interval"] == pytest.approx([0.5, 0.5])
    assert content["conditions"]["network"]["rate"] == 0.2
    difference = content["differences"]["network - all"]
    assert difference["a"]["value"] == pytest.approx(1)
    assert content["base"]["a"] == pytest.approx(4)


def test_intervals_cover_what_seeds_and_prompts_scatter_around():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(20):
        flat = dict.fromkeys(("a", "b", "c", "control"), 0.0)
        base, pieces = planted_pieces({"network": flat, "random": flat, "all": flat}, n_seeds=12)
        by_prompt = rng.normal(-1, 1, 40)
        for (condition, _), piece in pieces.items():
            noise = by_prompt + rng.normal(0, 0.5) if condition == "network" else 0
            piece["losses"]["a"] = (np.array(base["losses"]["a"]) + noise).tolist()
        rates = {name: {0.1: {"loss": 1.0}} for name in ("network", "random", "all")}
        content = summarise({"task": "a"}, rates, base, pieces)
        low, high = content["differences"]["network - random"]["a"]["interval"]
        covered.append(low < -1 < high)
        assert 0.3 < high - low < 1.2  # 1 / sqrt(40) and .5 / sqrt(12), times 3.92
    assert np.mean(covered) > 0.75


def test_learning_rates_are_sought_beyond_the_ends(monkeypatch, scanned, deep, tmp_path):
    """The best is never at an end of what was tried, unless two more were tried there."""
    root = shutil.copytree(scanned, tmp_path / "ds")
    best = {"network": 0.5, "random": 0.02, "all": 1e-9}

    def loss(_self, condition, rate):
        return {"loss": float("nan") if rate > 1 else abs(np.log(rate / best[condition]))}

    loss.__name__ = "try_rate"
    monkeypatch.setattr(Trainings, "try_rate", loss)
    result = train(root, deep, learning_rate=(0.01, 0.02, 0.04), seeds=1, n_texts=2)
    content = result.content()[TASK]
    tried = {c: list(map(float, n["rates"])) for c, n in content["conditions"].items()}
    assert tried["network"] == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16])
    assert tried["random"] == pytest.approx([0.01, 0.02, 0.04])
    assert tried["all"] == pytest.approx([0.0025, 0.005, 0.01, 0.02, 0.04])
    assert not list((root / bids.DERIVATIVES).glob("training-*"))  # nothing of the journal stays


def killed(*_):
    raise KeyboardInterrupt


def test_killed_before_the_journal_is_gone_it_is_finished(dataset, deep, monkeypatch):
    setup = {"seeds": 1, "learning_rate": (0.01,)}
    monkeypatch.setattr(ResultJournal, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, deep, **setup)
    monkeypatch.undo()
    folder = dataset / bids.DERIVATIVES
    written = json.loads((folder / "training.json").read_text())[TASK]
    assert len(list(folder.glob("training-*_evaluations.jsonl"))) == 1
    monkeypatch.setattr(Trainings, "train", killed)  # nothing is trained again
    with pytest.raises(bids.ExistsError, match="has results"):
        train(dataset, deep, **{**setup, "seeds": 2})
    for _ in range(2):  # killed at the very end, or finished: the same command says it again
        assert train(dataset, deep, **setup).content()[TASK] == written
        assert not list(folder.glob("training-*"))
    with pytest.raises(KeyboardInterrupt):  # trained again, which is asked for
        train(dataset, deep, **setup, overwrite=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": (float("nan"),)},
        {"learning_rate": (0.0,)},
        {"learning_rate": ()},
        {"epochs": 0},
        {"r": 0},
        {"lora_alpha": float("inf")},
        {"top": 0},
        {"seeds": 0},
        {"n_texts": -1},
    ],
)
def test_numbers_that_make_no_sense_leave_nothing_behind(dataset, deep, changes):
    before = contents(dataset)
    with pytest.raises(PlanError, match=r" is .*; (it must be|give)"):
        train(dataset, deep, **changes)
    assert_same(dataset, before)
