"""Small tokenizers in the manner of other models: their rules for spaces and bytes, special tokens, chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "The capital of France is Paris.",
    "What is 12 and 7?",
    "北京是中国的首都。",
    "a b c [INST] user assistant",
] * 3
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def save(folder: Path, kind: str, template: str | None = None, **settings: Any) -> Path:
    """A tokenizer folder: `llama2`, `mistral`, `zephyr`, `llama3`, `gemma` or `words` (which loses characters)."""
    folder.mkdir(parents=True, exist_ok=True)
    raw, names, chat = KINDS[kind]()
    raw.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    values |= {"chat_template": template or chat, **settings}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in values.items() if v is not None})
    )
    return folder


def _sentencepiece(prepend: str, chat: str) -> tuple[Tokenizer, dict[str, str], str]:
    specials = ["<unk>", "<s>", "</s>"]
    alphabet = [*specials, *(f"<0x{i:02X}>" for i in range(256))]
    # merges are learnt first, then the bytes are put in front of the vocabulary, as SentencePiece has them
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()  # no token goes across a space
    learnt.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=260, show_progress=False))
    model = json.loads(learnt.to_str())["model"]
    vocab = {token: i for i, token in enumerate(alphabet)}
    for token in sorted(model["vocab"], key=model["vocab"].get):
        vocab.setdefault(token, len(vocab))
    merges = [tuple(pair) for pair in model["merges"]]
    raw = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if prepend == "first":
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    raw.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return raw, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, chat


def _byte_level(
    specials: list[str], begin: str, end: str, chat: str
) -> tuple[Tokenizer, dict[str, str], str]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [], ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    number = raw.token_to_id(begin)
    bos = processors.TemplateProcessing(f"{begin} $A", f"{begin} $A {begin} $B", [(begin, number)])
    raw.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos])
    return raw, {"bos_token": begin, "eos_token": end}, chat


def _words() -> tuple[Tokenizer, dict[str, str], str]:
    """Neither bytes nor a fallback to them."""
    raw, names, chat = _sentencepiece("always", ZEPHYR)
    tree = json.loads(raw.to_str())
    tree["model"]["byte_fallback"] = False
    return Tokenizer.from_str(json.dumps(tree)), names, chat


HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
KINDS: dict[str, Any] = {
    "llama2": lambda: _sentencepiece("always", LLAMA2),
    "mistral": lambda: _sentencepiece("first", LLAMA2),
    "zephyr": lambda: _sentencepiece("always", ZEPHYR),
    "llama3": lambda: _byte_level(HEADERS, "<|begin_of_text|>", "<|eot_id|>", LLAMA3),
    "gemma": lambda: _byte_level(
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", GEMMA
    ),
    "words": _words,
}
