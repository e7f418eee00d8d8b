"""Interventions written once more, on the plain Hugging Face model, by hooks on its own modules.

Nothing here is shared with the package: vectors are replaced where the model's projections put them out, before any
rotary embedding, and attention comes from `output_attentions`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

LLAMA = {
    "layers": "model.layers",
    "out": "self_attn.o_proj",
    "mlp": "mlp.down_proj",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
}
PATHS = {
    "gpt2": {"layers": "transformer.h", "out": "attn.c_proj", "mlp": "mlp.c_proj", "qkv": "attn.c_attn"},
    "gptj": {
        "layers": "transformer.h",
        "out": "attn.out_proj",
        "mlp": "mlp.fc_out",
        "q": "attn.q_proj",
        "k": "attn.k_proj",
        "v": "attn.v_proj",
    },
    "gpt_neo": {
        "layers": "transformer.h",
        "out": "attn.attention.out_proj",
        "mlp": "mlp.c_proj",
        "q": "attn.attention.q_proj",
        "k": "attn.attention.k_proj",
        "v": "attn.attention.v_proj",
    },
    "gpt_neox": {
        "layers": "gpt_neox.layers",
        "out": "attention.dense",
        "mlp": "mlp.dense_4h_to_h",
        "qkv": "attention.query_key_value",
    },
    "llama": LLAMA,
    "qwen3": LLAMA,
    "gemma2": LLAMA | {"attn_end": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"},
    "phi": LLAMA | {"out": "self_attn.dense", "mlp": "mlp.fc2"},
    "falcon": {
        "layers": "transformer.h",
        "out": "self_attention.dense",
        "mlp": "mlp.dense_4h_to_h",
        "qkv": "self_attention.query_key_value",
    },
    "bloom": {
        "layers": "transformer.h",
        "out": "self_attention.dense",
        "mlp": "mlp.dense_4h_to_h",
        "qkv": "self_attention.query_key_value",
    },
    "opt": {
        "layers": "model.decoder.layers",
        "out": "self_attn.out_proj",
        "mlp": "fc2",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
    },
}
HEADS = 4


def columns(name, letter, part, width):
    """Where one head's vector stands in the output of the projection; `width` is that of a head."""
    which = "qkv".index(letter)
    match name:
        case "gpt2":
            start = which * HEADS * width + part * width
        case "gpt_neox" | "bloom":
            start = (part * 3 + which) * width
        case "falcon":
            start = (part if letter == "q" else HEADS + which - 1) * width
        case _:
            start = part * width
    return slice(start, start + width)


class Plain:
    """A Hugging Face model and the places of its parts."""

    def __init__(self, name, hf):
        self.name, self.hf, self.paths = name, hf, PATHS[name]
        self.layers = hf.get_submodule(self.paths["layers"])

    def module(self, layer, part):
        return self.layers[layer].get_submodule(self.paths[part])

    def place(self, what, layer, part):
        """(module, whether its input or its output, columns) of one part's activation."""
        out = self.module(layer, "out")
        size = out.weight.shape[0] if self.name == "gpt2" else out.weight.shape[1]
        width = size // HEADS
        if what == "residual":
            return self.layers[layer], "input", slice(None)
        if what == "attention_output":
            return (
                self.module(layer, "attn_end" if "attn_end" in self.paths else "out"),
                "output",
                slice(None),
            )
        if what == "mlp_output":
            return self.module(layer, "mlp"), "output", slice(None)
        if what == "head_output":
            return out, "input", slice(part * width, (part + 1) * width)
        letter = what[0]
        module = self.module(layer, "qkv" if "qkv" in self.paths else letter)
        return module, "output", columns(self.name, letter, part, width)

    @contextmanager
    def hooked(self, place, change):
        """`change(x)` in place of an activation (or None)."""
        module, side, where = place

        def apply(x):
            flat = x.dim() == 2  # OPT's MLP has no axis for the batch
            x = x[None] if flat else x
            new = change(x[..., where])
            if new is None:
                return None
            x = x.clone()
            x[..., where] = new
            return x[0] if flat else x

        if side == "input":

            def hook(_module, args, kwargs):
                if not args:
                    new = apply(kwargs["hidden_states"])
                    return None if new is None else (args, kwargs | {"hidden_states": new})
                new = apply(args[0])
                return None if new is None else ((new, *args[1:]), kwargs)

            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        else:

            def hook(_module, _args, out):
                first = out[0] if isinstance(out, tuple) else out
                new = apply(first)
                return None if new is None else ((new, *out[1:]) if isinstance(out, tuple) else new)

            handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def run(self, tokens, changes=(), watch=()):
        """Logits of one prompt, what was seen at the watched places, and attention."""
        seen = {}
        with ExitStack() as stack:
            for key, place in watch:
                stack.enter_context(self.hooked(place, lambda x, key=key: seen.__setitem__(key, x.clone())))
            for place, change in changes:
                stack.enter_context(self.hooked(place, change))
            with torch.no_grad():
                out = self.hf(tokens[None], output_attentions=True, use_cache=False)
        return out.logits[0], seen, out.attentions

    def patched(self, base, source, at, what, layer, part, positions, edge="both"):
        """Logits at the answer with one cell's activation from the other run."""
        base, source = base[: at + 1], source[: at + 1]
        if what != "attention_edge":
            place = self.place(what, layer, part)
            _, seen, _ = self.run(source, watch=[("x", place)])

            def change(x):
                x = x.clone()
                x[:, positions] = seen["x"][:, positions]
                return x

            return self.run(base, changes=[(place, change)])[0][at]
        group = HEADS // self.kv_heads()
        value = self.place("value", layer, part // group)
        rows, values = {}, {}
        for which, tokens in (("base", base), ("source", source)):
            _, seen, attentions = self.run(tokens, watch=[("v", value)])
            rows[which], values[which] = attentions[layer][0, part, at], seen["v"][0]
        new = {
            "both": (rows["source"], values["source"]),
            "weights": (rows["source"], values["base"]),
            "values": (rows["base"], values["source"]),
        }[edge]
        moved = sum(new[0][p] * new[1][p] - rows["base"][p] * values["base"][p] for p in positions)

        def add(z):
            z = z.clone()
            z[:, at] += moved
            return z

        return self.run(base, changes=[(self.place("head_output", layer, part), add)])[0][at]

    def kv_heads(self):
        return {"llama": 2, "qwen3": 2, "gemma2": 2, "falcon": 1}.get(self.name, HEADS)


ACTIVATIONS = (
    "residual",
    "attention_output",
    "mlp_output",
    "head_output",
    "query",
    "key",
    "value",
    "attention_edge",
)


def place_of(found, cell):
    """Layer and head of a cell; 0 for a whole layer."""
    return cell[0], cell[1] if {"head", "kv_head"} & set(found.places) else 0


def other(prompts, seed=5):
    """The same prompts with every label exchanged for the next class's, and other test inputs."""
    labels = (prompts.demo_labels + 1) % prompts.labels
    tokens = prompts.tokens.scatter(1, prompts.label_pos, prompts.label_tokens.gather(1, labels))
    return replace(prompts, tokens=tokens, demo_labels=labels)


def rows_changed(plain, tokens, edits):
    """Logits with attention rows changed layer after layer: `edits` maps a layer to (head, query, A → A') triples.

    A later layer's rows are those of the run in which all below is changed already.
    """
    changes = []
    group = HEADS // plain.kv_heads()
    for layer in sorted(edits):
        heads = sorted({head for head, _, _ in edits[layer]})
        watch = [(h, plain.place("value", layer, h // group)) for h in heads]
        _, seen, attentions = plain.run(tokens, changes=changes, watch=watch)
        for head, query, change in edits[layer]:
            a = attentions[layer][0, head, query]
            moved = (change(a.clone()) - a) @ seen[head][0]

            def add(z, query=query, moved=moved):
                z = z.clone()
                z[:, query] += moved
                return z

            changes.append((plain.place("head_output", layer, head), add))
    return plain.run(tokens, changes=changes)[0]


def without(keys, *, renormalise):
    def change(a):
        a[list(keys)] = 0
        return a / a.sum() if renormalise else a

    return change


def own_text(prompts, number, demo):
    start, end = prompts.demo_spans[number, demo].tolist()
    label = int(prompts.label_pos[number, demo])
    return [k for k in range(start, end) if k != label and k < label]
