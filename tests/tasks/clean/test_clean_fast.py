"""Fast operators give what Data-Juicer's own give: on made-up nastiness here, on real records when asked."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.clean import operators
from tasks.clean.recipe import Step, load_set
from tests.support.samples import real_text, shuffled

RECIPES = [(name, kind) for name in ("paper", "steel") for kind in ("text", "dialogue", "code")]
SIMHASHES = [
    {"tokenization": "space", "window_size": 6},
    {"tokenization": "space", "window_size": 2, "ignore_pattern": r"\p{P}"},
    {"tokenization": "character", "window_size": 6, "ignore_pattern": r"[\p{P}\s]"},
]
FRAGMENTS = [
    *(
        "http://a.b/c",
        "www.",
        "a.com/x",
        "名字:值",
        "12:30",
        "ftp://ſ.k",
        "x@y.zz",
        "10.0.0.1",
        "1.2.3",
        "::1",
    ),
    *(
        "1:2:3:4:5:6:7:8",
        "&amp;",
        "&lt;b&gt;",
        "＆amp;",
        "&#20013;",
        "<br>",
        "<li>项",
        "</p>",
        "a<b and c>d",
        "<",
    ),
    *(
        "\\newcommand{\\a}{b}\n",
        "\\def\\x{y}\n",
        "\\a ",
        "/* copyright */",
        "/*",
        "// 注\n",
        "# 标题\n",
        "--\n",
    ),
    *(
        "Ã©",
        "â€œ",
        "æˆ‘ä»¬",
        "ï¼Œ",
        "é",
        "e\u0301",
        "か\u3099",
        "ﾊﾟ",
        "ᄀ\u1161",
        "ﬁ",
        "Ǆ",
        "œ。",
        "×²",
        "¥",
        "￥",
    ),
    *(
        "。。。",
        "......",
        "……",
        "”",
        "。”",
        "？！",
        "!!!",
        "重复的句子。",
        "重复的句子！",
        "Same again. ",
        "{。",
    ),
    *(
        "這個後來",
        "毕昇",
        "答覆",
        "沈默",
        "乾坤",
        "𨶀",
        "😀",
        "Ⓜ",
        "İ",
        "ΑΣ",
        "ς",
        "K",
        "Г",
        "\ufeff",
        "\u2028",
    ),
    *(
        "\r\n",
        "\x85",
        "\x1b[31m",
        "\x07",
        "\u00a0",
        "\u200b",
        "\u3000",
        "\t",
        "\n",
        "\n\n",
        " ",
        "▁",
        "<unk>",
    ),
]


def nasty_texts(seed: int, count: int) -> list[str]:
    """Made of fragments that some operator cares for, between runs of plain text."""
    rng = random.Random(seed)
    plain = ["的一是不了人我在有他这中大来上国。，", "the quick brown fox. ", "0123456789", " \n", "，。！？"]
    texts = [""]
    for _ in range(count):
        chosen = [*rng.sample(FRAGMENTS, rng.randint(1, 8)), *rng.sample(plain, 2)]
        parts = [rng.choice(chosen) for _ in range(rng.choice([1, 3, 10, 40]))]
        texts.append("".join(part if rng.random() < 0.7 else rng.choice(part or " ") for part in parts))
    return texts


@pytest.fixture(scope="module")
def pairs(models):
    """[(step, reference operator, fast operator)] for every step of both sets that has a fast one."""
    operators.prepare()
    from tasks.clean.fast import PREFIX

    found = {}
    for name, kind in RECIPES:
        for step in load_set(name)[kind].steps:
            needs_more = step.settings().get("tokenization") or step.settings().get("lang") == "en"
            if PREFIX + step.operator not in operators.registered() or (
                needs_more and step.operator in ("perplexity_filter", "alphanumeric_filter")
            ):
                continue
            key = f"{step.operator} {step.settings()}"
            if key not in found:
                both = [
                    operators.load(step.operator, step.settings(), models, engine)
                    for engine in ("reference", "fast")
                ]
                found[key] = (step, *both)
    return found


def outcome(step: Step, op, texts: list[str]):
    """What a mapper makes of the texts, or what a filter measures and decides."""
    if not step.is_filter:
        return op.process_batched({"text": list(texts)})["text"]
    batch = op.compute_stats_batched({"text": list(texts), "__dj__stats__": [{} for _ in texts]})
    return list(zip(batch["__dj__stats__"], op.process_batched(batch), strict=True))


def assert_equal(step: Step, reference, fast, texts: list[str]) -> None:
    for text, a, b in zip(texts, outcome(step, reference, texts), outcome(step, fast, texts), strict=True):
        assert a == b, (step.operator, text)


def simhash_of(op, text: str) -> str:
    from data_juicer.utils.constant import HashKeys

    return op.compute_hash({"text": text})[HashKeys.simhash]


def test_every_operator_that_is_not_trivial_has_a_fast_one(pairs):
    fast = {step.operator for step, _, _ in pairs.values()}
    used = {step.operator for name, kind in RECIPES for step in load_set(name)[kind].steps}
    simple = {"average_line_length_filter", "maximum_line_length_filter", "text_length_filter"}
    own = {operator for operator in used if operator.startswith("steel_")} | {"replace_content_mapper"}
    assert used - fast - simple - own == set()
    for step, reference, quick in pairs.values():
        assert type(quick) is not type(reference), step.operator
        assert isinstance(quick, type(reference))


def test_fragments_of_everything_that_operators_look_for(pairs):
    texts = nasty_texts(1, 600) + [real_text(seed) for seed in range(60)] + [shuffled(real_text(1), 2)]
    for step, reference, fast in pairs.values():
        assert_equal(step, reference, fast, texts)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=12)).map("".join), max_size=4))
def test_whatever_unicode_holds(pairs, texts):
    for step, reference, fast in pairs.values():
        assert_equal(step, reference, fast, texts)


@pytest.mark.parametrize("parameters", SIMHASHES, ids=str)
def test_simhash(parameters):
    settings_ = {"lowercase": True, **parameters}
    reference, fast = (
        operators.load("document_simhash_deduplicator", settings_, None, engine)
        for engine in ("reference", "fast")
    )
    assert type(fast) is not type(reference)
    for text in [*nasty_texts(2, 150), *(" ".join(real_text(seed)) for seed in range(40))]:
        assert simhash_of(reference, text) == simhash_of(fast, text), text


def test_letters_per_token(tmp_path):
    """alphanumeric_filter of the paper's code recipe, with the tokenizer that clean:assets trains."""
    from tasks.clean.assets import _train_code_tokenizer
    from tests.support.samples import record, write

    programs = [f"def f{i}(x):\n    return x + {i}  # {real_text(i)}\n" for i in range(80)]
    path = write(tmp_path / "in" / "records.jsonl", [record(program, "code") for program in programs])
    _train_code_tokenizer({"starcoder": path.parent}, tmp_path, 100_000)
    step = next(s for s in load_set("paper")["code"].steps if s.operator == "alphanumeric_filter")
    reference, fast = (
        operators.load(step.operator, step.settings(), tmp_path, engine) for engine in ("reference", "fast")
    )
    assert_equal(step, reference, fast, [*programs, *nasty_texts(3, 200)])


def test_of_ftfys_signs_of_mojibake_each_needs_a_suspect():
    """All pairs of the characters that encoding.py lets pass, and many longer strings of them."""
    operators.prepare()
    import re

    from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES

    from tasks.clean.fast.encoding import SUSPECTS

    in_any = re.compile(f"[{''.join(MOJIBAKE_CATEGORIES.values())}œŒ]")
    suspect = re.compile(f"[{SUSPECTS}]")
    named = {c for c in map(chr, range(0x10000)) if in_any.match(c) or chr(ord(c)) in BADNESS_RE.pattern}
    passing = sorted(c for c in named if not suspect.match(c)) + list("aZ .,中9\n")
    assert len(passing) > 150
    rng = random.Random(0)
    strings = [a + b for a in passing for b in passing]
    strings += ["".join(rng.choices(passing, k=400)) for _ in range(2000)]
    assert [text for text in strings if BADNESS_RE.search(text)] == []


@settings(max_examples=150, deadline=None)
@given(text=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=12)).map("".join))
def test_steels_own_fixes_are_ftfys(text):
    """steel_fix_encoding_mapper: the same lines are spared, with character widths and quotes left alone."""
    operators.prepare()
    import ftfy

    from tasks.clean.fast.encoding import fixer

    for entities in ("auto", False):
        config = ftfy.TextFixerConfig(
            unescape_html=entities, fix_character_width=False, uncurl_quotes=False, explain=False
        )
        assert fixer(config).fix(text) == ftfy.fix_text(text, config)


def test_gates_hold_every_entry_of_the_traditional_dictionaries(tmp_path):
    """Both dictionaries behind t2s, unpacked by OpenCC's own tool."""
    import subprocess

    operators.prepare()
    import opencc

    from tasks.clean.fast.gates import convertible

    clib = Path(opencc.__file__).parent / "clib"
    for name in ("TSPhrases", "TSCharacters"):
        text = tmp_path / f"{name}.txt"
        tool = [clib / "bin" / "opencc_dict", "-f", "ocd2", "-t", "text"]
        done = subprocess.run(
            [*tool, "-i", clib / "share" / "opencc" / f"{name}.ocd2", "-o", text], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"OpenCC's opencc_dict does not run here, try on x86-64 Linux: {done.stderr!r}")
        entries = [line.partition("\t")[::2] for line in text.read_text("utf-8").splitlines()]
        assert len(entries) > 200
        for written, meanings in entries:
            if meanings.split(" ")[0] != written and all(ord(c) < 0x10000 for c in written):
                assert convertible().search(written), written


def test_a_chain_with_reference_operators_says_the_same(models):
    """Who changed what, who dropped what and why: word for word."""
    from tasks.clean.chain import Chain
    from tests.support.samples import record

    texts = [real_text(i) + "\n" + text for i, text in enumerate(nasty_texts(5, 150))]
    texts += [shuffled(real_text(i) + "，" * 12, i) for i in range(20)] + ["同一句话说了又说" * 40, "文" * 20]
    items = [record(text) for text in dict.fromkeys(texts)]
    results = []
    for engine in ("fast", "reference"):
        steps = [step.model_copy(update={"engine": engine}) for step in load_set("paper")["text"].steps]
        at = [step.operator for step in steps].index("perplexity_filter")  # a limit for so small a model
        steps[at] = steps[at].model_copy(update={"parameters": {"lang": "zh", "max_ppl": 200}})
        chain = Chain("text", steps, models, 3)
        rows = chain.run(items)
        assert len({type(op) for _, op in chain.steps}) > 15
        results.append(
            (
                [(r.texts, r.dropped_by, r.failed_at, r.why, r.chars) for r in rows],
                chain.counts,
                chain.examples,
            )
        )
    assert results[0] == results[1]
    assert {"perplexity_filter", "special_characters_filter"} <= {row[1] for row in results[0][0]}


@pytest.mark.slow
@pytest.mark.skipif(
    "STEEL_SAMPLES" not in os.environ,
    reason="needs real samples: set STEEL_SAMPLES=FOLDER, or make test-full SAMPLES=FOLDER (one with sources/)",
)
def test_real_records(pairs, tmp_path):
    """Every operator on every real record, text, dialogue and code."""
    from bench.common import unified_records
    from tasks.records import parts
    from tasks.records import record as records

    folders = unified_records(Path(os.environ["STEEL_SAMPLES"]) / "sources", tmp_path)
    texts = [
        "\n".join(records.texts(record))
        for folder in folders.values()
        for path in parts.parts(folder)
        for record in records.read(path)
    ]
    assert len(texts) > 5000
    for step, reference, fast in pairs.values():
        for start in range(0, len(texts), 500):
            assert_equal(step, reference, fast, texts[start : start + 500])
    for parameters in SIMHASHES:
        both = [
            operators.load("document_simhash_deduplicator", {"lowercase": True, **parameters}, None, engine)
            for engine in ("reference", "fast")
        ]
        for text in texts[::5]:
            assert simhash_of(both[0], text) == simhash_of(both[1], text)
