"""A Hugging Face model that is given stays as it is; the copy shares its weights. What is quantised is seen."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from architectures import hf_model
from models.weights_made import in_int8, llama, logits
from support import needs_hooked

from icl_kernel_lens import load_model
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.copies import copy_of, digest_of, quantisation_of, quantised_parts
from icl_kernel_lens.models.load import hooked_from_hf, load_record


def all_of(model):
    """Whatever loading could change in a model: modules, attributes, hooks, modes, settings, every number."""
    modules = [
        (name, id(module), type(module), module.training, sorted(vars(module)))
        for name, module in model.named_modules()
    ]
    held = [
        dict(hooks)
        for module in model.modules()
        for key, hooks in sorted(vars(module).items())
        if key.endswith("_hooks")
    ]
    configs = {
        id(m.config): (m.config._attn_implementation, m.config.to_dict())
        for m in model.modules()
        if hasattr(m, "config")
    }
    tensors = [
        (name, id(x), x.data_ptr(), x.dtype, x.device, x.requires_grad, x.grad, x.detach().clone())
        for name, x in (*model.named_parameters(), *model.named_buffers())
    ]
    return modules, held, configs, tensors


def same(before, after) -> bool:
    *plain, tensors = before
    *plain_after, tensors_after = after
    return plain == plain_after and all(
        a[:-1] == b[:-1] and torch.equal(a[-1], b[-1]) for a, b in zip(tensors, tensors_after, strict=True)
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon", "gpt_neox", "bloom"])
@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_that_is_given_stays_as_it_is(name, backend, attention):
    hf = hf_model(name)
    hf.set_attn_implementation(attention if hf._supports_sdpa else "eager")
    hf.train()
    hf.lm_head.requires_grad_(False) if hasattr(hf, "lm_head") else None
    ran = []
    hook = next(iter(hf.children())).register_forward_hook(lambda *_: ran.append(1))
    before = all_of(hf)
    model = load_model(hf, backend=backend)
    assert same(before, all_of(hf))
    hook.remove()
    hf.eval()
    torch.testing.assert_close(logits(model), logits(hf), atol=1e-4, rtol=0)
    record = load_record(model)
    assert record is not None
    assert record.logit_residual is not None
    assert record.logit_residual < 1e-4


def test_weights_are_shared_and_moved_ones_are_not():
    hf = llama()
    copy = copy_of(hf)
    assert all(a is b for a, b in zip(hf.parameters(), copy.parameters(), strict=True))
    assert not {id(module) for module in hf.modules()} & {id(module) for module in copy.modules()}
    assert copy.config is not hf.config
    half = copy_of(hf, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in hf.parameters()} == {torch.float32}
    tied = hf_model("gpt2")
    assert tied.lm_head.weight is tied.transformer.wte.weight
    half = copy_of(tied, dtype=torch.bfloat16)
    assert half.lm_head.weight is half.transformer.wte.weight


def test_type_and_device_that_are_asked_for():
    hf = llama()
    before = all_of(hf)
    assert as_adapter(load_model(hf, device="cpu", dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert same(before, all_of(hf))
    with pytest.raises(LoadError, match="cannot be moved to device 'nonsense'"):
        load_model(hf, device="nonsense")
    with pytest.raises(LoadError, match='device="auto" lays out a model while it is read from files'):
        load_model(hf, device="auto")


def test_what_cannot_be_copied_is_told():
    hf = llama()
    hf.mine = threading.Lock()
    with pytest.raises(
        LoadError, match=r"this LlamaForCausalLM cannot be: TypeError: cannot pickle .*model-kind"
    ):
        load_model(hf)


def test_the_users_tokenizer_stays_as_it_is(mini):
    from icl_kernel_lens.models.sources import MINI

    tokenizer = transformers.AutoTokenizer.from_pretrained(MINI)
    tokenizer.pad_token = None
    hf = transformers.AutoModelForCausalLM.from_pretrained(MINI)
    model = load_model(hf, tokenizer=tokenizer)
    assert tokenizer.pad_token is None
    assert model.to_tokens("sail harbor is").tolist() == [tokenizer("sail harbor is")["input_ids"]]


def test_two_models_of_one_name_are_told_apart():
    a, b = llama(0), llama(1)
    names = [as_adapter(load_model(hf)).name for hf in (a, b, llama(0))]
    assert names[0] == names[2] != names[1]
    assert names[0].startswith("LlamaForCausalLM, ")
    changed = llama(0)
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight += 1e-3
    assert digest_of(changed) != digest_of(a)


class Packed(torch.Tensor):
    """Numbers and scales behind a tensor on which nothing is defined, not even a move to where it is."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)

    def __init__(self, numbers, scale) -> None:
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(f"{func} of packed numbers")


def test_packed_numbers_are_shared_and_told_apart():
    models = llama(), llama()
    for number, hf in enumerate(models):
        packed = Packed(torch.full((4, 4), number, dtype=torch.int8), torch.ones(4, 1))
        hf.model.layers[0].mlp.register_buffer("packed", packed)
    assert digest_of(models[0]) != digest_of(models[1])
    copied = copy_of(models[0])
    assert copied.model.layers[0].mlp.packed is models[0].model.layers[0].mlp.packed


def test_quantised_modules_are_seen():
    assert quantised_parts(llama()) == {}
    assert quantised_parts(hf_model("gpt2").to(torch.bfloat16)) == {}
    hf = in_int8(llama())
    assert len(quantised_parts(hf)) == 14
    assert quantisation_of(hf) == ("int8", "int8 weights in 14 modules")
    hf.config.quantization_config = {"quant_method": "mine"}
    assert quantisation_of(hf) == ("int8", "int8 weights in 14 modules, by mine")


def test_8_bit_weights_are_read_through_the_bridge():
    """Exactly as Hugging Face's code computes with them, and no HookedTransformer is made of them."""
    hf = in_int8(llama())
    before = all_of(hf)
    model = load_model(hf)
    assert same(before, all_of(hf))
    torch.testing.assert_close(logits(model), logits(hf), atol=1e-5, rtol=0)
    assert float((logits(model) - logits(llama())).abs().max()) > 1e-3
    record = load_record(model)
    assert record is not None
    assert (record.backend, record.quantisation) == ("bridge", "int8 weights in 14 modules")
    assert as_adapter(model).name.endswith("(int8)")


@needs_hooked
def test_no_hooked_transformer_of_8_bit_weights():
    record = load_record(load_model(in_int8(llama())))
    assert record is not None
    assert "its weights must be floats to be converted" in record.why
    with pytest.raises(LoadError, match=r"not possible .* int8 weights in 14 modules"):
        load_model(in_int8(llama()), backend="hooked")
    with pytest.raises(LoadError, match="must be floats to be converted"):
        hooked_from_hf(in_int8(llama()))


def test_quantised_weights_that_the_bridge_gets_wrong_are_refused(monkeypatch):
    """The cause is named: here, a bridge that multiplies with the integers themselves."""
    from transformer_lens.model_bridge.sources import _bridge_builder

    build = _bridge_builder.build_bridge_from_module

    def wrong(hf, *args, **kwargs):
        for module in hf.modules():
            if isinstance(getattr(module, "scale", None), torch.Tensor):
                module.scale = torch.ones_like(module.scale)
        return build(hf, *args, **kwargs)

    monkeypatch.setattr(_bridge_builder, "build_bridge_from_module", wrong)
    hf = in_int8(llama())
    with pytest.raises(
        LoadError,
        match=r"LlamaForCausalLM, \w+ \(int8\) has int8 weights in 14 modules, and it does not: .* differ by",
    ):
        load_model(hf)


def test_hooks_are_the_same_functions_in_places_of_their_own():
    """A method of an object that cannot be copied, as recorders are; taking it off the copy leaves the user's."""

    class Recorder:
        def __init__(self) -> None:
            self.lock, self.seen = threading.Lock(), 0

        def see(self, *_) -> None:
            self.seen += 1

    hf, recorder = llama(), Recorder()
    hf.model.register_forward_hook(recorder.see)
    copy = copy_of(hf)
    logits(copy)
    assert recorder.seen == 1
    copy.model._forward_hooks.clear()
    logits(hf)
    assert recorder.seen == 2
