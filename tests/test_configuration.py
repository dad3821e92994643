"""GPTConfig: the Hub's names and the book's mean the same, mistakes are refused in one line, files stay readable."""

import copy
import inspect
import json
import subprocess
import sys

import pytest
from transformers import AutoConfig

from hf_gpt.configuration_gpt import PRESETS, GPTConfig

GPT_CONFIG_124M = {  # as printed in the book
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
SMALL = {"vocab_size": 99, "emb_dim": 64, "n_heads": 4, "n_layers": 2, "context_length": 16}


def write_config(folder, **keys):
    (folder / "config.json").write_text(json.dumps({"model_type": "hf_gpt", **keys}))
    return folder


def refusal(make) -> str:
    """The message of the ValueError that `make` raises, which has to be one line."""
    with pytest.raises(ValueError, match=r"\A.+\Z") as error:  # without DOTALL: one line
        make()
    return str(error.value)


def test_the_books_dictionary_makes_the_same_config_as_the_hub_names():
    hub = GPTConfig(
        vocab_size=50257,
        max_position_embeddings=1024,
        hidden_size=768,
        num_attention_heads=12,
        num_hidden_layers=12,
        dropout=0.1,
        qkv_bias=False,
    )
    assert GPTConfig(**GPT_CONFIG_124M) == hub
    assert GPTConfig(**{**GPT_CONFIG_124M, "qkv_bias": True}) == GPTConfig()


def test_aliases_are_translated_before_anything_is_derived_or_checked():
    assert GPTConfig(emb_dim=64, n_heads=4).intermediate_size == 256
    assert GPTConfig.from_dict({"emb_dim": 64, "n_heads": 4}).intermediate_size == 256
    assert "divide" in refusal(lambda: GPTConfig(emb_dim=65, n_heads=4))


def test_a_value_of_another_type_is_refused_in_plain_words():
    for values, line in (
        ({"n_layers": "x"}, "num_hidden_layers must be a whole number, got 'x'"),
        ({"drop_rate": "a"}, "dropout must be a number, got 'a'"),
        ({"qkv_bias": 1}, "qkv_bias must be true or false, got 1"),
        ({"attention_dropout": []}, "attention_dropout must be a number or null, got []"),
        ({"eos_token_id": "a"}, "eos_token_id must be a whole number or list[int] or null, got 'a'"),
        ({"initialization": "x"}, "initialization must be gpt2 or pytorch, got 'x'"),
    ):
        assert refusal(lambda values=values: GPTConfig(**values)) == line


def test_aliases_read_and_write_the_same_field():
    config = GPTConfig(**SMALL)
    assert (config.emb_dim, config.n_layers, config.n_heads) == (64, 2, 4)
    assert (config.context_length, config.drop_rate) == (16, 0.1)
    config.drop_rate = 0.25
    assert config.dropout == 0.25
    assert "emb_dim" not in config.to_dict()


def test_aliases_override_what_a_checkpoint_says(tmp_path):
    GPTConfig(**SMALL).save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path, context_length=8).max_position_embeddings == 8
    assert AutoConfig.from_pretrained(tmp_path, drop_rate=0.0).dropout == 0.0
    config, unused = GPTConfig.from_pretrained(tmp_path, n_layers=3, device_map="cpu", return_unused_kwargs=True)
    assert config.num_hidden_layers == 3
    assert unused["device_map"] == "cpu"
    assert "num_attention_heads" in refusal(lambda: GPTConfig.from_pretrained(tmp_path, n_heads=5))


def test_two_values_for_one_field_are_refused():
    message = refusal(lambda: GPTConfig(emb_dim=64, hidden_size=128))
    assert "emb_dim=64" in message
    assert "hidden_size=128" in message
    # also where one of them is the default
    refusal(lambda: GPTConfig(emb_dim=64, hidden_size=768))
    assert GPTConfig(emb_dim=64, hidden_size=64, n_heads=4).hidden_size == 64


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("emb_dims", "emb_dim"),
        ("n_layer", "n_layers"),
        ("n_head", "n_heads"),
        ("hiden_size", "hidden_size"),
        ("num_hidden_layer", "num_hidden_layers"),
        ("context_lenght", "context_length"),
        ("dropout_rate", "drop_rate"),
        ("layer_norm_epsilon", "layer_norm_eps"),
        ("initialisation", "initialization"),
        ("n_embd", "hidden_size"),
        ("d_model", "hidden_size"),
        ("block_size", "max_position_embeddings"),
    ],
)
def test_misspelt_names_are_refused_with_the_nearest(typed, meant, tmp_path):
    GPTConfig(**SMALL).save_pretrained(tmp_path)
    for make in (
        lambda: GPTConfig(**{typed: 4}),
        lambda: GPTConfig.from_preset("gpt2-124m", **{typed: 4}),
        lambda: GPTConfig.from_pretrained(tmp_path, **{typed: 4}),
    ):
        message = refusal(make)
        assert repr(typed) in message
        assert repr(meant) in message


# What transformers, its tools and its older versions pass through a configuration or a from_pretrained call.
NAMES_OF_OTHERS = """
adapter_kwargs add_cross_attention allow_all_kernels architectures attn_implementation auto_map bad_words_ids
chunk_size_feed_forward classifier_dropout cls_token_id code_revision cross_attention_hidden_size
decoder_start_token_id device_map device_mesh distributed_config dtype early_stopping experts_implementation
finetuning_task from_flax from_tf generation_config head_dim hidden_dropout id2label ignore_mismatched_sizes
image_token_id initializer_factor is_causal is_decoder is_encoder_decoder kernel_config key_mapping label2id
layer_types length_penalty local_files_only loss_type low_cpu_mem_usage mask_token_id max_length max_memory min_length
moe_intermediate_size name_or_path no_repeat_ngram_size num_beams num_key_value_heads num_labels offload_buffers
offload_folder original_max_position_embeddings
output_attentions output_hidden_states output_loading_info output_scores peft_config per_layer_config prefix
problem_type pruned_heads quantization_config remove_invalid_values repetition_penalty return_dict sep_token_id
sliding_window state_dict summary_type task_specific_params temperature tie_encoder_decoder
token_classification_bias tokenizer_class top_k top_p torch_dtype torchscript tp_plan tp_size transformers_version
trust_remote_code typical_p unsloth_version use_bfloat16 use_kernels use_safetensors variant vocab_file weights_only
"""


def test_names_of_transformers_and_its_tools_are_no_misspellings():
    assert [name for name in NAMES_OF_OTHERS.split() if GPTConfig._meant(name)] == []


def test_constructor_takes_what_transformers_takes():
    config = GPTConfig(**SMALL, num_labels=5, torch_dtype="float16", attn_implementation="eager", _note="kept")
    assert (len(config.id2label), str(config.dtype), config._attn_implementation) == (5, "torch.float16", "eager")
    assert config._note == "kept"
    assert GPTConfig(**SMALL, image_token_id=7).image_token_id == 7
    earlier = {
        "finetuning_task": "qa",
        "tokenizer_class": "T",
        "pruned_heads": {},
        "max_length": 3,
        "is_decoder": True,
    }
    assert GPTConfig(**SMALL, **earlier).tokenizer_class == "T"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("note", "fields: attention_dropout"),
        ("rope_theta", "fields: attention_dropout"),
        ("to_dict", "fields: attention_dropout"),  # a method, and no field
        ("", "fields: attention_dropout"),
        ("embed_dim", "'emb_dim'?"),
        ("layers", "'n_layers'?"),
        ("heads", "'n_heads'?"),
        ("bias", "'qkv_bias'?"),
        ("moe_intermediate_size", "'intermediate_size'?"),
        ("d_ff", "'intermediate_size'?"),
    ],
)
def test_the_constructor_refuses_every_unknown_name(typed, says):
    for make in (lambda: GPTConfig(**{typed: 4}), lambda: GPTConfig(**{**GPTConfig(**SMALL).to_dict(), typed: 4})):
        message = refusal(make)
        assert f"no field {typed!r}" in message
        assert says in message


def test_names_that_readers_write_are_the_fields_that_they_mean(tmp_path):
    config = GPTConfig(vocabulary_size=99, embedding_dim=64, n_heads=4)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (99, 64, 256)
    assert (config.vocabulary_size, config.embedding_dim) == (99, 64)
    assert config == GPTConfig(vocab_size=99, hidden_size=64, num_attention_heads=4)
    write_config(tmp_path, vocabulary_size=99, embedding_dim=64, n_heads=4)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == {**config.to_dict(), "_name_or_path": str(tmp_path)}
    assert GPTConfig.from_pretrained(tmp_path, embedding_dim=32).hidden_size == 32
    assert "two values" in refusal(lambda: GPTConfig(vocabulary_size=99, vocab_size=98))


def test_what_to_dict_writes_makes_the_same_configuration():
    from_file = GPTConfig.from_dict({**SMALL, "emb_dims": 3, "rope_of_the_future": {"a": 1}, "note": None})
    changed = GPTConfig(**SMALL, num_labels=3)
    changed.note, changed.quantization_config, changed.drop_rate = [1], {"quant_method": "torchao"}, 0.3
    for config in (GPTConfig(), GPTConfig(**SMALL, dtype="bfloat16", eos_token_id=[1, 2]), from_file, changed):
        again = GPTConfig(**config.to_dict())
        assert again.to_dict() == config.to_dict()
        assert copy.deepcopy(config).to_dict() == config.to_dict()
        assert GPTConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
        refusal(lambda config=config: GPTConfig(**{**config.to_dict(), "n_layer": 2}))


def test_a_checkpoint_with_keys_we_do_not_know_loads_and_keeps_them(tmp_path):
    """A newer version or another tool may have written them, whatever they resemble."""
    write_config(tmp_path, **SMALL, emb_dims=3, n_layer=7, rope_of_the_future={"a": 1}, auto_map={"AutoConfig": "x.Y"})
    for config in (
        AutoConfig.from_pretrained(tmp_path),
        GPTConfig.from_pretrained(tmp_path),
        GPTConfig.from_json_file(tmp_path / "config.json"),
    ):
        assert (config.hidden_size, config.num_hidden_layers) == (64, 2)
        assert (config.emb_dims, config.n_layer, config.rope_of_the_future) == (3, 7, {"a": 1})
        assert config.auto_map == {"AutoConfig": "x.Y"}
    config.save_pretrained(tmp_path / "again")
    assert GPTConfig.from_pretrained(tmp_path / "again").emb_dims == 3


def test_config_survives_saving_and_loading(tmp_path):
    config = GPTConfig(**SMALL, initialization="pytorch", attention_dropout=0.0, eos_token_id=[1, 2], num_labels=3)
    config.save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    # the Auto class also records where the configuration came from
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == {**config.to_dict(), "_name_or_path": str(tmp_path)}


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"n_heads": 5, "emb_dim": 64}, ["num_attention_heads", "hidden_size", "5", "64"]),
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"vocab_size": -1}, ["vocab_size", "-1"]),
        ({"n_layers": 0}, ["num_hidden_layers", "0"]),
        ({"n_heads": 0}, ["num_attention_heads", "0"]),
        ({"context_length": 0}, ["max_position_embeddings", "0"]),
        ({"intermediate_size": 0}, ["intermediate_size", "0"]),
        ({"drop_rate": 1.0}, ["dropout", "1.0"]),
        ({"drop_rate": -0.1}, ["dropout", "-0.1"]),
        ({"attention_dropout": 2}, ["attention_dropout", "2"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps"]),
        ({"initializer_range": -1.0}, ["initializer_range"]),
        ({"hidden_size": "wide"}, ["hidden_size", "wide"]),
        ({"drop_rate": "a lot"}, ["dropout", "a lot"]),
        ({"initialization": "keras"}, ["initialization", "keras", "gpt2", "pytorch"]),
    ],
)
def test_impossible_values_are_refused_by_field_name(values, names):
    message = refusal(lambda: GPTConfig(**values))
    assert all(name in message for name in names), message


def test_an_override_cannot_escape_validation(tmp_path):
    GPTConfig(**SMALL).save_pretrained(tmp_path)
    assert "hidden_size" in refusal(lambda: GPTConfig.from_pretrained(tmp_path, emb_dim=0))
    assert "two values" in refusal(lambda: GPTConfig.from_pretrained(tmp_path, emb_dim=32, hidden_size=64))


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads"),
    [
        ("gpt2-124m", 12, 768, 12),
        ("gpt2-355m", 24, 1024, 16),
        ("gpt2-774m", 36, 1280, 20),
        ("gpt2-1558m", 48, 1600, 25),
    ],
)
def test_presets_are_gpt2s_sizes(name, layers, width, heads):
    config = GPTConfig.from_preset(name)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (layers, width, heads)
    assert (config.intermediate_size, config.max_position_embeddings, config.vocab_size) == (4 * width, 1024, 50257)
    assert (config.qkv_bias, config.tie_word_embeddings, config.eos_token_id) == (True, True, 50256)


def test_presets_take_overrides_under_any_name():
    config = GPTConfig.from_preset("gpt2-355m", context_length=256, emb_dim=64, qkv_bias=False)
    assert (config.max_position_embeddings, config.hidden_size, config.qkv_bias) == (256, 64, False)
    assert (config.intermediate_size, config.num_hidden_layers) == (256, 24)
    assert PRESETS["gpt2-355m"]["hidden_size"] == 1024


def test_an_unknown_preset_is_refused_with_the_nearest():
    assert "'gpt2-124m'" in refusal(lambda: GPTConfig.from_preset("gpt2-124M"))
    assert "gpt2-1558m" in refusal(lambda: GPTConfig.from_preset("llama"))


def test_the_constructors_signature_lists_the_fields():
    """Tools (transformers' own tests among them) ask the signature which fields there are."""
    assert {"hidden_size", "initialization", "eos_token_id"} <= set(inspect.signature(GPTConfig).parameters)


def test_configuration_needs_no_torch():
    """transformers' own configurations are read where no torch is installed."""
    code = "import sys, runpy; sys.modules['torch'] = None; runpy.run_path(sys.argv[1])['GPTConfig'](emb_dim=24)"
    done = subprocess.run([sys.executable, "-c", code, inspect.getfile(GPTConfig)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
