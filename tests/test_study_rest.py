"""Rest: free generation from an empty prompt, recorded beside tasks that do not see it."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import numpy as np
import pytest
from tests_support import assert_same, contents

from llm2nifti import bids, cli, experiments, paradigm, scanner, stimuli, study
from llm2nifti.experiments.decomposition.plan import DecomposePlan
from llm2nifti.experiments.journal import digest_of_runs
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.plans import Design, ModelChoice, PlanError, ScanPlan, Settings
from llm2nifti.scanner import ScanError
from llm2nifti.stimuli import StimulusError
from llm2nifti.study import StudyError, crews, scanning
from llm2nifti.study.plans import paradigms

SIZES = {"n_runs": 2, "n_blocks": 2, "trials_per_block": 4, "n_frames": 3}


def rest_plan(folder, *, rest=9, **changes):
    design = Design(tasks=("pathology", "archeology"), rest=rest, **{**SIZES, **changes})
    return ScanPlan(ModelChoice(name=str(folder)), design, Settings(batch_size=4))


@pytest.fixture(scope="module")
def scanned(tiny_folders, tmp_path_factory):
    """A dataset of two tasks and rest, with an untrained copy."""
    root = tmp_path_factory.mktemp("rest") / "ds"
    study.scan(root, rest_plan(tiny_folders["llama"]), verbose=0)
    return root


def test_rest_runs_are_valid_and_say_what_was_shown(scanned, validate):
    validate(scanned)
    run = bids.read(scanned, task="rest", run=2)
    assert run.frames_img.shape[3] == 27
    assert run.img.shape[3] == 9
    assert set(run.events["trial_type"]) == {"rest"}
    assert set(run.events["prompt"]) == {""}
    assert list(run.events["stim_id"])[:2] == ["rest-2-0000", "rest-2-0001"]
    assert run.sidecar["Rendered"] == ["<end>"] * 9
    assert "shown no prompt; it reads '<end>'" in run.sidecar["Instructions"]
    assert run.sidecar["TaskDescription"].startswith("Free generation from an empty prompt")
    assert run.sidecar["Settings"]["temperature"] == 1.0
    assert bids.read(scanned, task="pathology").sidecar["Settings"]["temperature"] == 0.0


def test_every_trial_has_a_seed_of_its_own(scanned):
    one, two = (bids.read(scanned, task="rest", run=number) for number in (1, 2))
    tokens = [tuple(run.tokens["token_id"]) for run in (one, two)]
    by_trial = [tokens[0][i : i + 3] for i in range(0, 27, 3)]
    assert len(set(by_trial)) == 9
    assert tokens[0] != tokens[1]
    first = one.frame_values()[::3]
    assert np.allclose(first, first[0], atol=1e-4)  # nothing is sampled before the first frame
    assert not np.allclose(one.values(), one.values()[0], atol=1e-2)


def test_sessions_leave_rest_out_unless_asked(scanned):
    session = bids.session(scanned)
    assert session.tasks == ("archeology", "pathology")
    assert (len(session), session.rest.tasks, len(session.rest)) == (4, ("rest",), 2)
    assert session.untrained.tasks == session.tasks
    replayed = session.rest.untrained
    assert replayed.subject.endswith("untrained")
    for run, other in zip(session.rest, replayed, strict=True):
        assert list(run.tokens["token_id"]) == list(other.tokens["token_id"])
    with pytest.raises(bids.NoSuchRunError, match="no task 'rest'"):
        session.only(["rest"])


def test_the_analysis_of_tasks_does_not_see_rest(scanned, tiny_folders, tmp_path):
    study.scan(tmp_path / "without", rest_plan(tiny_folders["llama"], rest=0), verbose=0)
    shutil.copytree(scanned, tmp_path / "with")
    numbers = []
    for name in ("with", "without"):
        content = study.analyse(bids.session(tmp_path / name), n_null=3, verbose=0).content()
        numbers.append({key: part for key, part in content.items() if key != "made_from"})
    assert numbers[0] == numbers[1]
    assert numbers[0]["design"]["tasks"] == ["archeology", "pathology"]


def test_rest_can_be_added_later_and_resumed_to_the_same_bytes(scanned, tiny_folders, tmp_path):
    root, plan = tmp_path / "ds", rest_plan(tiny_folders["llama"])
    whole = contents(scanned)
    study.scan(root, rest_plan(tiny_folders["llama"], rest=0), verbose=0)
    assert bids.session(root).rest is None
    study.scan(root, plan, verbose=0)
    assert_same(root, whole)
    for path in root.rglob("*task-rest_run-2*trial_bold.json"):
        path.unlink()

    def interrupt(_n):
        raise KeyboardInterrupt

    job = scanning.Job(plan, paradigms(plan.design)[-1])
    model = crews.ThisProcess().load(plan.model, untrained=False)
    with pytest.raises(KeyboardInterrupt):
        scanning.record(root, [job], model, on_trials=interrupt)
    (journal,) = (root / bids.WORK).rglob("batches.jsonl")
    assert len(journal.read_text().splitlines()) == 1  # of three batches
    study.scan(root, plan, verbose=0)
    assert_same(root, whole)
    study.scan(root, rest_plan(tiny_folders["llama"], rest=0), verbose=0)  # what is there stays
    assert_same(root, whole)
    with pytest.raises(StudyError, match=r"design.rest_temperature was 1.0, now 0.5"):
        study.scan(root, rest_plan(tiny_folders["llama"], rest_temperature=0.5), verbose=0)


def test_a_template_shows_an_empty_turn_and_a_bare_text_begins(tiny_model):
    tokenizer = copy.copy(tiny_model.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}user: {{ m['content'] }}\nbot:{% endfor %}"
    model = dataclasses.replace(tiny_model, tokenizer=tokenizer)
    how = Settings(temperature=1.0, sites="resid")
    chat = scanner.scan(model, paradigm.rest(4, n_frames=2), settings=how)
    assert chat.rendered == ["user: \nbot:"] * 4
    assert chat.info["ChatTemplate"]
    bare = dataclasses.replace(how, template="none")
    text = scanner.scan(model, paradigm.rest(4, n_frames=2), settings=bare)
    assert text.rendered == ["<end>"] * 4
    assert not text.info["ChatTemplate"]
    assert not np.allclose(text.values, chat.values)
    again = scanner.scan(model, paradigm.rest(4, n_frames=2), settings=bare)
    assert np.array_equal(text.values, again.values)
    tokenizer.eos_token = None
    with pytest.raises(ScanError, match="'rest-1-0000' has no token for this model"):
        scanner.check(model, paradigm.rest(4), bare)


def test_what_cannot_rest_is_refused_in_a_line(tiny_folders, tmp_path, capsys):
    for folder, settings in (("bert", Settings()), ("llama", Settings(mode="read"))):
        plan = dataclasses.replace(rest_plan(tiny_folders[folder]), settings=settings)
        with pytest.raises(ScanError, match=r"rest is free generation, and .* only reads here"):
            study.scan(tmp_path / "ds", plan, verbose=0)
    assert not (tmp_path / "ds").exists()
    with pytest.raises(PlanError, match="rest_temperature is 0"):
        Design(rest=9, rest_temperature=0)
    table = tmp_path / "own.tsv"
    table.write_text("task\tprompt\nRest\tWhat is sleep?\n")
    with pytest.raises(StimulusError, match=r"row 2: task is called 'rest', .* rename it"):
        stimuli.load(table)
    study.scan(tmp_path / "ds", rest_plan(tiny_folders["llama"], rest=0), verbose=0)
    assert cli.main(["decompose", str(tmp_path / "ds"), "--rest", "--quiet"]) == 2
    assert "has no rest runs" in capsys.readouterr().err


def test_rest_is_decomposed_and_matched_with_the_tasks(scanned, tmp_path, capsys, validate):
    root = tmp_path / "ds"
    shutil.copytree(scanned, root)
    options = ["--n-components", "3", "--n-parcels", "3", "--n-shuffles", "20", "--quiet"]
    assert cli.main(["decompose", str(root), *options]) == 0
    assert cli.main(["decompose", str(root), "--rest", *options]) == 0
    assert "18 trials of free generation" in " ".join(capsys.readouterr().out.split())
    folder = root / bids.DERIVATIVES
    rest, tasks = (bids.read_json(folder / f"decomposition{end}.json") for end in ("_rest", ""))
    assert set(rest["trained"]["task_p"]) == {"archeology", "pathology"}
    assert rest["n_trials"] == 18
    assert tasks["n_trials"] > 18
    assert rest["untrained"]["maps"] != rest["trained"]["maps"]
    courses = bids.read_tsv(next(folder.rglob("*_desc-restcanica_timeseries.tsv")))
    assert list(courses["task"].unique()) == ["rest"]
    validate(root)
    study.analyse_all(root, measured=[NullPlan(n=2)], verbose=0)
    page = (folder / "report.html").read_text("utf-8")
    assert "Which components does free generation have?" in page
    assert "Which components are there without labels?" in page


def test_results_of_tasks_outlive_rest_runs_that_are_added(tiny_folders, tmp_path):
    root, llama = tmp_path / "ds", tiny_folders["llama"]
    asked = DecomposePlan(n_components=3, n_parcels=3, n_shuffles=20)
    study.run(root, rest_plan(llama, rest=0), measured=[NullPlan(n=2), asked], verbose=0)
    folder = root / bids.DERIVATIVES
    kept = {name: folder / name for name in ("decomposition.json", "summary.json", "report.html")}
    before = {name: path.stat().st_mtime_ns for name, path in kept.items()}
    of_tasks = digest_of_runs(bids.session(root))
    study.scan(root, rest_plan(llama), verbose=0)
    study.run(root, rest_plan(llama), measured=[NullPlan(n=2), asked], verbose=0)
    assert {name: path.stat().st_mtime_ns for name, path in kept.items()} == before
    session = bids.session(root)
    assert digest_of_runs(session) == of_tasks
    assert digest_of_runs(session, with_rest=True) != of_tasks
    result = experiments.measure(session, dataclasses.replace(asked, rest=True), verbose=0)
    assert result.made_from["runs"] == digest_of_runs(session, with_rest=True)


def test_a_rest_run_waits_for_what_it_replays_and_for_a_run_that_describes_its_session(
    tiny_folders,
):
    plan = rest_plan(tiny_folders["llama"])
    jobs = [
        scanning.Job(plan, design, untrained)
        for untrained in (False, True)
        for design in paradigms(plan.design)
    ]
    by_name = {job.name: [other.name for other in crews._before(job, jobs)] for job in jobs}
    assert by_name["sub-tinyllama_task-pathology_run-1"] == []
    assert by_name["sub-tinyllama_task-rest_run-2"] == ["sub-tinyllama_task-pathology_run-1"]
    assert by_name["sub-tinyllamauntrained_task-rest_run-1"] == [
        "sub-tinyllama_task-rest_run-1",
        "sub-tinyllamauntrained_task-pathology_run-1",
    ]
