# %% [markdown]
# Chapter 5 of *Build a Large Language Model From Scratch*, pretraining on unlabelled data, with this package: the same
# steps, on a text that every Python carries, in a minute or two. Run it whole (`python scripts/chapter5.py`), or cell
# by cell in an editor that knows `# %%`. `python scripts/chapter5.py the-verdict.txt` takes the book's own text.

# %%
import sys
import tempfile
from pathlib import Path

import torch

import hf_gpt
from hf_gpt import GPTConfig, GPTForCausalLM, Recipe
from hf_gpt.data.batches import BatchPlan
from hf_gpt.explain.decoding import compare, next_token_logits
from hf_gpt.explain.scores import explain
from hf_gpt.explain.token_text import show_token
from hf_gpt.training.data import prepare_data

SOURCE = sys.argv[1] if len(sys.argv) > 1 else "builtin:python-docs"
FOLDER = Path(tempfile.mkdtemp())
torch.manual_seed(123)

# %% [markdown]
# ## Text and token ids
# The book's `text_to_token_ids` and `token_ids_to_text` are a tokenizer's call and `decode`. The recipe below trains a
# byte-level BPE of 512 entries on the text; `{"name": "gpt2"}` would be the book's, which tiktoken downloads.

# %%
recipe = Recipe(
    output_dir=str(FOLDER / "run"),
    model={"context_length": 64, "emb_dim": 96, "n_layers": 2, "n_heads": 4, "drop_rate": 0.1, "hidden_act": "gelu"},
    tokenizer={"train": {"vocab_size": 512}},
    data={"source": SOURCE, "validation_fraction": 0.1},
    optimizer={"name": "muon", "lr": 3e-3, "muon_lr": 1e-2},  # {"lr": 3e-3}: AdamW, as in the book
    train={"max_steps": 240, "batch_size": 8},
    evaluation={"every": 80, "tokens": 8192, "prompts": ["The statement"], "sample_tokens": 25},
    checkpoint={"every": 80},
)
data = prepare_data(recipe)
tokenizer = data.tokenizer
ids = tokenizer("Every effort moves you", return_tensors="pt").input_ids
print("ids        ", ids.tolist())
print("text again ", tokenizer.decode(ids[0]))

# %% [markdown]
# ## Windows with a stride
# Inputs and targets, which are the inputs one token later. What step 1 sees is a function of the recipe alone.

# %%
for line in data.describe():
    print(line)
inputs, targets = data.windows.window(0)
print("input      ", inputs[:8].tolist())
print("target     ", targets[:8].tolist())
(batch,) = BatchPlan(data.windows, batch_size=2, shuffle=False).micro_batches(1, 0)
print("a batch    ", {name: tuple(tensor.shape) for name, tensor in batch.items()})

# %% [markdown]
# ## The loss of an untrained model
# From logits to probabilities, their logarithms, the mean, the loss and the perplexity: the book's six steps, for each
# token of a sentence. An untrained model is about as good as guessing, whose loss is `log(vocabulary)`.

# %%
untrained = GPTForCausalLM(GPTConfig(**data.config.to_diff_dict())).eval()
print(f"parameters  {untrained.num_parameters():,}, loss of guessing {torch.tensor(len(tokenizer)).log():.3f}")
print(explain(untrained, tokenizer, "Every effort moves you", top=3).table())

# %% [markdown]
# ## Training
# `train_model_simple`, with evaluation and samples on the way, checkpoints, and a run that resumes if it is stopped.

# %%
run = hf_gpt.train(recipe)
for line in run.metrics:
    if "validation_loss" in line:
        print(
            f"step {line['step']:3}  training {line['eval_train_loss']:.3f}  validation {line['validation_loss']:.3f}"
            f"  perplexity {line['perplexity']:.1f}"
        )
for sample in run.samples:
    print(f"step {sample['step']:3}  {' '.join(sample['text'].split())}")
print(f"loss plot   {run.output_dir / 'loss.png'}")

# %% [markdown]
# ## Decoding
# Greedy, temperature, top-k. The table is what transformers' `generate()` would draw from, and 1000 draws.

# %%
prompt = "The statement"
print("greedy     ", hf_gpt.generate_text(run.model, tokenizer, prompt, max_new_tokens=20))
print("T=1.4 k=25 ", hf_gpt.generate_text(run.model, tokenizer, prompt, max_new_tokens=20, temperature=1.4, top_k=25))
logits = next_token_logits(run.model, tokenizer, prompt)
print(compare(logits, lambda token: show_token(tokenizer, token), prompt).table(top=6))

# %% [markdown]
# ## Saving and loading
# A checkpoint is a folder that any tool of the ecosystem loads; what only training needs is in its `training_state/`.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

checkpoint = run.checkpoints[-1]
loaded = AutoModelForCausalLM.from_pretrained(checkpoint)
again = AutoTokenizer.from_pretrained(checkpoint)
difference = (loaded(ids).logits - run.model(ids).logits).abs().max()
print(f"{checkpoint.name}: largest difference of a logit {difference:.1e}, the same ids {again(prompt).input_ids}")

# %% [markdown]
# ## OpenAI's weights
# `hf-gpt convert openai-community/gpt2 my-gpt2 --from gpt2` (from the Hub), or `--from openai` (their TensorFlow
# release), makes a model of ours of them. The two are one function with other names, so a model goes both ways:

# %%
from transformers import GPT2LMHeadModel  # noqa: E402

from hf_gpt.conversion import to_gpt2  # noqa: E402

done = to_gpt2(str(checkpoint), str(FOLDER / "gpt2"))
stock = GPT2LMHeadModel.from_pretrained(FOLDER / "gpt2").eval()
print(f"as GPT-2    largest difference of a logit: {(stock(ids).logits - loaded(ids).logits).abs().max():.1e}")
