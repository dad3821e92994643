"""What a run promises: it learns, it can be repeated, watched and resumed, and says when it cannot."""

import copy
import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.data.tokenizer import train_tokenizer
from hf_gpt.errors import RunStopped, UserError
from hf_gpt.recipe import Recipe, TrainRecipe
from hf_gpt.training.data import prepare_data
from hf_gpt.training.hardware import deterministic, pays_to_compile, resolve_hardware

CLOCK = ("seconds", "tokens_per_second", "mfu", "peak_memory_bytes")


def changed(recipe: dict, **fields) -> dict:
    """A copy of a recipe with `section__key` set."""
    recipe = copy.deepcopy(recipe)
    for name, value in fields.items():
        section, _, key = name.partition("__")
        if key:
            recipe.setdefault(section, {})[key] = value
        else:
            recipe[section] = value
    return recipe


def timeless(lines: list[dict]) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    b = b.state_dict()
    return all(torch.equal(tensor, b[name]) for name, tensor in a.state_dict().items())


@pytest.fixture
def run(tiny):
    return hf_gpt.train(tiny)


def test_a_run_leaves_the_files_it_promises(run):
    files = {path.name for path in run.output_dir.iterdir()}
    expected = {"recipe.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "loss.png", "checkpoints"}
    assert files == expected | {"report.html"}
    assert [path.name for path in run.checkpoints] == ["step-00000008", "step-00000012"]
    train = [line for line in run.metrics if "train_loss" in line]
    assert [line["step"] for line in train] == list(range(1, 13))
    assert {"step", "tokens", "words", "epoch", "train_loss", "lr", "grad_norm", *CLOCK} == set(train[0])
    evaluated = [line for line in run.metrics if "eval_train_loss" in line]
    assert [line["step"] for line in evaluated] == [0, 4, 8, 12]
    assert evaluated[-1]["perplexity"] == pytest.approx(math.exp(evaluated[-1]["validation_loss"]))
    assert evaluated[-1]["validation_loss"] < evaluated[0]["validation_loss"] - 0.3
    assert train[-1]["tokens"] == 12 * 4 * 32
    assert [sample["step"] for sample in run.samples] == [0, 4, 8, 12]
    environment = json.loads((run.output_dir / "environment.json").read_text())
    assert environment["versions"]["hf_gpt"] == hf_gpt.__version__
    assert environment["processes"] == 1


def test_what_a_model_writes_does_nothing_to_a_terminal(tiny, capsys):
    """Its bytes may be any: colours, a bell, the title of the window."""
    prompt = "\x1b[31mred \x1b]0;title\x07 中文" + 200 * " long"
    run = hf_gpt.train(changed(tiny, train__max_steps=1, evaluation__prompts=[prompt]))
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("    \\x1b[31mred")]
    assert shown
    assert all(line.isprintable() and len(line) < 140 and line.endswith(" …") for line in shown)
    assert run.samples[-1]["text"].startswith(prompt)
    assert not set("\x1b\x07") & set("\n".join(run.summary()))


def test_every_checkpoint_loads_as_it_stands(run):
    for saved in run.checkpoints:
        checkpoint.verify(saved)
        model, report = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
        assert not any(report.values())
        tokenizer = AutoTokenizer.from_pretrained(saved)
        assert tokenizer.decode(tokenizer("Line 1")["input_ids"]) == "Line 1"
        assert tokenizer.model_max_length == model.config.max_position_embeddings == 32
    assert same_weights(run.model, model)
    assert checkpoint.pointed(run.output_dir, "latest") == run.checkpoints[-1]
    assert (run.output_dir / "checkpoints" / "latest").read_text().strip() == "step-00000012"


def test_recipe_yaml_has_no_auto_and_repeats_the_run(run, tmp_path):
    text = (run.output_dir / "recipe.yaml").read_text()
    assert ": auto" not in text.replace("resume: auto", "")
    again = hf_gpt.train(Recipe.from_yaml(run.output_dir / "recipe.yaml", ["--output_dir", str(tmp_path / "again")]))
    assert same_weights(run.model, again.model)
    assert timeless(again.metrics) == timeless(run.metrics)


def test_resuming_repeats_the_uninterrupted_run(run, tiny, tmp_path):
    again = changed(tiny, output_dir=str(tmp_path / "again"))
    hf_gpt.train(again)
    lost = tmp_path / "again" / "checkpoints" / "step-00000012" / "model.safetensors"
    lost.write_bytes(lost.read_bytes()[:-1])  # the newest checkpoint is damaged, so step 8 is gone on from
    resumed = hf_gpt.train(again)
    assert same_weights(run.model, resumed.model)
    assert timeless(resumed.metrics) == timeless(run.metrics)
    assert resumed.samples == run.samples


def test_a_finished_run_is_not_trained_again(run, tiny):
    before = (run.output_dir / "metrics.jsonl").read_text()
    again = hf_gpt.train(tiny)
    assert same_weights(run.model, again.model)
    assert (run.output_dir / "metrics.jsonl").read_text() == before


def test_watching_more_closely_changes_nothing(run, tiny, tmp_path):
    closer = changed(
        tiny,
        output_dir=str(tmp_path / "closer"),
        evaluation={"every": 1, "tokens": None, "prompts": ["A", "B"], "temperature": 2.0, "at_epoch_end": True},
        checkpoint={"every": 1, "keep": None},
    )
    assert same_weights(run.model, hf_gpt.train(closer).model)


def test_accumulated_batches_equal_the_large_batch(tiny, tmp_path):
    """Also in an epoch's last, short global batch: the steps here cross the end of an epoch."""
    no_dropout = changed(tiny, model__drop_rate=0.0, train__max_steps=12, evaluation__every=100)
    short = {"validation_fraction": 0.8, "source": tiny["data"]["source"]}  # some windows, not a multiple of 4
    losses = {}
    for batch_size, accumulation in ((4, 1), (2, 2), (1, 4)):
        recipe = changed(no_dropout, data=short, output_dir=str(tmp_path / f"{batch_size}x{accumulation}"))
        recipe["train"] |= {"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "max_steps": 30}
        run = hf_gpt.train(recipe)
        losses[accumulation] = [line["train_loss"] for line in run.metrics if "train_loss" in line]
    windows = len(prepare_data(Recipe.from_dict(recipe)).windows)
    assert windows % 4  # there is a short batch
    assert windows < 30 * 4  # and it was seen
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert losses[4] == pytest.approx(losses[1], rel=1e-4)


def test_what_is_evaluated_does_not_depend_on_the_batch_size(tiny, tmp_path):
    first = {}
    for batch_size in (1, 5):
        recipe = changed(tiny, output_dir=str(tmp_path / str(batch_size)), train__batch_size=batch_size)
        recipe["train"]["max_steps"] = 0
        first[batch_size] = timeless(hf_gpt.train(recipe).metrics)
    assert first[1] == first[5]


def test_the_last_step_is_evaluated_off_the_grid_and_can_be_the_best(tiny):
    run = hf_gpt.train(changed(tiny, train__max_steps=11, evaluation={"every": 4}, checkpoint={"every": 4, "keep": 2}))
    losses = {line["step"]: line["validation_loss"] for line in run.metrics if "validation_loss" in line}
    assert [*losses] == [0, 4, 8, 11]
    assert min(losses, key=losses.get) == 11
    assert checkpoint.pointed(run.output_dir, "best").name == "step-00000011"
    assert {sample["step"] for sample in run.samples} == {*losses}


def test_no_steps_evaluate_and_save_the_untrained_model(tiny):
    run = hf_gpt.train(changed(tiny, train__max_steps=0))
    assert [path.name for path in run.checkpoints] == ["step-00000000"]
    assert [line["step"] for line in run.metrics] == [0]


def test_epochs_evaluate_at_their_end(tiny):
    recipe = changed(tiny, evaluation={"first": 1, "every": 1000, "at_epoch_end": True}, checkpoint__every=None)
    recipe["train"] = {"epochs": 2, "batch_size": 64}
    run = hf_gpt.train(recipe)
    evaluated = [line for line in run.metrics if "eval_train_loss" in line]
    assert [line["epoch"] for line in evaluated if line["step"] > 1] == [1.0, 2.0]


def test_checkpoints_at_the_end_of_each_epoch(tiny):
    recipe = changed(tiny, checkpoint={"every": None, "keep": None, "at_epoch_end": True}, evaluation__every=1000)
    recipe["train"] = {"epochs": 2.5, "batch_size": 64}
    run = hf_gpt.train(recipe)
    an_epoch = -(-len(prepare_data(run.recipe).windows) // 64)
    saved = [checkpoint.step_of(path) for path in run.checkpoints]
    assert saved == [an_epoch, 2 * an_epoch, round(2.5 * an_epoch)]


def test_another_recipe_in_the_same_folder_is_refused(run, tiny, capsys):
    with pytest.raises(UserError, match=r"holds a different run \(optimizer.lr 0.003 -> 0.1\)"):
        hf_gpt.train(changed(tiny, optimizer__lr=0.1))
    with pytest.raises(UserError, match=r"resume: never, but .* holds checkpoints"):
        hf_gpt.train(changed(tiny, checkpoint__resume="never"))
    longer = hf_gpt.train(changed(tiny, train__max_steps=14, checkpoint__keep=1))
    assert longer.checkpoints[-1].name == "step-00000014"
    assert "changed: train.max_steps 12 -> 14" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tiny):
    with pytest.raises(RunStopped, match=r"step \d+ is not finite.*; the last good checkpoint is .*step-0000000"):
        hf_gpt.train(changed(tiny, optimizer__lr=1e4, schedule={"name": "constant"}, checkpoint__every=2))
    # Weight decay made the weights grow a thousandfold a step; nothing was saved after they were too large.
    good = checkpoint.pointed(tiny["output_dir"], "latest")
    model = AutoModelForCausalLM.from_pretrained(good)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("lr", "steps", "message"),
    [(1e30, 4, "evaluated at step 1 is not finite"), (1e38, 1, "not finite")],
)
def test_nothing_that_is_not_finite_is_written(tiny, lr, steps, message):
    recipe = changed(tiny, optimizer__lr=lr, checkpoint__every=1, schedule={"name": "constant"})
    recipe["train"] |= {"max_steps": steps}
    recipe["evaluation"] |= {"first": 1, "every": 1 if steps > 1 else 100}
    with pytest.raises(RunStopped, match=message):
        hf_gpt.train(recipe)
    assert checkpoint.checkpoints(tiny["output_dir"]) == []
    text = Path(tiny["output_dir"], "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_gradients_are_clipped(tiny, tmp_path):
    """SGD-like: with eps so large that Adam divides by a constant, the first update has the clipped norm."""
    moved = {}
    for limit in (0.01, 1000.0):
        recipe = changed(tiny, output_dir=str(tmp_path / str(limit)), train__max_grad_norm=limit, train__max_steps=1)
        recipe["optimizer"] = {"lr": 1.0, "eps": 100.0, "weight_decay": 0.0, "betas": [0.0, 0.0]}
        recipe["schedule"] = {"name": "constant"}
        run = hf_gpt.train(recipe)
        start = hf_gpt.train(changed(recipe, output_dir=str(tmp_path / f"{limit}-start"), train__max_steps=0)).model
        pairs = zip(run.model.parameters(), start.parameters())
        moved[limit] = math.sqrt(sum((a - b).double().square().sum().item() for a, b in pairs)) * 100
        norm = next(line["grad_norm"] for line in run.metrics if "grad_norm" in line)
    assert norm > 0.1
    assert moved[0.01] == pytest.approx(0.01, rel=0.05)
    assert moved[1000.0] == pytest.approx(norm, rel=0.05)


def test_a_run_that_died_before_its_first_checkpoint_starts_over(tiny):
    whole = timeless(hf_gpt.train(tiny).metrics)
    shutil.rmtree(Path(tiny["output_dir"], "checkpoints"))
    run = hf_gpt.train(tiny)
    assert timeless(run.metrics) == whole
    assert [sample["step"] for sample in run.samples] == [0, 4, 8, 12]


def test_the_books_names_and_the_hubs_are_the_same_run(run, tiny):
    tiny["model"]["hidden_size"] = tiny["model"].pop("emb_dim")
    assert same_weights(run.model, hf_gpt.train(tiny).model)


def test_recomputing_activations_changes_nothing_but_memory(run, tiny, tmp_path):
    recipe = changed(tiny, output_dir=str(tmp_path / "recomputed"), train__gradient_checkpointing=True)
    recomputed = hf_gpt.train(recipe)
    assert recomputed.model.is_gradient_checkpointing
    assert timeless(recomputed.metrics) == timeless(run.metrics)
    assert recomputed.samples == run.samples


def test_a_run_cannot_be_made_shorter_than_it_is(run, tiny):
    before = (run.output_dir / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"max_steps: 3, but .* is at step 12"):
        hf_gpt.train(changed(tiny, train__max_steps=3))
    assert (run.output_dir / "recipe.yaml").read_text() == before


def test_only_models_with_all_their_weights_are_continued(run, tiny, tmp_path):
    recipe = changed(tiny, output_dir=str(tmp_path / "more"))
    broken = shutil.copytree(run.checkpoints[-1], tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"config.json: truncated or altered"):
        hf_gpt.train(changed(recipe, model={"from_pretrained": str(broken)}))
    with pytest.raises(UserError, match=r"config.json: truncated or altered"):
        checkpoint.load_model(str(broken))
    shutil.rmtree(broken / "training_state")  # and with it the manifest
    with pytest.raises(UserError, match=r"lacks model\.layers\.2\."):
        hf_gpt.train(changed(recipe, model={"from_pretrained": str(broken)}))
    with pytest.raises(UserError, match=r"lacks model\.layers\.2\."):
        checkpoint.load_model(str(broken))


def test_going_on_from_a_model_takes_its_tokenizer(run, tiny, tmp_path):
    recipe = changed(tiny, output_dir=str(tmp_path / "more"), model={"from_pretrained": str(run.output_dir)})
    recipe["tokenizer"] = {}
    more = hf_gpt.train(recipe)
    assert more.tokenizer.get_vocab() == run.tokenizer.get_vocab()
    assert more.recipe.tokenizer.name == str(checkpoint.pointed(run.output_dir, "best") or run.checkpoints[-1])


def test_a_model_that_goes_on_with_another_tokenizer_stops_at_that_tokenizers_end(run, tiny, tmp_path):
    model = shutil.copytree(run.checkpoints[-1], tmp_path / "model", ignore=shutil.ignore_patterns("training_state"))
    ends = {"eos_token_id": [256, 10], "pad_token_id": 0}  # more than its tokenizer knows
    for name, more in {
        "config.json": {},
        "generation_config.json": {"bad_words_ids": [[65]], "no_repeat_ngram_size": 3},
    }.items():
        (model / name).write_text(json.dumps({**json.loads((model / name).read_text()), **ends, **more}))
    other = train_tokenizer(["the quick brown fox"], 257)
    other.add_special_tokens({"eos_token": "z", "bos_token": "q"})
    other.save_pretrained(tmp_path / "other")
    other_ids = {"bos_token_id": other.bos_token_id, "eos_token_id": other.eos_token_id, "pad_token_id": None}
    own_ids = {"bos_token_id": 256, "eos_token_id": [256, 10], "pad_token_id": 0}
    given = {"eos_token_id": 5}
    for number, (tokenizer, ids, fields) in enumerate(
        [
            ({"name": str(tmp_path / "other")}, other_ids, {}),
            ({"name": str(tmp_path / "other")}, {**other_ids, **given}, given),
            ({}, own_ids, {}),
            ({"name": "bytes"}, own_ids, {}),  # the same, by another name
        ]
    ):
        recipe = changed(tiny, output_dir=str(tmp_path / f"{number}"), train__max_steps=1)
        more = hf_gpt.train({**recipe, "tokenizer": tokenizer, "model": {"from_pretrained": str(model), **fields}})
        loaded = AutoModelForCausalLM.from_pretrained(more.checkpoints[-1])
        for config in (loaded.config, loaded.generation_config, more.model.config, more.model.generation_config):
            assert {name: getattr(config, name) for name in ids} == ids
        assert loaded.generation_config.bad_words_ids == ([[65]] if ids is own_ids else None)
        assert loaded.generation_config.no_repeat_ngram_size == 3


def test_settings_of_generate_that_cannot_be_saved_do_not_cost_a_checkpoint(run, tiny, tmp_path):
    model = shutil.copytree(run.checkpoints[-1], tmp_path / "model", ignore=shutil.ignore_patterns("training_state"))
    ends = {"eos_token_id": 256, "temperature": 0.6, "top_k": 7}  # as many on the Hub have it, without do_sample
    (model / "generation_config.json").write_text(json.dumps(ends))
    recipe = changed(tiny, output_dir=str(tmp_path / "more"), train__max_steps=1)
    more = hf_gpt.train({**recipe, "model": {"from_pretrained": str(model)}})
    saved = json.loads((more.checkpoints[-1] / "generation_config.json").read_text())
    assert saved["eos_token_id"] == 256
    assert "top_k" not in saved


def test_a_change_of_environment_is_warned_of(run, tiny, capsys):
    path = run.output_dir / "environment.json"
    environment = json.loads(path.read_text())
    environment["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(environment))
    hf_gpt.train(changed(tiny, train__max_steps=13))
    assert "torch was 1.0, is " in capsys.readouterr().err


@pytest.mark.parametrize("before", ["AVX9, bf16", None])
def test_another_kind_of_processor_is_said(run, tiny, capsys, before):
    """Runs of earlier versions did not write it down, and nothing is said."""
    path = run.output_dir / "environment.json"
    environment = json.loads(path.read_text())
    now = environment.pop("cpu")
    path.write_text(json.dumps(environment | ({"cpu": before} if before else {})))
    hf_gpt.train(changed(tiny, train__max_steps=13))
    said = capsys.readouterr().err
    assert f"the last digits may differ: cpu was {before}, is {now}" in said if before else "cpu was" not in said


def test_a_corpus_that_has_changed_is_another_run(run, tiny):
    with open(tiny["data"]["source"], "a") as file:
        file.write("One more line.\n")
    with pytest.raises(UserError, match="began with another text"):
        hf_gpt.train(changed(tiny, train__max_steps=13))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_going_on_from_a_model(run, tiny, tmp_path, precision):
    recipe = changed(tiny, output_dir=str(tmp_path / "more"), model={"from_pretrained": str(run.checkpoints[-1])})
    recipe["train"]["mixed_precision"] = precision
    more = hf_gpt.train(recipe)
    before = [line for line in run.metrics if "validation_loss" in line][-1]
    after = more.metrics[0]
    assert after["validation_loss"] == pytest.approx(
        before["validation_loss"], rel=1e-6 if precision == "no" else 2e-2
    )
    assert more.model.dtype == torch.float32


def test_isolated_documents_train(tiny, tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.txt").write_text(f"Book {number}. It says {number} and no more.")
    recipe = changed(tiny, data={"source": str(folder), "isolate_documents": True})
    isolated = hf_gpt.train(recipe)
    joined = hf_gpt.train(changed(recipe, output_dir=str(tmp_path / "joined"), data__isolate_documents=False))
    assert isolated.metrics[0]["eval_train_loss"] != joined.metrics[0]["eval_train_loss"]


def test_a_compiled_run_compiles_once(tiny, one_thread):
    """Evaluations, samples and an epoch's last global batch, with its fewer targets, included."""
    tiny["train"] |= {"compile": True, "max_steps": 90}
    tiny["evaluation"]["every"] = 45
    counts = torch._dynamo.utils.counters["stats"]
    torch.compiler.reset()
    torch.compiler.set_default_backend("aot_eager")
    try:
        before = counts["unique_graphs"]
        with torch._dynamo.config.patch(error_on_recompile=True):
            run = hf_gpt.train(tiny)
        assert counts["unique_graphs"] == before + 1
    finally:
        torch.compiler.set_default_backend("inductor")
        torch.compiler.reset()
    epochs = [line["epoch"] for line in run.metrics]
    assert epochs[-1] > 1 > epochs[0]
    plain = hf_gpt.train(
        {**tiny, "output_dir": tiny["output_dir"] + "-plain", "train": {**tiny["train"], "compile": False}}
    )
    assert run.metrics[-1]["validation_loss"] == pytest.approx(plain.metrics[-1]["validation_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("device", "layers", "width", "steps", "compiled"),
    [
        ("cpu", 4, 192, 900, False),  # half a minute of compiling would save a tenth of three
        ("cpu", 4, 192, 10_000, True),
        ("cpu", 12, 768, 100_000, False),  # was not measured
        ("cuda", 12, 768, 499, False),
        ("cuda", 12, 768, 500, True),
        ("mps", 4, 192, 10_000, False),
    ],
)
def test_compiling_is_decided_by_device_size_and_length(device, layers, width, steps, compiled, monkeypatch):
    config = hf_gpt.GPTConfig(n_layers=layers, emb_dim=width, n_heads=4)
    monkeypatch.setenv("CXX", "python3")  # any program that is there
    assert pays_to_compile(device, config, steps, 8 * 128) is compiled
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert pays_to_compile(device, config, steps, 8 * 128) is (compiled and device == "cuda")


@pytest.mark.parametrize(
    ("model", "capabilities", "precision"),
    [
        ({"emb_dim": 256, "n_heads": 1}, {"avx512_bf16": True}, "bf16"),
        ({"preset": "gpt2-124m"}, {"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"emb_dim": 256, "n_heads": 1}, {"neon": True, "bf16": True}, "bf16"),
        ({"emb_dim": 255, "n_heads": 1}, {"avx512_bf16": True}, "no"),
        ({"emb_dim": 768, "n_heads": 1}, {"avx2": True}, "no"),
        ({"emb_dim": 768, "n_heads": 1}, {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "no"),
    ],
)
def test_bf16_on_a_cpu_is_decided_by_its_units_and_the_width(model, capabilities, precision, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    recipe = hf_gpt.Recipe(model=model, train={"device": "cpu"})
    assert resolve_hardware(recipe, None, None).train.mixed_precision == precision
    recipe = hf_gpt.Recipe(model=model, train={"device": "cpu", "mixed_precision": "no"})
    assert resolve_hardware(recipe, None, None).train.mixed_precision == "no"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an earlier torch
    recipe = hf_gpt.Recipe(model=model, train={"device": "cpu"})
    assert resolve_hardware(recipe, None, None).train.mixed_precision == "no"


def test_on_a_gpu_algorithms_are_deterministic_or_refused_by_name():
    """The switches alone; what they do to a run is in `test_gpu.py`."""

    def switches() -> tuple:
        import torch._inductor.config as inductor

        return torch.are_deterministic_algorithms_enabled(), inductor.deterministic

    before, train = switches(), TrainRecipe(device="cuda", compile=True)
    with deterministic(train):
        assert switches() == (True, True)
    with deterministic(dataclasses.replace(train, deterministic=False)):
        assert switches() == before
    with deterministic(dataclasses.replace(train, device="cpu")):
        assert switches() == before
    refused = pytest.raises(UserError, match=r"^train.deterministic: put_ does not have a deterministic impl")
    with refused, deterministic(train):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    with pytest.raises(RuntimeError, match="of another kind"), deterministic(train):
        raise RuntimeError("of another kind")
    assert switches() == before
