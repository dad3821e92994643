"""GPTModel and its heads: the book's mathematics, transformers' contract, weights that start and load as promised."""

import math

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    StaticCache,
)

from hf_gpt import (
    GPTConfig,
    GPTForCausalLM,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
    GPTModel,
)

SMALL = {"vocab_size": 61, "emb_dim": 32, "n_heads": 4, "n_layers": 3, "context_length": 16, "drop_rate": 0.1}


pytestmark = pytest.mark.usefixtures("one_thread")


def small_model(model_class=GPTForCausalLM, attention=None, **changes):
    """A small model whose weights are large enough that a wrong mask or position shows in its logits."""
    torch.manual_seed(0)
    model = model_class(GPTConfig(**{**SMALL, **changes}, initializer_range=0.3))
    if attention is not None:
        model.set_attn_implementation(attention)
    return model.eval()


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(1))


# The mathematics


def logits_as_the_book_computes_them(model: GPTForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """The book's forward pass, written out on this model's weights."""
    config, body = model.config, model.model
    head_dim = config.hidden_size // config.num_attention_heads
    batch, time = ids.shape
    future = torch.triu(torch.ones(time, time), diagonal=1).bool()

    def norm(layer: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return layer.weight * (x - mean) / torch.sqrt(variance + 1e-5) + layer.bias

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(batch, time, config.num_attention_heads, head_dim).transpose(1, 2)

    x = body.embed_tokens.weight[ids] + body.embed_positions.weight[:time]
    for block in body.layers:
        h = norm(block.input_layernorm, x)
        attention = block.self_attn
        queries, keys, values = (heads(p(h)) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        scores = (queries @ keys.transpose(2, 3)).masked_fill(future, -torch.inf)
        context = torch.softmax(scores / head_dim**0.5, dim=-1) @ values
        x = x + attention.o_proj(context.transpose(1, 2).reshape(batch, time, -1))
        h = block.mlp.up_proj(norm(block.post_attention_layernorm, x))
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + block.mlp.down_proj(h)
    return norm(body.norm, x) @ model.lm_head.weight.T


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_the_books(attention, tied):
    model = small_model(attention=attention, tie_word_embeddings=tied)
    ids = random_ids(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids).logits, logits_as_the_book_computes_them(model, ids), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("rates", [(0.4, None, None), (0.0, 0.4, None), (0.0, None, 0.4)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dropout_acts_in_training_alone(rates, attention):
    names = ("dropout", "attention_dropout", "embedding_dropout")
    model = small_model(attention=attention, **{"drop_rate": rates[0], **dict(zip(names[1:], rates[1:]))})
    ids = random_ids(1, 16)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.allclose(model(ids).logits, model(ids).logits)


def test_dropout_is_where_the_book_has_it():
    model = small_model(attention="eager").train()
    drawn = []
    original = nn.functional.dropout

    def recording(x, p=0.5, training=True, inplace=False):
        drawn.append((tuple(x.shape), p, training))
        return original(x, p, training, inplace)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(nn.functional, "dropout", recording)
        model(random_ids(2, 5))
    hidden, weights = ((2, 5, 32), 0.1, True), ((2, 4, 5, 5), 0.1, True)
    assert drawn == [hidden] + [weights, hidden, hidden] * 3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_outside_training_no_time_goes_into_dropout(attention):
    """At one token a step is made of calls more than of arithmetic."""
    model = small_model(attention=attention)
    called = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert len(called) == 1 + model.config.num_hidden_layers
    for module in called:
        module.register_forward_hook(lambda *_: pytest.fail("called a dropout that changes nothing"))
    model.generate(random_ids(1, 4), max_new_tokens=3, do_sample=False)


def test_dropout_acts_where_only_its_modules_are_in_training():
    """As whoever samples from the network's own uncertainty sets it: model.eval(), and then nn.Dropout in training."""
    model, ids = small_model(attention_dropout=0.0), random_ids(1, 16)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, model(ids).logits)


# Masks, positions, caches


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_padding_changes_no_real_tokens_logits(attention, side, use_cache):
    model = small_model(attention=attention)
    rows = [random_ids(1, n)[0] for n in (9, 4, 6)]
    ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for i, row in enumerate(rows):
        columns = slice(9 - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, columns], mask[i, columns] = row, 1
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, use_cache=use_cache).logits
        for i, row in enumerate(rows):
            torch.testing.assert_close(padded[i, mask[i].bool()], model(row[None]).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_packed_documents_do_not_see_each_other(attention, use_cache):
    model = small_model(attention=attention)
    documents = [random_ids(1, n) for n in (5, 3, 7)]
    positions = torch.cat([torch.arange(document.shape[1]) for document in documents]).unsqueeze(0)
    with torch.no_grad():
        packed = model(torch.cat(documents, dim=1), position_ids=positions, use_cache=use_cache).logits
        alone = torch.cat([model(document).logits for document in documents], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_continued_prefix_equals_one_pass(cache, padded):
    model = small_model()
    ids, mask = random_ids(2, 12), None
    if padded:
        mask = torch.ones(2, 12, dtype=torch.long)
        mask[1, :3] = 0
    past = StaticCache(config=model.config, max_cache_len=16) if cache == "static" else None
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        for start, stop in ((0, 5), (5, 6), (6, 12)):
            seen = mask[:, :stop] if padded else None
            outputs = model(ids[:, start:stop], attention_mask=seen, past_key_values=past, use_cache=True)
            past = outputs.past_key_values
            real = slice(3 if padded and start == 0 else 0, None)
            torch.testing.assert_close(outputs.logits[:, real], whole[:, start:stop][:, real], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="PyTorch compiles flex attention for CPUs with vector instructions only",
)
def test_flex_attention_agrees_with_eager():
    """On padded and on packed inputs; every kernel is compiled, so that this takes a while."""
    model = small_model(attention="eager")
    ids, mask = random_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    packed = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    cases = [{"attention_mask": mask}, {"position_ids": packed}]
    with torch.no_grad():
        expected = [model(ids, **case).logits for case in cases]
        model.set_attn_implementation("flex_attention")
        found = [model(ids, **case).logits for case in cases]
    for i, (ours, eager) in enumerate(zip(found, expected)):
        real = mask.bool() if i == 0 else torch.ones_like(mask).bool()
        torch.testing.assert_close(ours[real], eager[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision_is_the_same_model_rounded(attention, dtype):
    model = small_model(attention=attention)
    ids, mask = random_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad():
        exact = model(ids, attention_mask=mask).logits
        rounded = model.to(dtype)(ids, attention_mask=mask).logits
    assert rounded.dtype == dtype
    # 3 blocks of a few roundings each, on logits that go up to 20
    real = mask.bool()
    assert (rounded.float() - exact)[real].abs().max() < exact.abs().max() * 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["boolean", "added"])
def test_a_mask_of_four_dimensions_is_taken_as_it_is(attention, kind):
    model = small_model(attention=attention)
    ids = random_ids(2, 10)
    may_look = torch.ones(10, 10).tril().bool().repeat(2, 1, 1, 1)
    may_look[0, :, 6:, :6] = False  # the second document of the first row
    mask = may_look if kind == "boolean" else torch.zeros(may_look.shape).masked_fill(~may_look, torch.finfo().min)
    with torch.no_grad():
        positions = torch.stack([torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3]), torch.arange(10)])
        masked = model(ids, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(masked[:1, :6], model(ids[:1, :6]).logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(masked[:1, 6:], model(ids[:1, 6:]).logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(masked[1:], model(ids[1:]).logits, atol=1e-4, rtol=1e-4)


def test_inputs_embeds_equal_input_ids():
    model = small_model()
    ids = random_ids(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)
        with pytest.raises(ValueError, match="exactly one"):
            model(ids, inputs_embeds=model.get_input_embeddings()(ids))
        with pytest.raises(ValueError, match="exactly one"):
            model()


def test_an_input_longer_than_the_positions_is_refused_in_one_line():
    model = small_model()
    with torch.no_grad():
        past = model(random_ids(1, 16)).past_key_values
        for make in (lambda: model(random_ids(1, 17)), lambda: model(random_ids(1, 1), past_key_values=past)):
            with pytest.raises(ValueError, match=r"\A.*17 tokens.*max_position_embeddings=16.*\Z"):
                make()
        # more tokens, but no position beyond the last
        model(random_ids(1, 17), position_ids=torch.arange(17).clamp(max=15).unsqueeze(0))
        with pytest.raises(ValueError, match=r"\A.*17 tokens.*max_position_embeddings=16.*\Z"):
            model(random_ids(1, 17), position_ids=torch.arange(17).unsqueeze(0))


# Losses and outputs


def test_shift_labels_train_as_many_predictions_as_there_are_tokens():
    model = small_model()
    text = random_ids(2, 9)
    inputs, targets = text[:, :-1], text[:, 1:]
    with torch.no_grad():
        outputs = model(inputs, shift_labels=targets)
        expected = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten())
        torch.testing.assert_close(outputs.loss, expected)
        # `labels` are shifted by the loss: the same targets but for the last of each row
        targets = targets.clone()
        targets[:, -1] = -100
        torch.testing.assert_close(model(inputs, labels=inputs).loss, model(inputs, shift_labels=targets).loss)
        assert model(inputs).loss is None


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_num_items_in_batch_divides_the_summed_loss(name):
    model = small_model()
    ids = random_ids(2, 8)
    num_targets = 14 if name == "labels" else 16
    with torch.no_grad():
        mean = model(ids, **{name: ids}).loss
        for items in (100, torch.tensor(100)):
            loss = model(ids, **{name: ids}, num_items_in_batch=items).loss
            torch.testing.assert_close(loss, mean * num_targets / 100)


def test_logits_to_keep():
    model = small_model()
    ids = random_ids(2, 8)
    with torch.no_grad():
        every = model(ids).logits
        torch.testing.assert_close(model(ids, logits_to_keep=3).logits, every[:, -3:])
        torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, every[:, [1, 4]])


def test_hidden_states_attentions_and_tuples():
    model = small_model(attention="eager")
    ids = random_ids(2, 8)
    with torch.no_grad():
        outputs = model(ids, output_hidden_states=True, output_attentions=True)
        as_tuple = model(ids, return_dict=False)
        last = model.model(ids).last_hidden_state
    assert len(outputs.hidden_states) == 4
    torch.testing.assert_close(outputs.hidden_states[-1], last)
    assert [weights.shape for weights in outputs.attentions] == [(2, 4, 8, 8)] * 3
    assert torch.equal(outputs.attentions[0].triu(1), torch.zeros(2, 4, 8, 8))
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], outputs.logits)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = small_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls = []
        model.model.layers[0].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(7)  # the same dropout
        model(random_ids(2, 8), labels=random_ids(2, 8), use_cache=False).loss.backward()
        assert len(calls) == (2 if checkpointing else 1)  # computed once more on the way back
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        assert torch.equal(plain, checkpointed)


def test_forward_compiles_without_a_graph_break():
    model = small_model()
    ids = random_ids(2, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits)
        mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
        torch.testing.assert_close(compiled(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


def test_training_compiles_without_a_graph_break():
    ids = random_ids(2, 8)
    gradients = []
    for compiled in (False, True):
        model = small_model(drop_rate=0.0).train()
        forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        forward(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, compiled in zip(*gradients):
        torch.testing.assert_close(compiled, plain)


def test_it_exports_with_dynamic_shapes():
    model = small_model()
    batch, time = torch.export.Dim("batch", max=8), torch.export.Dim("time", max=16)
    program = torch.export.export(
        model,
        (),
        {"input_ids": random_ids(2, 8), "use_cache": False},
        dynamic_shapes={"input_ids": {0: batch, 1: time}, "use_cache": None},
    )
    for shape in ((2, 8), (3, 16), (4, 5)):
        ids = random_ids(*shape)
        torch.testing.assert_close(program.module()(input_ids=ids, use_cache=False).logits, model(ids).logits)


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"\A.*hidden_act.*'gleu'.*\Z"):
        GPTForCausalLM(GPTConfig(**SMALL, hidden_act="gleu"))


@pytest.mark.parametrize(
    ("model_class", "auto_class", "inputs", "shape"),
    [
        (GPTForSequenceClassification, AutoModelForSequenceClassification, {"labels": torch.tensor([2, 0])}, (2, 3)),
        (GPTForTokenClassification, AutoModelForTokenClassification, {"labels": random_ids(2, 8) % 3}, (2, 8, 3)),
        (
            GPTForQuestionAnswering,
            AutoModelForQuestionAnswering,
            {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
            (2, 8),
        ),
    ],
)
def test_heads_train_save_and_load(model_class, auto_class, inputs, shape, tmp_path):
    config = GPTConfig(**SMALL, num_labels=3, pad_token_id=0)
    model = auto_class.from_config(config).eval()
    assert type(model) is model_class
    outputs = model(random_ids(2, 8), **inputs)
    assert outputs.loss.requires_grad
    key = "start_logits" if "start_positions" in inputs else "logits"
    assert outputs[key].shape == shape
    model.save_pretrained(tmp_path)
    loaded, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        torch.testing.assert_close(loaded(random_ids(2, 8))[key], outputs[key].detach())


# How weights start


def parameters_as_constructors_draw_them(config: GPTConfig) -> dict[str, torch.Tensor]:
    """PyTorch's default draws in the book's order of modules."""
    width, inner = config.hidden_size, config.intermediate_size
    drawn: dict[str, nn.Module] = {"model.embed_tokens": nn.Embedding(config.vocab_size, width)}
    drawn["model.embed_positions"] = nn.Embedding(config.max_position_embeddings, width)
    for i in range(config.num_hidden_layers):
        for name in ("q_proj", "k_proj", "v_proj"):
            drawn[f"model.layers.{i}.self_attn.{name}"] = nn.Linear(width, width, bias=config.qkv_bias)
        drawn[f"model.layers.{i}.self_attn.o_proj"] = nn.Linear(width, width)
        drawn[f"model.layers.{i}.mlp.up_proj"] = nn.Linear(width, inner)
        drawn[f"model.layers.{i}.mlp.down_proj"] = nn.Linear(inner, width)
    drawn["lm_head"] = nn.Linear(width, config.vocab_size, bias=False)
    return {f"{name}.{key}": value for name, module in drawn.items() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("build", [GPTForCausalLM, AutoModelForCausalLM.from_config])
def test_pytorch_initialization_keeps_the_constructors_draws(build):
    config = GPTConfig(**SMALL, qkv_bias=False, tie_word_embeddings=False, initialization="pytorch")
    torch.manual_seed(123)
    expected = parameters_as_constructors_draw_them(config)
    stream_after = torch.get_rng_state()
    torch.manual_seed(123)
    state = build(config).state_dict()
    assert torch.equal(torch.get_rng_state(), stream_after), "a second drawing"
    assert list(expected) == [name for name in state if "norm" not in name]
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def residual(name: str) -> bool:
    return name.endswith(("o_proj.weight", "down_proj.weight"))


def assert_starts_as_gpt2(name: str, value: torch.Tensor, num_layers: int) -> None:
    if value.ndim == 2:
        std = 0.02 / math.sqrt(2 * num_layers) if residual(name) else 0.02
        assert value.std().item() == pytest.approx(std, rel=0.1), name
        assert abs(value.mean().item()) < std / 5, name
    else:
        assert torch.equal(value, torch.full_like(value, float("norm" in name and name.endswith("weight")))), name


def assert_starts_as_pytorch(name: str, value: torch.Tensor, model: nn.Module) -> None:
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, nn.Embedding):
        assert value.std().item() == pytest.approx(1, rel=0.1), name
    elif isinstance(module, nn.Linear):
        bound = module.in_features**-0.5
        assert value.abs().max() <= bound, name
        assert value.abs().max() > 0.8 * bound, name


def test_gpt2_initialization_scales_what_adds_up_in_the_residual_stream():
    model = GPTForCausalLM(GPTConfig(**{**SMALL, "emb_dim": 64}, tie_word_embeddings=False))
    for name, value in model.state_dict().items():
        assert_starts_as_gpt2(name, value, num_layers=3)


@pytest.mark.parametrize("initialization", ["gpt2", "pytorch"])
def test_what_a_checkpoint_lacks_is_drawn_as_the_config_says(initialization, tmp_path):
    """And what it has is left alone, also within one module."""
    changes = {**SMALL, "emb_dim": 64, "tie_word_embeddings": False, "initialization": initialization}
    model = GPTForCausalLM(GPTConfig(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    missing = {
        "lm_head.weight",
        "model.embed_positions.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
        "model.layers.2.mlp.up_proj.bias",
        "model.norm.weight",
    }
    state = {name: value for name, value in model.state_dict().items() if name not in missing}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == missing
    for name, value in loaded.state_dict().items():
        if name not in missing:
            assert torch.equal(value, torch.full_like(value, 3.0)), name
        elif initialization == "gpt2":
            assert_starts_as_gpt2(name, value, num_layers=3)
        else:
            assert_starts_as_pytorch(name, value, loaded)


# Saving and loading


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("initialization", ["gpt2", "pytorch"])
def test_auto_classes_load_every_checkpoint_whole(tied, initialization, tmp_path, caplog):
    model = small_model(tie_word_embeddings=tied, initialization=initialization)
    model.save_pretrained(tmp_path / "causal")
    model.model.save_pretrained(tmp_path / "backbone")
    cases = [(AutoModelForCausalLM, "causal"), (AutoModel, "causal"), (AutoModel, "backbone")]
    if tied:  # an untied head is not in the backbone's checkpoint
        cases.append((AutoModelForCausalLM, "backbone"))
    ids = random_ids(2, 8)
    for auto_class, name in cases:
        caplog.clear()
        loaded, report = auto_class.from_pretrained(tmp_path / name, output_loading_info=True)
        if auto_class is AutoModel and name == "causal" and not tied:  # as transformers has it: the head is left over
            assert report.pop("unexpected_keys") == {"lm_head.weight"}
        else:
            assert not caplog.records, caplog.text
        assert not any(report.values()), (auto_class, name, report)
        with torch.no_grad():
            if auto_class is AutoModel:
                assert type(loaded) is GPTModel
                assert torch.equal(loaded(ids).last_hidden_state, model.model(ids).last_hidden_state)
            else:
                assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
                assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_fresh_head_and_a_foreign_key_are_reported(tmp_path):
    model = small_model(tie_word_embeddings=False)
    state = {**model.model.state_dict(), "not_ours.weight": torch.zeros(2)}
    model.model.save_pretrained(tmp_path, state_dict=state)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == {"lm_head.weight"}
    _, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["unexpected_keys"]) == {"not_ours.weight"}


def test_parallel_plans_name_modules_that_exist():
    model = small_model(tie_word_embeddings=False)
    names = {name.replace(".0.", ".*.") for name, _ in model.named_modules()}
    assert {f"model.{name}" for name in GPTConfig.base_model_tp_plan} <= names
    assert {f"model.{name}" for name in GPTConfig.base_model_pp_plan} <= names
    assert {*GPTForCausalLM._tp_plan, *GPTForCausalLM._pp_plan} <= names
    assert set(model.tp_plan) >= {"lm_head", "model.layers.*.self_attn.q_proj"}
