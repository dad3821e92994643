"""`skip_logits`: the loss and the gradients of the plain path, without the logits where they are many."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_gpt import GPTConfig, GPTForCausalLM, modeling_gpt

VOCABULARY, BATCH, TIME, IGNORED = 67, 3, 8, 5
CHUNK = 7  # does not divide the 24 tokens

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def chunks(monkeypatch):
    """Small shapes go by chunks too."""
    monkeypatch.setattr(modeling_gpt, "tokens_per_chunk", lambda num_tokens, vocab_size, device_type: CHUNK)


@pytest.fixture(params=["torch", "own"])
def kernel(request, chunks, monkeypatch):
    """Torch's function, and what stands for it where torch lacks it."""
    if request.param == "own":
        monkeypatch.setattr(modeling_gpt, "linear_cross_entropy", None)
    elif modeling_gpt.linear_cross_entropy is None:
        pytest.skip("this torch has no linear_cross_entropy")
    return request.param


def small_model(dtype=torch.float32, **changes) -> GPTForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "context_length": 16}
    return GPTForCausalLM(GPTConfig(**shape, drop_rate=0.0, initializer_range=0.3, **changes)).to(dtype).train()


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model, ids, scale=1.0, **inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    outputs = model(ids, use_cache=False, **inputs)
    assert (outputs.logits is None) == bool(inputs.get("skip_logits"))
    (outputs.loss * scale).backward()
    return outputs.loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


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
    rule = modeling_gpt.tokens_per_chunk
    assert rule(4 * 1024, 50257, "cpu") == rule(4 * 256, 50257, "cpu") == 512
    assert rule(2 * 256, 50257, "cpu") is None  # a batch of the book's
    assert rule(8 * 128, 4096, "cpu") is None
    assert rule(256, 200_000, "cpu") is None  # one chunk: nothing gained
    assert rule(4 * 1024, 50257, "cuda") is None
    assert rule(8 * 1024, 50257, "cuda") == 512


def test_small_logits_keep_every_bit():
    model, ids = small_model(), random_ids(BATCH, TIME)
    plain = loss_and_gradients(model, ids, labels=ids)
    assert_same_bits(loss_and_gradients(model, ids, labels=ids, skip_logits=True), plain)


def test_logits_stay_unless_skipped(chunks):
    model, ids = small_model(), random_ids(BATCH, TIME)
    assert model(ids, labels=ids).logits.shape == (BATCH, TIME, VOCABULARY)
    assert model(ids, labels=ids, skip_logits=True).logits is None
    with pytest.raises(ValueError, match="labels"):
        model(ids, skip_logits=True)


# The numbers


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "inputs",
    [
        {"labels": "ids"},
        {"shift_labels": "ids"},
        {"labels": "ids", "num_items_in_batch": 100},
        {"shift_labels": "ids", "num_items_in_batch": torch.tensor(100)},
        {"labels": "ids", "ignore_index": IGNORED},
        {"shift_labels": "ids", "ignore_index": VOCABULARY + 3},
        {"shift_labels": "ids", "logits_to_keep": 5},
    ],
    ids=lambda inputs: "-".join(inputs),
)
def test_loss_and_gradients_are_those_of_the_plain_path(kernel, inputs, tied):
    model, ids = small_model(tie_word_embeddings=tied), random_ids(BATCH, TIME)
    labels = random_ids(BATCH, TIME + 1)[:, 1:]  # a view, not contiguous
    labels = labels[:, -inputs.get("logits_to_keep", TIME) :]
    labels[0, :3] = labels[2, 4:] = inputs.get("ignore_index", -100)
    inputs = {name: labels if value == "ids" else value for name, value in inputs.items()}
    plain = loss_and_gradients(model, ids, **inputs)
    assert_agree(loss_and_gradients(model, ids, skip_logits=True, **inputs), plain)
    scaled = loss_and_gradients(model, ids, scale=8.0, skip_logits=True, **inputs)
    assert_agree((scaled[0], [gradient / 8 for gradient in scaled[1]]), plain)


def test_gradient_checkpointing_and_accumulation(kernel):
    model, ids = small_model(), random_ids(BATCH, TIME)
    plain = loss_and_gradients(model, ids, labels=ids)
    model.gradient_checkpointing_enable()
    assert_agree(loss_and_gradients(model, ids, labels=ids, skip_logits=True), plain)
    model.zero_grad()
    num_targets = BATCH * (TIME - 1)
    for row in ids.split(1):
        model(row, labels=row, num_items_in_batch=num_targets, use_cache=False, skip_logits=True).loss.backward()
    assert_agree((plain[0], [p.grad for p in model.parameters()]), plain)


def test_without_gradients_and_with_a_frozen_head(kernel):
    model, ids = small_model(tie_word_embeddings=False), random_ids(BATCH, TIME)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, labels=ids, skip_logits=True).loss, model(ids, labels=ids).loss)
    model.lm_head.weight.requires_grad_(False)
    plain = loss_and_gradients(model, ids, labels=ids)
    assert_agree(loss_and_gradients(model, ids, labels=ids, skip_logits=True), plain)


def test_no_target_at_all_is_the_same_nan(kernel):
    model, ids = small_model(), random_ids(BATCH, TIME)
    nothing = torch.full_like(ids, -100)
    assert model(ids, labels=nothing).loss.isnan()
    assert model(ids, labels=nothing, skip_logits=True).loss.isnan()
    assert model(ids, labels=nothing, skip_logits=True, num_items_in_batch=4).loss == 0


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bf16(kernel, how):
    """Over many tokens: the plain path rounds its logits to bf16, which alone moves the loss of 24 tokens by 1e-4."""
    model, ids = small_model(torch.bfloat16 if how == "weights" else torch.float32), random_ids(64, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        plain = loss_and_gradients(model, ids, labels=ids)
        found = loss_and_gradients(model, ids, labels=ids, skip_logits=True)
    assert_agree(found, plain, loss=1e-4, gradient=1e-2)


def test_bf16_products_sum_up_in_fp32(kernel):
    """Elsewhere than on a CPU the function is given bf16; over many tokens its rounding cancels out."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(4096, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(VOCABULARY, 16, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(0, VOCABULARY, (4096,), generator=generator)
    plain = nn.functional.cross_entropy(nn.functional.linear(hidden, weight).float(), targets, reduction="sum")
    expected = plain.detach(), list(torch.autograd.grad(plain / 4096, (hidden, weight)))
    found = modeling_gpt.chunked_cross_entropy(hidden, weight, targets, 512)
    found = found.detach(), list(torch.autograd.grad(found / 4096, (hidden, weight)))
    assert_agree(found, expected, loss=1e-4, gradient=1e-2)


def test_autocast_casts_the_head_as_it_does_on_the_plain_path(chunks, monkeypatch):
    seen = []
    model, ids = small_model(), random_ids(BATCH, TIME)
    monkeypatch.setattr(
        modeling_gpt,
        "chunked_cross_entropy",
        lambda hidden, weight, targets, chunk, ignore_index: seen.append((hidden, weight)) or hidden.sum(),
    )
    with torch.autocast("cpu", torch.bfloat16):
        model(ids, labels=ids, skip_logits=True)
    for tensor in seen[0]:  # on a CPU multiplied in fp32, but of what is bf16
        assert torch.equal(tensor, tensor.bfloat16().float())


@pytest.mark.filterwarnings("error:linear_cross_entropy")
def test_it_compiles_without_a_graph_break(kernel):
    model, ids = small_model(), random_ids(BATCH, TIME)
    plain = loss_and_gradients(model, ids, labels=ids)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(ids, labels=ids, use_cache=False, skip_logits=True).loss
    model.zero_grad()
    loss.backward()
    assert_agree((loss.detach(), [p.grad for p in model.parameters()]), plain)


# The memory


@pytest.mark.parametrize("skip_logits", [True, False])
def test_the_logits_are_never_built(kernel, skip_logits):
    model, ids = small_model(), random_ids(BATCH, TIME)
    with LargestTensor() as largest:
        loss_and_gradients(model, ids, labels=ids, skip_logits=skip_logits)
    if skip_logits:
        assert largest.elements <= max(CHUNK, 16) * VOCABULARY  # the transposed weight has 16 rows
    else:
        assert largest.elements == BATCH * TIME * VOCABULARY


# Where somebody else has a part in the logits


class Head(nn.Linear):
    """As LoRA's and the quantised ones: an nn.Linear that does something of its own."""

    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


def with_a_head_of_its_own(model):
    head = Head(16, VOCABULARY, bias=False)
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


def with_a_loss_of_its_own(model):
    model.loss_function = lambda logits, **kwargs: logits.square().mean()


def with_another_loss_type(model):
    model.loss_type = "ForMaskedLM"


@pytest.mark.parametrize(
    "change",
    [
        with_a_head_of_its_own,
        with_a_hook,
        with_another_forward,
        with_a_parametrization,
        with_a_bias,
        with_a_loss_of_its_own,
        with_another_loss_type,
    ],
)
def test_plain_logits_where_the_head_or_the_loss_is_not_ours(change, chunks):
    model, ids = small_model(tie_word_embeddings=False), random_ids(BATCH, TIME)
    unchanged = loss_and_gradients(copy.deepcopy(model), ids, labels=ids)
    change(model)
    plain = loss_and_gradients(model, ids, labels=ids)
    assert change is with_a_parametrization or plain[0] != unchanged[0]
    assert_same_bits(loss_and_gradients(model, ids, labels=ids, skip_logits=True), plain)


def test_plain_logits_where_the_weight_is_sharded(chunks):
    """A weight whose type is not torch's own, as DTensor's and the quantised ones."""

    class Sharded(torch.Tensor):
        pass

    model, ids = small_model(tie_word_embeddings=False), random_ids(BATCH, TIME)
    plain = loss_and_gradients(model, ids, labels=ids)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().as_subclass(Sharded))
    assert not modeling_gpt._is_plain_linear(model.lm_head)
    assert_same_bits(loss_and_gradients(model, ids, labels=ids, skip_logits=True), plain)


def test_plain_logits_under_lora(chunks):
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'hf_gpt[clients]'")
    model, ids = small_model(tie_word_embeddings=False), random_ids(BATCH, TIME)
    lora = peft.LoraConfig(target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(model, lora)
    plain = loss_and_gradients(model, ids, labels=ids)
    assert_same_bits(loss_and_gradients(model, ids, labels=ids, skip_logits=True), plain)


def test_targets_of_another_shape_are_refused_as_on_the_plain_path(chunks):
    model, ids = small_model(), random_ids(BATCH, TIME)
    for skip_logits in (False, True):
        with pytest.raises(ValueError, match="batch_size"):
            model(ids, shift_labels=random_ids(BATCH, TIME + 1), skip_logits=skip_logits)


def test_training_skips_the_logits(tiny, monkeypatch):
    """The loop asks for the loss alone; with chunks forced on it the run is the same but for rounding."""
    from hf_gpt import train

    plain = train(tiny).metrics
    calls = []
    real = modeling_gpt.chunked_cross_entropy
    monkeypatch.setattr(modeling_gpt, "tokens_per_chunk", lambda *shapes: CHUNK)
    monkeypatch.setattr(modeling_gpt, "chunked_cross_entropy", lambda *args: calls.append(1) or real(*args))
    chunked = train({**tiny, "output_dir": tiny["output_dir"] + "-chunked"}).metrics
    assert len(calls) == 24  # twelve steps of two batches
    for ours, theirs in zip(chunked, plain):
        for name in ("train_loss", "validation_loss"):
            if name in ours:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
