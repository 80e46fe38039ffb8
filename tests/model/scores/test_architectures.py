"""Models of many architectures: every log-probability is the one of the model's own full forward."""

import pytest
import torch

from model import scoring
from model.scores.network import network_of
from tests.support.architectures import ARCHITECTURES, VOCABULARY, random_model
from tests.support.tiny import steel

SHARE_NOTHING = {"mamba", "falcon_mamba", "rwkv", "jamba", "recurrent_gemma", "bert"}
OWN_FORWARD = {"bert"}


def draw(count, seed):
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def asked():
    """Prompts of two families with a long common beginning, and some of their own; options of 1 to 3 tokens."""
    begin, other = draw(18, 1), draw(20, 2)
    prompts = [begin + draw(3 + k % 4, 10 + k) for k in range(9)]
    prompts += [begin[:10] + other + draw(1 + k % 2, 30 + k) for k in range(7)]
    prompts += [draw(9, 50), draw(2, 51)]
    return prompts, [
        [draw(1, 60), draw(1, 61), draw(3, 70 + k), draw(2, 90 + k)] for k in range(len(prompts))
    ]


@torch.inference_mode()
def naive(model, prompt, option):
    logits = model(input_ids=torch.tensor([prompt + option]), use_cache=False).logits[0].float()
    logp = logits.log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(option) - 1)
    chosen = [float(logp[i, t]) for i, t in zip(at, option, strict=True)]
    return sum(chosen), all(int(logp[i].argmax()) == t for i, t in zip(at, option, strict=True))


def compare(model, limit=2e-5, every=1):
    prompts, options = asked()
    got = scoring.option_scores(model, prompts, options)
    for prompt, choices, scores in list(zip(prompts, options, got, strict=True))[::every]:
        for option, (value, tokens, likeliest) in zip(choices, scores, strict=True):
            due, is_likeliest = naive(model, prompt, option)
            assert value == pytest.approx(due, abs=limit)
            assert (tokens, likeliest) == (len(option), is_likeliest)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_as_by_its_own_forward(kind):
    model = random_model(kind)
    compare(model, every=3)
    network = network_of(model)
    assert network.shares == (kind not in SHARE_NOTHING)
    assert network.whole == (kind in OWN_FORWARD)


@pytest.mark.parametrize("kind", ["dense", "token", "prefix", "merge"])
def test_steels_own_kinds_share_exactly(kind):
    model = steel(vocab_size=VOCABULARY, ffn=kind, merge_segment=8)
    assert network_of(model).shares
    compare(model)


@pytest.mark.parametrize("kind", ["paper", "released"])
def test_kinds_that_see_the_future_are_asked_whole(kind):
    model = steel(vocab_size=VOCABULARY, ffn=kind)
    assert not network_of(model).shares
    compare(model)


def test_windows_shorter_than_a_prompt_share_nothing_and_stay_right():
    model = random_model("mistral", sliding_window=16)
    assert network_of(model).share_limit == 16
    compare(model, every=3)


def test_a_wrong_head_is_noticed(monkeypatch):
    """Without its soft cap Gemma 2 would be several nats off: then its own forward is asked."""
    from model.scores import head

    monkeypatch.setattr(head, "finish_of", lambda config: (1.0, None))
    for kind in ("gemma2", "granite", "cohere"):
        model = random_model(kind)
        assert network_of(model).whole
        compare(model, every=6)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mamba", "bert"])
def test_half_precision_is_tried_within_its_own_rounding(kind):
    model = random_model(kind).to(torch.bfloat16)
    network = network_of(model)
    assert network.whole == (kind in OWN_FORWARD)
    [[(value, _)]] = scoring.choice_logprobs(model, [draw(9, 1)], [[draw(1, 2)]])
    assert value == pytest.approx(naive(model, draw(9, 1), draw(1, 2))[0], abs=0.5)
