"""How is a model recorded, or only run, in other ways than by `scanner.scan`?

Every recorder keeps the last position of every step at the modules that it is given, from the same
weights. A batch recorder takes prompts and returns their tokens and values, ``{module: [one
(n_prompts, n_units) tensor a frame]}``; it reads and tokenises the prompts itself, as `scan` does.
Each has a copy of the model of its own, because some leave hooks or wrappers behind.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from contextlib import ExitStack

import numpy as np
import torch

from llm2nifti import scanner
from llm2nifti.scanner import Settings


def scan(model, design, folder=None, **settings):
    """Frames and recording of the library."""
    how = {"settings": Settings(**settings), "folder": folder, "on_trials": lambda _n: None}
    recording = scanner.scan(model, design, **how)
    return design.n_trials * design.n_frames, recording


def limits(n_frames):
    """Options of `generate`: greedy, and exactly so many tokens."""
    return {"max_new_tokens": n_frames, "min_new_tokens": n_frames, "do_sample": False}


def last(output):
    """Copy of the last position of a module's output, without its batch's other positions."""
    return (output[0] if isinstance(output, tuple) else output)[:, -1].clone()


def record_naively(model, names, prompts, n_frames):
    """Frames, and (tokens, {module: arrays}), as a user would write it: prompt by prompt."""
    module = model.module
    values, tokens = defaultdict(list), []

    def keep(name):
        def hook(_module, _args, output):
            output = output[0] if isinstance(output, tuple) else output
            values[name].append(output[:, -1].detach().cpu().numpy().copy())

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = module.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        for prompt in prompts:
            ids = module.generate(**pad(model, [prompt]), **limits(n_frames))
            tokens.append(ids[0, -n_frames:].tolist())
    return len(tokens) * n_frames, (tokens, values)


def pad(model, prompts):
    """Inputs of `generate`, padded on the left, on the model's device."""
    prompts = list(prompts)
    rendered = model.render(prompts)
    encoded = model.encode(rendered, rendered=rendered != prompts)
    ids = torch.full((len(encoded), max(map(len, encoded))), pad_id(model))
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(encoded):
        ids[row, -len(tokens) :] = torch.tensor(tokens)
        mask[row, -len(tokens) :] = 1
    return {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}


def pad_batches(model, design, batch_size):
    """Inputs of `generate` in the batches that a scan uses."""
    prompts = list(design.trials["prompt"])
    starts = range(0, len(prompts), batch_size)
    return [pad(model, prompts[start : start + batch_size]) for start in starts]


def generate_bare(model, batches, n_frames):
    """Frames and tokens of `generate` alone: no hook, nothing kept."""
    tokens = []
    for batch in batches:
        ids = model.module.generate(**batch, **limits(n_frames), pad_token_id=pad_id(model))
        tokens += ids[:, -n_frames:].tolist()
    return len(tokens) * n_frames, tokens


def pad_id(model):
    """Token to pad with; naming it keeps `generate` from warning."""
    tokenizer = model.tokenizer
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def record_batches(record, prompts, batch_size):
    """Frames and the parts of a batch recorder, batch by batch."""
    starts = range(0, len(prompts), batch_size)
    parts = [record(prompts[start : start + batch_size]) for start in starts]
    n_frames = sum(len(ids) for tokens, _ in parts for ids in tokens)
    return n_frames, parts


def assemble(parts):
    """Tokens of all prompts, and {module: (n_prompts, n_frames, n_units) array}."""
    tokens = [ids for part, _ in parts for ids in part]
    values = {
        name: np.concatenate([torch.stack(part[name], dim=1).float().numpy() for _, part in parts])
        for name in parts[0][1]
    }
    return tokens, values


def hidden_states(model, sites, n_frames):
    """Batch recorder with plain `output_hidden_states=True`: the stream after every block.

    What it calls the last block's output is the final norm's (transformers puts it there).
    """
    module = copy.deepcopy(model.module)
    names = [site.module for site in sites]

    def record(prompts):
        result = module.generate(
            **pad(model, prompts),
            **limits(n_frames),
            return_dict_in_generate=True,
            output_hidden_states=True,
        )
        steps = [[last(state) for state in step[1:]] for step in result.hidden_states]
        values = {name: [step[i] for step in steps] for i, name in enumerate(names)}
        return result.sequences[:, -n_frames:].tolist(), values

    return record


def nnsight_trace(model, sites, n_frames):
    """Batch recorder with nnsight's `generate` and `tracer.iter`.

    `LanguageModel` is a deprecated name for `TransformersModel` in 0.8; it is used where there is
    no other. Modules have to be read in the order in which they are called.
    """
    import nnsight

    wrapper = getattr(nnsight, "TransformersModel", None) or nnsight.LanguageModel
    tokenizer = copy.deepcopy(model.tokenizer)
    traced = wrapper(copy.deepcopy(model.module), task="text-generation", tokenizer=tokenizer)
    order = {"attn": 0, "mlp": 1, "resid": 2}
    sites = sorted(sites, key=lambda site: (site.layer, order[site.name]))
    names = [site.module for site in sites]
    envoys = [find_envoy(traced, name) for name in names]

    def record(prompts):
        inputs = pad(model, prompts)
        with traced.generate(inputs, **limits(n_frames)) as tracer:
            kept = nnsight.save([])
            for _step in tracer.iter[:n_frames]:
                kept.append([last(envoy.output) for envoy in envoys])
            ids = tracer.result.save()
        values = {name: [step[i] for step in kept] for i, name in enumerate(names)}
        return ids[:, -n_frames:].tolist(), values

    return record


def find_envoy(traced, name):
    """Return nnsight's handle of a dotted module name."""
    for part in name.split("."):
        traced = traced[int(part)] if part.isdigit() else getattr(traced, part)
    return traced


def transformer_lens(model, sites, n_frames, *, own_loop=False):
    """Batch recorder with TransformerLens' bridge: hooks during `hf_generate` or `generate`.

    `hf_generate` is Hugging Face's loop over the bridge's modules; with `own_loop` the loop is
    TransformerLens' own, which computes the logits of every position of the prompt. The bridge
    takes the plain ("eager") attention so that it can show its patterns.
    """
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        model.module.config.name_or_path or model.name,
        hf_model=copy.deepcopy(model.module),
        tokenizer=copy.deepcopy(model.tokenizer),
        device=model.device,
        dtype=model.module.dtype,
    )
    points = {"attn": "attn.hook_out", "mlp": "mlp.hook_out", "resid": "hook_out"}
    names = {f"blocks.{site.layer - 1}.{points[site.name]}": site.module for site in sites}
    own = {"do_sample": False, "max_new_tokens": n_frames, "verbose": False}

    def record(prompts):
        values = defaultdict(list)

        def keep(tensor, hook):
            values[names[hook.name]].append(last(tensor))

        inputs = pad(model, prompts)
        ids = inputs.pop("input_ids")
        generate = bridge.generate if own_loop else bridge.hf_generate
        options = {**inputs, **(own if own_loop else limits(n_frames))}
        with bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
            ids = generate(ids, **options, stop_at_eos=False, return_type="tokens")
        return ids[:, -n_frames:].tolist(), dict(values)

    return record
