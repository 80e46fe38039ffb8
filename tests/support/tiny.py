"""A byte tokenizer with ChatML and a tiny network: enough to run the post-training rooms for real."""

from pathlib import Path

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer():
    """The same with padding and a chat template."""
    from bench import byte_tokenizer as plain

    tokenizer = plain.byte_tokenizer(pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def steel(vocab_size=320, seed=0, **fields):
    """A random two-layer Steel model."""
    import torch

    from model.steel import SteelConfig, SteelForCausalLM

    geometry = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_experts": 3,
        "max_position_embeddings": 2048,
        "initializer_range": 0.15,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SteelForCausalLM(SteelConfig(vocab_size=vocab_size, **(geometry | fields))).eval()


def context(out: Path, config=None, inputs=None, **more):
    """A node's context without a runner."""
    import logging

    from tasks.settings.config import Runtime
    from tasks.stage.node import Context

    return Context(
        name=more.pop("name", "test"),
        out=out,
        config={} if config is None else config,
        inputs=inputs or {},
        runtime=more.pop("runtime", Runtime(device="cpu")),
        seed=more.pop("seed", 7),
        log=logging.getLogger("test"),
        track=Silent(),
        **more,
    )


class Silent:
    """A track that keeps what it is told."""

    def __init__(self):
        self.seen = []

    def metrics(self, values, step=None):
        self.seen.append((step, dict(values)))

    def params(self, values):
        pass

    def file(self, path, folder=""):
        pass


def artifact(node: str, path: Path, **extra):
    """A finished artifact at a path."""
    from tasks.stage.node import Artifact

    return Artifact(node=node, path=path, digest="d" * 64, fingerprint="f" * 64, manifest={"extra": extra})
