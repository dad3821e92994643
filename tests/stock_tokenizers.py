"""Tokenizers as models on the Hub have them: small, but of those classes, with files as transformers 4 wrote them."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "Hello  world 1 2 3, don't\n é",
    "a\n\n\n b\t12345 日本語 🙂 x",
    " it's 99 bottles, 'tis <|im_start|>user\nhi<|im_end|> ",
    "a</s>b<s> c <|im_end|>d <tool_call>e</tool_call>",
    "cafe\u0301",
    " ",
    "",
]
_CORPUS = ["the cat sat on the mat, it's 1 2 3 don't hello world user assistant", "日本語 é café"]
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write(kind: str, folder: Path) -> Path:
    """The files of a tokenizer of a `kind` of `KINDS`."""
    backend, config = KINDS[kind]()
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    rest = {"clean_up_tokenization_spaces": False, "model_max_length": 4096, "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps({**rest, **config}))
    return folder


def _byte_level(*special: str, normalizer=None, split=None) -> Tokenizer:
    backend, bytewise = (
        Tokenizer(models.BPE()),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None),
    )
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = bytewise if split is None else pre_tokenizers.Sequence([split, bytewise])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(_CORPUS * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return backend


def _qwen() -> tuple[Tokenizer, dict]:
    ends = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    backend = _byte_level(*ends, normalizer=normalizers.NFC(), split=split)
    backend.add_tokens([AddedToken("<tool_call>", normalized=False)])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    special = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    more = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "add_bos_token": False}
    more["auto_map"] = {"AutoTokenizer": [None, "tokenization_qwen.QwenTokenizer"]}  # which is not needed
    return backend, {"tokenizer_class": "Qwen2Tokenizer", "errors": "replace", **special, **more}


def _smollm() -> tuple[Tokenizer, dict]:
    backend = _byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", split=pre_tokenizers.Digits(True))
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    more = {"pad_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    return backend, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **special, **more}


def _llama3() -> tuple[Tokenizer, dict]:
    begin, end = "<|begin_of_text|>", "<|im_end|>"
    backend = _byte_level(begin, end, "<|im_start|>")
    single, pair = f"{begin} $A", f"{begin} $A {begin}:1 $B:1"
    ids = [(begin, backend.token_to_id(begin))]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    templates = [{"name": "default", "template": CHAT}, {"name": "tool_use", "template": "Tools:\n" + CHAT}]
    special = {"bos_token": begin, "eos_token": end}
    return backend, {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": templates, **special}


def _llama(bos: bool = True, eos: bool = False, **more) -> tuple[Tokenizer, dict]:
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdeht123",
        "▁a",
        "▁t",
        "▁th",
    ]
    merges = [("▁", "a"), ("▁", "t"), ("▁t", "h")]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, **options))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(ends)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.values()])
    single = ("<s>:0 " if bos else "") + "$A:0" + (" </s>:0" if eos else "")
    pair = f"{single} {single.replace(':0', ':1').replace('$A', '$B')}"
    ids = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return backend, {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": bos,
        "add_eos_token": eos,
        **special,
        **more,
    }


KINDS = {
    "qwen": _qwen,
    "smollm": _smollm,
    "llama 3": _llama3,
    "llama 2": lambda: _llama(legacy=False),
    "llama 1": lambda: _llama(legacy=True, tokenizer_class="LlamaTokenizerFast"),  # each special token starts a text
    "no bos, but eos": lambda: _llama(bos=False, eos=True, legacy=False),
}

# Run where this package is not: what the tokenizers in some folders do.
READ = """
import json, sys
from transformers import AutoTokenizer
texts = json.load(sys.stdin)
chat = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "ok"}]
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = sorted(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else [None]
    print(json.dumps({
        "ids": [tokenizer(text).input_ids for text in texts],
        "pair": tokenizer(*texts[:2]).input_ids,
        "bare": [tokenizer(text, add_special_tokens=False).input_ids for text in texts],
        "texts": [tokenizer.decode(tokenizer(text).input_ids) for text in texts],
        "no special": [tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) for text in texts],
        "special": [str(getattr(tokenizer, name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")],
        "all special": sorted(tokenizer.all_special_tokens),
        "length": tokenizer.model_max_length,
        "chats": [[name, tokenizer.apply_chat_template(
            chat, chat_template=name, tokenize=False, add_generation_prompt=True)] for name in names],
    }))
"""
