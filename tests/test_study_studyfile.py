"""A study file: what it asks for, and what is refused in one line that names file and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm2nifti import cli, paradigm
from llm2nifti.experiments.lesions.plan import LesionPlan
from llm2nifti.experiments.nulls.plan import NullPlan
from llm2nifti.plans import Design, ModelChoice, ScanPlan, Settings
from llm2nifti.study import StudyError
from llm2nifti.study.plans import paradigms, who
from llm2nifti.study.studyfile import read_study

SMALL = 'dataset = "ds"\n[[model]]\nname = "a"\n'


def read(folder, text):
    path = folder / "study.toml"
    path.write_text(text, "utf-8")
    return read_study(path)


def labels(study):
    return [who(plan) for plan in study.plans]


def test_a_small_file_asks_for_the_defaults(tmp_path):
    study = read(tmp_path, SMALL)
    assert study.root == tmp_path / "ds"
    assert study.measured == ()
    assert study.plans == (ScanPlan(ModelChoice(name="a"), Design(), Settings()),)


def test_every_key_reaches_its_place(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "mine.tsv").write_text(
        "task\tprompt\n" + "".join(f"birds\tWhich bird is {i}?\n" for i in range(60))
    )
    study = read(
        tmp_path,
        """
        dataset = "ds"
        author = ["Jane Doe", "John Roe, Wu"]
        license = "CC-BY-4.0"
        n_null = 7
        [design]
        tasks = ["birds"]
        n_runs = 1
        n_blocks = 2
        trials_per_block = 3
        n_frames = 4
        seed = 5
        stimuli = "mine.tsv"
        split = "development"
        [recording]
        sites = "attn"
        template = "none"
        batch_size = 6
        compress = true
        [[model]]
        name = "weights"
        subject = "my model"
        untrained = false
        device = "cuda"
        dtype = "bfloat16"
        revision = "v1"
        trust_remote_code = true
        seed = 8
        temperature = 1
        """,
    )
    design = Design(("birds",), 1, 2, 3, 4, 5, str(tmp_path / "mine.tsv"), "development")
    choice = ModelChoice(
        name=str(tmp_path / "weights"),
        device="cuda",
        dtype="bfloat16",
        trust_remote_code=True,
        untrained=False,
        revision="v1",
        subject="my model",
    )
    settings = Settings("attn", "none", 6, 1, 8)
    whose = {"author": ("Jane Doe", "John Roe", "Wu"), "license": "CC-BY-4.0"}
    assert study.plans == (ScanPlan(choice, design, settings, True, **whose),)
    assert study.measured == (NullPlan(n=7),)
    assert labels(study) == ["sub-mymodel"]


def test_lists_are_crossed_and_sessions_named_by_what_varies(tmp_path):
    study = read(
        tmp_path,
        SMALL + 'seed = [0, 1]\ntemperature = [0.7, 1.0]\nrevision = ["main"]\n'
        '[[model]]\nname = "b"\nrevision = ["step-1", "step-20"]\n'
        'dtype = ["float32", "bfloat16"]\n',
    )
    assert labels(study) == [
        "sub-a_ses-seed0temp0p7",
        "sub-a_ses-seed0temp1",
        "sub-a_ses-seed1temp0p7",
        "sub-a_ses-seed1temp1",
        "sub-b_ses-revstep1float32",
        "sub-b_ses-revstep1bfloat16",
        "sub-b_ses-revstep20float32",
        "sub-b_ses-revstep20bfloat16",
    ]
    assert [(p.settings.seed, p.settings.temperature) for p in study.plans[:4]] == [
        (0, 0.7),
        (0, 1.0),
        (1, 0.7),
        (1, 1.0),
    ]
    assert {plan.model.revision for plan in study.plans[:4]} == {"main"}
    assert [(p.model.revision, p.model.dtype) for p in study.plans[4:6]] == [
        ("step-1", "float32"),
        ("step-1", "bfloat16"),
    ]


def test_several_files_of_one_model_are_its_sessions(tmp_path):
    for name in ("tiny.Q4.gguf", "tiny.Q8.gguf"):
        (tmp_path / name).write_bytes(b"x")
    study = read(
        tmp_path,
        'dataset = "ds"\n[[model]]\nname = ["tiny.Q4.gguf", "tiny.Q8.gguf"]\nsubject = "tiny"\n',
    )
    assert labels(study) == ["sub-tiny_ses-tinyQ4", "sub-tiny_ses-tinyQ8"]
    assert [plan.model.name for plan in study.plans] == [
        str(tmp_path / "tiny.Q4.gguf"),
        str(tmp_path / "tiny.Q8.gguf"),
    ]


def test_the_example_of_the_readme_is_a_study(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", readme, re.S)
    rows = [f"{t}\tWhat is {t} {i}?\n" for t in ("pathology", "archeology") for i in range(80)]
    (tmp_path / "mine.tsv").write_text("task\tprompt\n" + "".join(rows))
    (tmp_path / "quant").mkdir()
    for name in ("m.Q4.gguf", "m.Q8.gguf"):
        (tmp_path / "quant" / name).write_bytes(b"x")
    assert labels(read(tmp_path, text)) == [
        "sub-smollm2135m_ses-seed0temp0p7",
        "sub-smollm2135m_ses-seed0temp1",
        "sub-smollm2135m_ses-seed1temp0p7",
        "sub-smollm2135m_ses-seed1temp1",
        "sub-mymodel_ses-mQ4",
        "sub-mymodel_ses-mQ8",
    ]


def test_a_bundled_name_is_not_taken_for_a_folder(tmp_path):
    (tmp_path / "smollm2-135m").mkdir()
    study = read(tmp_path, 'dataset = "ds"\n[[model]]\nname = "smollm2-135m"\n')
    assert study.plans[0].model.name == "smollm2-135m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('dataset = "ds"\n', "model is missing"),
        ('[[model]]\nname = "a"\n', "dataset is missing"),
        ('dataset = "ds"\nmodel = []\n', "model is missing"),
        ('dataset = "ds"\n[[model]]\ndtype = "float32"\n', "[[model]] 1 name is missing"),
        (
            "n_nul = 3\n" + SMALL,
            "n_nul is not known; did you mean n_null? allowed are dataset, n_null, design",
        ),
        (
            SMALL + "[design]\nn_run = 3\n",
            "[design] n_run is not known; did you mean n_runs? allowed are tasks, n_runs",
        ),
        ("author = 3\n" + SMALL, "author is 3; it must be a list, each text"),
        ('license = ""\n' + SMALL, "license is '': the value is empty"),
        ('licence = "CC0"\n' + SMALL, "licence is not known; did you mean license?"),
        (SMALL + "[recording]\nseed = 1\n", "[recording] seed is not known; allowed are sites"),
        (SMALL + "sites = 1\n", "[[model]] 1 sites is not known; allowed are name, device, dtype"),
        (SMALL + '[design]\nn_runs = "3"\n', "n_runs is '3'; it must be a whole number"),
        (SMALL + "[design]\nn_runs = true\n", "n_runs is True; it must be a whole number"),
        (SMALL + "[design]\nn_runs = 2.0\n", "n_runs is 2.0; it must be a whole number"),
        (SMALL + "[design]\ntasks = 3\n", "tasks is 3; it must be a list, each text"),
        (SMALL + "untrained = 1\n", "untrained is 1; it must be true or false"),
        (SMALL + 'temperature = [0.5, "hot"]\n', "temperature is 'hot'; it must be a number"),
        (SMALL + "temperature = -1\n", "temperature is -1; it must be a number of at least 0"),
        (SMALL + "seed = []\n", "seed is an empty list"),
        (SMALL + "temperature = 1\nseed = [1, 2, 1]\n", "seed holds 1 twice"),
        (SMALL + "seed = [1, 2]\n", "temperature 0 is greedy and uses no seed"),
        (SMALL + 'seed = [1, 2]\n[recording]\nmode = "read"\n', "nothing is generated"),
        (SMALL + 'temperature = [1, 2]\n[recording]\nmode = "read"\n', "temperature is a list"),
        (SMALL + 'revision = ["v1.0", "v10"]\n', "'v1.0' and 'v10' have the same BIDS label"),
        (SMALL + 'revision = ["A", "a"]\n', "have the same BIDS label ses-reva"),
        (SMALL + '[[model]]\nname = "A"\n', "'a' and 'A' have the same BIDS label sub-A"),
        (SMALL + '[[model]]\nname = "a-untrained"\n', "the same BIDS label sub-auntrained"),
        ('dataset = "ds"\n[[model]]\nname = ["a", "b"]\n', "subject is missing"),
        (SMALL + 'subject = "--"\n', "'--' has no ASCII letter or digit"),
        (SMALL + "[design]\nn_runs = 0\n", "n_runs is 0; it must be a whole number of at least 1"),
        (SMALL + '[design]\ntasks = ["astrology"]\n', "no task 'astrology'"),
        (SMALL + '[design]\nstimuli = "none.tsv"\n', "none.tsv"),
        (SMALL + "[recording]\nbatch_size = 0\n", "batch_size is 0"),
        (SMALL.replace('"a"', '"."') + 'revision = ["a", "b"]\n', "is not read from a hub"),
        ("dataset = ds\n", "line 1"),
    ],
)
def test_mistakes_are_one_line_that_names_file_and_key(tmp_path, text, message, capsys):
    path = tmp_path / "study.toml"
    path.write_text(text, "utf-8")
    assert cli.main(["run", str(path), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert re.match(rf"llm2nifti run: {re.escape(str(path))}: ", err)
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["study.toml"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"no study file .*none\.toml"):
        read_study(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "option",
    [
        ["--seed", "1"],
        ["--n-null", "3"],
        ["--no-untrained"],
        ["--n-runs", str(paradigm.N_RUNS)],  # the default, but perhaps not what the file says
        ["--task", "pathology"],
        ["--author", "Jane Doe"],
        ["--license", "CC0"],
    ],
)
def test_options_of_the_scan_do_not_go_with_a_study_file(tmp_path, option, capsys):
    path = tmp_path / "study.toml"
    path.write_text(SMALL)
    assert cli.main(["run", str(path), *option]) == 2
    err = capsys.readouterr().err
    assert option[0].replace("--no-", "--") in err
    assert "set it in" in err


def test_the_design_of_a_file_is_that_of_the_options(tmp_path):
    study = read(tmp_path, SMALL + '[design]\ntasks = ["pathology"]\nn_runs = 2\nseed = 3\n')
    found = paradigms(study.plans[0].design)
    expected = paradigm.experiment(["pathology"], n_runs=2, seed=3)
    for one, other in zip(found, expected, strict=True):
        assert list(one.trials["prompt"]) == list(other.trials["prompt"])


def test_a_table_named_by_a_command_is_an_experiment_of_every_session(tmp_path):
    study = read(tmp_path, SMALL + '[lesion]\nshare = [0.02]\nnetwork = "pathology"\n')
    assert study.measured == (LesionPlan(share=(0.02,), network=("pathology",)),)
    for line, message in (
        ("shar = 3", "[lesion] shar is not known; did you mean share?"),
        ("share = [0.7]", "it must be a list, each a number above 0 and at most 0.5"),
        ('model = "x"', "[lesion] model is not known"),  # [[model]] says where it is
    ):
        with pytest.raises(StudyError, match=re.escape(message)):
            read(tmp_path, f"{SMALL}[lesion]\n{line}\n")
