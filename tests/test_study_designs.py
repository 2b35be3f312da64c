"""Do designs of all kinds go from the command line and study files to maps, in the right tokens?"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from llm2nifti import bids, cli, models, stimuli, study
from llm2nifti.plans import Design, ModelChoice, ScanPlan, Settings
from llm2nifti.study.plans import PLAN_FILE, paradigms, reader_of
from llm2nifti.study.studyfile import read_study

SMALL = Design(tasks=("pathology",), n_runs=2, n_blocks=2, trials_per_block=2, n_frames=2)


def plan_of(folder, design=SMALL, **more) -> ScanPlan:
    choice = ModelChoice(name=str(folder), untrained=False, **more)
    return ScanPlan(choice, design, Settings(sites="attn"))


def shown(root, subject: str) -> list[str]:
    runs = bids.session(root, subject=subject)
    return [name for run in runs for name in run.events["stim_id"]]


def test_controls_are_matched_in_tokens_of_the_model_that_was_scanned_first(tmp_path, tiny_folders):
    first = tiny_folders["llama"]
    second = shutil.copytree(tiny_folders["gpt2"], tmp_path / "tiny-gpt2")
    file = second / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:20]  # its words have more tokens
    file.write_text(json.dumps(content))
    study.scan(tmp_path / "ds", plan_of(first), verbose=0)
    tokenizer = models.load(str(first)).tokenizer
    for run in bids.session(tmp_path / "ds"):
        counts = [
            len(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in run.events["prompt"]
        ]
        assert run.events["tokens"].tolist() == counts
    study.scan(tmp_path / "ds", [plan_of(second), plan_of(first)], verbose=0)
    subjects = [bids.label(folder.name) for folder in (first, second)]
    assert shown(tmp_path / "ds", subjects[0]) == shown(tmp_path / "ds", subjects[1])
    alone = tmp_path / "alone"
    study.scan(alone, plan_of(second), verbose=0)
    assert shown(alone, subjects[1]) != shown(tmp_path / "ds", subjects[1])


def test_tokens_of_another_model_change_the_controls(tiny_folders):
    own = paradigms(SMALL, ModelChoice(name=str(tiny_folders["llama"])))
    bundled = paradigms(SMALL, ModelChoice())
    assert [run.trials["tokens"].tolist() for run in own] != [
        run.trials["tokens"].tolist() for run in bundled
    ]
    for one, other in zip(bundled, paradigms(SMALL), strict=True):
        pd.testing.assert_frame_equal(one.trials, other.trials)


def test_datasets_of_before_are_matched_as_they_were(tmp_path, tiny_folders):
    plan = plan_of(tiny_folders["llama"])
    assert reader_of(tmp_path, [plan], overwrite=False) == plan.model
    study.scan(tmp_path, plan, verbose=0)
    content = json.loads((tmp_path / PLAN_FILE).read_text())
    assert content.pop("tokens_by") == "sub-tinyllama"
    (tmp_path / PLAN_FILE).write_text(json.dumps(content))
    assert reader_of(tmp_path, [plan], overwrite=False) is None
    assert reader_of(tmp_path, [plan], overwrite=True) == plan.model


def test_models_that_read_no_text_have_no_tokens(tiny_folders):
    assert models.count_tokens(str(tiny_folders["vit"]), ["a"]) is None
    with pytest.raises(models.ModelError, match="not a bundled model"):
        models.count_tokens("no-such-model", ["a"])


@pytest.mark.parametrize("order", ["events", "mixed"])
def test_other_orders_go_through_the_whole_job(order, tmp_path, tiny_folders, validate):
    root = tmp_path / "ds"
    sizes = ["--n-runs", "2", "--n-blocks", "2", "--trials-per-block", "4", "--n-frames", "2"]
    how = ["--task", "pathology,archeology", "--order", order, "--n-null", "5", "--quiet"]
    model = ["--model", str(tiny_folders["llama"]), "--no-untrained"]
    assert cli.main(["run", str(root), *model, *sizes, *how]) == 0
    validate(root)
    said = bids.session(root).first.raw_sidecar["TaskDescription"]
    words = {"events": "come in random order", "mixed": "alternate with blocks of"}
    assert words[order] in said
    assert (root / bids.DERIVATIVES / "report.html").exists()
    if order == "mixed":
        command = ["glm", str(root), "--covariate", "sustained", "--contrast", "sustained"]
        assert cli.main([*command, "--quiet"]) == 0
        assert list(root.rglob("*contrast-SustainedGivenSustained_stat-t_statmap.nii.gz"))


def test_study_files_ask_for_designs(tmp_path):
    path = tmp_path / "verbs.tsv"
    rows = [("verbs", f"{a} {b} {i}", a, b) for a in "ab" for b in "xy" for i in range(4)]
    pd.DataFrame(rows, columns=["task", "prompt", "kind", "mood"]).to_csv(
        path, sep="\t", index=False
    )
    file = tmp_path / "study.toml"
    sizes = 'n_runs = 1\nn_blocks = 1\ntrials_per_block = 3\nstimuli = "verbs.tsv"'
    file.write_text(
        f'dataset = "ds"\n[design]\nfactors = ["kind", "mood"]\norder = "events"\n{sizes}\n'
        '[[model]]\nname = "smollm2-135m"\n[fir]\nn_null = 2\n[localize]\nshare = 0.02\n'
    )
    asked = read_study(file)
    design = asked.plans[0].design
    assert (design.factors, design.order) == (("kind", "mood"), "events")
    (run,) = paradigms(design)
    assert run.trials["trial_type"].value_counts().to_dict() == dict.fromkeys(
        ("a_x", "a_y", "b_x", "b_y"), 3
    )
    assert [plan.command for plan in asked.measured] == ["fir", "localize"]
    file.write_text(file.read_text().replace("factors", "conditions"))
    with pytest.raises(study.StudyError, match="no condition 'kind'; it has none of its own"):
        read_study(file)


def test_factors_are_contrasts_on_the_command_line(tmp_path, tiny_folders, capsys, validate):
    path = tmp_path / "verbs.tsv"
    rows = [("verbs", f"the {a} {b} {i}", a, b) for a in "ab" for b in "xy" for i in range(8)]
    table = pd.DataFrame(rows, columns=["task", "prompt", "kind", "mood"])
    table.to_csv(path, sep="\t", index=False)
    root = tmp_path / "ds"
    sizes = ["--n-runs", "2", "--n-blocks", "1", "--trials-per-block", "4", "--n-frames", "2"]
    model = ["--model", str(tiny_folders["llama"]), "--no-untrained", "--quiet"]
    what = ["--stimuli", str(path), "--factors", "kind,mood"]
    assert cli.main(["scan", str(root), *model, *what, *sizes]) == 0
    validate(root)
    capsys.readouterr()
    assert cli.main(["glm", str(root), "--contrast", "kind:mood", "--quiet", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["tasks"]) == ["kind:mood"]
    sidecars = list(root.rglob("*stat-t_statmap.json"))
    assert [json.loads(p.read_text())["Contrast"] for p in sidecars] == ["kind:mood"]


def test_tables_are_measured_by_one_command(tmp_path, tiny_folders, capsys):
    path, out = tmp_path / "mine.tsv", tmp_path / "measured.tsv"
    path.write_text("task\tprompt\nbirds\tWhat is a wren?\nbirds\tWhat is a tit?\n")
    command = ["stimuli", "--stimuli", str(path), "--out", str(out)]
    command += ["--model", str(tiny_folders["llama"]), "--quiet"]
    assert cli.main(command) == 0
    table = stimuli.load(out)
    assert np.isfinite(table[["tokens", "surprisal"]].to_numpy()).all()
    assert set(table["task"]) == {"birds", "control"}
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "is there already; use --overwrite" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0


def test_designs_of_one_dataset_are_all_the_same(tmp_path, tiny_folders):
    plan = plan_of(tiny_folders["llama"])
    study.scan(tmp_path, plan, verbose=0)
    other = replace(plan, design=replace(plan.design, order="events"))
    with pytest.raises(study.StudyError, match=r"design\.order was 'blocks', now 'events'"):
        study.scan(tmp_path, other, verbose=0)
