"""Questions, and a model that knows what it has been told and nothing else."""

from types import SimpleNamespace

import torch
from torch import nn

from tasks.evaluate.benchmarks import Question


def question(k, language="en", answer=0, choices=None, **more):
    """A question about the number after `k`; its options are as long as they differ."""
    text = f"Which number follows {k}?" if language == "en" else f"{k}的后面是几？"
    if choices is None:
        choices = tuple(f"{w}{k + d}" for w, d in zip("wxyz", (1, 20, 300, 4000), strict=True))
    fields = {
        "id": f"q{k}",
        "benchmark": "numbers",
        "subject": f"s{k % 2}",
        "split": "val",
        "language": language,
        "question": text,
        "choices": choices,
        "answer": answer,
    }
    return Question(**(fields | more))


class Scripted(nn.Module):
    """Knows what comes after certain beginnings, and nothing else."""

    def __init__(self, script, vocab_size, context=4096):
        super().__init__()
        self.script = script
        self.config = SimpleNamespace(ffn="prefix", max_position_embeddings=context)
        self.head = nn.Linear(vocab_size, vocab_size, bias=False)
        nn.init.eye_(self.head.weight)

    def get_output_embeddings(self):
        return self.head

    def base_model(self, input_ids, use_cache=False):
        hidden = torch.zeros(*input_ids.shape, self.head.in_features)
        for row, ids in enumerate(input_ids.tolist()):
            for end in range(1, len(ids) + 1):
                if (target := self.script.get(tuple(ids[:end]))) is not None:
                    hidden[row, end - 1, target] = 20.0
        return SimpleNamespace(last_hidden_state=hidden)

    def generate(self, input_ids, max_new_tokens, eos_token_id=None, **kwargs):
        """Greedy; where the script says nothing, the last stop."""
        ids = input_ids[0].tolist()
        stops = list(eos_token_id or [0])
        for _ in range(max_new_tokens):
            ids.append(self.script.get(tuple(ids), stops[-1]))
            if ids[-1] in stops:
                break
        return torch.tensor([ids])


def says(script, prompt, ids):
    """Teach a script to continue a prompt so."""
    for end in range(len(ids)):
        script[tuple(prompt) + tuple(ids[:end])] = ids[end]
    return script
