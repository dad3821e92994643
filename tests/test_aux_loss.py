"""The auxiliary loss of a mixture of experts: the model's own, a mean over micro-batches, and in no other loss."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_gpt import Observer, Recipe
from hf_gpt import loss as loss_module
from hf_gpt.loss import CausalLMLoss
from hf_gpt.run import prepare_run
from hf_gpt.training.loop import run

VOCABULARY, BATCH, TIME, IGNORED = 257, 3, 8, -100
COEFFICIENT = 0.3
_SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
_SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2, "initializer_range": 0.3}
_SHAPE |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "max_position_embeddings": 64}
# With the field that gives the coefficient its value, and the others of the type.
TYPES = {
    "mixtral": {"router_aux_loss_coef": COEFFICIENT, "num_local_experts": 4},
    "qwen3_moe": {"router_aux_loss_coef": COEFFICIENT, "num_experts": 4, "moe_intermediate_size": 8, "head_dim": 8},
    "olmoe": {"router_aux_loss_coef": COEFFICIENT, "num_experts": 4},
    "granitemoe": {"router_aux_loss_coef": COEFFICIENT, "num_local_experts": 4, "logits_scaling": 4.0},
    "jetmoe": {"aux_loss_coef": COEFFICIENT, "num_local_experts": 4, "kv_channels": 8},
}

pytestmark = pytest.mark.usefixtures("one_thread")


def mixture(model_type: str = "mixtral", **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**_SHAPE, **TYPES.get(model_type, {}), **changes})
    return AutoModelForCausalLM.from_config(config).train()


def random_ids(seed: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (BATCH, TIME), generator=torch.Generator().manual_seed(seed))


def by_hand(model, input_ids, labels, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss and the auxiliary loss of transformers' own forward pass."""
    outputs = model(input_ids=input_ids, output_router_logits=True, use_cache=False, **inputs)
    return cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum"), outputs.aux_loss


def gradient(model, loss=None) -> torch.Tensor:
    """Of `loss`, or the one that is there."""
    if loss is not None:
        model.zero_grad()
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("chunk", [None, 7])
def test_it_is_the_models_own(model_type, chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *_: chunk)
    model, ids, labels = mixture(model_type), random_ids(1), random_ids(2)
    expected, aux = by_hand(model, ids, labels)
    expected_gradient = gradient(model, expected / 24 + COEFFICIENT * aux)
    loss = CausalLMLoss(model)
    found, found_aux = loss(ids, labels, with_aux=True)
    torch.testing.assert_close((found, found_aux), (expected, COEFFICIENT * aux))
    torch.testing.assert_close(gradient(model, found / 24 + found_aux), expected_gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss(ids, labels), expected)


@pytest.mark.parametrize("chunk", [None, 7])
def test_rows_without_targets_do_not_count(chunk, monkeypatch):
    """The windows that fill up an epoch's last micro-batch."""
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *_: chunk)
    model, ids, labels = mixture(), random_ids(1), random_ids(2)
    ids[2], labels[2] = 0, IGNORED
    places = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4]).expand(BATCH, TIME).contiguous()  # two documents in a window
    expected, aux = by_hand(model, ids[:2], labels[:2], position_ids=places[:2])
    loss = CausalLMLoss(model)
    found = loss(ids, labels, with_aux=True, position_ids=places)
    torch.testing.assert_close(found, (expected, COEFFICIENT * aux))
    assert (found[1] - loss(ids, random_ids(2), with_aux=True, position_ids=places)[1]).abs() > 0.01
    without = loss(ids, torch.full_like(ids, IGNORED), with_aux=True)
    assert without[0] == without[1] == gradient(model, without[0] + without[1]).abs().max() == 0


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mixtral", {"router_aux_loss_coef": 0.0}),
        ("granitemoehybrid", {"num_local_experts": 0, "mamba_n_heads": 2}),  # a mixture of none
        ("llama", {}),
    ],
)
def test_models_without_it(model_type, changes):
    model, ids = mixture(model_type, **changes), random_ids(1)
    found, aux = CausalLMLoss(model)(ids, ids, with_aux=True)
    assert aux == 0
    assert torch.equal(found, CausalLMLoss(model)(ids, ids))


def test_gradient_checkpointing():
    model, ids = mixture(), random_ids(1)
    expected = gradient(model, CausalLMLoss(model)(ids, ids, with_aux=True)[1])
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradient(model, CausalLMLoss(model)(ids, ids, with_aux=True)[1]), expected)


# In training


class Recorder(Observer):
    """The metrics, gradients and weights after each step, and what was evaluated."""

    def __init__(self, model: PreTrainedModel):
        self.models, self.metrics, self.gradients, self.evaluated_metrics = [copy.deepcopy(model)], [], [], []

    def stepped(self, training, step, metrics):
        self.models.append(copy.deepcopy(training.model))
        self.metrics.append(metrics)
        self.gradients.append(gradient(training.model))

    def evaluated(self, training, step, metrics, samples):
        self.evaluated_metrics.append(metrics)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (2, 2)])
def test_it_is_a_mean_over_micro_batches(tmp_path, batch_size, accumulation):
    """Seven windows are a step of four and one of three."""
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dogs. " * 5)
    recipe = {
        "output_dir": str(tmp_path / "run"),
        "model": {"context_length": 32, "emb_dim": 16, "n_layers": 1, "n_heads": 1},  # in whose place the mixture goes
        "tokenizer": {"name": "bytes"},
        "data": {"source": str(tmp_path / "text.txt")},
        "train": {"epochs": 3, "batch_size": batch_size, "gradient_accumulation_steps": accumulation, "device": "cpu"},
        "evaluation": {"prompts": []},
    }
    recipe["train"] |= {"log_every": 1, "max_grad_norm": None, "mixed_precision": "no", "compile": False}
    job = prepare_run(Recipe.from_dict(recipe))
    job.model = mixture(router_jitter_noise=0.0)
    recorder = Recorder(job.model)
    run(job, [recorder], until=2)
    for step in (1, 2):
        model, windows = recorder.models[step - 1], job.plan.indices(step)
        batches = [
            job.data.windows.batch(some) for some in np.split(windows, range(batch_size, len(windows), batch_size))
        ]
        assert sum(len(batch["input_ids"]) for batch in batches) == len(windows) == 5 - step
        both = [by_hand(model, batch["input_ids"], batch["shift_labels"]) for batch in batches]
        loss = sum(loss for loss, _ in both) / (len(windows) * 32)
        aux_loss = COEFFICIENT * sum(aux for _, aux in both) / len(batches)
        metrics = recorder.metrics[step - 1]
        assert metrics["train_loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert metrics["aux_loss"] == pytest.approx(aux_loss.item(), rel=1e-6)
        expected = gradient(model, loss + aux_loss)
        torch.testing.assert_close(recorder.gradients[step - 1], expected, rtol=1e-4, atol=1e-6)
    everything = job.data.windows.batch(np.arange(7))
    evaluated = by_hand(recorder.models[0], everything["input_ids"], everything["shift_labels"])[0] / (7 * 32)
    assert "aux_loss" not in recorder.evaluated_metrics[0]
    assert recorder.evaluated_metrics[0]["eval_train_loss"] == pytest.approx(evaluated.item(), rel=1e-6)
