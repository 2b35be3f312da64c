"""How are the chosen modules trained with few weights? A LoRA configuration for peft."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from llm2nifti import bids
from llm2nifti.hooks import resolve
from llm2nifti.models import LoadedModel
from llm2nifti.surgery.feeding import SurgeryError

CONFIG = "adapter_config.json"  # the name that peft looks for


def lora_config(
    modules: Iterable[str],
    *,
    r: int = 8,
    alpha: float = 16,
    model: LoadedModel | None = None,
    **options: Any,
) -> Any:
    """Make a peft configuration that trains low-rank updates of some modules.

    Parameters
    ----------
    modules : iterable of str
        Full names, such as the first rows of ``target_modules(network)["module"]``.
    r : int, default=8
        Rank of the updates.
    alpha : float, default=16
        The update is scaled by ``alpha / r``.
    model : LoadedModel, optional
        To check the names, and to say where weights are stored as (in, out), as in GPT-2.
    **options : dict
        More of ``peft.LoraConfig``, such as ``lora_dropout``.

    Returns
    -------
    peft.LoraConfig

    Raises
    ------
    SurgeryError
        If no module is given, or peft is not installed.
    llm2nifti.hooks.NoSuchModuleError
        If the model has no such module.

    Notes
    -----
    Hu et al. (2022), LoRA: low-rank adaptation of large language models.

    Examples
    --------
    >>> lora_config(target_modules(network)["module"].head(12))  # doctest: +SKIP
    """
    names = sorted(set(modules))
    if not names:
        raise SurgeryError("no module to train: the network is empty")
    try:
        from peft import LoraConfig
    except ImportError:
        raise SurgeryError(
            'peft is not installed; install it with: pip install "llm2nifti[train]"'
        ) from None
    if model is not None:
        layers = [resolve(model.module, name) for name in names]
        options.setdefault("fan_in_fan_out", not isinstance(layers[0], nn.Linear))
        if model.kind == "causal":
            options.setdefault("task_type", "CAUSAL_LM")
    return LoraConfig(r=r, lora_alpha=alpha, target_modules=names, **options)


def write_config(config: Any, folder: Path, *, overwrite: bool = False) -> Path:
    """Write ``adapter_config.json``, which ``peft.PeftConfig.from_pretrained(folder)`` reads.

    Parameters
    ----------
    config : peft.PeftConfig
        From `lora_config`.
    folder : Path
        Made if it is not there.
    overwrite : bool, default=False
        Replace a file that is there.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    llm2nifti.bids.ExistsError
        If the file is there already.
    """
    path = folder / CONFIG
    if path.exists() and not overwrite:
        raise bids.ExistsError(f"{path} is there already; replace it with overwrite=True")
    with tempfile.TemporaryDirectory() as temporary:
        config.save_pretrained(temporary)
        content = json.loads((Path(temporary) / CONFIG).read_text("utf-8"))
    content["target_modules"] = sorted(content["target_modules"])  # peft keeps them as a set
    bids.write_json(path, folder, content)
    return path
