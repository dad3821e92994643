"""What only a GPU shows: bf16, fused AdamW, compiled steps, and runs that resume exactly there too."""

import copy

import pytest
import torch

import hf_gpt
from hf_gpt.loss import chunked_cross_entropy
from hf_gpt.recipe import OptimizerRecipe
from hf_gpt.training.optimizer import build_optimizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture
def on_gpu(tiny) -> dict:
    tiny["train"] |= {"device": "cuda", "mixed_precision": "bf16", "max_steps": 40}
    tiny["evaluation"]["every"] = tiny["checkpoint"]["every"] = 20
    return tiny


CLOCK = ("seconds", "tokens_per_second", "mfu", "peak_memory_bytes")


def lines(run) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in run.metrics]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_bf16_run_learns_and_goes_on_exactly(on_gpu, tmp_path, optimizer, compiled):
    on_gpu["optimizer"]["name"], on_gpu["train"]["compile"] = optimizer, compiled
    on_gpu["schedule"] = {"name": "constant"}
    torch.compiler.reset()
    whole = hf_gpt.train({**on_gpu, "output_dir": str(tmp_path / "whole")})
    half = copy.deepcopy(on_gpu)
    half["train"]["max_steps"] = 20
    hf_gpt.train(half)
    again = hf_gpt.train(on_gpu)
    assert lines(again) == lines(whole)
    validated = [line["validation_loss"] for line in whole.metrics if "validation_loss" in line]
    assert validated[-1] < validated[0] - 0.3


def test_a_compiled_run_is_compiled_once(on_gpu):
    on_gpu["train"]["compile"] = True
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        hf_gpt.train(on_gpu)


def test_adamw_is_fused():
    model = hf_gpt.GPTForCausalLM(hf_gpt.GPTConfig(vocab_size=65, emb_dim=32, n_layers=1, n_heads=2)).cuda()
    assert all(group["fused"] for group in build_optimizer(model, OptimizerRecipe()).param_groups)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
def test_the_loss_without_logits_is_the_loss(dtype, within):
    torch.manual_seed(0)
    hidden = torch.randn(1024, 64, device="cuda", dtype=dtype)
    weight = torch.randn(5000, 64, device="cuda", dtype=dtype) / 8
    targets = torch.randint(5000, (1024,), device="cuda")
    plain = torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    torch.testing.assert_close(chunked_cross_entropy(hidden, weight, targets, 256), plain, rtol=within, atol=0)
