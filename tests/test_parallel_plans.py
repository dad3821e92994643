"""The plans for several devices: sharded by transformers over two processes, the model computes what one computes.

gloo on the CPU stands for what NCCL does on GPUs; the plans and transformers' use of them are the same.
"""

import os
import subprocess
import sys

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface

from hf_gpt import GPTConfig, GPTForCausalLM

SIZES = {"vocab_size": 62, "hidden_size": 32, "num_attention_heads": 4}

CHILD = """
import sys
import torch, torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
import hf_gpt

tied, untied, out = sys.argv[1:]
input_ids = torch.arange(24).view(2, 12)
mask = torch.ones_like(input_ids)
mask[0, :5] = 0  # padding on the left
found = {}

def look(name, model):
    with torch.no_grad():
        logits = model.eval()(input_ids, attention_mask=mask).logits
        found[f"{name} logits"] = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
        # without padding, which transformers' own models do not survive either in a pipeline with a cache
        found[f"{name} tokens"] = model.generate(input_ids, max_new_tokens=4, do_sample=False)

sharded = AutoModelForCausalLM.from_pretrained(tied, tp_plan="auto")
look("tied tensor", sharded)
look("untied tensor", AutoModelForCausalLM.from_pretrained(untied, tp_plan="auto"))
for part in ("q_proj", "o_proj"):
    weight = getattr(sharded.model.layers[0].self_attn, part).weight
    found[f"{part} here"] = torch.tensor(weight.to_local().shape)
try:
    from transformers.distributed import pipeline_parallel
    from transformers.distributed.configuration_utils import DistributedConfig
except ImportError:  # transformers before it split pipelines itself
    pass
else:
    staged = AutoModelForCausalLM.from_pretrained(tied, distributed_config=DistributedConfig(pp_size=2))
    look("tied pipeline", staged)
    stages = DistributedConfig(pp_size=2)
    look("untied pipeline", AutoModelForCausalLM.from_pretrained(untied, distributed_config=stages))
    own = sum(not isinstance(layer, torch.nn.Identity) for layer in staged.model.layers)
    found["blocks here"] = torch.tensor(own)
save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{out}.{dist.get_rank()}")
dist.destroy_process_group()
"""


def test_two_processes_share_a_model_and_compute_what_one_does(tmp_path):
    models = {}
    for name, tied in (("tied", True), ("untied", False)):
        torch.manual_seed(0)
        changes = {"initializer_range": 0.3, "tie_word_embeddings": tied, "qkv_bias": tied, "num_hidden_layers": 3}
        models[name] = GPTForCausalLM(GPTConfig(**SIZES, **changes, context_length=16)).eval()
        models[name].save_pretrained(tmp_path / name)
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, tmp_path / "child.py", *(tmp_path / name for name in models), tmp_path / "found"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    input_ids = torch.arange(24).view(2, 12)
    mask = torch.ones_like(input_ids)
    mask[0, :5] = 0
    for name, model in models.items():
        with torch.no_grad():
            logits = model(input_ids, attention_mask=mask).logits
        tokens = model.generate(input_ids, max_new_tokens=4, do_sample=False)
        for rank in range(2):
            found = load_file(tmp_path / f"found.{rank}")
            for split in ("tensor", "pipeline") if "blocks here" in found else ("tensor",):
                real = found[f"{name} {split} logits"][mask.bool()]
                torch.testing.assert_close(real, logits[mask.bool()], rtol=0, atol=2e-5)
                assert torch.equal(found[f"{name} {split} tokens"], tokens)
            assert found["q_proj here"].tolist() == [16, 32]  # half of the heads
            assert found["o_proj here"].tolist() == [32, 16]
            assert found.get("blocks here", rank + 1) == rank + 1  # one block of three, then two


class NotHere(nn.Identity):
    """What vLLM and transformers put in place of a block that another process has."""

    def forward(self, *args, **kwargs):
        return args[0]


def test_a_later_stage_takes_hidden_states_as_they_are():
    """What vLLM's transformers backend does with the pipeline plan, in one process."""
    torch.manual_seed(0)
    model = GPTForCausalLM(GPTConfig(**SIZES, num_hidden_layers=3)).eval()
    input_ids, positions = torch.arange(12)[None], torch.arange(12)[None]
    with torch.no_grad():
        whole = model.model(input_ids, position_ids=positions, output_hidden_states=True)
        names = list(GPTConfig.base_model_pp_plan)
        for name in names[: names.index("layers")]:
            setattr(model.model, name, NotHere())
        model.model.layers[0] = NotHere()
        after_one_block = whole.hidden_states[1]
        rest = model.model(inputs_embeds=after_one_block, position_ids=positions, use_cache=False)
    assert torch.equal(rest.last_hidden_state, whole.last_hidden_state)


def test_a_serving_engine_puts_its_own_attention_in():
    """vLLM and SGLang register an attention function that finds its cache by `layer_idx` in a keyword argument."""
    seen = []

    def paged_attention(module, query, key, value, attention_mask, scaling, attention_instances, **kwargs):
        seen.append((module.layer_idx, attention_instances[module.layer_idx], tuple(query.shape), attention_mask))
        assert module.is_causal
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("paged", paged_attention)
    torch.manual_seed(0)
    model = GPTForCausalLM(GPTConfig(**SIZES, num_hidden_layers=2)).eval()
    input_ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model.model(input_ids).last_hidden_state
        model.set_attn_implementation("paged")
        found = model.model(
            input_ids, position_ids=torch.arange(12)[None], use_cache=False, attention_instances={0: "a", 1: "b"}
        ).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert seen == [(0, "a", (1, 4, 12, 8), None), (1, "b", (1, 4, 12, 8), None)]
