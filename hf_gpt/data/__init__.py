"""From text to batches: corpus, tokenizer, token store, windows. `README.md` here describes the way."""
