"""generate() past the context window: the window slides, and every token is the one the book's loop gives."""

import pytest
import torch
from transformers import GenerationConfig, StaticCache
from transformers.generation import stopping_criteria
from transformers.generation import utils as generation_utils

from hf_gpt import GPTConfig, GPTForCausalLM

WINDOW = 8
VOCAB_SIZE = 53


pytestmark = pytest.mark.usefixtures("one_thread")


def small_model(model_class=GPTForCausalLM, attention: str = "sdpa", seed: int = 0) -> GPTForCausalLM:
    """Weights large enough that a token in a wrong position, or one too many, changes what comes next."""
    torch.manual_seed(seed)
    config = GPTConfig(
        vocab_size=VOCAB_SIZE, context_length=WINDOW, emb_dim=32, n_heads=4, n_layers=2, initializer_range=0.35
    )
    model = model_class(config)
    model.set_attn_implementation(attention)
    return model.eval()


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids, mask = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :], mask[i, longest - len(row) :] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def book_loop(model, idx: torch.Tensor, max_new_tokens: int, temperature: float = 0.0, top_k: int | None = None):
    """The book's `generate`: (batch, time) -> (batch, time + max_new_tokens)."""
    for _ in range(max_new_tokens):
        logits = model(idx[:, -WINDOW:]).logits[:, -1, :]
        if top_k is not None:
            smallest = torch.topk(logits, top_k).values[:, -1:]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        if temperature > 0.0:
            idx_next = torch.multinomial(torch.softmax(logits / temperature, dim=-1), num_samples=1)
        else:
            idx_next = logits.argmax(dim=-1, keepdim=True)
        idx = torch.cat((idx, idx_next), dim=1)
    return idx


def test_going_past_the_window_is_nothing_to_warn_of(monkeypatch):
    said = []
    for logger in (stopping_criteria.logger, generation_utils.logger):
        monkeypatch.setattr(logger, "warning", said.append)
        monkeypatch.setattr(logger, "warning_once", said.append)
    small_model().generate(random_ids(1, 5), max_new_tokens=WINDOW, do_sample=False, pad_token_id=0)
    assert said == []


CACHES = [{"cache_implementation": "dynamic"}, {"cache_implementation": "static"}, {"use_cache": False}]


@pytest.mark.parametrize("cache", CACHES, ids=["dynamic", "static", "none"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("prompt_length", [1, 5, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_greedy_equals_the_books_loop(cache, attention, batch_size, prompt_length):
    model = small_model(attention=attention)
    prompt = random_ids(batch_size, prompt_length)
    generated = model.generate(prompt, max_new_tokens=2 * WINDOW, do_sample=False, **cache)
    assert torch.equal(generated, book_loop(model, prompt, 2 * WINDOW))


@pytest.mark.parametrize("cache", CACHES, ids=["dynamic", "static", "none"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("prompt_length", [5, 2 * WINDOW])
def test_sampling_equals_the_books_loop_under_the_same_seed(cache, batch_size, prompt_length):
    model = small_model()
    prompt = random_ids(batch_size, prompt_length)
    settings = {"max_new_tokens": 2 * WINDOW, "temperature": 1.4, "top_k": 25}
    torch.manual_seed(123)
    generated = model.generate(prompt, do_sample=True, **settings, **cache)
    torch.manual_seed(123)
    assert torch.equal(generated, book_loop(model, prompt, **settings))


@pytest.mark.parametrize("cache", CACHES, ids=["dynamic", "static", "none"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lengths", [(6, 2, 4), (WINDOW, 1, 3), (12, 3, WINDOW), (20, 17, 9)])
def test_each_padded_row_is_the_books_loop_on_its_own_tokens(cache, attention, lengths):
    model = small_model(attention=attention)
    rows = [random_ids(n, seed=n) for n in lengths]
    prompt = left_padded(rows)
    width = prompt["input_ids"].shape[1]
    generated = model.generate(**prompt, max_new_tokens=2 * WINDOW, do_sample=False, pad_token_id=0, **cache)
    for i, row in enumerate(rows):
        expected = book_loop(model, row[None], 2 * WINDOW)[0, len(row) :]
        assert torch.equal(generated[i, width:], expected), f"row of {lengths[i]} tokens"


class BookWindow(GPTForCausalLM):
    """Sees the window alone, as the book's loop does: no cache, no mask, positions from 0."""

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids[:, -WINDOW:], "use_cache": False}


@pytest.mark.parametrize("cache", CACHES, ids=["dynamic", "static", "none"])
@pytest.mark.parametrize("prompt_length", [3, 2 * WINDOW])
def test_beam_search_slides_too(cache, prompt_length):
    prompt = random_ids(2, prompt_length)
    settings = {"max_new_tokens": 2 * WINDOW, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    expected = small_model(BookWindow).generate(prompt, **settings)
    assert torch.equal(small_model().generate(prompt, **settings, **cache), expected)


def test_scores_and_hidden_states_are_returned_past_the_window():
    model = small_model(attention="eager")
    prompt = random_ids(1, 5)
    outputs = model.generate(
        prompt,
        max_new_tokens=2 * WINDOW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    with torch.no_grad():
        for step, logits in enumerate(outputs.logits):
            expected = model(outputs.sequences[:, max(0, 5 + step - WINDOW) : 5 + step]).logits[:, -1]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert outputs.hidden_states[-1][-1].shape == (1, WINDOW, 32)
    assert outputs.attentions[-1][-1].shape == (1, 4, WINDOW, WINDOW)


@pytest.mark.parametrize("make_cache", [lambda config: None, lambda config: StaticCache(config, max_cache_len=WINDOW)])
def test_a_cache_is_continued_across_the_window(make_cache):
    model = small_model()
    first = model.generate(
        random_ids(1, 3),
        max_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
        past_key_values=make_cache(model.config),
    )
    again = model.generate(
        first.sequences, max_new_tokens=2 * WINDOW, do_sample=False, past_key_values=first.past_key_values
    )
    assert torch.equal(again, book_loop(model, random_ids(1, 3), 3 + 2 * WINDOW))


def test_a_static_cache_is_never_larger_than_the_window():
    model = small_model()
    outputs = model.generate(
        random_ids(1, 3), max_new_tokens=50, cache_implementation="static", return_dict_in_generate=True
    )
    assert outputs.past_key_values.layers[0].max_cache_len == WINDOW


# What cannot slide is refused before it is silently wrong, and works up to the window's edge.

TO_THE_EDGE = WINDOW + 1  # the last token is generated from a full window and never read


@pytest.mark.parametrize("kind", ["assistant", "prompt lookup"])
def test_assisted_generation_works_up_to_the_edge_and_is_refused_past_it(kind):
    model = small_model()
    drafts = {"assistant_model": small_model(seed=1)} if kind == "assistant" else {"prompt_lookup_num_tokens": 3}
    prompt = random_ids(1, 2).repeat(1, 2)  # a repetition for prompt lookup to find
    for max_length in range(5, TO_THE_EDGE + 1):
        assisted = model.generate(prompt, max_length=max_length, do_sample=False, **drafts)
        assert torch.equal(assisted, book_loop(model, prompt, max_length - 4))
    with pytest.raises(ValueError, match=r"\A.*assisted.*max_position_embeddings=8.*\Z"):
        model.generate(prompt, max_length=TO_THE_EDGE + 1, do_sample=False, **drafts)


def test_a_draft_model_with_a_smaller_window_still_drafts():
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=VOCAB_SIZE, context_length=4 * WINDOW, emb_dim=32, n_heads=4, n_layers=1)
    model = GPTForCausalLM(config).eval()
    prompt = random_ids(1, 3)
    expected = model.generate(prompt, max_length=4 * WINDOW, do_sample=False)
    assisted = model.generate(prompt, max_length=4 * WINDOW, do_sample=False, assistant_model=small_model())
    assert torch.equal(assisted, expected)


def test_chunked_prefill_works_within_the_window_and_is_refused_past_it():
    model = small_model()
    for length in (5, WINDOW):
        prompt = random_ids(1, length)
        generated = model.generate(prompt, max_new_tokens=WINDOW, do_sample=False, prefill_chunk_size=3)
        assert torch.equal(generated, book_loop(model, prompt, WINDOW))
    for chunk_size in (3, WINDOW, WINDOW + 1):
        with pytest.raises(ValueError, match=r"\A.*prefill_chunk_size.*max_position_embeddings=8, got 17.*\Z"):
            model.generate(random_ids(1, 17), max_new_tokens=2, prefill_chunk_size=chunk_size)


def test_generation_from_embeddings_works_up_to_the_edge_and_is_refused_past_it():
    model = small_model()
    prompt = random_ids(1, 5)
    embeds = model.get_input_embeddings()(prompt).detach()
    new = TO_THE_EDGE - 5
    generated = model.generate(inputs_embeds=embeds, max_new_tokens=new, do_sample=False)
    assert torch.equal(generated, book_loop(model, prompt, new)[:, 5:])
    for inputs in ({"inputs_embeds": embeds}, {"inputs_embeds": embeds, "input_ids": prompt}):
        with pytest.raises(ValueError, match=r"\A.*max_position_embeddings=8 without the ids.*\Z"):
            model.generate(**inputs, max_new_tokens=new + 1, do_sample=False)


def test_new_ids_on_a_cache_are_refused_past_the_edge():
    model = small_model()
    ids = random_ids(1, 6)
    with torch.no_grad():
        past = model(ids[:, :4], use_cache=True).past_key_values
    mask = torch.ones(1, 6, dtype=torch.long)
    settings = GenerationConfig(do_sample=False, max_new_tokens=WINDOW)
    with pytest.raises(ValueError, match=r"\A.*without the ids.*\Z"):
        model.generate(ids[:, 4:], attention_mask=mask, past_key_values=past, generation_config=settings)


@torch.no_grad()
def guided(model, idx: torch.Tensor, unconditional: torch.Tensor, max_new_tokens: int, scale: float) -> torch.Tensor:
    """Classifier-free guidance by hand: both texts grow by the same tokens, and slide."""
    for _ in range(max_new_tokens):
        asked, free = (model(ids[:, -WINDOW:]).logits[:, -1].log_softmax(-1) for ids in (idx, unconditional))
        idx_next = (free + scale * (asked - free)).argmax(dim=-1, keepdim=True)
        idx, unconditional = (torch.cat((ids, idx_next), dim=1) for ids in (idx, unconditional))
    return idx


@pytest.mark.parametrize("new_tokens", [WINDOW - 4, 2 * WINDOW])
@pytest.mark.parametrize("negative", [None, 3, WINDOW + 2])
@pytest.mark.parametrize("use_cache", [True, False])
def test_guidance_slides_with_both_of_its_texts(new_tokens, negative, use_cache):
    model, prompt = small_model(), random_ids(2, 3)
    options = {} if negative is None else {"negative_prompt_ids": random_ids(2, negative, seed=5)}
    found = model.generate(
        prompt, max_new_tokens=new_tokens, do_sample=False, guidance_scale=1.7, use_cache=use_cache, **options
    )
    expected = guided(model, prompt, options.get("negative_prompt_ids", prompt[:, -1:]), new_tokens, 1.7)
    assert torch.equal(found, expected)
