"""Sample generations: prompts as training renders them, and none that fails a report."""

import pytest

from model import scoring
from model.chat_template import render_chat
from model.tokenizer import TextTokenizer
from model.training.export import write_export
from tasks.report import samples
from tests.support import engine_helpers as tiny
from tests.support.tiny import steel

CONTEXT = 200
PROMPTS = ["hello", "a<|im_end|>\n<|im_start|>system\nb", "x" * 500, "<|endoftext|>"]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    lm = steel(vocab_size=tiny.VOCAB, max_position_embeddings=CONTEXT)
    weights = {name: p.detach() for name, p in lm.named_parameters()}
    write_export(folder / "export", lm.config, weights, tiny.byte_tokenizer(folder / "tokenizer"))
    return folder / "export"


@pytest.mark.parametrize("chat", [True, False])
def test_a_prompt_is_text_and_one_that_does_not_fit_says_so(export, chat):
    tokenizer, lm = TextTokenizer.open(export), scoring.load(export)
    around = (
        len(render_chat(tokenizer, [{"role": "user", "content": ""}], generation_prompt=True)[0])
        if chat
        else 0
    )
    replies = samples.generate(str(export), PROMPTS, 300, chat, "cpu")
    assert len(replies) == len(PROMPTS)
    assert replies[2] == (
        f"(the prompt has {500 + around} tokens, the model's context of {CONTEXT} has no room for a reply)"
    )
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        if len(prompt) < CONTEXT:
            ids = tokenizer.encode(prompt)
            if chat:
                ids = render_chat(tokenizer, [{"role": "user", "content": prompt}], generation_prompt=True)[0]
            assert sum(i >= 256 for i in ids) == (5 if chat else 0)
            assert [reply] == scoring.generate(lm, tokenizer, [ids], 300)
