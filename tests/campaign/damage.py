"""Make what is damaged or hostile: files of a dataset, masks, models."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tiny
import torch
from safetensors.torch import load_file, save_file
from scipy.io import wavfile

RAN = "code-ran"  # a file that hostile code would write
SHOWN = "broken"  # part of the name of everything that is made
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
SETTINGS = "tokenizer_config.json"
NOISE = random.Random(0).randbytes(4000)


def spoil(path: Path, how: str) -> None:
    """Damage one file."""
    if how == "gone":
        path.unlink()
        return
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "bytes-0": b"",
            "empty": b"",
            "list": b"[1, 2]",
            "other": b'{"other": 1}',
            "noise": NOISE,
        }[how]
    )


def make_mask(how: str, folder: Path, names: dict[str, str]) -> Path:
    """Mask image that fits no dataset."""
    path = folder / f"{SHOWN}.nii.gz"
    if how == "folder":
        path.mkdir()
    elif how in ("noise", "truncated", "bytes-0", "list"):
        shutil.copy(names["mask"], path)
        spoil(path, how)
    elif how != "nowhere":
        _save_mask(path, how, names)
    return path


def _save_mask(path: Path, how: str, names: dict[str, str]) -> None:
    """Save an image that is no mask of the dataset."""
    sound = nib.load(names["mask"])
    data, affine = np.asarray(sound.dataobj).astype(np.float32), sound.affine
    if how == "other-shape":
        data = data[:-1]
    elif how == "other-affine":
        affine = affine @ np.diag([2, 2, 2, 1])
    elif how == "no-voxel":
        data = np.zeros_like(data)
    elif how == "nan":
        data = np.full_like(data, np.nan)
    elif how == "outside":
        of_brain = next(Path(names["ds"]).rglob("*_desc-brain_mask.nii.gz"))
        data = 1 - np.asarray(nib.load(of_brain).dataobj).astype(np.float32)
    elif how == "two-volumes":
        data = np.stack([data, data], axis=-1)
    nib.save(nib.Nifti1Image(data, affine), path)


def make_media(how: str, folder: Path, names: dict[str, str], model: str) -> Path:
    """Folder of stimuli, with a damaged file; the model's folder is named as ``{model}``."""
    names["model"] = str(tiny.save(folder / model, model))
    path = folder / "stimuli"
    what, _, damage = how.partition("-")
    if what in ("texts", "images", "sounds"):
        return _MEDIA[what](path)
    file = _MEDIA[f"{what}s"](path) / ("tone-000.wav" if what == "sound" else "disc-000.png")
    if damage in ("stereo", "nan", "without-samples"):
        rate, samples = wavfile.read(file)
        made = {
            "stereo": np.stack([samples, samples], axis=1),
            "nan": np.full(len(samples), np.nan, np.float32),
            "without-samples": samples[:0],
        }
        wavfile.write(file, rate, made[damage])
    else:
        spoil(file, damage)
    return path


def _write_texts(path: Path) -> Path:
    """Stimuli that are nothing but text."""
    path.mkdir()
    rows = [f"{task}\tWhat is {i}, {task}?\n" for task in ("birds", "control") for i in range(60)]
    (path / "stimuli.tsv").write_text("".join(["task\tprompt\n", *rows]), "utf-8")
    return path


_MEDIA = {"texts": _write_texts, "images": tiny.draw_images, "sounds": tiny.play_sounds}


class Hostile:
    """Its unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        """Say what unpickling is to call."""
        return (open, (str(self.path), "w"))


def make_model(how: str, folder: Path, names: dict[str, str]) -> Path:
    """Folder or file of a model that cannot be loaded as it should be."""
    path = folder / f"{SHOWN}-model"
    what, _, damage = how.partition("-")
    if what in ("gguf", "file"):
        return _make_file(path, how)
    if what == "folder":
        path.mkdir()
        if damage == "of-text":
            (path / "README.md").write_text("no model\n", "utf-8")
        return path
    shutil.copytree(names["model"], path)
    _MAKERS[what](path, damage, folder / RAN)
    return path


def _make_file(path: Path, how: str) -> Path:
    """File that is no model."""
    path = path.with_suffix(".txt" if how == "file-of-text" else ".gguf")
    header = b"GGUF\x03\0\0\0" + (2).to_bytes(8, "little") + (9).to_bytes(8, "little")
    contents = {"empty": b"", "noise": NOISE, "truncated": header, "of-text": b"no model\n"}
    path.write_bytes(contents[how.partition("-")[2]])
    return path


def _weights(path: Path, how: str, _ran: Path) -> None:
    """Damage the weights."""
    file = path / WEIGHTS
    if how == "gone":
        file.unlink()
    elif how in ("truncated", "empty"):
        spoil(file, how)
    elif how == "are-json":
        spoil(file, "list")
    elif how == "of-noise":
        spoil(file, "noise")
    elif how == "missing-layers":
        _change(path / CONFIG, num_hidden_layers=5)
    else:
        tensors = load_file(file)
        name = next(name for name in sorted(tensors) if "down_proj" in name)
        if how == "missing-one":
            del tensors[name]
        elif how == "of-other-shape":
            tensors[name] = tensors[name][:, :-1].contiguous()
        else:
            tensors[name][0, 0] = float(how)
        save_file(tensors, file, metadata={"format": "pt"})


def _change(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), "utf-8")


def _config(path: Path, how: str, ran: Path) -> None:
    """Damage the configuration."""
    if how == "gone":
        (path / CONFIG).unlink()
    elif how == "unknown-type":
        _change(path / CONFIG, model_type="nonesuch", architectures=["Nonesuch"])
    elif how == "no-heads":
        _change(path / CONFIG, num_attention_heads=0, head_dim=None)
    elif how == "own-code":
        classes = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}
        _change(path / CONFIG, model_type="nonesuch", auto_map=classes)
        (path / "own.py").write_text(f"open({str(ran)!r}, 'w')\n", "utf-8")
    else:
        spoil(path / CONFIG, how)


def _tokenizer(path: Path, how: str, ran: Path) -> None:
    """Damage the tokenizer."""
    if how == "gone":
        for name in (TOKENIZER, SETTINGS):
            (path / name).unlink()
    elif how == "own-code":
        own = {"AutoTokenizer": ["own.Own", None]}
        _change(path / SETTINGS, tokenizer_class="Own", auto_map=own)
        (path / "own.py").write_text(f"open({str(ran)!r}, 'w')\n", "utf-8")
    else:
        spoil(path / TOKENIZER, how)


def _template(path: Path, how: str, ran: Path) -> None:
    """Damage the chat template."""
    code = f"cycler.__init__.__globals__.os.popen('touch {ran}').read()"
    template = "{% if messages" if how == "broken" else f"{{{{ {code} }}}}"
    (path / "chat_template.jinja").unlink(missing_ok=True)
    _change(path / SETTINGS, chat_template=template)


def _pickle(path: Path, how: str, ran: Path) -> None:
    """Put a pickle in the weights' place."""
    (path / WEIGHTS).unlink()
    file = path / "pytorch_model.bin"
    if how == "noise":
        file.write_bytes(NOISE)
        return
    if how == "hostile-shards":
        file = path / "pytorch_model-00001-of-00001.bin"
        index = {"metadata": {}, "weight_map": {"model.norm.weight": file.name}}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")
        torch.save({"model.norm.weight": Hostile(ran)}, file)
    else:
        file.write_bytes(pickle.dumps({"model.norm.weight": Hostile(ran)}))


def _index(path: Path, _how: str, _ran: Path) -> None:
    """Let an index name files that are not there."""
    (path / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../nowhere.safetensors"}}
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps(index), "utf-8")


_MAKERS = {
    "weights": _weights,
    "config": _config,
    "tokenizer": _tokenizer,
    "template": _template,
    "pickle": _pickle,
    "index": _index,
}
