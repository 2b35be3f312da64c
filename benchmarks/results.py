"""What does the default experiment find? The tables of docs/results.md, from two datasets.

    llm2nifti run ds
    llm2nifti run ds-domains --task cooking,sports,music,law,weather,transport --n-runs 2
    python benchmarks/results.py ds ds-domains > docs/results.md

The second dataset has coherent everyday domains, which go through the same analysis: what they show
is no more than any coherent domain shows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd

from llm2nifti import bids
from llm2nifti.experiments.quality.result import QualityResult
from llm2nifti.experiments.topics.result import TopicsResult
from llm2nifti.report.summary import SessionSummary, read_session_summary
from llm2nifti.tell import Section, Table

_INTRO = """# What `llm2nifti run ds` finds on the default model

Made by the commands in `benchmarks/results.py` ({versions}) on the evaluation split,
which was not used to choose anything: sizes, the method of naming and every threshold come from the
development split or were fixed beforehand. These are our numbers on our stimuli; none of them is
the paper's.

Model: {model}. {n_tasks} tasks, {n_runs} runs a task, {n_on} task and {n_off} control prompts a
run, {n_frames} greedy tokens a prompt, {n_units:,} units. One volume a prompt. Runs of a task have
topics of their own, so that runs that are held out are topics that are held out."""
_READ = """## How to read this

- Activation is graded and broad: the more prompts, the more units pass.
- An untrained network separates tasks too, because its inputs differ; what training adds is the
  difference between the two columns, not the level of one.
- Networks are those of coherent subjects: everyday domains have networks that are nearly as
  repeatable and as easily named, and nothing here says that science is special. They were shown
  seven topics each and not 27, so that fewer of their units pass over topics.
- All of it is one small model, one set of concepts and eight question frames. How the parts of the
  model go together is in [networks.md](networks.md), what falls out without labels in
  [decomposition.md](decomposition.md); these two pages, and [interventions.md](interventions.md),
  were measured with the first edition of the stimuli."""


def as_markdown(section: Section, level: int = 2) -> str:
    """Text and tables of a section and of those under it."""
    blocks = [f"{'#' * level} {section.title}", *section.paragraphs]
    blocks += [table_of(table) for table in section.tables]
    blocks += section.notes
    return "\n\n".join([*blocks, *(as_markdown(part, level + 1) for part in section.parts)])


def table_of(table: Table) -> str:
    """A table with its caption."""
    frame = table.frame.astype(str)
    rules = [":--" if table.is_words(str(name)) else "--:" for name in frame]
    rows = [list(map(str, frame)), rules, *frame.to_numpy().tolist()]
    return f"*{table.caption}*\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def sites(summary: SessionSummary) -> Table:
    """Share of the units of each site that belong to a network, and its densest part."""
    rows = []
    for task, maps in summary.tasks.items():
        profile = pd.DataFrame(maps.profile)
        sums = profile.groupby("site", sort=False)[["n_active", "n_units"]].sum()
        shares = sums["n_active"] / sums["n_units"]
        best = profile.loc[profile["share"].idxmax()]
        row = {"Task": task, **{name: f"{share:.0%}" for name, share in shares.items()}}
        row["Densest"] = f"layer {best['layer']} {best['site']} ({best['share']:.0%})"
        rows.append(row)
    return Table.of("Share of the units of each site", rows, ("Task", "Densest"))


def page(folder: str, domains: str) -> str:
    """The whole page."""
    session = bids.session(folder)
    summary = read_session_summary(session)
    everyday = read_session_summary(bids.session(domains))
    design, versions = summary.design, summary.versions
    names = ("llm2nifti", "torch", "transformers", "nilearn")
    told = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    intro = _INTRO.format(
        versions=told,
        model=summary.model.get("Name", session.subject),
        n_tasks=len(summary.tasks),
        n_runs=design["n_runs"],
        n_on=design["n_task_trials"],
        n_off=design["n_control_trials"],
        n_frames=design["n_frames"],
        n_units=design["n_units"],
    )
    blocks = [intro, *map(as_markdown, told_of(session, summary))]
    where = Section("where", "Where?", tables=[sites(summary)])
    same = Section(
        "domains",
        "What does any coherent domain show?",
        ["Six everyday domains, two runs each, by the same analysis:"],
        parts=told_of(bids.session(domains), everyday, short=True),
    )
    return "\n\n".join([*blocks, as_markdown(where), as_markdown(same), _READ]) + "\n"


def told_of(
    session: bids.Session, summary: SessionSummary, *, short: bool = False
) -> Sequence[Section]:
    """Sections of numbers of one dataset; the `short` leave out designs and nulls."""
    kept = [kind.read(session) for kind in (TopicsResult, QualityResult)]
    topics, quality = (result.sections() if result else [] for result in kept)
    middle = [
        s for s in summary.sections(session) if s.anchor in ("repeatability", "identification")
    ]
    nulls = [] if short else summary.null.sections()
    return [summary.short(), *topics, *middle, *nulls, *([] if short else quality)]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print(page(*sys.argv[1:]), end="")
