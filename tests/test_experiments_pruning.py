"""The whole job of pruning: held-out text, networks of other runs, what it prints and writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import transformers
from tests_support import assert_same, contents

from llm2nifti import bids, cli, geometry, glm, models, surgery
from llm2nifti.experiments.journal import ResultJournal
from llm2nifti.experiments.pruning import measure as pruning
from llm2nifti.experiments.pruning.plan import PrunePlan
from llm2nifti.experiments.pruning.result import PruningResult
from llm2nifti.interventions import InterventionError
from llm2nifti.interventions.bench import Bench
from llm2nifti.tell import as_text

FAST = ["--n-random", "2", "--n-prompts", "6", "--n-pairs", "0", "--quiet"]


@pytest.fixture(scope="module")
def scanned(tiny_folders, tmp_path_factory):
    """Dataset of a tiny Llama's heads and MLP units: 2 tasks, 2 runs; the model's folder."""
    folder, root = tiny_folders["llama"], tmp_path_factory.mktemp("units") / "ds"
    sizes = ["--n-runs", "2", "--n-blocks", "2", "--trials-per-block", "6", "--n-frames", "3"]
    tasks = ["--task", "pathology", "--task", "archeology", "--no-untrained", "--quiet"]
    what = ["--model", str(folder), "--sites", "heads,mlp_hidden"]
    assert cli.main(["scan", str(root), *what, *tasks, *sizes]) == 0
    return root, str(folder)


@pytest.fixture(scope="module")
def loaded(scanned):
    return models.load(scanned[1])


@pytest.fixture(scope="module")
def runs(scanned):
    return bids.session(scanned[0])


@pytest.fixture(scope="module")
def small(scanned, tmp_path_factory):
    """What the command writes and returns for a network's top 20 %."""
    out = tmp_path_factory.mktemp("out") / "small"
    what = ["--model", scanned[1], "--network", "pathology", "--share", "0.2", *FAST]
    assert cli.main(["prune", str(scanned[0]), *what, "--out", str(out)]) == 0
    return out, json.loads((out / "prune.json").read_text("utf-8"))


def plan_of(out="x", **changes):
    return PrunePlan(**{"network": "pathology", "out": out, "share": 0.2, "n_pairs": 0, **changes})


def bench_of(loaded, runs):
    return Bench(loaded, runs, 6)


def texts_of(loaded, runs, number):
    """Held-out texts of the task, as tensors of one row."""
    texts = bench_of(loaded, runs).texts[number]["pathology"]
    return [torch.tensor([text.ids]) for text in texts]


def test_networks_are_judged_on_runs_that_did_not_make_them(loaded, runs):
    plan = plan_of(n_random=1)
    bench = bench_of(loaded, runs)
    for number in (1, 2):
        others = runs.without(number)
        removed = dict(pruning.variants(bench, number, plan, []))
        made = pruning.network_of(others, plan)
        assert removed["before"] is None
        assert np.array_equal(removed["network"].units, made.units)
        assert not (removed["matched 0"].units & made.units).any()
        seen = {tuple(loaded.tokenizer(p)["input_ids"]) for r in others for p in r.events["prompt"]}
        judged = {tuple(t.ids[:-3]) for some in bench.texts[number].values() for t in some}
        assert len(judged) == 3 * 6
        assert not judged & seen


def test_share_takes_the_units_with_the_largest_t(runs):
    task = [run for run in runs if run.task == "pathology"]
    t = np.abs(glm.fit(task).contrast("pathology - control").t())
    network = pruning.network_of(runs, plan_of(share=0.1))
    n = round(0.1 * len(t))
    assert network.n_units == n
    assert t[network.units].min() >= np.sort(t)[-n]


def test_perplexities_are_those_of_the_lesioned_model(scanned, runs, loaded, small):
    """From plain transformers, one text at a time, and columns set to zero by hand."""
    _, record = small
    before, after = [], []
    for number in (1, 2):
        removed = pruning.network_of(runs.without(number), plan_of())
        module = transformers.AutoModelForCausalLM.from_pretrained(scanned[1])
        lesioned = transformers.AutoModelForCausalLM.from_pretrained(scanned[1])
        for site in removed.brain.sites:
            units = np.flatnonzero(removed.units[removed.brain.slice_of(site)])
            lesioned.get_submodule(site.module).weight.data[:, units] = 0
        for ids in texts_of(loaded, runs, number):
            with torch.no_grad():  # the tiny model has no template: all tokens but the first count
                before.append(module(input_ids=ids, labels=ids).loss.item())
                after.append(lesioned(input_ids=ids, labels=ids).loss.item())
    numbers = record["evaluation"]["pathology"]
    assert numbers["n_prompts"] == 12
    assert numbers["before"] == pytest.approx(np.exp(np.mean(before)), rel=1e-4)
    assert numbers["network"] == pytest.approx(np.exp(np.mean(after)), rel=1e-4)
    assert numbers["delta"] == pytest.approx(np.mean(after) - np.mean(before), abs=1e-4)
    low, high = numbers["interval"]
    assert low < numbers["delta"] < high


def test_the_command_writes_a_model_and_what_it_measured(small, scanned, runs):
    out, record = small
    assert set(record["evaluation"]) == {"pathology", "archeology", "control"}
    for numbers in record["evaluation"].values():
        assert len(numbers["random"]) == len(numbers["matched"]) == 2
        assert set(numbers["beyond"]) == {"magnitude", "random", "matched"}
    module = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert record["parameters"][1] == sum(p.numel() for p in module.parameters())
    assert record["bytes"] == sum(p.stat().st_size for p in out.glob("*.safetensors"))
    network = pruning.network_of(runs, plan_of())
    assert record["n_removed"] == network.n_units  # all runs make the network that is pruned
    assert sorted(p.name for p in out.parent.iterdir()) == ["small"]  # and no journal is left
    text = as_text(*PruningResult.of(record).sections())
    assert "pathology" in text
    assert "Parameters" in text


def test_a_mask_from_elsewhere_can_be_pruned(scanned, runs, tmp_path, capsys):
    brain = runs[0].brain
    values = np.zeros(brain.n_units)
    values[brain.slice_of(brain.sites[1])][:4] = [0.5, 3, 1, 2.5]
    for name, map_ in (("map", values), ("mask", (values > 0).astype(float))):
        nib.save(geometry.to_img(brain, map_.astype(np.float32)), tmp_path / f"{name}.nii.gz")
    base = ["prune", str(scanned[0]), "--model", scanned[1], "--json", *FAST]
    share = str(2 / brain.n_units)
    map_ = ["--network", str(tmp_path / "map.nii.gz"), "--out", str(tmp_path / "a")]
    assert cli.main([*base, *map_, "--share", share]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sum(site["n_removed"] for site in printed["sites"].values()) == 2
    assert printed["plan"]["network"] == "map.nii.gz"
    assert "whatever it was made from" in " ".join(printed["evaluation_notes"])
    mask = ["--network", str(tmp_path / "mask.nii.gz"), "--out", str(tmp_path / "b")]
    assert cli.main([*base, *mask, "--share", share]) == 2
    assert "is binary" in capsys.readouterr().err
    assert cli.main([*base, *mask]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sum(site["n_removed"] for site in printed["sites"].values()) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "botany"], "'botany' is neither a task of the dataset"),
        (["--network", "pathology", "--share", "5"], "--share is '5'; it must be a number above 0"),
        ([], "--network is missing"),
        (["--network", "pathology", "--n-pairs", "1"], "--n-pairs is 1; it must be 0, or 2 or"),
    ],
)
def test_bad_requests_are_one_line(scanned, tmp_path, capsys, options, message):
    base = ["prune", str(scanned[0]), "--model", scanned[1], "--out", str(tmp_path / "x")]
    assert cli.main([*base, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_other_weights_than_the_scanned_ones_are_refused(scanned, tiny_folders, tmp_path, capsys):
    other = shutil.copytree(tiny_folders["llama"], tmp_path / "other")
    module = transformers.AutoModelForCausalLM.from_pretrained(other)
    module.lm_head.weight.data += 1
    module.save_pretrained(other)
    base = ["prune", str(scanned[0]), "--model", str(other), "--network", "pathology"]
    assert cli.main([*base, "--out", str(tmp_path / "x")]) == 2
    assert "has other weights" in capsys.readouterr().err


def test_a_network_needs_a_run_that_did_not_make_it(runs, loaded, tmp_path):
    first = runs.without(2)
    plan = plan_of(tmp_path / "x")
    with pytest.raises(InterventionError, match="need 2 or more runs"):
        pruning.measure(first, plan, model=loaded, verbose=0)
    assert not list(tmp_path.iterdir())
    untested = pruning.measure(first, replace(plan, n_prompts=0), model=loaded)
    assert untested.evaluation == {}
    assert "not measured" in as_text(*untested.sections())


def test_interrupted_work_resumes(runs, loaded, tmp_path, monkeypatch):
    """What is done is not done again, and the numbers are the same."""
    few = {"n_random": 1, "n_prompts": 4}
    how = {"model": loaded, "verbose": 0}
    whole = pruning.measure(runs, plan_of(tmp_path / "whole", **few), **how)
    calls, real = [], Bench.log_probabilities

    def counted(self, *args):
        calls.append(args)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Bench, "log_probabilities", counted)
    with pytest.raises(KeyboardInterrupt):
        pruning.measure(runs, plan_of(tmp_path / "cut", **few), **how)
    assert not (tmp_path / "cut").exists()
    resumed = pruning.measure(runs, plan_of(tmp_path / "cut", **few), **how)
    n_all = 2 * 5  # held-out runs, and what is removed
    assert len(calls) == 8 + n_all - 7
    assert resumed.evaluation == whole.evaluation
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "whole"]


def test_losses_of_known_log_probabilities():
    """A network that costs 1 nat on its own task and nothing elsewhere; random costs 0.25."""
    noise = np.random.default_rng(0).normal(size=40)
    own = {"before": noise, "network": noise - 1, "magnitude": noise, "random 0": noise - 0.25}
    other = {name: noise for name in own}
    folds = [{name: {"a": own[name], "b": other[name]} for name in own}] * 2
    out = pruning.summarise(folds)
    assert out["a"]["n_prompts"] == 80
    assert out["a"]["network"] / out["a"]["before"] == pytest.approx(np.e)
    assert out["a"]["delta"] == pytest.approx(1)
    assert out["a"]["interval"] == pytest.approx([1, 1])
    assert out["a"]["beyond"]["random"]["value"] == pytest.approx(0.75)
    assert out["b"]["delta"] == 0
    assert out["a"]["matched"] == []


def test_an_ordinary_dataset_says_what_to_scan(tiny_folders, tmp_path, capsys):
    model = str(tiny_folders["llama"])
    sizes = ["--n-runs", "2", "--n-blocks", "2", "--trials-per-block", "4", "--n-frames", "2"]
    what = ["--model", model, "--task", "pathology", "--no-untrained", "--quiet"]
    assert cli.main(["scan", str(tmp_path / "ds"), *what, *sizes]) == 0
    capsys.readouterr()
    base = ["prune", str(tmp_path / "ds"), "--model", model, "--network", "pathology"]
    assert cli.main([*base, "--out", str(tmp_path / "x")]) == 2
    assert "llm2nifti run ds-units --sites heads,mlp_hidden" in capsys.readouterr().err
    assert surgery.owning_sites(bids.session(tmp_path / "ds")[0].brain) == ()


def test_what_lies_beyond_random_sets_knows_how_far_these_scatter():
    rng = np.random.default_rng(0)
    before = rng.normal(-3, 1, 30)

    def width(scatter):
        rows = {"before": before, "network": before - 1.0, "magnitude": before - 2.0}
        rows |= {f"random {i}": before - 0.5 + scatter * (i - 1) for i in range(3)}
        found = pruning.summarise([{name: {"a": v} for name, v in rows.items()}])["a"]["beyond"]
        assert found["random"]["value"] == pytest.approx(0.5)
        assert found["magnitude"]["value"] == pytest.approx(-1)
        return np.ptp(found["random"]["interval"])

    assert width(0.0) == pytest.approx(0, abs=1e-12)  # paired by prompt
    assert 0.8 < width(0.5) < 1.2


def killed(*_):
    raise KeyboardInterrupt


def test_killed_before_the_journal_is_gone_it_is_finished(runs, loaded, tmp_path, monkeypatch):
    out, how = tmp_path / "small", {"model": loaded, "verbose": 0}
    plan = plan_of(out, n_random=1, n_prompts=2)
    monkeypatch.setattr(ResultJournal, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        pruning.measure(runs, plan, **how)
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 2  # the model and its journal
    written = contents(out)
    monkeypatch.setattr(Bench, "log_probabilities", killed)  # nothing is measured again
    again = pruning.measure(runs, plan, **how).content()
    kept = json.loads((out / "prune.json").read_text("utf-8"))
    assert again["folder"] == str(out)
    assert again["evaluation"] == kept["evaluation"]
    assert_same(out, written)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    with pytest.raises(surgery.PruneError, match="is there already"):
        pruning.measure(runs, plan, **how)


def test_killed_while_the_model_was_replaced_one_whole_model_stays(loaded, runs, tmp_path):
    network = pruning.network_of(runs, plan_of())
    pruned, out = surgery.prune(loaded, network), tmp_path / "small"
    surgery.save(pruned, out, record={"is": "old"})
    out.rename(tmp_path / ".small-old")  # what two renames and a kill between them leave
    (tmp_path / ".small-new").mkdir()
    with pytest.raises(surgery.PruneError, match="is there already"):
        surgery.save(pruned, out)
    assert surgery.read_record(out)["is"] == "old"
    surgery.save(pruned, out, overwrite=True, record={"is": "new"})
    assert surgery.read_record(out)["is"] == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
