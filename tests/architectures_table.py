"""Write docs/architectures.md: what is found and recorded in every family that is tested.

Run from the repository root:

    python tests/architectures_table.py > docs/architectures.md
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import tiny

from llm2nifti import models

HEADER = """# Architectures

Made by `python tests/architectures_table.py > docs/architectures.md`; a test compares this page with what
the code finds.

There is no table of model names in the code. Blocks come from what transformers says (`_no_split_modules`,
`_can_record_outputs`) and the module tree. Which tensors a block adds to the stream is decided by a sum
in a probe pass: `resid_out - resid_in` has to be one tensor a role, or, in post-norm models, each
normalisation layer has to read the stream plus one such tensor. Where no sum comes out, asking for roles
raises and names the block's parts; `--sites resid`, `--sites all` and `--sites 'regex:...'` work all the
same.

Some models multiply what they add (Granite's `residual_multiplier`, Falcon-H1's `ssm_out_multiplier`): one
number a role, found by least squares in the probe pass and checked to 1e-4. A site holds what the module
puts out, *before* that number; the table gives it after "times". Contrasts, lesions and masks don't
depend on it; to add sites up to the change of the stream, multiply first.

Gemma 3n passes on four copies of its stream: `resid` holds them one after another. XLNet keeps tokens
before trials; what is recorded, edited or watched comes in the usual order, and it is read, not generated
from. Of two towers that encode an image and a text side by side (CLIP, SigLIP), each reads what is shown of
its kind. RWKV reads padding: prompts of different lengths need `--batch-size 1`.

Models here are tiny and random, built from transformers' own configs; units are theirs. Every row is
tested against a naive recorder (one prompt at a time, one pass a token, no cache, hooks written by hand)
within a relative L2 error of 1e-4 a volume and site: the default sites, `all`, and the finer sites that
the family has, while generating; `all` while reading tokens, images or sounds. OPT is also tested at
Galactica-125M's full shape (12 layers, width 768, vocabulary 50,000): 9,216 units of block outputs,
140,544 of leaf modules. Real weights to try: SmolLM2 (the default model) and `--model minilm`, a BERT
sentence encoder.
"""
FOOTER = """
Finer sites by name: `heads` and `mlp_hidden` (what the output and down projections read), `cross_heads`,
`mixer_hidden`, `q`, `k`, `v`, `norms`, `router` (what the router puts out first: Mixtral's logits of all
experts) and `experts` (hidden units of every single expert, 0 where a token was not routed to it; through
an experts function registered with transformers). A fused query-key-value projection says nowhere how it
is laid out, so its parts need `--fused-qkv contiguous` or `--fused-qkv interleaved`.

Sounds are mono `.wav` files, resampled to the rate of the model's feature extractor. A frame of the encoder
is one of its time steps (20 ms of Whisper and wav2vec2), without those of the padding to 30 s; sounds are
batched only where that changes nothing. Whisper's decoder begins with start, language, task and no time
stamps; language and task are those of its `generation_config.json`, else English transcription.

`all` is every leaf module's output of one vector a token, and what the projections read, minus:

| reason | leaf modules left out, over all rows |
|---|--:|
"""
NO_SUM = "no sum: `resid` and module names only"
FINER = ("heads", "cross_heads", "mixer_hidden", "mlp_hidden", "q", "norms", "router", "experts")


def describe(kind: str, model: models.LoadedModel) -> list[str]:
    """Rows of one family, one a stack."""
    rows = []
    both = "generate, read" if "generate" in model.modes() else "read"
    for stack in model.anatomy.stacks:
        block = stack.blocks[0]
        parts = ", ".join(
            f"{role} `{name.removeprefix(block.name + '.')}`{times(block.scales.get(role, 1))}"
            for role, name in sorted(block.parts.items())
        )
        find = models.sites.find_sites
        units = [
            sum(s.n_units for s in find(model.module, [stack], which))
            for which in ("default" if block.parts else "embed,resid", "all")
        ]
        name = f"{tiny.NAMES[kind]}" + (f": {stack.name}" if stack.name else "")
        mode = {"encoder": "read", "vision_tower": "read", "decoder": "generate"}.get(
            stack.name, both
        )
        rows.append(
            f"| {name} | `{type(model.module).__name__}` | {mode} | {parts or NO_SUM} | {units[0]} | {units[1]} "
            f"| {', '.join(finer(model, stack))} |"
        )
    return rows


def times(scale: float) -> str:
    """What a part is multiplied with before it is added."""
    return "" if abs(scale - 1) < 1e-4 else f" times {scale:.3g}"


def finer(model: models.LoadedModel, stack: models.anatomy.Stack) -> list[str]:
    """Finer sites that a stack has; fused ones with their layout's name wanted."""
    found = []
    for name in FINER:
        shown = "q, k, v" if name == "q" else name
        try:
            models.sites.find_sites(model.module, [stack], name)
            found.append(shown)
        except models.ModelError as error:
            if "declare how" in str(error):
                found.append(f"{shown} (declared)")
    return found


def page() -> str:
    """The whole page."""
    rows, reasons = [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind in (*tiny.CONFIGS, *tiny.FURTHER, *tiny.AUDIO):
            model = models.load(str(tiny.save(Path(folder) / kind, kind)))
            rows += describe(kind, model)
            for reason in model.skipped().values():
                head = "output of another shape (rotary angles, positions, images, sounds, pooled)"
                is_shape = reason.startswith("output of shape")
                reasons[head if is_shape else reason] += 1
    columns = "family|class|modes|added to the stream|units by default|units of `all`|finer sites"
    table = [f"| {' | '.join(columns.split('|'))} |", "|---|---|---|---|--:|--:|---|", *rows]
    left_out = [f"| {reason} | {n} |" for reason, n in reasons.most_common()]
    return "\n".join([HEADER, *table]) + "\n" + FOOTER + "\n".join(left_out) + "\n"


if __name__ == "__main__":
    print(page(), end="")
