"""The tools people bring to a causal language model take this one as it stands: no adapter, no special case.

Each test is what a user of the tool would write, and says what the tool then promises. Those that need more than this
package needs come with `pip install 'hf_gpt[clients]'`, and are skipped without it.
"""

import copy
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline

from hf_gpt import GPTConfig, GPTForCausalLM, load_tokenizer

CONTEXT = 64
SENTENCES = [f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs." for i in range(32)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A saved model, large enough in its weights that a wrong mask or position shows, and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("clients") / "model"
    torch.manual_seed(0)
    tokenizer = load_tokenizer("bytes")
    shape = {"vocab_size": len(tokenizer), "emb_dim": 32, "n_heads": 4, "n_layers": 2, "context_length": CONTEXT}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = GPTForCausalLM(GPTConfig(**shape, **ends, drop_rate=0.0, initializer_range=0.2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(checkpoint) -> GPTForCausalLM:
    return AutoModelForCausalLM.from_pretrained(checkpoint)


@pytest.fixture
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


def needs(*names: str) -> None:
    """Skip the test where one of these distributions' modules is not installed."""
    for name in names:
        pytest.importorskip(name, reason=f"needs {name}: pip install 'hf_gpt[clients]'")


def ids_of(text: str, tokenizer) -> torch.Tensor:
    return torch.tensor([tokenizer(text)["input_ids"]])


def log_probability(model: GPTForCausalLM, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Of `continuation` after `context`, the natural logarithm, and whether greedy decoding would say it."""
    ids, targets = torch.tensor([(context + continuation)[:-1]]), torch.tensor(continuation)
    with torch.no_grad():
        log_probs = model(ids).logits[0, len(context) - 1 :].log_softmax(-1)
    return log_probs[range(len(targets)), targets].sum().item(), bool((log_probs.argmax(-1) == targets).all())


def mean_loss(model: GPTForCausalLM, texts: list[list[int]]) -> float:
    """Nats per predicted token, over all of them."""
    total = sum(log_probability(model, ids[:1], ids[1:])[0] for ids in texts)
    return -total / sum(len(ids) - 1 for ids in texts)


def greedy_text(model: GPTForCausalLM, tokenizer, prompt: str, new_tokens: int) -> str:
    ids = model.generate(ids_of(prompt, tokenizer), max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


# transformers


def corpus(tokenizer, column: str = "input_ids"):
    """Sentences of unequal lengths, with a column that no model knows."""
    from datasets import Dataset

    texts = [text[: 20 + 7 * (i % 5)] for i, text in enumerate(SENTENCES)]
    values = texts if column == "text" else [tokenizer(text)["input_ids"] for text in texts]
    return Dataset.from_dict({column: values, "source": ["here"] * len(texts)})


def trainer(model, tokenizer, folder, **arguments):
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer.pad_token = tokenizer.eos_token
    always = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "max_grad_norm": 0.0}
    return Trainer(
        model=model,
        args=TrainingArguments(str(folder), **always, **arguments),
        train_dataset=corpus(tokenizer),
        eval_dataset=corpus(tokenizer),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )


def test_trainer_learns_a_corpus_evaluates_and_saves_a_checkpoint(model, tokenizer, tmp_path):
    runs = trainer(
        model, tokenizer, tmp_path, max_steps=30, learning_rate=1e-2, logging_steps=1, per_device_train_batch_size=8
    )
    assert runs.label_names == ["labels"]
    texts = corpus(tokenizer)["input_ids"]
    assert runs.evaluate()["eval_loss"] == pytest.approx(mean_loss(model, texts), rel=0.02)  # a mean of batches' means
    runs.train()
    losses = [line["loss"] for line in runs.state.log_history if "loss" in line]
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]

    runs.save_model(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert mean_loss(loaded, texts) == mean_loss(model, texts) < 0.5 * losses[0]
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(SENTENCES[0]) == tokenizer(SENTENCES[0])


def test_trainer_divides_an_accumulated_loss_by_all_its_targets(checkpoint, tokenizer, tmp_path):
    """Two batches of four rows of unequal length make the same step as one batch of eight."""
    results = []
    for rows, accumulated in ((8, 1), (4, 2)):
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        arguments = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
        sgd = {"optim": "sgd", "learning_rate": 0.5, "max_steps": 1, "logging_steps": 1}
        runs = trainer(model, tokenizer, tmp_path, **arguments, **sgd)
        runs.train()
        results.append((runs.state.log_history[0]["loss"], model.state_dict()))
    (loss, state), (accumulated_loss, accumulated_state) = results
    assert accumulated_loss == pytest.approx(loss, rel=1e-4)
    start = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    for name, value in state.items():
        torch.testing.assert_close(accumulated_state[name] - start[name], value - start[name], atol=1e-6, rtol=1e-3)


def test_the_text_generation_pipeline_writes_what_generate_writes(checkpoint, model, tokenizer):
    prompts = ["The", "A longer prompt, and", "x"]
    writes = pipeline("text-generation", model=checkpoint, device="cpu")
    asked = {"max_new_tokens": 20, "do_sample": False}
    expected = [greedy_text(model, tokenizer, prompt, 20) for prompt in prompts]
    assert writes(prompts[0], **asked)[0]["generated_text"] == expected[0]
    writes.tokenizer.pad_token = writes.tokenizer.eos_token
    batched = writes(prompts, batch_size=3, **asked)
    assert [answers[0]["generated_text"] for answers in batched] == expected
    assert len(set(expected)) == 3


# PEFT


def test_a_lora_adapter_attaches_trains_merges_and_saves(checkpoint, model, tokenizer, tmp_path):
    needs("peft")
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    ids = torch.tensor([tokenizer(SENTENCES[0][:32])["input_ids"]])
    base = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    reached = {name.rpartition(".")[2] for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert reached == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}

    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=2e-2)
    losses = []
    for _ in range(20):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    for name, value in adapted.get_base_model().state_dict().items():
        if "lora_" not in name:
            assert torch.equal(value, base[name.replace(".base_layer", "")]), name

    with torch.no_grad():
        logits = adapted(ids).logits
        adapted.save_pretrained(tmp_path / "adapter")
        for auto_class in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
            torch.testing.assert_close(auto_class.from_pretrained(tmp_path / "adapter")(ids).logits, logits)
        merged = adapted.merge_and_unload()
        assert type(merged) is GPTForCausalLM
        torch.testing.assert_close(merged(ids).logits, logits, atol=1e-4, rtol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
        assert not any(report.values())
        assert torch.equal(loaded(ids).logits, merged(ids).logits)


# TRL


@pytest.mark.parametrize("packing", [False, True])
def test_sft_trainer_trains_on_text_and_packed_documents_do_not_see_each_other(
    packing, checkpoint, tokenizer, tmp_path
):
    needs("trl")
    from trl import SFTConfig, SFTTrainer

    texts = corpus(tokenizer, "text")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    runs = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=8,
            per_device_train_batch_size=32,  # all of it
            learning_rate=1e-2,
            max_length=CONTEXT,
            packing=packing,
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=texts,
        processing_class=tokenizer,
    )
    # each text on its own, ended as TRL ends it
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts["text"]]
    before = mean_loss(model, documents)
    runs.train()
    losses = [line["loss"] for line in runs.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(before, rel=1e-3)
    assert losses[-1] < 0.8 * losses[0]


# lm-eval


def test_lm_eval_computes_our_log_likelihoods_on_a_local_task(model, tokenizer, tmp_path):
    needs("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    questions = [
        {"question": "The sky is", "choices": ["blue", "a rather long way off", "7"], "answer": 0},
        {"question": "x" * 100, "choices": ["yes", "no"], "answer": 1},  # more than the context holds
    ]
    texts = [SENTENCES[0], " ".join(SENTENCES[:4])]  # the second is more than the context holds
    tasks = {
        "questions": {
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}],
        },
        "texts": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "text",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    }
    for (name, task), rows in zip(tasks.items(), (questions, [{"text": text} for text in texts])):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **task}))  # JSON is YAML
    answers = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu"),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )

    right = []
    for question, sample in zip(questions, answers["samples"]["questions"]):
        expected = []
        for choice in question["choices"]:
            ids = tokenizer(f"{question['question']} {choice}")["input_ids"]
            first = len(ids) - len(f" {choice}")
            expected.append(log_probability(model, ids[max(0, len(ids) - CONTEXT - 1) : first], ids[first:]))
        for (said,), (log_likelihood, is_greedy) in zip(sample["resps"], expected, strict=True):
            assert said[0] == pytest.approx(log_likelihood, abs=1e-3)
            assert said[1] == is_greedy
        right.append(max(expected) == expected[question["answer"]])
    assert answers["results"]["questions"]["acc,none"] == sum(right) / 2

    log_likelihood = 0.0
    for text in texts:
        ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
        for first in range(1, len(ids), CONTEXT):  # every token once, with as much before it as there is room for
            last = min(first + CONTEXT, len(ids))
            log_likelihood += log_probability(model, ids[max(0, last - CONTEXT - 1) : first], ids[first:last])[0]
    bits_per_byte = -log_likelihood / math.log(2) / sum(len(text.encode()) for text in texts)
    assert answers["results"]["texts"]["bits_per_byte,none"] == pytest.approx(bits_per_byte, rel=1e-4)


# torchao


def test_a_torchao_int8_model_loads_writes_and_saves(checkpoint, model, tokenizer, tmp_path):
    needs("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import TorchAoConfig

    int8 = TorchAoConfig(Int8WeightOnlyConfig())
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=int8)
    in_place = copy.deepcopy(model)
    quantize_(in_place.model, Int8WeightOnlyConfig())
    ids = ids_of(SENTENCES[0][:40], tokenizer)
    with torch.no_grad():
        exact = model(ids).logits
        for quantized in (loaded, in_place):
            kinds = {name: type(value).__name__ for name, value in quantized.named_parameters()}
            in_int8 = {name.split(".")[-2] for name, kind in kinds.items() if kind == "Int8Tensor"}
            assert in_int8 == {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}
            # a weight is rounded to 1/254 of its row's largest at worst; twelve matrices come to under 3% here
            error = (quantized(ids).logits - exact).std() / exact.std()
            assert 0 < error < 0.03
            assert len(greedy_text(quantized, tokenizer, "The quick", 12)) > len("The quick")
        assert torch.equal(loaded(ids).logits, in_place(ids).logits)

        loaded.save_pretrained(tmp_path)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, loaded(ids).logits)


# torch's own int8 kernels


@pytest.mark.filterwarnings("ignore:.*quantize.*are deprecated:UserWarning")
def test_an_int8_copy_has_no_other_matrix_and_writes(model, tokenizer):
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    int8 = quantize_dynamic(model, {torch.nn.Linear: per_channel_dynamic_qconfig})

    assert not any(type(module) is torch.nn.Linear for module in int8.modules())
    assert int8.lm_head.weight().dtype == torch.qint8  # though it is tied to the embedding, which keeps its dtype
    assert {parameter.dtype for parameter in int8.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = ids_of(SENTENCES[0][:40], tokenizer)
    with torch.no_grad():
        exact = model(ids).logits
        # besides weights, what goes into a matrix is rounded, to 1/127 of its range at worst
        error = (int8(ids).logits - exact).std() / exact.std()
    assert 0 < error < 0.05
    for how in ({}, {"num_beams": 2}, {"cache_implementation": "static"}):
        written = int8.generate(ids, max_new_tokens=CONTEXT, do_sample=False, eos_token_id=None, **how)
        assert written.shape[1] == ids.shape[1] + CONTEXT


# ONNX


def onnx_session(program):
    import onnxruntime

    return onnxruntime.InferenceSession(program.model_proto.SerializeToString())


def padded_rows(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of so many tokens each, padded on the left, and their mask."""
    ids = torch.randint(0, 256, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([torch.arange(max(lengths)) >= max(lengths) - length for length in lengths]).long()
    return ids, mask


def test_onnx_without_a_cache_computes_our_logits(model):
    needs("onnx", "onnxscript", "onnxruntime")
    model.config.use_cache = False
    sizes = {0: "batch", 1: "time"}
    program = torch.onnx.export(
        model,
        padded_rows(5, 7),
        dynamo=True,
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        output_names=["logits"],
        verbose=False,
    )
    session = onnx_session(program)
    for lengths in ((1,), (9,), (CONTEXT, 30), (3, 12, 1)):
        ids, mask = padded_rows(*lengths)
        (logits,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        for row, row_logits, length in zip(ids, torch.from_numpy(logits), lengths):
            with torch.no_grad():
                expected = model(row[None, -length:]).logits[0]
            torch.testing.assert_close(row_logits[-length:], expected, atol=1e-4, rtol=1e-4)


class WithCache(torch.nn.Module):
    """A model as a graph of tensors: keys and values of the past go in, those of past and present come out."""

    def __init__(self, model: GPTForCausalLM):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, past):
        past = DynamicCache(past)
        outputs = self.model(input_ids, attention_mask=attention_mask, past_key_values=past, use_cache=True)
        return outputs.logits, [(layer.keys, layer.values) for layer in outputs.past_key_values.layers]


def test_onnx_with_a_cache_writes_what_generate_writes(model, tokenizer):
    needs("onnx", "onnxscript", "onnxruntime")
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    head_dim = model.config.hidden_size // heads
    ids, mask = padded_rows(7, 12)
    # tensors of their own: torch.export takes one that is given twice for one input
    past = [(torch.zeros(2, heads, 5, head_dim), torch.zeros(2, heads, 5, head_dim)) for _ in range(layers)]
    sizes = {0: "batch", 2: "past"}
    program = torch.onnx.export(
        WithCache(model).eval(),
        (ids[:, 5:], mask, past),
        dynamo=True,
        dynamic_shapes=({0: "batch", 1: "time"}, {0: "batch", 1: "past + time"}, [(sizes, sizes)] * layers),
        verbose=False,
    )
    session = onnx_session(program)
    names = [graph_input.name for graph_input in session.get_inputs()]

    def step(ids: torch.Tensor, mask: torch.Tensor, past: list) -> tuple[torch.Tensor, list]:
        logits, *present = session.run(None, dict(zip(names, [ids.numpy(), mask.numpy(), *past], strict=True)))
        return torch.from_numpy(logits), present

    def no_past(batch: int) -> list:
        return [torch.zeros(batch, heads, 0, head_dim).numpy()] * (2 * layers)

    # prompt and continuation in pieces, in one graph, with padding
    ids, mask = padded_rows(14, 20, 9)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
    past = no_past(3)
    for start, stop in ((0, 13), (13, 14), (14, 15), (15, 20)):
        logits, past = step(ids[:, start:stop], mask[:, :stop], past)
        real = mask[:, start:stop].bool()
        torch.testing.assert_close(logits[real], expected[:, start:stop][real], atol=1e-4, rtol=1e-4)

    written = new = ids_of("The quick", tokenizer)
    past = no_past(1)
    for _ in range(20):
        logits, past = step(new, torch.ones_like(written), past)
        new = logits[:, -1:].argmax(-1)
        written = torch.cat([written, new], dim=1)
    assert tokenizer.decode(written[0]) == greedy_text(model, tokenizer, "The quick", 20)
