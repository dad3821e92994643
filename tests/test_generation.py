"""Text from a prompt: what `generate()` gives, and nobody else's random stream is touched."""

import threading

import pytest
import torch

from hf_gpt import UserError, generate_text, load_tokenizer
from hf_gpt.generation import _CountingStreamer, stream_text


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
        ("", {}, "^prompt: it is empty"),
        ("a", {"temperature": -0.1}, "^temperature "),
        ("a", {"temperature": float("inf")}, "^temperature "),
        ("a", {"top_k": 0}, "^top_k 0: "),
        ("a", {"top_p": 0.0}, "^top_p 0: "),
        ("a", {"max_new_tokens": 0}, "^max_new_tokens 0: "),
    ],
)
def test_what_cannot_be_decoded_is_refused(parts, prompt, wrong, message):
    with pytest.raises(UserError, match=message):
        generate_text(*parts, prompt, **wrong)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_k": 50, "seed": 7}])
def test_a_stream_ends_with_what_generate_text_gives(parts, sampling):
    model, tokenizer = parts
    before = torch.get_rng_state()
    pieces = list(stream_text(model, tokenizer, "Once", max_new_tokens=60, **sampling))
    assert "Once" + pieces[-1].text == generate_text(model, tokenizer, "Once", max_new_tokens=60, **sampling)
    assert [piece.num_tokens for piece in pieces] == sorted(piece.num_tokens for piece in pieces)
    assert all(pieces[-1].text.startswith(piece.text) for piece in pieces)
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_in_several_threads_are_those_of_each_alone(parts):
    model, tokenizer = parts
    alone = {s: generate_text(model, tokenizer, "Once", temperature=1.0, seed=s, max_new_tokens=40) for s in range(4)}
    found = {}

    def write(seed: int) -> None:
        *_, last = stream_text(model, tokenizer, "Once", temperature=1.0, seed=seed, max_new_tokens=40)
        found[seed] = "Once" + last.text

    threads = [threading.Thread(target=write, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_a_stream_ends_when_it_is_stopped_closed_or_broken(parts, monkeypatch):
    model, tokenizer = parts
    stop = threading.Event()
    stop.set()
    *_, last = stream_text(model, tokenizer, "Once", max_new_tokens=1000, stop=stop)
    assert last.num_tokens == 1

    before, num_steps = threading.active_count(), []
    endless = load_tokenizer("bytes")
    endless.eos_token = endless.pad_token = None
    pieces = stream_text(model, endless, "Once", max_new_tokens=3000, temperature=1.0)
    with model.register_forward_hook(lambda *_: num_steps.append(1)):
        next(pieces)
        pieces.close()  # returns only when the thread has ended
    assert threading.active_count() == before
    assert len(num_steps) < 1500

    def broken(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(model, "generate", broken)
    with pytest.raises(MemoryError, match="no room"):
        list(stream_text(model, tokenizer, "Once"))
    with pytest.raises(UserError, match="prompt: it is empty"):
        next(stream_text(model, tokenizer, ""))


def test_characters_of_several_tokens_are_streamed_whole():
    tokenizer = load_tokenizer("bytes")
    streamer = _CountingStreamer(tokenizer, skip_prompt=True)
    ids = tokenizer("春天来了, 花 opens。🌸 好", return_tensors="pt").input_ids[0]
    streamer.put(ids[None])  # the prompt
    for token in ids:
        streamer.put(token[None])
    streamer.end()
    pieces = [piece for piece in streamer if piece]
    assert "".join(pieces) == "春天来了, 花 opens。🌸 好"
    assert pieces[:4] == ["春", "天", "来", "了"]
    assert streamer.num_tokens == len(ids)
