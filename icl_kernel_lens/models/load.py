"""Loads a model as TransformerLens's own object, whatever it is given as (`sources.py`).

`HookedTransformer.from_pretrained` refuses local folders and guesses the architecture from the name of
the path, so its converters are used underneath it: the Hugging Face model is loaded first, its
configuration and weights are converted without any weight processing, and the result is kept only if
its logits equal Hugging Face's (`comparison.py`). Otherwise the model goes under a `TransformerBridge`, whose logits must
equal them, too.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.comparison import Reference, compare, comparison_of, reference
from icl_kernel_lens.models.copies import quantisation_of
from icl_kernel_lens.models.layout import lay_out
from icl_kernel_lens.models.peft_adapters import is_peft_model
from icl_kernel_lens.models.rotary import take_angles
from icl_kernel_lens.models.sources import Source, source_of
from icl_kernel_lens.models.transformer_lens_adapters import transformer_lens_classes

Backend = Literal["auto", "hooked", "bridge"]

HOOKED_CONTEXT = 2048
"""Longest context given to a HookedTransformer: each layer holds a causal mask of its square."""


@dataclass(frozen=True)
class LoadRecord:
    """Where a model came from, and under which class it was put; kept beside the model, and in every result."""

    source: str
    revision: str | None
    backend: str
    logit_residual: float | None
    """Largest difference to Hugging Face's logits over their standard deviation; None: not compared."""
    why: str
    """Why this class was taken."""
    compared: str = ""
    """The comparison in words: on how many tokens, or why there was none."""
    quantisation: str | None = None
    """What the weights were stored in, in words; None: in floats, or not known."""


_records: WeakKeyDictionary[Any, LoadRecord] = WeakKeyDictionary()


def load_record(model: Any) -> LoadRecord | None:
    """What `load_model` did to get this model; None for a model it did not load."""
    return _records.get(model) if isinstance(model, torch.nn.Module) else None


def load_model(
    model: Any,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    backend: Backend = "auto",
    *,
    tokenizer: Any | None = None,
) -> Any:
    """Loads a model as TransformerLens's own object, unwrapped and without weight processing.

    `model` is one of these; only the third and the base model of an adapter can open the network:
    - `"mini"` (the bundled model);
    - a local folder in Hugging Face format, with safetensors or, where there are none, `pytorch_model.bin`, of which
      nothing but tensors is read;
    - a name on the Hugging Face Hub;
    - the path of a `.gguf` file, which is dequantised (needs the extra `gguf`);
    - a folder of a PEFT adapter or a `PeftModel`, whose adapter is merged into a copy of the weights (needs the extra `peft`);
    - a Hugging Face model, with its `tokenizer`: it stays as it is, what is built shares its weights;
    - a `HookedTransformer` or a `TransformerBridge`, which is returned as it is.

    The logits are compared with those of Hugging Face's own code, of an adapter with those of the unmerged model.
    `backend="auto"` gives a `HookedTransformer` where TransformerLens has it and its logits equal Hugging
    Face's, else a `TransformerBridge`; `load_record(model)` tells which and why. 8-bit and 4-bit weights go through the
    bridge, where its logits are right.
    `device`: default, where the model is, or a GPU for one that is read from files; `"auto"` lays the model over all GPUs,
    by accelerate's device map, as a `TransformerBridge`. `dtype`: default, as stored; float32 of a quantised `.gguf`.
    A HookedTransformer's context is cut to 2048 tokens; the bridge keeps the model's own.

    Raises: LoadError: no such model, files that are not whole, a pickled object, an absent package, an architecture that
            cannot be held, other logits than Hugging Face's.
    """
    if backend not in ("auto", "hooked", "bridge"):
        raise LoadError(
            f'backend must be "auto", "hooked" or "bridge"; got {backend!r}.', code="unknown-choice"
        )
    if isinstance(model, tuple(filter(None, transformer_lens_classes()))):
        return _as_it_is(model, device, dtype, backend, tokenizer)
    if not (dtype is None or isinstance(dtype, torch.dtype)) or str(device) == "meta":
        raise LoadError(
            f"dtype must be one of torch's, such as torch.float16, and device one that computes; got dtype={dtype!r} and "
            f"device={device!r}.",
            code="wrong-type",
        )
    if not isinstance(model, str | Path) and not _is_hugging_face(model):
        raise LoadError(
            'load_model takes "mini", a folder, a .gguf file, a name on the Hub, a Hugging Face model (PreTrainedModel or '
            f"PeftModel), a HookedTransformer or a TransformerBridge; got a {type(model).__module__}."
            f"{type(model).__name__}. A class of your own is read as a ModelAdapter, without loading.",
            code="wrong-type",
        )
    with torch.random.fork_rng(devices=[]):  # building a model draws random numbers; the caller's stay
        return _load(model, device, dtype, backend, tokenizer)


def _is_hugging_face(model: Any) -> bool:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel) or is_peft_model(model)


def _as_it_is(
    model: Any,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    backend: Backend,
    tokenizer: Any | None,
) -> Any:
    """TransformerLens's own object, after its logits were compared where there is something to compare them with."""
    found = comparison_of(model)
    kind = "bridge" if isinstance(model, transformer_lens_classes()[1]) else "hooked"
    is_now = {"backend": kind, "dtype": as_adapter(model).dtype, "device": as_adapter(model).device.type}
    asked = {"backend": backend, "dtype": dtype, "device": device and torch.device(device).type}
    changed = [key for key, value in asked.items() if value not in (None, "auto", is_now[key])]
    if changed or tokenizer is not None:
        raise LoadError(
            f"a {type(model).__name__} is returned as it is, so that {', '.join(changed) or 'tokenizer'} cannot be asked for. "
            "Leave it out, or set it on the model before.",
            code="options-clash",
        )
    if model not in _records:
        says = f"a {type(model).__name__} that was given"
        _records[model] = LoadRecord(says, None, kind, found.residual, "it was given", found.says)
    return model


def _load(
    given: Any,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    backend: Backend,
    tokenizer: Any | None,
) -> Any:
    spread, hooked_class = device == "auto", transformer_lens_classes()[0]
    if spread and backend == "hooked":
        raise LoadError(
            'device="auto" needs backend="bridge"; a HookedTransformer is not spread by it.', code="device"
        )
    if backend == "hooked" and hooked_class is None:
        raise LoadError(
            'backend="hooked" needs HookedTransformer, which TransformerLens removed in 4.0. Install '
            '"transformer-lens<4", or use backend="bridge".',
            code="model-backend",
        )
    source = source_of(given, device, dtype, tokenizer)
    model, why = None, "backend='bridge' was asked for"
    if spread:
        why = 'device="auto" was asked for'
    elif hooked_class is None and backend == "auto":
        why = "this TransformerLens has no HookedTransformer"
    elif backend != "bridge":
        model, why = _converted(source)
        if model is None and backend == "hooked":
            raise LoadError(
                f'backend="hooked" is not possible for {source.says}: {why.removesuffix(".")}. Use backend="bridge".',
                code="model-backend",
            )
    kind = "bridge" if model is None else "hooked"
    if model is None:
        model = _bridged(source)
    found = comparison_of(model)
    _records[model] = LoadRecord(
        source.says, source.revision, kind, found.residual, why, found.says, source.quantisation
    )
    return model


def _bridged(source: Source) -> Any:
    try:
        return bridge_from_hf(source.hf, source.tokenizer, name=source.name, theirs=source.theirs)
    except LoadError as error:
        if not (packed := quantisation_of(source.hf)):
            raise
        raise LoadError(
            f"TransformerLens must read quantised weights as Hugging Face does to be used; {source.name} has {packed[1]}, and "
            f"it does not: {error.message} Load the model without quantisation.",
            code="model-backend",
        ) from error


def _converted(source: Source) -> tuple[Any | None, str]:
    """A HookedTransformer with Hugging Face's logits, and why it is taken or is not there."""
    hf = source.hf
    try:
        model = hooked_from_hf(hf, source.tokenizer, name=source.name, theirs=source.theirs)
    except LoadError as error:
        return None, f"a HookedTransformer was tried, but {error.message}"
    except torch.OutOfMemoryError:
        return None, "a HookedTransformer holds its weights a second time, for which memory was too small"
    except (NotImplementedError, ValueError, AttributeError, KeyError, AssertionError) as error:
        return None, f"TransformerLens cannot convert {type(hf).__name__}: {type(error).__name__}: {error}"
    if comparison_of(model).residual is None:
        return None, f"a HookedTransformer was {comparison_of(model).says}"
    return model, "its logits equal Hugging Face's"


def _attach(model: Any, tokenizer: Any | None) -> None:
    """Give a model its tokenizer unchanged, and tell TransformerLens what it does, so that `to_tokens` works."""
    model.tokenizer = tokenizer
    if tokenizer is None:
        return
    ids = tokenizer("a")["input_ids"]
    model.cfg.tokenizer_prepends_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
    model.cfg.tokenizer_appends_eos = bool(ids) and ids[-1] == tokenizer.eos_token_id
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token


def bridge_from_hf(
    hf: Any, tokenizer: Any | None = None, *, name: str | None = None, theirs: Reference | None = None
) -> Any:
    """Puts a Hugging Face causal language model under a `TransformerBridge`, without network.

    The bridge builds itself into the module, which must use eager attention (loaded with
    `attn_implementation="eager"`); fused attention shows no weights. Its logits are compared with `theirs`, by default the
    module's own, which are taken before.

    Raises: LoadError: fused attention, an architecture that TransformerLens does not know, or other logits.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    attention = getattr(hf.config, "_attn_implementation", "eager")
    if attention not in (None, "eager"):
        raise LoadError(
            f"the Hugging Face model must use eager attention to show its weights; this {type(hf).__name__} "
            f'uses {attention!r}. Load it with attn_implementation="eager", or call '
            'model.set_attn_implementation("eager") before.',
            code="fused-attention",
        )
    packed = [name for name, part in hf.named_modules() if callable(getattr(part, "weight", None))]
    if packed:
        raise LoadError(
            f"weights must be tensors to be read; of this {type(hf).__name__}, {len(packed)} parts ({packed[0]} the first) "
            "hold theirs packed, as torch.ao's quantisation does. Load the model without quantisation.",
            code="model-backend",
        )
    theirs = theirs or reference(hf)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            bridge = build_bridge_from_module(
                hf, type(hf).__name__, hf_config=hf.config, tokenizer=None, model_name=name or "unnamed"
            )
    except (
        Exception
    ) as error:  # TransformerLens's adapters of architectures fail in as many ways as there are
        raise LoadError(
            f"TransformerBridge does not support {type(hf).__name__}: {type(error).__name__}: {error}. See TransformerLens's "
            "list of supported architectures.",
            code="model-backend",
        ) from error
    if placed := getattr(hf, "hf_device_map", None):
        bridge.cfg.device = str(next(hf.get_input_embeddings().parameters()).device)
        bridge.cfg.n_devices = len(set(placed.values()))
    _attach(bridge, tokenizer)
    compare(bridge, theirs, f"{type(hf).__name__} under a TransformerBridge")
    return bridge


def hooked_from_hf(
    hf: Any, tokenizer: Any | None = None, *, name: str | None = None, theirs: Reference | None = None
) -> Any:
    """Converts a Hugging Face causal language model to a `HookedTransformer`, weights unprocessed.

    Raises: NotImplementedError, ValueError, AttributeError: TransformerLens has no converter for it.
            LoadError: its weights are quantised, or its logits are not those of the Hugging Face model.
    """
    from transformer_lens import loading_from_pretrained  # pyright: ignore[reportAttributeAccessIssue]

    if packed := quantisation_of(hf):
        raise LoadError(
            f"its weights must be floats to be converted; {type(hf).__name__} has {packed[1]}",
            code="model-backend",
        )

    with tempfile.TemporaryDirectory(prefix="config-", dir=_neutral_folder()) as folder:
        written = hf.config.to_dict() | {"architectures": [type(hf).__name__]}
        if "n_positions" in written:  # the converters expect it under another name
            written.setdefault("n_ctx", written["n_positions"])
        (Path(folder) / "config.json").write_text(json.dumps(written, default=str))
        ours = _CONFIGURATIONS.get(type(hf).__name__)
        fields = ours(hf.config) if ours else loading_from_pretrained.convert_hf_model_config(folder)
        longest = getattr(hf.config, "max_position_embeddings", None) or fields["n_ctx"]
        if fields.get("positional_embedding_type") != "standard":
            fields["n_ctx"] = min(longest, HOOKED_CONTEXT)
        fields |= {
            "dtype": hf.dtype,
            "device": str(next(hf.parameters()).device),
            "model_name": name or "unnamed",
            "tokenizer_name": None,
            "init_weights": False,
        }
        model = unwritten(fields)
        weights = loading_from_pretrained.get_pretrained_state_dict(folder, model.cfg, hf, dtype=hf.dtype)
    model.load_and_process_state_dict(
        weights,
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    lay_out(model)
    take_angles(model, hf)
    _attach(model, tokenizer)
    compare(model.eval(), theirs or reference(hf), f"{type(hf).__name__} as a HookedTransformer")
    return model


def unwritten(fields: dict[str, Any]) -> Any:
    """A HookedTransformer with this configuration, into which no weights have been written yet."""
    from transformer_lens import HookedTransformer  # pyright: ignore[reportAttributeAccessIssue]
    from transformer_lens.config import HookedTransformerConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HookedTransformer announces its end at every construction
        return HookedTransformer(HookedTransformerConfig.from_dict(fields))


def _neutral_folder() -> str | None:
    """Where temporary folders may be: the converters read an architecture out of the path's name."""
    folders = (tempfile.gettempdir(), "/tmp", "/var/tmp")
    neutral = [folder for folder in folders if not any(word in folder.lower() for word in ("llama", "gemma"))]
    return next((folder for folder in neutral if Path(folder).is_dir()), None)


def _gemma2_config(config: Any, rotary_base: float | None = None) -> dict[str, Any]:
    """Gemma-2's configuration from its own fields; TransformerLens knows three sizes by name."""
    return {
        "d_model": config.hidden_size,
        "d_head": config.head_dim,
        "n_heads": config.num_attention_heads,
        "n_key_value_heads": config.num_key_value_heads,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "eps": config.rms_norm_eps,
        "d_vocab": config.vocab_size,
        "act_fn": config.hidden_activation,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "use_normalization_before_and_after": True,
        "positional_embedding_type": "rotary",
        "rotary_base": rotary_base or config.rope_parameters["rope_theta"],
        "rotary_adjacent_pairs": False,
        "rotary_dim": config.head_dim,
        "use_attn_scale": True,
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
        "use_local_attn": True,
        "window_size": config.sliding_window,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in config.layer_types],
        "original_architecture": "Gemma2ForCausalLM",
    }


def _gemma3_config(config: Any) -> dict[str, Any]:
    """Gemma-3's configuration; as Gemma-2's, with norms of queries and keys, and a rotary base of its own within windows."""
    full, local = (config.rope_parameters[kind] for kind in ("full_attention", "sliding_attention"))
    if local["rope_type"] != "default" or full["rope_type"] not in ("default", "linear"):
        raise NotImplementedError(
            f"no HookedTransformer has rotary positions {full} and, in windows, {local}"
        )
    return _gemma2_config(config, full["rope_theta"]) | {
        "rotary_base_local": local["rope_theta"],
        "rotary_scaling_factor": full.get("factor", 1.0),
        "use_qk_norm": True,
        "original_architecture": "Gemma3ForCausalLM",
    }


def _phi_config(config: Any) -> dict[str, Any]:
    """Phi's configuration; TransformerLens looks for the rotary share where it no longer is."""
    d_head = config.hidden_size // config.num_attention_heads
    return {
        "d_model": config.hidden_size,
        "d_head": d_head,
        "n_heads": config.num_attention_heads,
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "eps": config.layer_norm_eps,
        "d_vocab": config.vocab_size,
        "act_fn": config.hidden_act,
        "normalization_type": "LN",
        "positional_embedding_type": "rotary",
        "rotary_base": config.rope_parameters["rope_theta"],
        "rotary_dim": round(config.rope_parameters["partial_rotary_factor"] * d_head),
        "rotary_adjacent_pairs": False,
        "use_attn_scale": True,
        "parallel_attn_mlp": True,
        "original_architecture": "PhiForCausalLM",
    }


_CONFIGURATIONS = {
    "Gemma2ForCausalLM": _gemma2_config,
    "Gemma3ForCausalLM": _gemma3_config,
    "PhiForCausalLM": _phi_config,
}
"""Architectures whose weights TransformerLens converts but whose configuration it cannot read."""
