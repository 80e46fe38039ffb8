"""The scorer against a naive full forward, and its promises on sharing, order and determinism."""

import math

import pytest
import torch

from model import scoring
from model.scores import head, plan


def qwen2():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=101,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=128,
            initializer_range=0.3,
        )
    )


def steel():
    from model.steel import SteelConfig, SteelForCausalLM

    return SteelForCausalLM(
        SteelConfig(
            vocab_size=101,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_experts=3,
            max_position_embeddings=128,
            initializer_range=0.3,
        )
    )


@pytest.fixture(scope="module", params=[qwen2, steel])
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


@torch.inference_mode()
def naive(model, prompt, option):
    """The definition: the whole logits of one unpadded sequence, token by token."""
    ids = torch.tensor([list(prompt) + list(option)])
    logp = model(input_ids=ids).logits[0].float().log_softmax(-1)
    return sum(float(logp[len(prompt) + k - 1, t]) for k, t in enumerate(option))


def questions(n=23, seed=1):
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        length = int(torch.randint(low, high, (1,), generator=g))
        return torch.randint(0, 101, (length,), generator=g).tolist()

    return [draw(1, 12) for _ in range(n)], [[draw(1, 6) for _ in range(4)] for _ in range(n)]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 64, 16384])
def test_choice_logprobs_equal_the_naive_forward(model, share, batch_tokens):
    prompts, options = questions()
    got = scoring.choice_logprobs(model, prompts, options, batch_tokens, share=share)
    for prompt, choices, scores in zip(prompts, options, got, strict=True):
        for choice, (logp, tokens) in zip(choices, scores, strict=True):
            assert tokens == len(choice)
            assert logp == pytest.approx(naive(model, prompt, choice), abs=2e-5)


def test_option_order_only_reorders_the_scores(model):
    prompts, options = questions(8)
    forward = scoring.choice_logprobs(model, prompts, options)
    backward = scoring.choice_logprobs(model, prompts, [list(reversed(o)) for o in options])
    for a, b in zip(forward, backward, strict=True):
        for (x, _), (y, _) in zip(a, reversed(b), strict=True):
            assert x == pytest.approx(y, abs=1e-5)


def test_a_repeated_question_is_scored_alike(model):
    prompts, options = questions(3)
    twice = scoring.choice_logprobs(model, prompts * 2, options * 2)
    assert twice[:3] == twice[3:]


def test_first_token_logprobs_are_those_of_one_token_options(model):
    prompts, _ = questions(9)
    letters = [3, 7, 50, 100]
    got = scoring.first_token_logprobs(model, prompts, letters, batch_tokens=30)
    for prompt, scores in zip(prompts, got, strict=True):
        assert scores == pytest.approx([naive(model, prompt, [t]) for t in letters], abs=2e-5)


@pytest.mark.parametrize("batch_tokens", [40, 16384])
def test_a_shared_beginning_is_computed_once_and_changes_nothing(model, batch_tokens):
    prompts, options = questions(9)
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, *p] for p in prompts]
    apart = scoring.first_token_logprobs(model, prompts, [3, 7, 50, 100], batch_tokens, share=False)
    shared = scoring.first_token_logprobs(model, prompts, [3, 7, 50, 100], batch_tokens)
    assert shared == [pytest.approx(scores, abs=2e-5) for scores in apart]
    chosen = scoring.choice_logprobs(model, prompts, options, batch_tokens)
    for prompt, choices, scores in zip(prompts, options, chosen, strict=True):
        assert [x for x, _ in scores] == pytest.approx([naive(model, prompt, c) for c in choices], abs=2e-5)


def test_the_common_prefix_leaves_each_sequence_a_token():
    assert plan.common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]]) == 2
    assert plan.common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert plan.common_prefix([[1], [1, 2]]) == 0
    assert plan.common_prefix([[2, 1], [1, 2]]) == 0


def test_reply_logprobs(model):
    prompts, options = questions(6)
    replies = [o[0] for o in options]
    got = scoring.reply_logprobs(model, prompts, replies, batch_tokens=20)
    assert [s for s, _ in got] == pytest.approx(
        [naive(model, p, r) for p, r in zip(prompts, replies, strict=True)], abs=2e-5
    )


def test_the_chunked_head_changes_nothing(model, monkeypatch):
    prompts, options = questions(5)
    whole = scoring.choice_logprobs(model, prompts, options)
    monkeypatch.setattr(head, "HEAD_ELEMENTS", 202)
    chunked = scoring.choice_logprobs(model, prompts, options)
    for a, b in zip(whole, chunked, strict=True):
        assert [x for x, _ in a] == pytest.approx([x for x, _ in b], abs=1e-5)


def test_the_same_call_gives_the_same_bytes(model):
    prompts, options = questions()
    assert scoring.choice_logprobs(model, prompts, options) == scoring.choice_logprobs(
        model, prompts, options
    )


def test_a_uniform_head_gives_log_one_over_vocabulary(model):
    import copy

    flat = copy.deepcopy(model)
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    [[(logp, n)]] = scoring.choice_logprobs(flat, [[1, 2]], [[[5, 6, 7]]])
    assert n == 3
    assert logp == pytest.approx(-3 * math.log(101), rel=1e-6)


def test_nothing_to_score_is_refused(model):
    with pytest.raises(ValueError, match="at least one token"):
        scoring.choice_logprobs(model, [[1]], [[[]]])
    with pytest.raises(ValueError, match="before it"):
        scoring.suffix_logprobs(model, [[1, 2]], [0])


def test_batches_keep_the_budget_and_cover_everything():
    lengths = [5, 1, 9, 9, 3, 2, 40]
    batches = list(plan.batches(lengths, 18, equal=False))
    assert sorted(i for b in batches for i in b) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 18 for b in batches)
    for batch in plan.batches(lengths, 1000, equal=True):
        assert len({lengths[i] for i in batch}) == 1


class Words:
    """A tokenizer of numbers, enough for generation."""

    stops = [99, 100]
    begin: list[int] = []

    def encode(self, text):
        return [int(t) for t in text.split()]

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(str(i) for i in ids if i < 99)


def test_greedy_generation_is_the_argmax_chain(model):
    ids = [4, 9, 2]
    for _ in range(6):
        with torch.inference_mode():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] >= 99:
            break
    [text] = scoring.generate(model, Words(), ["4 9 2"], 6, chat=False)
    assert text == " ".join(str(i) for i in ids[3:] if i < 99)


def test_sampling_depends_on_the_seed_alone(model):
    def draw(seed, prompts):
        return scoring.generate(model, Words(), prompts, 8, chat=False, temperature=1.5, seed=seed)

    assert draw(1, ["4 9", "7"])[1] == draw(1, ["7"])[0]
    assert draw(1, ["4 9"]) != draw(2, ["4 9"])


def test_a_reply_ends_where_the_context_does(model):
    context = model.config.max_position_embeddings
    stop = model.config.vocab_size - 1

    def tokens(length):
        return scoring.generate(Endless(), Counting(), [[5] * length], 50, chat=False)[0]

    class Endless:
        config = model.config

        def parameters(self):
            return model.parameters()

        def generate(self, input_ids, max_new_tokens, **_):
            return torch.cat([input_ids, torch.full((1, max_new_tokens), stop)], 1)

    class Counting(Words):
        def decode(self, ids, skip_special_tokens=True):
            return len(ids)

    assert [tokens(n) for n in (1, context - 50, context - 7, context - 1)] == [50, 50, 7, 1]
    for length in (context, context + 1):
        with pytest.raises(scoring.NoRoom, match=f"the prompt has {length} tokens"):
            tokens(length)


def test_an_export_is_loaded_without_remote_code(tmp_path):
    torch.manual_seed(0)
    made = steel().eval()
    made.save_pretrained(tmp_path)
    prompts, options = questions(4)
    read = scoring.load(tmp_path)
    assert scoring.choice_logprobs(read, prompts, options) == scoring.choice_logprobs(made, prompts, options)


def test_an_untrained_model_has_the_geometry_and_fresh_weights(tmp_path):
    torch.manual_seed(0)
    made = steel()
    made.save_pretrained(tmp_path)
    one, same, other = (scoring.untrained(tmp_path, seed) for seed in (1, 1, 2))
    for a, b, c, _ in zip(*(m.parameters() for m in (made, one, same, other)), strict=True):
        assert a.shape == b.shape
        assert torch.equal(b, c)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, made.lm_head.weight)
