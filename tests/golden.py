"""The numbers of every command, written down before the code is moved and compared after it.

    python tests/golden.py write tests/golden/tiny.json
    python tests/golden.py write before.json --code ../as-it-was --default
    python tests/golden.py compare tests/golden/tiny.json after.json

Another processor rounds differently, which may move a unit across a threshold: there, write both
files anew, the older one with ``--code`` and a checkout of the older commit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-6
LONGEST = 40  # numbers of a list that are written down one by one

SIZES = ["--n-runs", "3", "--n-blocks", "2", "--trials-per-block", "6", "--n-frames", "3"]
TASKS = ["--task", "pathology", "--task", "archeology", "--task", "randomstrings"]
FAST = "--n-random 2 --n-prompts 4"
TRAINING = "--seeds 2 --epochs 2 --n-texts 6 --learning-rate 0.01"
# Of the tiny dataset and of the default one.
COMMANDS = {
    "repeatability": "repeatability {ds}",
    "identification": "identification {ds}",
    "null": "null {ds} --n 20",
    "where unit": "where {ds} --unit {unit}",
    "where voxel": "where {ds} {point}",
    "lesion": "lesion {ds} {fast} --share 0.05 --share 0.1 {model}",
    "lesion zero": "lesion {ds} {fast} --mode zero --sites resid --no-untrained {model}",
    "lesion mask": "lesion {ds} {fast} --network {mask} --mode resample {model}",
    "steer": "steer {ds} {fast} --strength 2 --share 0.05 {model}",
    "steer answers": "steer {ds} --network pathology --prompt Hm --n-tokens 5 {model}",
    "detect": "detect {ds} --n-boot 50",
    "monitor": "monitor {ds} {prompts} --n-tokens 3 {model}",
    "glm bonferroni": "glm {ds} --height-control bonferroni",
    "glm top": "glm {ds} --height-control top --share 0.05 --one-sided",
    "glm tokens": "glm {ds} --task pathology --frames token",
    "glm units": "glm {units}",
    "target": "target {units} --network randomstrings --top 3 {model}",
    "prune": "prune {units} --network randomstrings --share 0.1 --out {small} {fast} {model}",
    "train": "train {units} --task randomstrings {training} {model}",
    "check": "check {ds}",
}
# Patterns of names that were given up, and what took their place.
RENAMED = {
    r"^(glm [a-z]+)/(?!tasks/|token_level_null)": r"\1/tasks/",
    r"^networks/similarity/": "repeatability/",
    r"^networks/identification/": "identification/",
    r"^(lesion( \w+)?|steer)/(untrained/)?effects/": r"\1/\3conditions/0/effects/",
    r"^steer answers/(\d)": r"steer answers/answers/\1",
    r"^train/": "train/randomstrings/",
    r"^prune/choice/": "prune/plan/",
    r"/setup/": "/plan/",
}
# What differs between two runs of the same code, or says where the files are.
IGNORED = ("versions", "speed", "made_from", "reported", "folder", "report", "bytes", "dataset")


def main() -> None:
    """Write the numbers down, or compare two files of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    add = parts.add_parser("write", help="run every command and write its numbers").add_argument
    add("file", type=Path)
    add("--code", type=Path, default=HERE.parent, help="checkout whose commands are run")
    add("--default", action="store_true", help="the default model and design: an hour or two")
    add("--work", type=Path, help="folder for the datasets; what is there is not scanned again")
    add = parts.add_parser("compare", help="say what differs").add_argument
    add("before", type=Path)
    add("after", type=Path)
    args = parser.parse_args()
    if args.part == "compare":
        sys.exit(compare(*(json.loads(path.read_text()) for path in (args.before, args.after))))
    with tempfile.TemporaryDirectory() as scratch:
        work = (args.work or Path(scratch)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        numbers = numbers_of(args.code.resolve(), work, is_default=args.default)
    args.file.parent.mkdir(parents=True, exist_ok=True)
    short = {name: float(f"{v:.9g}") if type(v) is float else v for name, v in numbers.items()}
    args.file.write_text(json.dumps(short, indent=0, ensure_ascii=False) + "\n", "utf-8")
    print(f"{len(numbers)} numbers in {args.file}")


def numbers_of(code: Path, work: Path, *, is_default: bool) -> dict[str, Any]:
    """Numbers of all commands, by command and place in what it prints."""
    names: dict[str, Any] = {"ds": work / "ds", "units": work / "ds-units", "model": ""}
    names["prompts"] = work / "prompts.txt"
    names["prompts"].write_text("What is a biopsy?\nHow do trains run?\n", "utf-8")
    names["fast"], names["training"] = FAST, TRAINING
    names["small"] = f"{work / 'small'} --n-pairs 0 --overwrite"
    what, sizes, names["unit"] = [], [], "model.layers.3.mlp:17"
    names["point"] = "0 0 0"
    if not is_default:
        model = work / "tiny"
        if not model.exists():
            sys.path.insert(0, str(HERE))
            import tiny

            tiny.save(model, num_hidden_layers=6)
        what, sizes, names["model"] = ["--model", str(model)], [*TASKS, *SIZES], f"--model {model}"
        names["unit"] = "model.layers.1.mlp:3"
    out = flat("run", call(code, "run", str(names["ds"]), *what, *sizes, "--n-null", "20"))
    out |= maps_of(names["ds"])
    names["mask"] = mask_of(names["ds"], work / "mask.nii.gz")
    # The same design, in units that own weights.
    units = ["--sites", "heads,mlp_hidden", "--no-untrained"]
    out |= flat("scan", call(code, "scan", str(names["units"]), *what, *sizes, *units))
    for name, command in COMMANDS.items():
        print(name, file=sys.stderr)
        words = [word.format(**names) for word in command.split()]
        out |= flat(name, call(code, *" ".join(words).split()))
    return out


def call(code: Path, *words: str) -> Any:
    """What a command prints as JSON."""
    environment = {**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1"}
    options = ["--quiet", *(() if words[0] == "monitor" else ["--json"])]
    done = subprocess.run(
        [sys.executable, "-m", "llm2nifti.cli", *words, *options],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    if words[0] == "monitor":
        return [json.loads(line) for line in done.stdout.splitlines()]
    return json.loads(done.stdout)


def maps_of(root: Path) -> dict[str, Any]:
    """Every map and mask, as its size and its products with itself and with fixed noise."""
    out = {}
    for path in sorted((root / "derivatives").rglob("*.nii.gz")):
        values = np.asarray(nib.load(path).dataobj, float)
        noise = np.random.default_rng(0).normal(size=values.shape)
        name = path.relative_to(root).as_posix()
        out[f"{name} n"] = int((values != 0).sum())
        out[f"{name} norm"] = float(np.sqrt((values**2).sum()))
        out[f"{name} noise"] = float((values * noise).sum())
    return out


def mask_of(root: Path, path: Path) -> Path:
    """A mask of the units with the largest t of a task, at every site."""
    maps = sorted((root / "derivatives").rglob("*pathology_*stat-t_statmap.nii.gz"))
    image: Any = nib.load(next(p for p in maps if "run-" not in p.name and "untr" not in p.name))
    values = np.abs(np.asarray(image.dataobj, float))
    mask = values > np.quantile(values[values > 0], 0.9)
    nib.Nifti1Image(mask.astype(np.uint8), image.affine).to_filename(path)
    return path


def flat(place: str, content: Any) -> dict[str, Any]:
    """Content of JSON by place; of a long list of numbers, what tells it from another."""
    return dict(_leaves(place, content))


def _leaves(place: str, content: Any) -> Iterator[tuple[str, Any]]:
    """Places and values."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key not in IGNORED:
                yield from _leaves(f"{place}/{key}", value)
    elif isinstance(content, list) and len(content) > LONGEST and _are_numbers(content):
        values = np.array(content, float)
        yield f"{place}/n", len(values)
        yield f"{place}/sum", float(values.sum())
        yield f"{place}/squares", float((values**2).sum())
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from _leaves(f"{place}/{i}", value)
    else:
        yield place, content


def _are_numbers(values: list) -> bool:
    """Whether a list holds numbers alone."""
    return all(isinstance(value, int | float) for value in values)


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print what differs, and return 1 if something does."""
    renamed = {_new_name(name): value for name, value in before.items()}
    gone = [name for name in renamed if name not in after]
    new = [name for name in after if name not in renamed]
    for name in gone:
        print(f"gone: {name}")
    n_different = 0
    for name in renamed.keys() & after.keys():
        if not is_close(renamed[name], after[name]):
            print(f"{name}: {renamed[name]!r}, now {after[name]!r}")
            n_different += 1
    n_same = len(renamed.keys() & after.keys()) - n_different
    print(f"{n_same} the same, {n_different} different, {len(gone)} gone, {len(new)} new")
    return int(bool(n_different or gone))


def _new_name(name: str) -> str:
    """Name that took the place of one that was given up."""
    for old, new in RENAMED.items():
        name = re.sub(old, new, name)
    return name


def is_close(a: Any, b: Any) -> bool:
    """Whether two values are equal, numbers to `TOLERANCE`."""
    if isinstance(a, float) or isinstance(b, float):
        try:
            return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        except TypeError:
            return False
    return a == b


if __name__ == "__main__":
    main()
