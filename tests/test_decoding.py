"""Every way of decoding that `generate()` has works on the model, whatever keeps the keys and values."""

import copy
import threading

import pytest
import torch
from transformers import QuantizedCache, TextIteratorStreamer

import hf_gpt
from hf_gpt import GPTConfig, GPTForCausalLM

VOCAB_SIZE = 61


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> GPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = GPTConfig(**sizes, context_length=128, initializer_range=0.2, pad_token_id=0, eos_token_id=1)
    return GPTForCausalLM(config).eval()


def prompts(*shape: int) -> torch.Tensor:
    return torch.randint(2, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(1))


def greedy_by_hand(model, input_ids: torch.Tensor, num_tokens: int, choose) -> torch.Tensor:
    """One full pass a token, without `generate()`; `choose` maps (ids so far, logits) to the next ids."""
    for _ in range(num_tokens):
        with torch.no_grad():
            logits = model(input_ids, use_cache=False).logits[:, -1]
        input_ids = torch.cat([input_ids, choose(input_ids, logits)[:, None]], dim=1)
    return input_ids


GREEDY = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}


def without_eos(ids, logits):
    logits[:, 1] = -torch.inf  # as min_new_tokens does
    return logits.argmax(-1)


@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_greedy_decoding_is_the_same_with_every_cache(model, cache):
    expected = greedy_by_hand(model, prompts(2, 9), 20, without_eos)
    how = {"cache_implementation": cache} if cache else {"use_cache": False}
    # a static cache is decoded by a compiled forward only where there is an accelerator
    assert torch.equal(model.generate(prompts(2, 9), **GREEDY, **how), expected)


def test_generation_with_a_compiled_static_cache(model):
    """As on an accelerator: the decoding step is compiled, once."""
    from transformers import CompileConfig

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_config = CompileConfig(backend="eager", fullgraph=True, mode=None)
    compile_config._compile_all_devices = True
    found = model.generate(prompts(2, 9), **GREEDY, cache_implementation="static", compile_config=compile_config)
    assert torch.equal(found, greedy_by_hand(model, prompts(2, 9), 20, without_eos))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert hasattr(model, "_compiled_call")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloaded caches need a GPU to be offloaded from")
@pytest.mark.parametrize("cache", ["offloaded", "offloaded_static"])
def test_an_offloaded_cache_changes_no_token(model, cache):
    on_device, ids = copy.deepcopy(model).cuda(), prompts(2, 9).cuda()
    # Compiled, an offloaded static cache ends the process in torch 2.11: in Dynamo, which then loses its streams.
    found = on_device.generate(ids, **GREEDY, cache_implementation=cache, disable_compile=True)
    assert torch.equal(found, on_device.generate(ids, **GREEDY))


@torch.no_grad()
def test_a_quantised_cache_stays_within_its_quantisation_error(model):
    pytest.importorskip("optimum.quanto", reason="needs optimum-quanto: pip install 'hf_gpt[clients]'")
    ids = prompts(2, 60)
    exact = model(ids).logits[:, 50:]
    errors = {}
    for bits in (2, 4):
        cache = QuantizedCache("quanto", model.config, nbits=bits, residual_length=16)
        model(ids[:, :50], past_key_values=cache)
        steps = [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(50, 60)]
        errors[bits] = ((torch.cat(steps, dim=1) - exact).norm() / exact.norm()).item()
    assert 0 < 2 * errors[4] < errors[2]
    assert errors[4] < 0.2


def test_beam_search_finds_at_least_what_greedy_finds(model):
    def log_probability(sequences):
        with torch.no_grad():
            log_probabilities = model(sequences[:, :-1]).logits.log_softmax(-1)
        return log_probabilities.gather(-1, sequences[:, 1:, None])[:, 8:].sum((1, 2))

    beams = model.generate(prompts(2, 9), **GREEDY, num_beams=8, length_penalty=0.0)
    cached = model.generate(prompts(2, 9), **GREEDY, num_beams=8, length_penalty=0.0, use_cache=False)
    assert torch.equal(beams, cached)
    assert (log_probability(beams) >= log_probability(model.generate(prompts(2, 9), **GREEDY)) - 1e-4).all()


def test_sampling_is_repeated_by_its_seed_and_drawn_from_the_top_k(model):
    how = {"do_sample": True, "top_k": 3, "max_new_tokens": 20, "min_new_tokens": 20}
    torch.manual_seed(5)
    first = model.generate(prompts(2, 9), **how)
    torch.manual_seed(5)
    assert torch.equal(model.generate(prompts(2, 9), **how, use_cache=False), first)
    with torch.no_grad():
        logits = model(first).logits[:, 8:-1]
    logits[..., 1] = -torch.inf
    top = logits.topk(3).indices
    assert (top == first[:, 9:, None]).any(-1).all()


def test_a_repetition_penalty_does_what_it_says(model):
    def penalised(ids, logits):
        seen = logits.gather(1, ids)
        logits = logits.scatter(1, ids, torch.where(seen < 0, seen * 1.8, seen / 1.8))
        return without_eos(ids, logits)

    found = model.generate(prompts(2, 9), **GREEDY, repetition_penalty=1.8)
    assert torch.equal(found, greedy_by_hand(model, prompts(2, 9), 20, penalised))


def test_prompt_lookup_and_assisted_decoding_change_no_token(model):
    prompt = prompts(1, 4).repeat(1, 4)  # so that lookup has something to find
    expected = model.generate(prompt, **GREEDY)
    torch.manual_seed(1)
    draft = GPTForCausalLM(GPTConfig(**{**model.config.to_dict(), "num_hidden_layers": 1})).eval()
    assert torch.equal(model.generate(prompt, **GREEDY, prompt_lookup_num_tokens=3), expected)
    assert torch.equal(model.generate(prompt, **GREEDY, assistant_model=draft), expected)
    for num_layers in range(1, model.config.num_hidden_layers + 1):
        assert torch.equal(model.generate(prompt, **GREEDY, assistant_early_exit=num_layers), expected)


def test_a_draft_by_the_first_layers_that_ends_in_an_error_leaves_the_model_as_it_was(model, monkeypatch):
    prompt, num_layers = prompts(1, 4), model.config.num_hidden_layers
    expected = model.generate(prompt, **GREEDY)
    for impossible in (0, -1, num_layers + 1, 1.5, "1"):
        with pytest.raises(ValueError, match=f"assistant_early_exit must be 1 to {num_layers}"):
            model.generate(prompt, **GREEDY, assistant_early_exit=impossible)
    with monkeypatch.context() as patch:
        patch.setattr(model.lm_head, "forward", lambda hidden_states: 1 / (model.config.num_hidden_layers - 1))
        with pytest.raises(ZeroDivisionError):
            model.generate(prompt, **GREEDY, assistant_early_exit=1)
    for draft in ({"assistant_early_exit": 1}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match="guidance_scale needs generation without drafts"):
            model.generate(prompt, **GREEDY, guidance_scale=1.5, **draft)
    assert model.config.num_hidden_layers == num_layers
    assert torch.equal(model.generate(prompt, **GREEDY), expected)


def test_a_continued_conversation_equals_one_prompt(model):
    first = model.generate(prompts(1, 9), **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, prompts(1, 5)], dim=1)
    continued = model.generate(longer, **GREEDY, past_key_values=first.past_key_values)
    assert torch.equal(continued, model.generate(longer, **GREEDY))


def test_text_streams_as_it_is_generated(tiny_streaming_model):
    model, tokenizer = tiny_streaming_model
    inputs = tokenizer("Every effort", return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(
        target=model.generate, kwargs={**inputs, "max_new_tokens": 12, "do_sample": False, "streamer": streamer}
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    whole = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert len(pieces) > 1
    assert "".join(pieces) == tokenizer.decode(whole)


@pytest.fixture
def tiny_streaming_model():
    """Writes printable ASCII only, so that text can be cut anywhere."""
    tokenizer = hf_gpt.load_tokenizer("bytes")
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    model = GPTForCausalLM(config).eval()
    words = [token for token in range(len(tokenizer)) if not (32 <= token < 127)]
    model.generation_config.suppress_tokens = words
    return model, tokenizer
