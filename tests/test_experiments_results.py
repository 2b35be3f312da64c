"""What results say: once, in a terminal, on the page, in a notebook, and as tables."""

from __future__ import annotations

import html

import numpy as np
import pytest

from llm2nifti import bids
from llm2nifti.experiments.lesions.result import LesionResult, MaskResult, SteerResult
from llm2nifti.experiments.training.result import TrainingResult
from llm2nifti.experiments.training.summary import summarise
from llm2nifti.tell import as_text

TASKS = ["pathology", "archeology", "control"]


def trained():
    """Network -1, random -0.5, all -2 on the task; nothing elsewhere."""
    gains = {"network": 1.0, "random": 0.5, "all": 2.0}
    base = {"losses": {task: [5.0, 5.0, 5.0] for task in TASKS}}
    pieces = {}
    for name, gain in gains.items():
        losses = {task: [5 - gain * (task == "pathology")] * 3 for task in TASKS}
        more = {"epochs": [1.0], "modules": ["a"], "n_weights": 1000}
        pieces[name, 0] = {"losses": losses, **more}
    rates = {name: {0.001: {"loss": 1.0}} for name in gains}
    return summarise({"task": "pathology"}, rates, base, pieces)


def condition(mode="mean", share=0.01, own=-0.3):
    """Two networks that do `own` to their task and nothing elsewhere."""

    def cell(value):
        ends = [value - 0.1, value + 0.1]
        return {
            "delta": value, "interval": ends, "random": [0.0, 0.01], "bottom": -0.01,
            "excess": value, "excess_interval": ends, "n_texts": 9,
        }  # fmt: skip

    names = TASKS[:2]
    pair = {"value": own, "interval": [own - 0.1, own + 0.1]}
    return {
        "sites": ["attn", "mlp"], "mode": mode, "share": share, "strength": 2.0,
        "spare_template": False,
        "effects": {n: {t: cell(own if n == t else 0.0) for t in TASKS} for n in names},
        "selectivity": {"tasks": names, "value": own, "interval": [-0.4, -0.2], "random": [0, 0]},
        "double_dissociations": [
            {"pair": names, "first": pair, "second": pair, "holds": own < 0,
             "crosses": own < 0, "random_crosses": 0.2}
        ],
    }  # fmt: skip


def lesioned(*conditions, untrained=None):
    copy = {"conditions": [untrained]} if untrained else None
    return {
        "held_out": True,
        "sizes": {"n_random": 2, "n_prompts": 3, "seed": 0},
        "conditions": list(conditions),
        "untrained": copy,
    }


def test_lesions_are_told_with_their_nulls():
    (section,) = LesionResult.of(lesioned(condition(), untrained=condition(own=0.0))).sections()
    text = " ".join(section.paragraphs)
    assert "1.0\N{NO-BREAK SPACE}% of the units of attn and mlp" in text
    assert "1 of 1 pair of tasks show" in text
    assert [plot.stem for plot in section.plots] == ["lesions", "lesions_untrained"]
    rows = [table.frame.to_dict(orient="records") for table in section.tables]
    assert rows[1][0]["Beyond random"].startswith("−0.30 [−0.40")
    assert rows[2][0]["Shown"] == "yes"
    assert list(rows[0][0].values()) == ["pathology", "−0.300*", "0.000", "0.000"]
    ax = section.plots[0].draw()
    assert [t.get_text() for t in ax.texts][:3] == ["−0.300*", "0.000", "0.000"]


def test_doses_are_drawn_where_there_are_several():
    many = [condition(share=share, own=-share) for share in (0.01, 0.02, 0.05)]
    result = LesionResult.of(lesioned(*many, condition("zero", share=0.01)))
    plot = result.sections()[0].plots[-1]
    assert plot.stem == "lesion_doses"
    line = plot.draw().lines[0]
    np.testing.assert_allclose(line.get_ydata(), [-0.01, -0.02, -0.05])


def test_masks_have_names_of_their_own_on_the_page():
    stems = {
        plot.stem
        for kind in (LesionResult, MaskResult, SteerResult)
        for plot in kind.of(lesioned(condition())).sections()[0].plots
    }
    assert stems == {"lesions", "masks", "steering"}


def test_steering_and_training_are_told():
    (section,) = SteerResult.of(lesioned(condition("steer", own=0.3))).sections()
    assert "added 2.0 times to the 1.0" in section.paragraphs[0]
    assert section.plots[0].draw().get_ylabel() == "Steered by"
    (section,) = TrainingResult.of({"pathology": trained()}).sections()
    (table,) = section.tables
    rows = {row["Trained"]: row for row in table.frame.to_dict(orient="records")}
    assert rows["network"]["Pathology"] == "−1.00 [−1.00,\N{NO-BREAK SPACE}−1.00]"
    assert rows["network - random"]["Pathology"].startswith("−0.50")
    assert rows["network"]["Weights"] == "1,000"
    assert table.caption.endswith("pathology, 1 seed")


def test_a_result_reads_in_a_terminal_as_on_the_page_and_in_a_notebook():
    result = LesionResult.of(lesioned(condition(), untrained=condition(own=0.0)))
    (section,), text = result.sections(), repr(result)
    assert text == as_text(section)
    lines = text.splitlines()
    assert lines[:2] == [section.title, "-" * len(section.title)]
    assert max(map(len, lines)) <= 100
    assert "1.0 % of the units of attn and mlp" in " ".join(lines)
    start = lines.index("Change of log probability (nats a token)")
    assert lines[start + 1].split("  ")[0] == "Network"
    cells = lines[start + 2].split()
    assert cells[:4] == ["pathology", "pathology", "-0.30", "[-0.40,"]
    assert len({len(line) for line in lines[start + 1 : start + 4]}) == 1  # numbers end together
    assert not set(text) & set("\N{NO-BREAK SPACE}\N{MINUS SIGN}–")
    shown = result._repr_html_()
    assert shown.count("data:image/png") == 2
    for paragraph in section.paragraphs:
        assert paragraph in html.unescape(shown)


def test_tables_have_one_row_a_measurement():
    tables = LesionResult.of(lesioned(condition(), untrained=condition(own=0.0))).tables()
    effects = tables["effects"].set_index(["model", "network", "task"])
    assert len(effects) == 2 * 2 * 3
    cell = effects.loc[("trained", "pathology", "pathology")]
    assert (cell["delta"], cell["low"], cell["high"]) == (-0.3, -0.4, pytest.approx(-0.2))
    assert tables["pairs"]["holds"].tolist() == [True, False]
    changes = TrainingResult.of({"pathology": trained()}).tables()["changes"]
    row = changes.query("condition == 'all' and figure == 'pathology'").iloc[0]
    assert row["value"] == pytest.approx(-2)


def test_a_result_is_what_it_was_after_writing_and_reading(tmp_path):
    content = lesioned(condition(), untrained=condition(own=0.0))
    result = LesionResult.of(content)
    assert LesionResult.of(result.content()).content() == result.content()
    older = {**content, "effects": {}, "untrained": None}  # as version 0.1.0 wrote it
    assert LesionResult.of(older).first == result.first
    del content["conditions"][0]["effects"]["pathology"]["control"]["delta"]
    with pytest.raises(bids.DamagedFileError, match=r"lesion\.json.*delta"):
        LesionResult.of(content)
