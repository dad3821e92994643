"""`CausalLMLoss`: the loss and the gradients of the model's own logits, without these where they are many."""

import copy
import json
import shutil

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_gpt import GPTConfig, GPTForCausalLM, Observer, Recipe, UserError
from hf_gpt import loss as loss_module
from hf_gpt.estimate.memory import MemoryTracker
from hf_gpt.loss import CausalLMLoss
from hf_gpt.probing import evaluating, head_makes_logits
from hf_gpt.run import default_observers, prepare_run
from hf_gpt.training.loop import TrainingRun, run

VOCABULARY, BATCH, TIME, IGNORED = 67, 3, 8, -100
CHUNK = 7  # does not divide the 24 tokens

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def chunks(monkeypatch):
    """Small shapes go by chunks too."""
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda num_tokens, vocab_size, device_type: CHUNK)


@pytest.fixture(params=["torch", "own"])
def kernel(request, chunks, monkeypatch):
    """Torch's function, and what stands for it where torch lacks it."""
    if request.param == "own":
        monkeypatch.setattr(loss_module, "linear_cross_entropy", None)
    elif loss_module.linear_cross_entropy is None:
        pytest.skip("this torch has no linear_cross_entropy")
    return request.param


def small_model(dtype=torch.float32, **changes) -> GPTForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "context_length": 16}
    return GPTForCausalLM(GPTConfig(**shape, drop_rate=0.0, initializer_range=0.3, **changes)).to(dtype).train()


def test_a_window_of_one_token_has_a_loss():
    """The book's smallest case: each token from the one before."""
    config = GPTConfig(vocab_size=VOCABULARY, emb_dim=16, n_heads=2, n_layers=1, context_length=1)
    assert head_makes_logits(GPTForCausalLM(config))


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(module, ids, labels, scale=1.0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Of the mean loss; `module` is a `CausalLMLoss`, or a model whose own logits are used."""
    module.zero_grad()
    if isinstance(module, CausalLMLoss):
        loss = module(ids, labels) / (labels != IGNORED).sum()
    else:
        loss = module(ids, shift_labels=labels, use_cache=False).loss
    (loss * scale).backward()
    return loss.detach(), [p.grad.clone() for p in module.parameters() if p.grad is not None]


def assert_agree(found, expected, loss=1e-6, gradient=1e-6) -> None:
    """Relative errors: of the loss, and of the gradient of all parameters together by its norm."""
    assert found[0].dtype == expected[0].dtype == torch.float32
    assert abs(found[0] - expected[0]) <= loss * abs(expected[0])
    assert [(g.shape, g.dtype) for g in found[1]] == [(g.shape, g.dtype) for g in expected[1]]
    ours, plain = (torch.cat([g.flatten().double() for g in gradients]) for gradients in (found[1], expected[1]))
    assert (ours - plain).norm() <= gradient * plain.norm()


def assert_same_bits(found, expected) -> None:
    assert torch.equal(found[0], expected[0])
    for ours, plain in zip(found[1], expected[1]):
        assert torch.equal(ours, plain)


class LargestTensor(TorchDispatchMode):
    """Counts the elements of the largest tensor with a vocabulary in it that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == VOCABULARY:
                self.elements = max(self.elements, tensor.numel())
        return result


# The rule


def test_the_rule_looks_at_shapes_and_device_alone():
    rule = loss_module.tokens_per_chunk
    assert rule(4 * 1024, 50257, "cpu") == rule(4 * 256, 50257, "cpu") == 512
    assert rule(2 * 256, 50257, "cpu") is None  # a batch of the book's
    assert rule(8 * 128, 4096, "cpu") is None
    assert rule(256, 200_000, "cpu") is None  # one chunk: nothing gained
    assert rule(4 * 1024, 50257, "cuda") is None
    assert rule(8 * 1024, 50257, "cuda") == 512


def test_few_logits_keep_every_bit():
    model, ids, labels = small_model(), random_ids(BATCH, TIME), random_ids(BATCH, TIME + 1)[:, 1:]
    found = loss_and_gradients(CausalLMLoss(model), ids, labels)
    model.zero_grad()
    loss = model(ids, shift_labels=labels, num_items_in_batch=1, use_cache=False).loss / labels.numel()
    loss.backward()
    assert_same_bits(found, (loss.detach(), [p.grad for p in model.parameters()]))


# The numbers


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("some_ignored", [True, False])
def test_loss_and_gradients_are_those_of_the_logits(kernel, some_ignored, tied):
    model, ids = small_model(tie_word_embeddings=tied), random_ids(BATCH, TIME)
    labels = random_ids(BATCH, TIME + 1)[:, 1:]  # a view, not contiguous
    if some_ignored:
        labels[0, :3] = labels[2, 4:] = IGNORED
    plain, loss = loss_and_gradients(model, ids, labels), CausalLMLoss(model)
    assert_agree(loss_and_gradients(loss, ids, labels), plain)
    scaled = loss_and_gradients(loss, ids, labels, scale=8.0)
    assert_agree((scaled[0], [gradient / 8 for gradient in scaled[1]]), plain)


def test_gradient_checkpointing_and_accumulation(kernel):
    model, ids = small_model(), random_ids(BATCH, TIME)
    plain, loss = loss_and_gradients(model, ids, ids), CausalLMLoss(model)
    model.gradient_checkpointing_enable()
    assert_agree(loss_and_gradients(loss, ids, ids), plain)
    model.zero_grad()
    for row in ids.split(1):
        (loss(row, row) / ids.numel()).backward()
    assert_agree((plain[0], [p.grad for p in model.parameters()]), plain)


def test_a_frozen_head(kernel):
    model, ids = small_model(tie_word_embeddings=False), random_ids(BATCH, TIME)
    model.lm_head.weight.requires_grad_(False)
    assert_agree(loss_and_gradients(CausalLMLoss(model), ids, ids), loss_and_gradients(model, ids, ids))


def test_no_target_at_all_is_no_loss(kernel):
    model, ids = small_model(), random_ids(BATCH, TIME)
    assert CausalLMLoss(model)(ids, torch.full_like(ids, IGNORED)) == 0


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("has_units", [False, True])
def test_bf16(kernel, how, has_units, monkeypatch):
    """Over many tokens: the logits are rounded to bf16, which alone moves the loss of 24 tokens by 1e-4."""
    monkeypatch.setattr(loss_module, "multiplies_bf16", lambda device_type: has_units)
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *_: 256)
    model, ids = small_model(torch.bfloat16 if how == "weights" else torch.float32), random_ids(64, 16)
    loss = CausalLMLoss(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        plain = loss_and_gradients(model, ids, ids)
        found = loss_and_gradients(loss, ids, ids)
    assert_agree(found, plain, loss=3e-4 if has_units else 1e-4, gradient=1e-2)


def test_the_rounding_of_bf16_cancels_out(kernel):
    """Over many tokens."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(4096, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(VOCABULARY, 16, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(0, VOCABULARY, (4096,), generator=generator)
    plain = nn.functional.cross_entropy(nn.functional.linear(hidden, weight).float(), targets, reduction="sum")
    expected = plain.detach(), list(torch.autograd.grad(plain / 4096, (hidden, weight)))
    found = loss_module.chunked_cross_entropy(hidden, weight, targets, 16)
    found = found.detach(), list(torch.autograd.grad(found / 4096, (hidden, weight)))
    assert_agree(found, expected, loss=3e-4, gradient=1e-2)


@pytest.mark.filterwarnings("error:linear_cross_entropy")
def test_it_compiles_without_a_graph_break(kernel):
    model, ids = small_model(), random_ids(BATCH, TIME)
    plain = loss_and_gradients(model, ids, ids)
    compiled = torch.compile(CausalLMLoss(model), fullgraph=True, backend="aot_eager")
    loss = compiled(ids, ids) / ids.numel()
    model.zero_grad()
    loss.backward()
    assert_agree((loss.detach(), [p.grad for p in model.parameters()]), plain)


# The memory


def test_the_logits_are_never_built_at_once(kernel):
    model, ids = small_model(), random_ids(BATCH, TIME)
    loss = CausalLMLoss(model)
    with LargestTensor() as largest:
        loss_and_gradients(loss, ids, ids)
    assert largest.elements <= max(CHUNK, 16) * VOCABULARY  # the transposed weight has 16 rows
    with LargestTensor() as largest:
        loss_and_gradients(model, ids, ids)
    assert largest.elements == BATCH * TIME * VOCABULARY


# Without gradients: the loss of each token


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_the_losses_of_tokens_are_those_of_the_logits(chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "_LOGITS_WITHOUT_GRADIENTS", chunk * VOCABULARY)
    model, ids = small_model().eval(), random_ids(BATCH, TIME)
    labels = random_ids(BATCH, TIME + 1)[:, 1:].clone()
    labels[1, 2:5] = IGNORED
    loss = CausalLMLoss(model)
    with torch.no_grad(), LargestTensor() as largest:
        found = loss(ids, labels, reduction="none")
    expected = nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(found, expected)
    assert (found.view(BATCH, TIME)[1, 2:5] == 0).all()
    assert largest.elements <= max(16, min(chunk, BATCH * TIME)) * VOCABULARY  # the transposed weight has 16 rows


def test_on_a_cpu_log_probabilities_take_the_place_of_logits_and_losses_keep_their_bits(monkeypatch):
    monkeypatch.setattr(loss_module, "_LOGITS_WITHOUT_GRADIENTS", 5 * VOCABULARY)
    model, ids, labels = small_model().eval(), random_ids(BATCH, TIME), random_ids(BATCH, TIME + 1)[:, 1:]
    loss, made = CausalLMLoss(model), []
    model.get_output_embeddings().register_forward_hook(lambda head, rows, out: made.append((out, out.clone())))
    with torch.no_grad():
        found = loss(ids, labels, reduction="none")
    assert len(made) > 1
    assert all(torch.equal(out, logits.log_softmax(-1)) for out, logits in made)
    logits = torch.cat([logits for _, logits in made])
    assert torch.equal(found, nn.functional.cross_entropy(logits, labels.flatten(), reduction="none"))


# Where the logits are more than the head applied to hidden states


class DoublingHead(nn.Linear):
    """As LoRA's and the quantised ones: an nn.Linear that does something of its own."""

    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


def with_a_head_of_its_own(model):
    head = DoublingHead(16, VOCABULARY, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head


def with_a_hook(model):
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)


def with_another_forward(model):
    forward = model.lm_head.forward
    model.lm_head.forward = lambda hidden_states: 2 * forward(hidden_states)


def with_a_parametrization(model):
    nn.utils.parametrizations.weight_norm(model.lm_head)


def with_a_bias(model):
    model.lm_head.bias = nn.Parameter(torch.arange(float(VOCABULARY)))


def with_a_sharded_weight(model):
    class Sharded(torch.Tensor):
        """A weight whose type is not torch's own, as DTensor's and the quantised ones."""

    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().as_subclass(Sharded))


def with_lora(model):
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'hf_gpt[clients]'")
    lora = peft.LoraConfig(target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.inject_adapter_in_model(lora, model)


@pytest.mark.parametrize(
    "change",
    [
        with_a_head_of_its_own,
        with_a_hook,
        with_another_forward,
        with_a_parametrization,
        with_a_bias,
        with_a_sharded_weight,
        with_lora,
    ],
)
def test_a_head_that_is_more_than_its_weight(change, chunks, monkeypatch):
    model, ids = small_model(tie_word_embeddings=False), random_ids(BATCH, TIME)
    change(model)
    plain, loss = loss_and_gradients(model, ids, ids), CausalLMLoss(model)
    assert_agree(loss_and_gradients(loss, ids, ids), plain)
    monkeypatch.setattr(loss_module, "_LOGITS_WITHOUT_GRADIENTS", CHUNK * VOCABULARY)
    with torch.no_grad():
        torch.testing.assert_close(loss(ids, ids, reduction="none").mean(), plain[0])


def of_type(model_type: str, dtype: torch.dtype = torch.float32, **fields) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 4, "intermediate_size": 48}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    config = AutoConfig.for_model(model_type, **{**shape, **special, **fields})
    return AutoModelForCausalLM.from_config(config, dtype=dtype).train()


@pytest.mark.parametrize(
    ("model_type", "fields", "expected"),
    [
        ("llama", {}, True),
        ("qwen3", {"head_dim": 8}, True),
        ("gpt2", {}, True),
        ("mixtral", {}, True),
        ("mamba", {}, True),
        ("phi", {}, True),  # a bias in the head
        ("granite", {}, True),  # which divides by 1
        ("gemma2", {"head_dim": 8}, False),  # soft-capping
        ("granite", {"logits_scaling": 4.0}, False),
        ("cohere", {}, False),  # scaling
        ("minicpm3", {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}, False),  # of the hidden states
        ("modernbert-decoder", {"pad_token_id": 1}, False),  # `get_decoder()` gives its head
        ("rembert", {"is_decoder": True}, False),  # the head takes other hidden states
        ("llama4_text", {"head_dim": 8, "num_local_experts": 2}, False),  # `get_decoder()` gives the model
        ("llama", {"dtype": torch.bfloat16}, True),
        ("gemma2", {"head_dim": 8, "dtype": torch.bfloat16}, False),
        ("mamba", {"dtype": torch.bfloat16}, False),  # hidden states are in fp32
    ],
)
def test_what_a_model_does_to_its_logits_is_seen_before_training(model_type, fields, expected, chunks):
    model = of_type(model_type, **fields)
    random_state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    assert head_makes_logits(model) is expected
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())

    # The answer for the fresh model holds for one whose logits are large.
    model.eval()
    ids, labels = random_ids(BATCH, TIME), random_ids(BATCH, TIME + 1)[:, 1:]
    with torch.no_grad():
        largest = model(input_ids=ids, use_cache=False).logits.abs().max()
        model.get_output_embeddings().weight.mul_(60 / largest)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.copy_(torch.arange(VOCABULARY) / 10)
    logits = model(input_ids=ids, use_cache=False).logits
    plain = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    loss, tolerance = CausalLMLoss(model, expected), {"rtol": 2e-2, "atol": 0.1} if "dtype" in fields else {}
    torch.testing.assert_close(loss(ids, labels), plain.sum(), **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(loss(ids, labels), plain.sum(), **tolerance)
        torch.testing.assert_close(loss(ids, labels, reduction="none"), plain, **tolerance)


def with_a_bias_outside(model, logits):
    return logits + model.bias_of_logits  # which is zero


def with_a_padded_vocabulary(model, logits):
    return logits[..., :60]


def scaled_in_place(model, logits):
    return logits.mul_(0.5)


@pytest.mark.parametrize("change", [with_a_bias_outside, with_a_padded_vocabulary, scaled_in_place])
def test_what_happens_outside_of_the_head_is_seen(change):
    class Changed(GPTForCausalLM):
        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = change(self, outputs.logits)
            return outputs

    model = small_model()
    model.__class__ = Changed
    model.register_buffer("bias_of_logits", torch.zeros(VOCABULARY))
    assert not head_makes_logits(model)
    assert not model.bias_of_logits.any()


def test_an_estimate_gets_the_answer_without_numbers():
    with FakeTensorMode(allow_non_fake_inputs=True), MemoryTracker():
        assert head_makes_logits(of_type("llama"))
        assert not head_makes_logits(of_type("gemma2", head_dim=8))


def test_the_summed_loss_without_gradients_has_the_heads_bias(chunks, monkeypatch):
    monkeypatch.setattr(loss_module, "_LOGITS_WITHOUT_GRADIENTS", CHUNK * VOCABULARY)
    model, ids = small_model(tie_word_embeddings=False), random_ids(BATCH, TIME)
    with_a_bias(model)
    expected, _ = loss_and_gradients(model, ids, ids)
    with torch.no_grad():
        torch.testing.assert_close(CausalLMLoss(model)(ids, ids) / ids.numel(), expected)


def test_a_run_records_how_its_loss_is_computed(tiny):
    job = prepare_run(Recipe.from_dict(tiny))
    path = run(job, default_observers(job)).run_dir / "environment.json"
    recorded = json.loads(path.read_text())
    assert recorded["head_makes_logits"] is True
    earlier = {name: value for name, value in recorded.items() if name != "head_makes_logits"}
    for environment, expected in (({**recorded, "head_makes_logits": False}, False), (earlier, True)):
        path.write_text(json.dumps(environment))
        job = prepare_run(Recipe.from_dict(tiny))
        assert not job.warnings
        assert TrainingRun(job, []).loss.head_makes_logits is expected
    path.write_text(json.dumps({**recorded, "head_makes_logits": "yes"}))
    with pytest.raises(UserError, match="head_makes_logits is not what was written there"):
        prepare_run(Recipe.from_dict(tiny))
    path.write_text(json.dumps({**recorded, "head_makes_logits": False}))
    shutil.rmtree(path.parent / "checkpoints")  # nothing to resume: the answer may be of another version
    assert TrainingRun(prepare_run(Recipe.from_dict(tiny)), []).loss.head_makes_logits is True


@pytest.mark.parametrize(("model_type", "fields"), [("gemma2", {"head_dim": 8}), ("phi", {}), ("llama", {})])
def test_many_logits_at_once_are_worth_a_line(model_type, fields, tiny, chunks):
    class Listener(Observer):
        def __init__(self):
            self.said = []

        def noted(self, training, kind, message, facts):
            self.said.append(message)

    job, listener = prepare_run(Recipe.from_dict(tiny)), Listener()
    job.model = of_type(model_type, **fields, vocab_size=257)
    run(job, [listener], until=0)
    more = f"{model_type}'s are more than output embeddings times hidden states"
    line = f"loss       from 64 x 257 logits at once: {more}"
    assert [said for said in listener.said if said.startswith("loss ")] == ([] if model_type == "llama" else [line])


def test_the_losses_of_tokens_have_gradients(chunks, monkeypatch):
    monkeypatch.setattr(loss_module, "_LOGITS_WITHOUT_GRADIENTS", CHUNK * VOCABULARY)
    model, ids = small_model(), random_ids(BATCH, TIME)
    plain = loss_and_gradients(model, ids, ids)
    model.zero_grad()
    loss = CausalLMLoss(model)(ids, ids, reduction="none").mean()
    loss.backward()
    assert_agree((loss.detach(), [p.grad for p in model.parameters()]), plain)


def test_evaluating_leaves_each_module_in_its_mode():
    model = small_model()
    model.model.layers[0].eval()
    with evaluating(model):
        assert not model.training
    assert model.training
    assert not model.model.layers[0].mlp.training


def test_targets_of_another_shape_are_refused(chunks):
    model, ids = small_model(), random_ids(BATCH, TIME)
    with pytest.raises(ValueError, match="shape"):
        CausalLMLoss(model)(ids, random_ids(BATCH, TIME + 1))


def test_training_goes_without_the_logits(tiny, monkeypatch):
    """With chunks forced on it the run is the same but for rounding."""
    from hf_gpt import train

    plain = train(tiny).metrics
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *shapes: CHUNK)
    monkeypatch.setattr(loss_module, "_LOGITS_WITHOUT_GRADIENTS", CHUNK * 257)
    chunked = train({**tiny, "output_dir": tiny["output_dir"] + "-chunked"}).metrics
    for ours, theirs in zip(chunked, plain):
        for name in ("train_loss", "validation_loss"):
            if name in ours:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
