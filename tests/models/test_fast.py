"""Reading without writing attention out, and with shared tokens run once: the same numbers, on every architecture."""

from __future__ import annotations

import pytest
import torch
from architectures import VOCAB, hf_model
from support import KINDS, needs_hooked, same_evidence, shared_prompts, verified_otherwise
from torch.utils._python_dispatch import TorchDispatchMode

from icl_kernel_lens import PromptSet, load_model, load_task, read
from icl_kernel_lens.errors import LoadError, ModelError
from icl_kernel_lens.models import attention_passes
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.fast import fast_attention
from icl_kernel_lens.models.load import bridge_from_hf, hooked_from_hf
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.numbers import attention
from icl_kernel_lens.run import runner


def plainly(model, prompts, monkeypatch, **options):
    """The reading through `hook_pattern`, each prompt whole."""
    with verified_otherwise(monkeypatch, model, not_fast="the test says so", not_shared="the test says so"):
        found = read(model, prompts, progress=False, **options)
    assert found.run.reading.startswith("rows taken from hook_pattern; prompts read whole: the test says so")
    return found


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_architecture_is_read_fast_and_shared(tiny, name, kind):
    """No architecture falls back: equality below is of the fast path."""
    report = verify_model(as_adapter(tiny(name, kind)[0]))
    assert report.not_fast is None
    assert report.not_shared is None
    assert report.taken_over < 1e-5
    assert "rebuilt from q and k" in str(report)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_shared_equals_whole(tiny, name, kind, monkeypatch):
    """Demonstrations run once, nested and not, give what every prompt whole gives through the pattern hook."""
    model, _ = tiny(name, kind)
    prompts = shared_prompts()
    ran = []
    original = runner.read_prefix

    def counted(adapter, tokens, *more):
        ran.extend(len(row) for row in tokens.reshape(-1, tokens.shape[-1]))
        return original(adapter, tokens, *more)

    monkeypatch.setattr(runner, "read_prefix", counted)
    keep = ("label", "span_max", "span_sum")
    shared = read(model, prompts, keep=keep, progress=False)
    assert len(ran) == 2
    assert min(ran) > 25
    same_evidence(shared, plainly(model, prompts, monkeypatch, keep=keep, batch_size=2))
    assert len(ran) == 2, "the plain reading shares nothing"


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_fast_attention_changes_no_activation(tiny, name, kind):
    """Logits, q, k, v and z as ever; an edit of v, and a gradient, flow as ever."""
    model, _ = tiny(name, kind)
    layers = as_adapter(model).shape.layers
    tokens = torch.randint(3, VOCAB, (2, 33), generator=torch.Generator().manual_seed(1))
    names = [f"blocks.{layer}.attn.hook_{x}" for layer in range(layers) for x in "qkvz"]
    options = {"output_attentions": False, "use_cache": False} if kind == "bridge" else {}

    def run():
        logits, cache = model.run_with_cache(tokens, names_filter=names, **options)
        hooks = [("blocks.1.attn.hook_v", lambda v, hook: v * torch.linspace(0, 2, 33)[:, None, None])]
        edited = model.run_with_hooks(tokens, fwd_hooks=hooks, **options)
        parameter = next(
            p for n, p in model.named_parameters() if "0" in n and p.dim() == 2 and p.requires_grad
        )
        loss = model(tokens, **options).float().logsumexp(-1).sum()
        return logits, cache, edited, torch.autograd.grad(loss, parameter)[0]

    logits, cache, edited, gradient = run()
    with fast_attention(model):
        fast = run()
    torch.testing.assert_close(fast[0], logits, atol=1e-5, rtol=1e-5)
    for hook in names:
        torch.testing.assert_close(fast[1][hook], cache[hook], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast[2], edited, atol=1e-5, rtol=1e-5)
    assert (edited - logits).abs().max() > 1e-3, "the edit matters"
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(fast[3], gradient, atol=1e-3 * gradient.abs().max().item(), rtol=1e-3)


class Squares(TorchDispatchMode):
    """Notes the shape of every tensor made with position × position numbers or more."""

    def __init__(self, length: int, model) -> None:
        super().__init__()
        self.length, self.made = length, []
        # GPT-Neo keeps a mask of its whole context, of which views are taken.
        self.own = {t.untyped_storage().data_ptr() for t in model.buffers()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and list(tensor.shape).count(self.length) >= 2:
                storage = tensor.untyped_storage()
                # A stand-in has the shape and one number; one row may stand for all.
                written = storage.nbytes() >= tensor.numel() * tensor.element_size()
                if written and storage.data_ptr() not in self.own:
                    self.made.append(tuple(tensor.shape))
        return out


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_nothing_of_the_square_is_alive(tiny, name, kind, monkeypatch):
    """Not only nothing of head × position², nothing of position²; windows and soft caps go by stretches."""
    model, _ = tiny(name, kind)
    prompts = shared_prompts(sets=1, tests=1).select([0])
    length = int(prompts.lengths.max())
    monkeypatch.setattr(attention, "LARGEST_STRETCH", {"cpu": 4 * length * 4})
    read(model, prompts, progress=False)  # the probe, and what is made at the first run
    inner = model.original_model if kind == "bridge" else model
    with Squares(length, inner) as squares:
        read(model, prompts, progress=False)
    assert squares.made == []
    with Squares(length, inner) as squares:
        plainly(model, prompts, monkeypatch)
    assert (1, 4, length, length) in squares.made, "the plain way makes them"


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_layers_queries_are_gone_before_the_next_layer(tiny, name, kind, monkeypatch):
    """Nothing holds on to q once its layer is done: memory does not grow with the layers."""
    import weakref

    model, _ = tiny(name, kind)
    prompts = shared_prompts(sets=1, tests=1).select([0])
    read(model, prompts, progress=False)
    attend, before, alive = attention_passes.attend, [], []

    def noting(q, k, v, rule):
        alive.append(sum(ref() is not None for ref in before))
        before.append(weakref.ref(q))
        return attend(q, k, v, rule)

    monkeypatch.setattr(attention_passes, "attend", noting)
    read(model, prompts, progress=False)
    assert len(alive) >= 3
    assert max(alive) == 0


def test_a_pattern_hook_under_fast_attention_is_an_error(tiny):
    """A cache of patterns that were never made would be nonsense."""
    model, _ = tiny("llama", "bridge")
    tokens = torch.arange(3, 20)[None]
    with fast_attention(model), pytest.raises(ModelError, match="hook_pattern has a hook"):
        model.run_with_hooks(
            tokens,
            fwd_hooks=[("blocks.0.attn.hook_pattern", lambda p, hook: None)],
            output_attentions=False,
            use_cache=False,
        )
    for options in ({}, {"names_filter": "blocks.0.attn.hook_attn_scores"}):
        with (
            fast_attention(model),
            pytest.raises(ModelError, match="has a hook.*Give run_with_cache a names_filter"),
        ):
            model.run_with_cache(tokens, output_attentions=False, use_cache=False, **options)
    with fast_attention(model), pytest.raises(ModelError, match="keys of earlier tokens come from a cache"):
        model.original_model.generate(tokens, min_new_tokens=3, max_new_tokens=3, do_sample=False)
    with fast_attention(model), pytest.raises(ModelError, match="pad on the right"):
        model(tokens, attention_mask=torch.tensor([[0] + [1] * 16]), use_cache=False)


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
def test_reading_within_fast_attention(tiny, kind):
    """The inner of two contexts takes over, and the outer one is as it was afterwards."""
    model, _ = tiny("gpt_neo", kind)
    prompts = shared_prompts()
    expected = read(model, prompts, progress=False)
    options = {"output_attentions": False, "use_cache": False} if kind == "bridge" else {}
    logits = model(prompts.tokens, **options)
    with fast_attention(model):
        same_evidence(read(model, prompts, progress=False), expected)
        with fast_attention(model):
            torch.testing.assert_close(model(prompts.tokens, **options), logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(prompts.tokens, **options), logits, atol=1e-5, rtol=1e-5)


def test_fast_attention_refuses_what_the_probe_refuses(monkeypatch):
    """A layer that does what no rule can say, and one whose numbers differ."""
    model = bridge_from_hf(hf_model("gptj"))
    inner = model.blocks[1].attn.original_component
    original = inner.attn_dropout.forward
    inner.attn_dropout.forward = lambda weights: weights.relu()
    assert "layer 1: it calls relu" in str(verify_model(as_adapter(model)).not_fast)
    with pytest.raises(ModelError, match="calls relu"), fast_attention(model):
        pass
    inner.attn_dropout.forward = original
    assert verify_model(as_adapter(model)).not_fast is None

    model = bridge_from_hf(hf_model("gptj"))
    attend = attention_passes.attend
    monkeypatch.setattr(attention_passes, "attend", lambda q, k, v, rule: attend(q, k, v, rule) * 1.01)
    report = verify_model(as_adapter(model))
    assert "differs from the plain run" in str(report.not_fast)
    assert "attention is written out" in str(report)
    with pytest.raises(ModelError, match="differs from the plain run"), fast_attention(model):
        pass


def test_sharing_alone_can_be_refused(monkeypatch):
    """Positions that do not move with the prefix show in the probe, and prompts are read whole."""
    model = bridge_from_hf(hf_model("gptj"))
    blocks = attention_passes.attend_blocks
    monkeypatch.setattr(attention_passes, "attend_blocks", lambda q, b, rule: blocks(q, b, rule) * 1.01)
    report = verify_model(as_adapter(model))
    assert report.not_fast is None
    assert "differs from the plain run" in str(report.not_shared)
    assert "nothing shared" in str(report)
    monkeypatch.setattr(runner, "read_prefix", lambda *_: pytest.fail("nothing may be shared"))
    evidence = read(model, shared_prompts(), progress=False)
    same_evidence(evidence, plainly(model, shared_prompts(), monkeypatch))


def length_dependent(name):
    """A model whose rotary frequencies follow the length of what it is given; Gemma's in its last layer alone."""
    import transformers

    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "attn_implementation": "eager",
    }
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    longrope = plain | {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 45,
    }
    if name == "dynamic":
        config = transformers.LlamaConfig(**sizes, max_position_embeddings=32, rope_parameters=dynamic)
    elif name == "longrope":
        config = transformers.LlamaConfig(**sizes, max_position_embeddings=96, rope_parameters=longrope)
    else:
        config = transformers.Gemma3TextConfig(
            **sizes,
            head_dim=8,
            num_key_value_heads=2,
            query_pre_attn_scalar=8,
            max_position_embeddings=32,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters={"sliding_attention": plain, "full_attention": dynamic},
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in hf.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4
    return hf


@pytest.mark.parametrize("name", ["dynamic", "longrope", "gemma3"])
def test_prompts_placed_by_their_length_are_read_alone(name):
    """Whatever the batch and the order, each prompt is read as Hugging Face reads it alone, fresh."""
    prompts = shared_prompts()
    assert int(prompts.lengths.min()) < 45 < int(prompts.lengths.max()), "on both sides of the limit"
    model = bridge_from_hf(length_dependent(name))
    model.cfg.n_ctx = 96
    assert verify_model(as_adapter(model)).not_shared is None, "13 tokens do not show it"
    before = {key: b.clone() for key, b in model.original_model.named_buffers()}
    with pytest.warns(UserWarning, match="one whole prompt at a time.*by the length"):
        found = read(model, prompts, progress=False)
    with pytest.warns(UserWarning, match="one whole prompt at a time"):
        again = read(model, prompts.select([6, 5, 4, 3, 2, 1, 0]), progress=False, batch_size=3)
    assert torch.equal(again.weights["label"].flip(0), found.weights["label"])
    with pytest.warns(UserWarning, match="one whole prompt at a time"):
        read(model, prompts.select([int(prompts.lengths.argmax())]), progress=False)
    for key, buffer in model.original_model.named_buffers():
        assert torch.equal(buffer, before[key]), f"{key} is as it was"
    for number, length in enumerate(prompts.lengths.tolist()):
        with torch.no_grad():
            out = length_dependent(name)(prompts.tokens[number : number + 1, :length], output_attentions=True)
        at = int(prompts.answer_pos[number])
        scores = out.logits[0, at, prompts.label_tokens[number]]
        torch.testing.assert_close(found.label_scores[number], scores, atol=1e-4, rtol=1e-4)
        rows = torch.stack([a[0, :, at] for a in out.attentions])
        labels = prompts.label_spans[number, :, 0]
        torch.testing.assert_close(found.weights["label"][number], rows[..., labels], atol=1e-5, rtol=1e-4)


def test_short_prompts_of_such_a_model_are_shared():
    """Below the limit a token stands where it always does."""
    model, prompts = bridge_from_hf(length_dependent("longrope")), shared_prompts()
    model.cfg.n_ctx = 96
    rotary = next(m for m in model.original_model.modules() if hasattr(m, "rope_type"))
    rotary.config.rope_parameters["original_max_position_embeddings"] = 90
    assert "as prompts share the others" in read(model, prompts, progress=False).run.reading


def test_a_limit_met_on_the_way_falls_back_with_a_warning(monkeypatch):
    """ALiBi's bias in half precision is linear up to 256 positions; the longer prompt is read by the pattern."""
    model = bridge_from_hf(hf_model("bloom").to(torch.bfloat16))
    assert verify_model(as_adapter(model)).not_fast is None
    tokens = torch.randint(3, VOCAB, (1, 400), generator=torch.Generator().manual_seed(4))
    tokens[0, [100, 350]] = torch.tensor([10, 20])
    prompts = PromptSet.from_tokens(
        tokens, torch.tensor([[100, 350]]), torch.tensor([[0, 1]]), torch.tensor([10, 20])
    )
    with pytest.warns(UserWarning, match="read through hook_pattern.*not linear"):
        found = read(model, prompts, progress=False)
    same_evidence(found, plainly(model, prompts, monkeypatch))


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
def test_a_users_hook_meets_whole_prompts(kind):
    """An edit at a position of the prompt would be made twice, or at the wrong place, in a shared one."""
    model = {"bridge": bridge_from_hf, "hooked": hooked_from_hf}[kind](hf_model("llama"))
    verify_model(as_adapter(model))
    prompts, widths = shared_prompts(), []

    def edit(z, hook):
        widths.append(z.shape[1])
        z[:, 5] = 0
        return z

    plain = read(model, prompts, progress=False)
    model.blocks[0].attn.hook_z.add_hook(edit)
    assert as_adapter(model).hooks_in_place()
    edited = read(model, prompts, progress=False)
    assert min(widths) >= int(prompts.lengths.min())
    single = read(model, prompts, progress=False, batch_size=1)
    same_evidence(edited, single)
    assert (edited.weights["label"] - plain.weights["label"])[:, 1:].abs().max() > 1e-3


def test_hooks_that_libraries_leave_are_not_the_users():
    """After `run_with_cache`, Hugging Face's own recording hooks stay on the model for good."""
    model = bridge_from_hf(hf_model("gpt2"))
    model.run_with_cache(torch.arange(3, 20)[None])
    hooked = [m for m in model.original_model.modules() if m._forward_hooks]
    assert hooked, "or this test shows nothing"
    assert as_adapter(model).hooks_in_place() == []
    handle = model.blocks[0].mlp.register_forward_hook(lambda *_: None)
    assert any("mlp" in name for name in as_adapter(model).hooks_in_place())
    handle.remove()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gptj", "gpt2", "gemma2"])
def test_half_precision_rows_are_built_in_float32(name, dtype, monkeypatch):
    """Rows of a half-precision model sum to one as float32 does, and stay near the pattern's."""
    model = bridge_from_hf(hf_model(name).to(dtype))
    prompts = shared_prompts()
    found = read(model, prompts, progress=False)
    assert (found.rows.sum(-1) - 1).abs().max() < 1e-5
    plain = plainly(model, prompts, monkeypatch)
    near = 2e-2 if dtype == torch.float16 else 8e-2
    torch.testing.assert_close(found.weights["label"], plain.weights["label"], atol=near, rtol=0)


def test_a_model_spread_over_devices_by_a_device_map(mini):
    """On one device here; what is read is reduced where it lives, and inputs go where the embedding is."""
    spread = load_model("mini", device="auto")
    assert type(spread).__name__ == "TransformerBridge"
    prompts = load_task("topics").prompts(spread, demos=4, count=6, seed=0)
    if not torch.cuda.is_available():
        same_evidence(read(spread, prompts, progress=False), read(mini, prompts, progress=False))
    with pytest.raises(LoadError, match='device="auto" needs backend="bridge"'):
        load_model("mini", device="auto", backend="hooked")


def masks(length):
    """Masks of one's own, (batch, 1, query, key), each hiding what no causal band hides, and in one row only."""
    band = torch.ones(2, 1, length, length, dtype=torch.bool).tril()
    padded, hole, late = band.clone(), band.clone(), band.clone()
    padded[1, :, :, :4] = False
    padded[1, :, :4, 0] = True  # no row is empty
    hole[1, 0, 9, 3] = False
    late[1, 0, length // 3, : length // 3 - 1] = False
    return {"left padding": padded, "one hole": hole, "one short row": late}


@pytest.mark.parametrize("view", [True, False])
@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("hides", ["left padding", "one hole", "one short row"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_a_mask_of_ones_own_is_followed_or_refused(tiny, name, hides, additive, view):
    """Never ignored: the band of one row is not the band of all."""
    model = tiny(name, "bridge")[0].original_model
    tokens = torch.randint(3, VOCAB, (2, 33), generator=torch.Generator().manual_seed(1))

    def ready(mask):
        if view:  # the corner of a larger one
            larger = torch.ones(2, 1, 50, 50, dtype=torch.bool).tril()
            larger[:, :, :33, :33] = mask
            mask = larger[:, :, :33, :33]
        return torch.where(mask, 0.0, torch.finfo(torch.float32).min) if additive else mask

    band = torch.ones(2, 1, 33, 33, dtype=torch.bool).tril()
    with torch.no_grad(), fast_attention(tiny(name, "bridge")[0]):
        with pytest.raises(ModelError, match="causal band|adds a bias"):
            model(tokens, attention_mask=_as_layers_take(name, ready(masks(33)[hides])), use_cache=False)
        try:
            fast = model(tokens, attention_mask=_as_layers_take(name, ready(band)), use_cache=False).logits
        except ModelError:
            return  # refused altogether
    with torch.no_grad():
        plain = model(tokens, attention_mask=_as_layers_take(name, ready(band)), use_cache=False).logits
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


def _as_layers_take(name, mask):
    """Gemma takes one mask for each type of layer."""
    return {"full_attention": mask, "sliding_attention": mask} if name == "gemma2" else mask


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
def test_two_threads_read_one_model_each_in_its_turn(tiny, kind):
    """And two models at once: nothing is global."""
    from concurrent.futures import ThreadPoolExecutor

    models = [tiny(name, kind)[0] for name in ("llama", "gpt2")] * 3
    prompts = shared_prompts()
    expected = [read(model, prompts, progress=False) for model in models[:2]] * 3
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            found = list(pool.map(lambda model: read(model, prompts, progress=False, batch_size=2), models))
            for one, other in zip(found, expected, strict=True):
                same_evidence(one, other)


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
def test_contexts_left_in_any_order(tiny, kind):
    """Two notebook cells that enter and leave by hand."""
    model, _ = tiny("bloom", kind)
    inner = getattr(model, "original_model", model)
    state = [dict(vars(module)) for module in (*model.modules(), *inner.modules())]
    options = {"output_attentions": False, "use_cache": False} if kind == "bridge" else {}
    tokens = torch.arange(3, 40)[None]
    logits = model(tokens, **options)
    one, two = fast_attention(model), fast_attention(model)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    torch.testing.assert_close(model(tokens, **options), logits, atol=1e-5, rtol=1e-5)
    two.__exit__(None, None, None)
    for module, before in zip((*model.modules(), *inner.modules()), state, strict=True):
        assert vars(module).keys() == before.keys()
        assert all(vars(module)[k] is v for k, v in before.items() if k in ("forward", "config", "alibi"))
    assert torch.equal(model(tokens, **options), logits)


def test_a_config_that_two_models_share(tiny):
    """Under `fast_attention` of one, the other still makes its own masks."""
    import transformers

    hf = hf_model("llama")
    twin = transformers.AutoModelForCausalLM.from_config(hf.config, attn_implementation="eager").eval()
    twin.config = hf.config
    for module in twin.modules():
        if "config" in vars(module):
            module.config = hf.config
    tokens = torch.arange(3, 40)[None]
    logits = twin(tokens).logits
    with fast_attention(bridge_from_hf(hf)):
        torch.testing.assert_close(twin(tokens).logits, logits)


def test_every_way_to_hook_a_model_is_seen():
    """A hook that holds one of TransformerLens's objects, a patched `forward`, a hook on every module."""
    model = bridge_from_hf(hf_model("gpt2"))
    adapter, mlp = as_adapter(model), model.blocks[1].mlp.original_component
    assert adapter.hooks_in_place() == []
    hook = model.blocks[0].hook_out

    def raw(module, args, output):
        return hook(output) * 2

    handle = mlp.register_forward_hook(raw)
    assert any("mlp" in name for name in adapter.hooks_in_place())
    handle.remove()
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) * 2
    assert any("mlp" in name for name in adapter.hooks_in_place())
    del mlp.forward
    everywhere = torch.nn.modules.module
    for register in (
        everywhere.register_module_forward_hook,
        everywhere.register_module_forward_pre_hook,
        everywhere.register_module_full_backward_hook,
        everywhere.register_module_full_backward_pre_hook,
    ):
        handle = register(lambda *_: None)
        assert adapter.hooks_in_place() == ["every module of PyTorch's"]
        handle.remove()
    assert adapter.hooks_in_place() == []
