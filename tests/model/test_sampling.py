"""The sampler: what it draws is the model's, whoever shares the batch, and ends where it should."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model.rewards import REWARDS
from model.sampling import Sample, graded, sample
from model.tokenizer import TextTokenizer
from tests.support import tiny
from tests.support.families import MODELS

PROMPTS = [[5, 6, 7], [8, 9], [1, 2, 3], [4], [9, 8], [3, 3, 3]]
STOPS = [300, 301, *range(20, 40)]


@pytest.mark.parametrize("ffn", ["dense", "token", "prefix", "merge"])
def test_logps_and_entropy_are_those_of_a_full_forward(ffn):
    model = tiny.steel(ffn=ffn)
    groups = sample(model, PROMPTS, stops=STOPS, group=3, limit=12, temperature=1.0, seeds=range(6))
    ended = [reply.ended for group in groups for reply in group]
    assert any(ended)
    assert not all(ended)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for reply in group:
            assert (reply.ids[-1] in STOPS) == reply.ended
            assert not set(reply.ids[:-1]) & set(STOPS)
            assert reply.ended or len(reply.ids) == 12
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *reply.ids]])).logits[0].float()
            logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            taken = logp[torch.arange(len(reply.ids)), list(reply.ids)]
            assert list(reply.logps) == pytest.approx(taken.tolist(), abs=2e-5)
            assert reply.entropy == pytest.approx(-(logp.exp() * logp).sum().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2"])
def test_logps_are_those_of_another_models_head(name):
    """Its factor and its soft cap, too."""
    fields = dict(MODELS[name])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()
    groups = sample(model, PROMPTS, stops=[], group=2, limit=9, temperature=1.0, seeds=range(6))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for reply in group:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *reply.ids]]), use_cache=False).logits[0].float()
            logp = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            taken = logp[torch.arange(len(reply.ids)), list(reply.ids)]
            assert list(reply.logps) == pytest.approx(taken.tolist(), abs=2e-5)


def test_what_is_drawn_depends_on_the_seed_alone():
    model = tiny.steel()
    more = {"stops": STOPS, "group": 2, "limit": 8, "temperature": 1.0}
    together = sample(model, PROMPTS, seeds=range(6), **more)
    alone = [sample(model, [p], seeds=[s], **more)[0] for s, p in enumerate(PROMPTS)]
    cut = sample(model, PROMPTS, seeds=range(6), batch_rows=2, **more)
    ids = [[[r.ids for r in group] for group in each] for each in (together, alone, cut)]
    assert ids[0] == ids[1] == ids[2]
    assert [[r.ids for r in g] for g in sample(model, PROMPTS, seeds=range(1, 7), **more)] != ids[0]


def test_greedy_is_what_generate_says():
    model = tiny.steel()
    for prompt, (reply,) in zip(PROMPTS, sample(model, PROMPTS, stops=STOPS, limit=10), strict=True):
        ids = torch.tensor([prompt])
        said = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10,
            eos_token_id=STOPS, pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert list(reply.ids) == said


def test_draws_follow_the_distribution():
    model = tiny.steel(vocab_size=320)
    with torch.no_grad():
        p = model(torch.tensor([PROMPTS[0]])).logits[0, -1].float().softmax(-1)
    (group,) = sample(
        model, PROMPTS[:1], stops=[], group=4000, limit=1, temperature=1.0, seeds=[3], batch_rows=4000
    )
    seen = torch.bincount(torch.tensor([r.ids[0] for r in group]), minlength=320) / 4000
    top = p.topk(10).indices
    assert ((seen[top] - p[top]).abs() < 4 * (p[top] * (1 - p[top]) / 4000).sqrt() + 1e-9).all()


def test_a_reply_needs_room_in_the_context():
    model = tiny.steel(max_position_embeddings=8)
    with pytest.raises(ValueError, match="a prompt of 3 tokens and a reply of 6 exceed the context of 8"):
        sample(model, PROMPTS[:1], stops=STOPS, limit=6)


def test_an_id_without_a_token_makes_a_reply_worthless(tmp_path):
    """A model may have more ids than its tokenizer; they decode to nothing."""
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = TextTokenizer.open(tmp_path)
    end, beyond = tokenizer.special_id("<|im_end|>"), tokenizer.vocab_size

    def reply(*parts):
        ids = [i for part in parts for i in (tokenizer.encode(part) if isinstance(part, str) else [part])]
        return graded(tokenizer, Sample((*ids, end), (0.0,) * (len(ids) + 1), 0.0, True))

    for reward, answer, parts in (
        ("arithmetic", "42", ("4", beyond, beyond + 9, "2")),
        ("arithmetic", "42", ("so", beyond, "\n#### 42")),
        ("exact", "yes", ("yes", beyond)),
        ("exact", "yes", (beyond, "yes")),
        ("letter", "B", ("B", beyond)),
        ("format", "yes", ("<think>a", beyond, "</think>yes")),
    ):
        whole = [part for part in parts if isinstance(part, str)]
        assert REWARDS[reward](reply(*whole), answer) == 1
        assert REWARDS[reward](reply(*parts), answer) == 0, parts
