"""The picture of the house in docs/architecture.md, made from the import contracts and docstrings.

python tests/house.py            # print it
python tests/house.py write      # put it into the page
"""

from __future__ import annotations

import ast
import sys
import textwrap
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- made by tests/house.py -->\n", "<!-- end -->"
WIDTH = 96


def picture() -> str:
    """Floors from the roof down, each module with the first line of its docstring."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    floors = next(c for c in contracts["contracts"] if c["type"] == "layers")["layers"]
    names = [[name.strip() for name in floor.split("|")] for floor in floors]
    width = max(len(name) for floor in names for name in floor)
    lines = []
    for floor in names:
        lines.append(f"+{'-' * (width + 2)}+{'-' * (WIDTH - width - 4)}")
        for name in floor:
            told = textwrap.wrap(first_line(name), WIDTH - width - 6)
            lines += [
                f"| {name if i == 0 else '':{width}} | {text}".rstrip()
                for i, text in enumerate(told)
            ]
            if name == "experiments":
                lines += [f"| {'':{width}} |   {part}" for part in experiments()]
    return "\n".join([*lines, f"+{'-' * (width + 2)}+{'-' * (WIDTH - width - 4)}"])


def first_line(name: str) -> str:
    """What a module says that it is."""
    path = ROOT / "llm2nifti" / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()[0]


def experiments() -> list[str]:
    """Every experiment with the question that it asks."""
    folder = ROOT / "llm2nifti" / "experiments"
    names = sorted(path.parent.name for path in folder.glob("*/plan.py"))
    return [f"{name:15} {first_line(f'experiments/{name}')}" for name in names]


def page() -> str:
    """The page with the picture of today."""
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}```text\n{picture()}\n```\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        PAGE.write_text(page(), "utf-8")
    else:
        print(picture())
