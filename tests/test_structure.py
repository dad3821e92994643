"""Of any of transformers' types: which parameters Muon updates and decay spares, what a token costs, what is where."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_gpt import GPTConfig, GPTForCausalLM, UserError
from hf_gpt.estimate.forecast import parameters_by_part
from hf_gpt.recipe import OptimizerRecipe, Recipe
from hf_gpt.training import muon
from hf_gpt.training.hardware import pays_in_bf16, pays_to_compile, resolve_attention
from hf_gpt.training.muon import Muon
from hf_gpt.training.optimizer import build_optimizer
from hf_gpt.training.utilization import flops_per_token

SIZES = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 48}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
TYPES = {
    "llama": {**SIZES, **HEADS},
    "qwen3": {**SIZES, **HEADS, "head_dim": 24},
    "gpt2": {"vocab_size": 128, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "gemma2": {**SIZES, **HEADS, "head_dim": 24, "sliding_window": 64, "tie_word_embeddings": False},
    "mixtral": {**SIZES, **HEADS, **EXPERTS},
    "gpt_oss": {**SIZES, **HEADS, **EXPERTS, "head_dim": 16, "sliding_window": 64},
    "mamba": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "state_size": 8},
    "opt": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "ffn_dim": 48, "num_attention_heads": 2}
    | {"max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "falcon": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}


def small(model_type: str, **fields) -> PreTrainedModel:
    torch.manual_seed(0)
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model(model_type, **{**TYPES[model_type], **tokens, **fields})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")


def groups(model: torch.nn.Module, **recipe) -> list[list[str]]:
    """The names of the parameters in each group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerRecipe(**recipe))
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


_QKVO = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
_GATED = [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
_NORMS = ["model.norm.weight", ".input_layernorm.weight", ".post_attention_layernorm.weight"]
# By type: what Muon updates, what AdamW decays, what it does not; `.` begins what is in the block.
_GROUPS = {
    "llama": (
        [f".{name}" for name in (*_QKVO, *_GATED)],
        ["model.embed_tokens.weight", "lm_head.weight"],
        _NORMS,
    ),
    "qwen3": (
        [f".{name}" for name in (*_QKVO, *_GATED)],
        ["model.embed_tokens.weight", "lm_head.weight"],
        [*_NORMS, ".self_attn.q_norm.weight", ".self_attn.k_norm.weight"],
    ),
    "gpt2": (
        [f".{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")],
        ["transformer.wte.weight", "transformer.wpe.weight"],
        [f".{name}.bias" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
        + [f"{name}.{kind}" for name in (".ln_1", ".ln_2", "transformer.ln_f") for kind in ("weight", "bias")],
    ),
    "gemma2": (
        [f".{name}" for name in (*_QKVO, *_GATED)],
        ["model.embed_tokens.weight", "lm_head.weight"],
        [*_NORMS, ".pre_feedforward_layernorm.weight", ".post_feedforward_layernorm.weight"],
    ),
    "mixtral": (
        [f".{name}" for name in (*_QKVO, "mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")],
        ["model.embed_tokens.weight", "lm_head.weight"],
        _NORMS,
    ),
    "gpt_oss": (  # its experts have biases, of two dimensions
        [f".{name}" for name in (*_QKVO, "mlp.router.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")],
        ["model.embed_tokens.weight", "lm_head.weight"],
        _NORMS
        + [f".{name.replace('weight', 'bias')}" for name in (*_QKVO, "mlp.router.weight")]
        + [".self_attn.sinks", ".mlp.experts.gate_up_proj_bias", ".mlp.experts.down_proj_bias"],
    ),
    "mamba": (
        [f".mixer.{name}_proj.weight" for name in ("in", "x", "dt", "out")],
        ["backbone.embeddings.weight", ".mixer.conv1d.weight"],
        [f".{name}" for name in ("norm.weight", "mixer.A_log", "mixer.D", "mixer.conv1d.bias", "mixer.dt_proj.bias")]
        + ["backbone.norm_f.weight"],
    ),
}
_BLOCK = {"gpt2": "transformer.h.0", "mamba": "backbone.layers.0"}


@pytest.mark.parametrize("model_type", _GROUPS)
def test_what_muon_updates_and_decay_spares(model_type):
    block = _BLOCK.get(model_type, "model.layers.0")
    of_muon, decayed, spared = (
        {block + name if name[0] == "." else name for name in names} for names in _GROUPS[model_type]
    )
    model = small(model_type)
    assert [*map(set, groups(model, name="muon"))] == [decayed, spared, of_muon]
    assert [*map(set, groups(model, name="muon", decay="all"))] == [decayed | spared, of_muon]
    assert [*map(set, groups(model))] == [decayed | of_muon, spared]


def test_a_tied_head_is_not_muons():
    model = small("llama", tie_word_embeddings=True)
    assert groups(model, name="muon")[0] == ["model.embed_tokens.weight"]


def test_our_groups_are_those_of_earlier_runs_in_their_order():
    """An optimizer's state is by number: in another order an earlier run would resume with another's momentum."""
    model = GPTForCausalLM(GPTConfig(vocab_size=99, context_length=16, emb_dim=32, n_layers=2, n_heads=2))
    names = [name for name, _ in model.named_parameters()]
    matrices = [n for n in names if "layers." in n and n.endswith("proj.weight")]
    embeddings = ["model.embed_tokens.weight", "model.embed_positions.weight"]
    vectors = [n for n in names if n not in (*matrices, *embeddings)]
    assert len(matrices) == 12
    assert groups(model, name="muon") == [embeddings, vectors, matrices]
    assert groups(model) == [[*embeddings, *matrices], vectors]
    assert groups(model, name="muon", decay="all") == [[n for n in names if n not in matrices], matrices]
    assert groups(model, decay="all") == [names]


def test_muon_needs_matrices():
    with pytest.raises(ValueError, match="weights of linear layers and experts"):
        build_optimizer(torch.nn.Embedding(4, 4), OptimizerRecipe(name="muon"))


def stepped(parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """`parameters` after two steps of Muon with these gradients."""
    parameters = [torch.nn.Parameter(parameter.clone()) for parameter in parameters]
    optimizer = Muon([{"params": parameters, "orthogonal": True, "weight_decay": 0.1}], lr=1e-2)
    for scale in (1.0, -3.0):
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = scale * gradient**2
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("at_once", [2**24, 1])  # all matrices together, and one at a time
def test_a_stack_of_experts_is_updated_matrix_by_matrix(at_once, monkeypatch):
    monkeypatch.setattr(muon, "_STACKED_NUMBERS", at_once)
    draw = torch.Generator().manual_seed(0)
    weights, gradients = torch.randn(2, 2, 3, 8, 24, generator=draw)
    gradients[0, 1] *= 100.0  # an expert that got more tokens is not updated more
    together = stepped([*weights], [*gradients])
    apart = stepped([*weights.flatten(0, 1)], [*gradients.flatten(0, 1)])
    torch.testing.assert_close(torch.stack(together).flatten(0, 1), torch.stack(apart))
    assert not torch.allclose(together[0], weights[0], atol=1e-3)


def test_conv1d_is_updated_as_the_linear_layer_that_it_is():
    """Its weight is (in, out), where a linear layer's is (out, in)."""
    layer = Conv1D(24, 8)
    gradient = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    [ours], [theirs] = stepped([layer.weight.data], [gradient]), stepped([layer.weight.data.T], [gradient.T])
    torch.testing.assert_close(ours, theirs.T)


@pytest.mark.parametrize("model_type", TYPES)
def test_operations_of_any_type_are_those_that_torch_counts(model_type):
    model, ids = small(model_type, num_hidden_layers=2), torch.randint(128, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    counts = counter.get_flop_counts()["Global"]
    if model_type == "mamba":  # no convolution counts, and no scan
        counts = {torch.ops.aten.mm: counts[torch.ops.aten.mm]}
    assert flops_per_token(model, 64) * ids.numel() == sum(counts.values())


def test_a_token_looks_no_further_than_a_sliding_window():
    """Gemma 2 has one in every second layer, Mistral in all: Mixtral too, if its configuration says so."""
    attention = 12 * 2 * 24  # FLOPs for each token that is looked at: 2 heads of 24
    whole, windowed = (small("gemma2", num_hidden_layers=4, sliding_window=window) for window in (64, 16))
    assert flops_per_token(whole, 64) - flops_per_token(windowed, 64) == 2 * attention * (64 - 16)
    whole, windowed = (small("mixtral", head_dim=24, sliding_window=window) for window in (None, 16))
    assert flops_per_token(whole, 64) - flops_per_token(windowed, 64) == attention * (64 - 16)


_ATTENTION = 32 * (32 + 16 + 16 + 32)
_PARTS = {
    "llama": {"attention": _ATTENTION, "feed-forward": 3 * 32 * 48, "norms": 3 * 32, "output head": 128 * 32},
    "gpt2": {
        "positions": 64 * 32,
        "attention": 4 * 32 * 33,
        "feed-forward": 32 * 128 + 128 + 128 * 32 + 32,
        "norms": 3 * 2 * 32,
        "output head": 0,
    },
    "mixtral": {
        "attention": _ATTENTION,
        "feed-forward": 4 * 3 * 32 * 48 + 4 * 32,
        "norms": 3 * 32,
        "output head": 128 * 32,
    },
    "mamba": {
        "norms": 2 * 32,
        "other": 64 * (2 * 32 + 2 + 2 * 8 + 2 + 1 + 8 + 1 + 4 + 1 + 32),  # the mixer, 64 wide
        "output head": 0,
    },
    "opt": {
        "positions": 66 * 32,  # OPT's, of which the first two are never used
        "attention": 4 * 32 * 33,
        "feed-forward": 32 * 48 + 48 + 48 * 32 + 32,
        "norms": 3 * 2 * 32,
        "output head": 0,
    },
}


@pytest.mark.parametrize("model_type", _PARTS)
def test_every_parameter_has_a_part(model_type):
    model = small(model_type)
    parts = parameters_by_part(model)
    assert parts == {"embeddings": 128 * 32, **_PARTS[model_type]}
    assert sum(parts.values()) == model.num_parameters()


def resolved(model_type: str, attention: str, device: str = "cuda", precision: str = "bf16", **fields) -> str:
    train = {"device": device, "mixed_precision": precision, "attn_implementation": attention}
    config = AutoConfig.for_model(model_type, **fields)
    return resolve_attention(Recipe.from_dict({"train": train}).train, config).attn_implementation


@pytest.mark.parametrize(
    ("model_type", "asked", "found"),
    [
        ("hf_gpt", "auto", "sdpa"),
        ("llama", "auto", "sdpa"),
        ("llama", "sdpa", "sdpa"),
        ("llama", "eager", "eager"),
        ("llama", "flex_attention", "flex_attention"),
        ("gpt2", "flash_attention_2", "flash_attention_2"),
        ("gemma2", "auto", "eager"),  # which caps its scores
        ("gemma2", "flex_attention", "flex_attention"),
        ("mamba", "auto", "eager"),  # has no attention
    ],
)
def test_attention_is_sdpa_where_a_type_has_it(model_type, asked, found):
    assert resolved(model_type, asked) == found


@pytest.mark.parametrize(
    ("model_type", "asked", "fields", "words"),
    [
        ("gemma2", "sdpa", {}, "transformers' Gemma2ForCausalLM has no such attention; use eager"),
        ("mamba", "flash_attention_2", {}, "transformers' MambaForCausalLM has no such attention; use eager"),
        ("gpt2", "flex_attention", {}, "transformers' GPT2LMHeadModel has no such attention; use sdpa"),
        ("llama", "flex_attention", {"attention_dropout": 0.1}, "it has no dropout, and the model has 0.1; use sdpa"),
        ("hf_gpt", "flex_attention", {"dropout": 0.2}, "it has no dropout, and the model has 0.2; use sdpa"),
        ("gemma2", "flash_attention_2", {"precision": "no"}, "computes in bf16 or fp16, .* is no; use eager"),
        ("gemma2", "flex_attention", {"device": "cpu"}, "it cannot be trained on cpu; use eager"),
    ],
)
def test_attention_that_a_type_has_not_is_refused_in_one_line(model_type, asked, fields, words):
    with pytest.raises(UserError, match=words) as refused:
        resolved(model_type, asked, **fields)
    assert "\n" not in str(refused.value)
    assert "train.attn_implementation" in str(refused.value)


def test_precision_and_compilation_are_decided_for_every_type(monkeypatch):
    monkeypatch.setenv("CXX", "python3")  # any program that is there
    widths = (255, 256)
    assert [pays_in_bf16(AutoConfig.for_model("gpt2", n_embd=width, n_head=1)) for width in widths] == [False, True]
    sizes = {"hidden_size": 192, "num_hidden_layers": 4}
    for device in ("cpu", "cuda"):
        assert pays_to_compile(device, AutoConfig.for_model("llama", **sizes), 10_000, 8 * 128)
        assert not pays_to_compile(device, AutoConfig.for_model("mamba", **sizes), 10_000, 8 * 128)
