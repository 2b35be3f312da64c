"""Results in a terminal: what a person reads, cell by cell."""

from __future__ import annotations

import pytest

from llm2nifti.tell import Plot, Section, Table, Viewer, as_html, as_text, wording


def test_a_table_has_its_numbers_below_each_other():
    rows = [{"Task": "pathology", "r": "0.5"}, {"Task": "a", "r": "−12.25"}]
    text = as_text(Section("x", "Maps", [], tables=[Table.of("How alike", rows)]))
    assert text.splitlines() == [
        "Maps",
        "----",
        "How alike",
        "Task            r",
        "pathology     0.5",
        "a          -12.25",
    ]


def test_sections_come_in_order_and_figures_are_left_out():
    plot = Plot("stem", lambda: pytest.fail("drawn"), "alt", "caption")
    table = Table.of("T", [{"Task": "a", "r": "1"}])
    sections = [
        Section("one", "First", ["Before."], [plot], [table], ["After."]),
        Section("two", "Second", ["More."]),
    ]
    places = [as_text(*sections).index(word) for word in ("First", "Before", "T\n", "After", "Sec")]
    assert places == sorted(places)
    assert "caption" not in as_text(*sections)


@pytest.mark.parametrize("columns", ["40", "300"])
def test_text_is_as_wide_as_the_terminal_and_never_wider_than_a_page(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    lines = as_text(Section("x", "Long", ["word " * 200])).splitlines()
    assert max(map(len, lines)) in range(min(int(columns), 100) - 5, min(int(columns), 100) + 1)


def test_marks_of_the_page_are_plain_in_a_terminal():
    told = [f"{wording.percent(-0.25)} {wording.NONE} {wording.p_value(0.2)}"]
    assert as_text(Section("x", "Marks", told)).endswith("\n-25.0 % - p = 0.200")


def test_html_of_sections_is_escaped_and_has_their_figures_and_parts():
    evil = "<script>"
    part = Section("", "Part", [f"see `{evil}.json`"], [Viewer("v", lambda: pytest.fail("drawn"))])
    plot = Plot("stem", lambda: None, "alt", "caption")
    table = Table.of(evil, [{"Task": evil, "r": "1"}])
    text = as_html(
        Section("one", evil, [evil], [plot], [table], parts=[part]),
        embed=lambda p: f"<img {p.stem}>" if isinstance(p, Plot) else "<iframe>",
    )
    assert evil not in text
    assert "<img stem>" in text
    assert "<iframe>" in text
    assert '<section id="one">' in text
    assert "<h3>Part</h3>" in text
    assert "<code>&lt;script&gt;.json</code>" in text
    assert '<td class="n">1</td>' in text


def test_small_figures_stand_beside_each_other():
    plots = [Plot(name, lambda: None, "", "", name != "large") for name in ("large", "a", "b")]
    text = as_html(Section("x", "X", plots=plots), embed=lambda plot: plot.stem)
    assert text.split('<div class="pair">')[1].split("</div>")[0].split() == ["a", "b"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (wording.number(-0.004), "0.00"),
        (wording.number(-0.25), "−0.25"),
        (wording.percent(0.1234), "12.3 %"),
        (wording.with_interval(0.5, [0.25, 0.75]), "0.50 [0.25, 0.75]"),
        (wording.plural(1, "run"), "1 run"),
        (wording.plural(2, "run"), "2 runs"),
        (wording.listing(["attn", "resid", "mlp"]), "attn, resid and mlp"),
        (wording.height_control("fdr 0.05, two-sided"), "false discovery rate 0.05, two-sided"),
    ],
)
def test_numbers_and_words_are_written_in_one_way(told, expected):
    assert told.replace("\N{NO-BREAK SPACE}", " ") == expected
