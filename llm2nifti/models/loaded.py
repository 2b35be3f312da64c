"""What is a loaded model? Its module, what it reads by, where it came from, its sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from llm2nifti.geometry import Site
from llm2nifti.models import probing
from llm2nifti.models.anatomy import Anatomy, Stack, dissect
from llm2nifti.models.cache import ModelError
from llm2nifti.models.sites import find_sites, skipped
from llm2nifti.models.weights import weight_norms

Mode = Literal["generate", "read"]
TEMPLATES = ("auto", "chat", "none")
MARK = "\N{SNOWMAN}"  # a prompt to find again in what a chat template makes of it
READERS = ("encoder", "vision", "dual")  # kinds that generate nothing


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A loaded model with what it reads by and where it came from.

    Attributes
    ----------
    name : str
        What the user asked for; ``-untrained`` is appended for random weights.
    module : torch.nn.Module
        The transformers model itself, unchanged, in eval mode.
    tokenizer : transformers.PreTrainedTokenizerBase or None
        Its tokenizer; a vision model has none.
    source : dict
        Provenance for sidecars: ``Name``, ``Revision``, ``WeightsHash``, ``DType`` and more.
    kind : {"causal", "seq2seq", "imagetext", "encoder", "vision", "dual"}
        What it reads and whether it generates; ``dual`` encodes an image and a text side by side.
    processor : object or None
        What turns images, or images and text, into inputs.
    folder : Path or None
        Where its files are, if they are local.
    """

    name: str
    module: Any
    tokenizer: Any
    source: dict[str, Any]
    kind: str = "causal"
    processor: Any = None
    folder: Path | None = None

    @cached_property
    def anatomy(self) -> Anatomy:
        """Stacks of blocks, embeddings and final norms, established by probe passes."""
        return dissect(self.module, self.probe_passes())

    @property
    def device(self) -> torch.device:
        """Where inputs go; of a model that is spread out, where it begins to compute."""
        hook = getattr(self.module, "_hf_hook", None)
        spread = getattr(hook, "execution_device", None)
        return torch.device(self.module.device if spread is None else spread)

    @property
    def context(self) -> int | None:
        """Most tokens that the model can read, where its config says so."""
        config = self.module.config
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        for name in ("max_position_embeddings", "n_positions", "n_ctx"):
            length = getattr(config, name, None) or 0
            if self.kind != "vision" and length > 0:  # XLNet's -1 is no limit
                return int(length)
        return None

    def modes(self) -> tuple[Mode, ...]:
        """Ways of looking: every model reads, not every one generates.

        XLNet, whose tokens come first, generates with placeholders that are no frames.
        """
        reads_only = self.kind in READERS or self.anatomy.stacks[-1].has_tokens_first
        return ("read",) if reads_only else ("generate", "read")

    def stacks(
        self, mode: Mode = "generate", *, has_image: bool = False, has_text: bool = True
    ) -> tuple[Stack, ...]:
        """Stacks that work in a mode.

        Of an encoder-decoder, the decoder generates and the encoder reads. Of a model of images and
        text, the language stack generates, and both read where there is an image. Of two towers,
        each reads what is shown of its kind.
        """
        stacks = self.anatomy.stacks
        if self.kind == "dual":  # they don't depend on each other, and are called in either order
            stacks = tuple(sorted(stacks, key=lambda stack: "text" in stack.path))
        if mode == "generate":
            return stacks[-1:]
        if self.kind == "seq2seq":
            return stacks[:1]
        if self.kind == "dual" and not has_text:
            return stacks[:-1]
        reads_text_alone = self.kind in ("imagetext", "dual") and not has_image
        return stacks[-1:] if reads_text_alone else stacks

    def sites(
        self,
        spec: str = "default",
        *,
        mode: Mode = "generate",
        fused_qkv: str | None = None,
        has_image: bool = False,
        has_text: bool = True,
    ) -> tuple[Site, ...]:
        """Sites to record.

        Parameters
        ----------
        spec, fused_qkv
            See `llm2nifti.models.sites.find_sites`.
        mode : {"generate", "read"}, default="generate"
            A model that generates nothing reads.
        has_image, has_text : bool
            What is shown; see `stacks`.
        """
        mode = mode if mode in self.modes() else "read"
        stacks = self.stacks(mode, has_image=has_image, has_text=has_text)
        return find_sites(self.module, stacks, spec, fused_qkv=fused_qkv)

    def skipped(self) -> dict[str, str]:
        """Leaf modules that ``--sites all`` leaves out, with the reason."""
        return skipped(self.module, self.anatomy.stacks, self.anatomy.uncalled)

    def weight_norms(self, sites: tuple[Site, ...]) -> NDArray[np.float32]:
        """(n_units,) norms of the weights that write into each unit."""
        return weight_norms(self.module, self.anatomy.stacks, sites)

    def render(
        self, prompts: Sequence[str], template: str = "auto", *, has_image: bool = False
    ) -> list[str]:
        """Wrap prompts in the model's chat template.

        Parameters
        ----------
        prompts : sequence of str
            Bare prompts.
        template : {"auto", "chat", "none"}
            ``auto`` uses the chat template where the model has one.
        has_image : bool, default=False
            Put the place of one image before each prompt.

        Returns
        -------
        list of str

        Raises
        ------
        ModelError
            If ``chat`` is asked of a model that has no template, or the template fails or drops
            the prompt.
        """
        if template not in TEMPLATES:
            raise ModelError(f"template is {template!r}; use one of {', '.join(TEMPLATES)}")
        owner = next(
            (o for o in (self.processor, self.tokenizer) if getattr(o, "chat_template", None)), None
        )
        if template == "chat" and owner is None:
            raise ModelError(f"model {self.name!r} has no chat template; use --template none")
        if template == "none" or owner is None:
            token = getattr(self.processor, "image_token", "<image>")
            is_placed = has_image and self.kind == "imagetext"
            return [f"{token}\n{prompt}" if is_placed else prompt for prompt in prompts]
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        turns = [self._turn(prompt, has_image) for prompt in (MARK, *prompts)]
        try:
            shown, *texts = (owner.apply_chat_template(turn, **options) for turn in turns)
        except Exception as error:  # templates are programs: they raise what they like
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(self._template_problem(f"fails ({reason})")) from error
        if MARK not in shown:
            raise ModelError(self._template_problem("drops the user's message"))
        return texts

    def _template_problem(self, what: str) -> str:
        """Line that says what is wrong with the chat template."""
        where = f" in {self.folder}" if self.folder and self.folder.exists() else ""
        return (
            f"the chat template of model {self.name!r}{where} {what}; mend it, or show bare "
            "prompts with --template none"
        )

    def _turn(self, prompt: str, has_image: bool) -> list[dict[str, Any]]:
        """One user's turn, as chat templates read it."""
        if self.kind != "imagetext":
            return [{"role": "user", "content": prompt}]
        content = [{"type": "image"}] if has_image else []
        return [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]

    def encode(self, texts: Sequence[str], *, rendered: bool) -> list[list[int]]:
        """Token ids of each text; special tokens are added only to bare prompts."""
        encoded = self.tokenizer(list(texts), add_special_tokens=not rendered)
        return [list(ids) for ids in encoded["input_ids"]]

    def image_inputs(self, images: Sequence[Any], texts: Sequence[str] | None) -> dict[str, Any]:
        """Inputs of a batch of images, each with its text where the model reads text.

        Parameters
        ----------
        images : sequence of PIL.Image.Image
            RGB.
        texts : sequence of str or None
            From `render` with ``has_image``; padding comes first, so that the last token is last,
            but last in a text that stands alone.
        """
        if self.kind == "vision" or not any(texts or []):
            inputs = self.processor(images=list(images), return_tensors="pt")
        elif self.kind == "dual":
            options = {"padding": True, "padding_side": "right", "return_attention_mask": True}
            batch = {"images": list(images), "text": list(texts or [])}
            inputs = self.processor(**batch, **options, return_tensors="pt")
        else:
            batch = {"images": [[image] for image in images], "text": list(texts or [])}
            inputs = self.processor(**batch, padding=True, padding_side="left", return_tensors="pt")
        floating = {"device": self.device, "dtype": self.module.dtype}
        return {
            name: value.to(**floating) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
        }

    def probe_passes(self) -> list[probing.Pass]:
        """Probe passes over something that the model reads; each returns the model's output."""
        if self.kind not in ("vision", "imagetext", "dual"):
            return probing.text_passes(self.module)
        from PIL import Image

        # Through the processor: what it makes of an image need not have the size in the config.
        texts = None if self.kind == "vision" else self.render(["a b c"] * 2, has_image=True)
        pixels = np.random.default_rng(0).integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
        images = [Image.fromarray(image) for image in pixels]
        return probing.input_passes(self.module, self.image_inputs(images, texts))
