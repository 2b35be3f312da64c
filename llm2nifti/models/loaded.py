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
from PIL import Image

from llm2nifti.geometry import Site
from llm2nifti.media import MEDIA, first_line
from llm2nifti.models import probing
from llm2nifti.models.anatomy import Anatomy, Stack, dissect
from llm2nifti.models.cache import ModelError
from llm2nifti.models.sites import find_sites, head_name
from llm2nifti.models.weights import weight_norms
from llm2nifti.plans import Json

Mode = Literal["generate", "read"]
Tensors = dict[str, torch.Tensor]  # what a model is called with
TEMPLATES = ("auto", "chat", "none")
MARK = "\N{SNOWMAN}"  # a prompt to find again in what a chat template makes of it
# Medium that a kind reads, of `llm2nifti.media.MEDIA`; the others read text alone.
READS = {"imagetext": "image", "vision": "image", "dual": "image"}
READS |= {"speech": "audio", "audio": "audio"}
READERS = ("encoder", "vision", "dual", "audio")  # kinds that generate nothing


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A loaded model with what it reads by and where it came from."""

    name: str  #: what the user asked for; ``-untrained`` is appended for random weights
    module: Any  #: the transformers model itself, unchanged, in eval mode
    tokenizer: Any  #: its tokenizer; a model of images or sounds alone has none
    #: provenance for sidecars: ``Name``, ``Revision``, ``WeightsHash``, ``DType`` and more
    source: Json
    #: what it reads and whether it generates; ``dual`` encodes an image and a text side by side
    kind: str = "causal"
    processor: Any = None  #: what turns images, images and text, or sounds into inputs
    folder: Path | None = None  #: where its files are, if they are local

    @cached_property
    def anatomy(self) -> Anatomy:
        """Stacks of blocks, embeddings and final norms, established by probe passes."""
        return dissect(self.module, self.probe_passes())

    @property
    def device(self) -> torch.device:
        """Where inputs go; of a model that is spread out, where it begins to compute."""
        spread = getattr(getattr(self.module, "_hf_hook", None), "execution_device", None)
        return torch.device(self.module.device if spread is None else spread)

    @property
    def context(self) -> int | None:
        """Most tokens that the model can read, where its config says so."""
        config = self.module.config.get_text_config()
        names = ("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions")
        lengths = (getattr(config, name, None) or 0 for name in names)
        limits = (int(length) for length in lengths if length > 0)  # XLNet's -1 is no limit
        return None if self.tokenizer is None else next(limits, None)

    @property
    def medium(self) -> str:
        """What it can be shown beside text, of `llm2nifti.media.MEDIA`, or ``""``."""
        return READS.get(self.kind, "")

    @property
    def reads_text(self) -> bool:
        """Whether it can be shown text alone."""
        return not self.medium or self.kind in ("imagetext", "dual")

    @property
    def has_decoder(self) -> bool:
        """Whether an encoder reads and a decoder generates."""
        return self.kind in ("seq2seq", "speech")

    def modes(self) -> tuple[Mode, ...]:
        """Ways of looking: every model reads, not every one generates.

        XLNet, whose tokens come first, generates with placeholders that are no frames.
        """
        reads_only = self.kind in READERS or "tokens" in self.anatomy.stacks[-1].turned.values()
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
        if self.has_decoder:
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
        mode, has_image, has_text
            See `stacks`; a model that generates nothing reads.
        """
        mode = mode if mode in self.modes() else "read"
        stacks = self.stacks(mode, has_image=has_image, has_text=has_text)
        return find_sites(self.module, stacks, spec, fused_qkv=fused_qkv)

    def skipped(self) -> dict[str, str]:
        """Leaf modules that ``--sites all`` leaves out, with the reason."""
        reasons = dict.fromkeys(self.anatomy.uncalled, "not called as a module in a forward pass")
        leaves = (leaf for stack in self.anatomy.stacks for leaf in stack.leaves)
        reasons |= {leaf.name: leaf.problem for leaf in leaves if leaf.problem}
        head = head_name(self.module)
        return reasons | ({head: "logits; ask for them by name"} if head else {})

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

        Raises
        ------
        ModelError
            If ``chat`` is asked of a model that has no template, or the template fails or drops
            the prompt.
        """
        if template not in TEMPLATES:
            raise ModelError(f"template is {template!r}; use one of {', '.join(TEMPLATES)}")
        readers = (self.processor, self.tokenizer)
        owner = next((o for o in readers if getattr(o, "chat_template", None)), None)
        if template == "chat" and owner is None:
            raise ModelError(f"model {self.name!r} has no chat template; use template='none'")
        if template == "none" or owner is None:
            token = getattr(self.processor, "image_token", "<image>")
            is_placed = has_image and self.kind == "imagetext"
            return [f"{token}\n{prompt}" if is_placed else prompt for prompt in prompts]
        contents: list[Any] = [MARK, *prompts]
        if self.kind == "imagetext":
            image = [{"type": "image"}] * has_image
            contents = [[*image, {"type": "text", "text": prompt}] for prompt in contents]
        turns = [[{"role": "user", "content": content}] for content in contents]
        where = f" in {self.folder}" if self.folder and self.folder.exists() else ""
        whose = f"the chat template of model {self.name!r}{where}"
        mend = "mend it, or show bare prompts with template='none'"
        try:
            shown, *texts = (
                owner.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
                for turn in turns
            )
        except Exception as error:  # templates are programs: they raise what they like
            raise ModelError(f"{whose} fails ({first_line(error)}); {mend}") from error
        if MARK not in shown:
            raise ModelError(f"{whose} drops the user's message; {mend}")
        return texts

    def encode(self, texts: Sequence[str], *, rendered: bool) -> list[list[int]]:
        """Token ids of each text; special tokens are added only to bare prompts."""
        if not self.reads_text:
            raise ModelError(f"{self.name} reads {MEDIA[self.medium]} only, no text")
        encoded = self.tokenizer(list(texts), add_special_tokens=not rendered)
        return [list(ids) for ids in encoded["input_ids"]]

    def text_start(self) -> list[int]:
        """Token that stands for an empty text: the one that begins or else ends texts, if any."""
        names = ("bos_token_id", "eos_token_id")
        known = (getattr(self.tokenizer, name, None) for name in names)
        return [start for start in known if start is not None][:1]

    def image_inputs(self, images: Sequence[Any], texts: Sequence[str]) -> Tensors:
        """Inputs of a batch of RGB images, each with its text where the model reads text.

        Texts are from `render` with ``has_image``. Padding comes first, so that the last token is
        last, but last in a text that stands alone.
        """
        shown = list(images)
        options: dict[str, Any] = {}
        if self.kind != "vision" and any(texts):
            options = {"text": list(texts), "padding": True, "padding_side": "left"}
            if self.kind == "dual":
                options |= {"padding_side": "right", "return_attention_mask": True}
            else:
                shown = [[image] for image in images]
        return self._moved(self.processor(images=shown, **options, return_tensors="pt"))

    def sound_inputs(self, samples: NDArray[np.float32]) -> Tensors:
        """Inputs of one sound of the processor's rate; the processor pads where it always does."""
        rate = self.processor.sampling_rate
        return self._moved(self.processor(samples, sampling_rate=rate, return_tensors="pt"))

    @property
    def longest_sound(self) -> int | None:
        """Most samples that the processor keeps: it would cut the rest away without a word."""
        n_frames = getattr(self.processor, "max_length", None)  # of 10 ms, of spectrogram models
        longest = n_frames * self.processor.sampling_rate // 100 if n_frames else None
        return getattr(self.processor, "n_samples", None) or longest  # the former is Whisper's

    def n_tokens_of(self, samples: NDArray[np.float32]) -> int:
        """Tokens that the encoder makes of a sound, without padding; below 1 if it is too short."""
        count = getattr(self.module, "_get_feat_extract_output_lengths", None)
        if count is None:
            return self.stacks("read")[0].shape[1]
        rate = self.processor.sampling_rate
        options = {"return_attention_mask": True, "return_tensors": "np"}
        mask = self.processor(samples, sampling_rate=rate, **options).get("attention_mask")
        n_steps = len(samples) if mask is None else int(mask.sum())
        return int(count(torch.tensor(n_steps)))

    def _moved(self, inputs: Any) -> Tensors:
        """Inputs on the model's device, in its type."""
        return {
            name: value.to(self.device, self.module.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def decoder_start(self) -> list[int]:
        """Tokens that a decoder begins with: of Whisper, also language, task and no time stamps.

        The first is the start token of ``generation_config.json``, else of the config, else the
        padding token, else the end token, else 0. Language and task are those of
        ``generation_config.json``, else English transcription.
        """
        defaults, config = self.module.generation_config, self.module.config
        starts = [getattr(source, "decoder_start_token_id", None) for source in (defaults, config)]
        fills = [self.tokenizer.pad_token_id, self.tokenizer.eos_token_id]
        tokens = [next((token for token in (*starts, *fills) if token is not None), 0)]
        fallbacks = {"lang_to_id": ("language", "en"), "task_to_id": ("task", "transcribe")}
        for table, (name, otherwise) in fallbacks.items():
            if ids := getattr(defaults, table, None):
                word = getattr(defaults, name, None) or otherwise
                word = word if word in ids else f"<|{word}|>"
                if word not in ids:
                    known = ", ".join(ids)
                    raise ModelError(f"{self.name} has no {name} {word!r}; use one of {known}")
                tokens.append(ids[word])
        silent = getattr(defaults, "no_timestamps_token_id", None)
        return [int(token) for token in (*tokens, silent) if token is not None]

    def probe_passes(self) -> list[probing.Pass]:
        """Probe passes over something that the model reads; each returns the model's output."""
        if not self.medium:
            return probing.text_passes(self.module)
        random = np.random.default_rng(0)
        # Through the processor: what it makes of an image need not have the size in the config.
        if self.medium == "audio":
            noise = random.normal(scale=0.1, size=(2, self.processor.sampling_rate // 2))
            sounds = [self.sound_inputs(samples.astype(np.float32)) for samples in noise]
            inputs = {name: torch.cat([sound[name] for sound in sounds]) for name in sounds[0]}
            return probing.input_passes(self.module, inputs)
        texts = [] if self.kind == "vision" else self.render(["a b c"] * 2, has_image=True)
        pixels = random.integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
        images = [Image.fromarray(image) for image in pixels]
        return probing.input_passes(self.module, self.image_inputs(images, texts))
