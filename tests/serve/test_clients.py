"""The official client and lm-eval against the server: what they read is there, and scores are those of our evaluation."""

import pytest

from model import scoring
from model.tokenizer import TextTokenizer
from serve.engine import Limits
from serve.models import Offer
from tests.support import exports
from tests.support.serving import served

pytestmark = pytest.mark.slow
PAIRS = [("中国的首都是？\n", "北京"), ("The capital of France is", " Paris"), ("", "Water")]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    work = tmp_path_factory.mktemp("clients")
    folder = exports.export(work / "model", exports.qwen_tokenizer(work / "tokenizer"))
    with served({"m": Offer(folder)}, Limits(slots=4), key="secret") as (address, _):
        yield address, folder


@pytest.fixture
def client(house):
    openai = pytest.importorskip("openai", reason="the official client is not installed (make peers)")
    with openai.OpenAI(base_url=f"{house[0]}/v1", api_key="secret") as client:
        yield client


def test_the_official_client_chats(client):
    messages = [{"role": "user", "content": "你是谁？"}]
    asked = {"model": "m", "messages": messages, "max_completion_tokens": 8, "temperature": 0}
    reply = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    text = reply.choices[0].message.content
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage == reply.usage
    assert [model.id for model in client.models.list()] == ["m"]


def test_the_official_client_completes(client):
    reply = client.completions.create(
        model="m", prompt=["水", "The"], max_tokens=4, temperature=0, logprobs=1, echo=True
    )
    assert [choice.text[:1] for choice in reply.choices] == ["水", "T"]
    assert reply.choices[0].logprobs.token_logprobs[0] is None


def test_the_official_client_knows_our_refusals(client, house):
    import openai

    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], tools=[{"type": "x"}]
        )
    assert refused.value.param == "tools"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-9", prompt="x")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{house[0]}/v1", api_key="wrong").models.list()


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


@pytest.mark.parametrize("tokenizer_backend", ["remote", "huggingface"])
def test_lm_eval_scores_by_the_server_as_we_do(house, tokenizer_backend, monkeypatch):
    for package in ("lm_eval", "tenacity"):  # lm_eval[api]
        pytest.importorskip(package, reason=f"{package} is not installed (make peers)")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    address, folder = house
    tokenizer = TextTokenizer.open(folder)
    begin = tokenizer.special_id("<|endoftext|>")
    theirs = LocalCompletionsAPI(
        base_url=f"{address}/v1/completions",
        model="m",
        tokenizer=str(folder),
        tokenizer_backend=tokenizer_backend,
        custom_prefix_token_id=begin,
        batch_size=2,
        max_length=255,
    )
    got = [score for score, _ in theirs.loglikelihood(instances("loglikelihood", PAIRS))]
    # lm-eval counts white space at the end of a context with what follows
    texts = [(context.rstrip(), context[len(context.rstrip()) :] + option) for context, option in PAIRS]
    prompts = [tokenizer.encode(context) or [begin] for context, _ in texts]
    options = [[tokenizer.encode(option)] for _, option in texts]
    ours = scoring.choice_logprobs(scoring.load(folder), prompts, options)
    assert got == pytest.approx([row[0][0] for row in ours], abs=1e-4)
    until = [("The capital", {"until": ["e"], "max_gen_toks": 12, "do_sample": False})]
    (text,) = theirs.generate_until(instances("generate_until", until))
    assert "e" not in text


def test_lm_eval_chats(house, monkeypatch):
    for package in ("lm_eval", "tenacity"):  # lm_eval[api]
        pytest.importorskip(package, reason=f"{package} is not installed (make peers)")
    from lm_eval.api.model import LM
    from lm_eval.models.openai_completions import LocalChatCompletion

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    theirs: LM = LocalChatCompletion(
        base_url=f"{house[0]}/v1/chat/completions", model="m", tokenizer_backend=None
    )
    context = theirs.apply_chat_template([{"role": "user", "content": "你是谁？"}])
    until = [(context, {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False})]
    (text,) = theirs.generate_until(instances("generate_until", until))
    assert isinstance(text, str)
    assert "\n\n" not in text
