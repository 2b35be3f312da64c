"""Commands that look something up: where, models, stimuli."""

from __future__ import annotations

import argparse
from typing import Any

from llm2nifti.cli.command import FINITE, add_command, add_dataset, add_session, show, words


def add_commands(commands: Any) -> None:
    """Add the commands of this file to the parser."""
    for add in (_add_where, _add_models, _add_stimuli):
        add(commands)


def _add_where(commands: Any) -> None:
    text = "say which unit lives in a voxel, or which voxel holds a unit"
    parser = add_command(
        commands, "where", _where, text, "llm2nifti where ds --unit model.layers.3.mlp:17"
    )
    add_dataset(parser)
    parser.add_argument("point", type=FINITE, nargs="*", metavar="X Y Z", help="mm coordinates")
    parser.add_argument(
        "--voxel", type=FINITE, nargs="*", metavar="X Y Z", help="X Y Z is a voxel index, not mm"
    )
    parser.add_argument("--unit", type=words, help="MODULE:UNIT, such as model.layers.3.mlp:17")
    add_session(parser)


def _where(args: argparse.Namespace) -> None:
    from llm2nifti import bids, geometry

    brain = bids.session(args.dataset, subject=args.subject, session=args.session)[0].brain
    point = [*args.point, *(args.voxel or [])]  # "--voxel X Y Z" as well as "X Y Z --voxel"
    if args.unit:
        address = geometry.find_unit(brain, args.unit)
    elif len(point) == 3:
        address = geometry.locate(brain, point, voxel=args.voxel is not None)
    else:
        raise geometry.NoSuchUnitError(
            f"{len(point)} coordinates given; give X Y Z, or --unit MODULE:UNIT"
        )
    site = address.site
    content = {
        "layer": site.layer,
        "site": site.name,
        "module": site.module,
        "where": site.where,
        "unit": address.unit,
        "voxel": list(address.voxel),
        "mm": list(address.mm),
    }
    show(args, content, str(address))


def _add_models(commands: Any) -> None:
    text = "list the models that are known and cached"
    add_command(commands, "models", _models, text, "llm2nifti models")


def _models(args: argparse.Namespace) -> None:
    from llm2nifti import models

    table = models.known()
    folder = models.cache.cache_folder()
    note = f"cache: {folder}. Any Hugging Face id, folder or .gguf file works too."
    show(args, table.to_dict(orient="records"), f"{table.to_string(index=False)}\n{note}")


def _add_stimuli(commands: Any) -> None:
    text = "list the stimulus sets, or check your own"
    parser = add_command(
        commands, "stimuli", _stimuli, text, "llm2nifti stimuli --stimuli mine.tsv"
    )
    parser.add_argument("--stimuli", type=words, help="your own TSV with columns task and prompt")


def _stimuli(args: argparse.Namespace) -> None:
    from llm2nifti import stimuli

    table = stimuli.describe(stimuli.load(args.stimuli, split=None))
    show(args, table.to_dict(orient="records"), table.to_string(index=False))
