"""What does training some modules change? LoRA fine-tuning, taken back afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from llm2nifti.models import LoadedModel
from llm2nifti.scanner.likelihood import Text, log_likelihoods
from llm2nifti.scanner.places import find_prompts
from llm2nifti.scanner.prefill import can_continue, common_length
from llm2nifti.surgery.feeding import SurgeryError
from llm2nifti.surgery.targets import lora_config


@dataclass(frozen=True)
class Recipe:
    """How modules are trained."""

    rate: float = 1e-3  #: learning rate of AdamW, constant
    epochs: int = 4  #: passes over the texts
    batch_size: int = 16  #: texts a step
    r: int = 8  #: rank of the updates, which are scaled by alpha / r
    alpha: float = 16


def concept_texts(
    model: LoadedModel, prompts: Sequence[str], concepts: Sequence[str], *, template: str = "auto"
) -> list[Text]:
    """Texts of prompts in which the tokens of the concept are to be predicted.

    All tasks share their question frames, so what is learned of those would hide what is learned
    of a task; nor does the chat template count. SurgeryError if the model does not predict the next
    token, its tokenizer gives no offsets, or a prompt has no concept, or nothing before it.
    """
    if model.kind != "causal":
        raise SurgeryError(f"{model.name} is of kind {model.kind}; training needs a causal model")
    if not getattr(model.tokenizer, "is_fast", False):
        raise SurgeryError(f"the tokenizer of {model.name} gives no character offsets")
    texts = []
    rendered = model.render(prompts, template)
    places = find_prompts(model, prompts, rendered, template)
    for text, prompt, concept, (first, shown) in zip(
        rendered, prompts, concepts, places, strict=True
    ):
        start = first + shown.rfind(concept)
        is_bare = text == prompt
        encoded = model.tokenizer(text, add_special_tokens=is_bare, return_offsets_mapping=True)
        end = start + len(concept)
        spans = enumerate(encoded["offset_mapping"])
        scored = tuple(i for i, (a, b) in spans if i and a < b and a < end and b > start)
        if concept not in shown or not scored:
            raise SurgeryError(f"prompt {prompt!r} has no token of {concept!r} to predict")
        texts.append(Text(tuple(encoded["input_ids"]), scored))
    return texts


def text_losses(model: LoadedModel, texts: Sequence[Text]) -> NDArray[np.float64]:
    """(n_texts,) mean negative log-likelihood of each text's scored tokens, nats a token."""
    return -log_likelihoods(model, texts)


@contextmanager
def fine_tuned(
    model: LoadedModel,
    modules: Iterable[str],
    texts: Sequence[Text],
    recipe: Recipe,
    *,
    seed: int = 0,
    on_step: Callable[[float], object] = lambda loss: None,
) -> Iterator[list[float]]:
    """Train low-rank updates of some modules; inside, the model has them.

    Yields the mean loss of each epoch, while it was trained. Afterwards the updates are gone and
    the model is what it was, bit by bit. SurgeryError if a number of the recipe is not positive,
    or peft is not installed or cannot train these modules.

    Parameters
    ----------
    model, modules : LoadedModel, iterable of str
        A causal model, and full names of the modules to train.
    texts, recipe : sequence of Text, Recipe
        What to train on, and how; the loss is that of `text_losses`.
    seed : int, default=0
        Seed of the updates' initial weights and of the order of texts.
    on_step : callable, optional
        Gets the loss of every step.
    """
    for name, value in asdict(recipe).items():
        if not 0 < value < float("inf"):
            raise SurgeryError(f"{name} is {value}; it must be above 0")
    with _adapted(model, modules, recipe, seed) as trained:
        optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=0)
        n_shared = _n_shared(model, texts)
        rng = np.random.default_rng([seed, 20231110])
        epochs = []
        for _ in range(recipe.epochs):
            losses = []
            order = rng.permutation(len(texts))
            for start in range(0, len(texts), recipe.batch_size):
                rows = order[start : start + recipe.batch_size]
                loss = _losses(model, [texts[row] for row in rows], n_shared).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses += [loss.item()] * len(rows)
                on_step(loss.item())
            epochs.append(float(np.mean(losses)))
        yield epochs


def n_trained(model: LoadedModel, modules: Iterable[str], r: int) -> int:
    """Weights of low-rank updates of these modules."""
    shapes = [model.module.get_parameter(f"{name}.weight").shape for name in modules]
    return sum(r * sum(shape) for shape in shapes)


@contextmanager
def _adapted(
    model: LoadedModel, modules: Iterable[str], recipe: Recipe, seed: int
) -> Iterator[list[nn.Parameter]]:
    """Put updates into the model, and take them out again."""
    config = lora_config(modules, r=recipe.r, alpha=recipe.alpha, model=model)
    from peft import get_peft_model

    module: Any = model.module
    needed = {name: p.requires_grad for name, p in module.named_parameters()}
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
            torch.manual_seed(seed)
            try:
                adapted = get_peft_model(module, config)
            except ValueError as error:
                raise SurgeryError(f"peft cannot train these modules ({error})") from error
        yield [p for p in adapted.parameters() if p.requires_grad]
    finally:  # every layer comes back to the place of its adapter, also to one that is half made
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                layer = getattr(child, "base_layer", None)
                if isinstance(layer, nn.Module):
                    setattr(parent, name, layer)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(needed[name])
        for name in ("peft_config", "active_adapter"):
            module.__dict__.pop(name, None)


def _n_shared(model: LoadedModel, texts: Sequence[Text]) -> int:
    """Tokens that all texts begin with and that predict none that counts."""
    if not can_continue(model):
        return 0
    return common_length([text.ids[: text.scored[0] - 1] for text in texts])


def _losses(model: LoadedModel, texts: Sequence[Text], n_shared: int) -> torch.Tensor:
    """(n_texts,) mean loss of each text; what all share is read once, gradients included."""
    rest = [torch.tensor(text.ids[n_shared:]) for text in texts]
    seen = [torch.ones(len(text.ids), dtype=torch.int64) for text in texts]
    ids, mask = (pad_sequence(rows, batch_first=True).to(model.device) for rows in (rest, seen))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if n_shared:
        shared = torch.tensor([texts[0].ids[:n_shared]], device=model.device)
        cache = model.module.get_decoder()(input_ids=shared, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(texts))
        inputs |= {"past_key_values": cache, "use_cache": True}
    logits = model.module(**inputs).logits
    rows = torch.repeat_interleave(
        torch.arange(len(texts)), torch.tensor([len(text.scored) for text in texts])
    )
    columns = torch.tensor([i - n_shared for text in texts for i in text.scored])
    right = ids[rows, columns].to(logits.device)
    losses = nn.functional.cross_entropy(logits[rows, columns - 1].float(), right, reduction="none")
    sums = losses.new_zeros(len(texts)).index_add(0, rows.to(losses.device), losses)
    return sums / torch.bincount(rows).to(losses)
