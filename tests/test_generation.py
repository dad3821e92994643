"""Text from a prompt: what `generate()` gives, and nobody else's random stream is touched."""

import pytest
import torch

from hf_gpt import GPTConfig, GPTForCausalLM, UserError, generate_text, load_tokenizer


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=257, context_length=16, emb_dim=16, n_layers=1, n_heads=2, initializer_range=0.5, drop_rate=0.5
    )
    return GPTForCausalLM(config).eval(), load_tokenizer("bytes")


def test_nothing_said_is_greedy(parts):
    model, tokenizer = parts
    ids = tokenizer("Once", return_tensors="pt").input_ids
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, pad_token_id=0
    )
    text = generate_text(model, tokenizer, "Once", max_new_tokens=30)
    assert text == "Once" + tokenizer.decode(expected[0, 4:], skip_special_tokens=True)
    assert text == generate_text(model, tokenizer, "Once", max_new_tokens=30, temperature=0.0, top_k=5)


def test_sampling_repeats_with_its_seed_and_draws_from_no_other_stream(parts):
    model, tokenizer = parts
    before = torch.get_rng_state()
    texts = [generate_text(model, tokenizer, "Once", temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_in_training_writes_without_dropout(parts):
    model, tokenizer = parts
    expected = generate_text(model, tokenizer, "Once")
    model.train()
    assert generate_text(model, tokenizer, "Once") == expected
    assert model.training
    model.eval()


def test_top_k_and_top_p_alone_sample_at_temperature_one(parts):
    model, tokenizer = parts
    greedy = generate_text(model, tokenizer, "Once")
    assert generate_text(model, tokenizer, "Once", top_k=1) == greedy
    assert generate_text(model, tokenizer, "Once", top_p=1e-6) == greedy
    assert generate_text(model, tokenizer, "Once", top_k=50) == generate_text(
        model, tokenizer, "Once", top_k=50, temperature=1.0
    )


@pytest.mark.parametrize(
    ("prompt", "wrong", "message"),
    [
        ("", {}, "--prompt"),
        ("a", {"temperature": -0.1}, "--temperature"),
        ("a", {"temperature": float("inf")}, "--temperature"),
        ("a", {"top_k": 0}, "--top-k"),
        ("a", {"top_p": 0.0}, "--top-p"),
        ("a", {"max_new_tokens": 0}, "--max-new-tokens"),
    ],
)
def test_what_cannot_be_decoded_is_refused(parts, prompt, wrong, message):
    with pytest.raises(UserError, match=message):
        generate_text(*parts, prompt, **wrong)
