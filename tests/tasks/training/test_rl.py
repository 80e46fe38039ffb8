"""The rl stage: which prompts are kept, what the engine is handed, and what is said of the effect."""

from dataclasses import replace

import orjson
import pytest
import torch
from scipy import stats

from model.rewards import REWARDS, Reply
from model.tokenizer import TextTokenizer
from model.training.prompts import read_prompts
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.training import engine, open_questions, prompts, rl
from tasks.training.mixtures import Share
from tests.support import foreign_tokenizers
from tests.support.sets import dialogue, write_set
from tests.support.tiny import artifact, context, steel
from tests.support.trained import no_drops, node_of, run_of

pytestmark = pytest.mark.usefixtures("pool_here")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    steel(vocab_size=272).save_pretrained(folder / "export")
    (folder / "mixture.jsonl").touch()
    return folder


def asked(k, reply, **meta):
    return {**dialogue("qa", k, reply), "meta": meta}


def run_with(**more) -> SteelRun:
    section = {
        "mixture": {"qa": {"reward": "exact"}}, "max_new_tokens": 4, "pass_rate": [0, 1], "pass_samples": 2,
        "held_out": 3, "open_benchmarks": ["demo_exam"], "asked_by": "fact", "max_prompt_tokens": 120,
        "train": {"steps": 5, "batch_size": 4}, **more,
    }  # fmt: skip
    return run_of(rl=section)


def inputs(tmp_path, tokenizer, start):
    (tmp_path / "select").mkdir(exist_ok=True)
    (tmp_path / "select" / "choice.json").write_bytes(orjson.dumps({"variant": "exp2"}))
    records = [asked(k, f"answer {k}", fact=f"f{k % 4}") for k in range(12)]
    records += [
        asked(50, "two\nlines"),
        asked(51, "x", fact="f1"),
        {**asked(52, "y"), "messages": records[0]["messages"]},
    ]
    records[-2]["messages"][0]["content"] = "long " * 100
    exam = tmp_path / "exam"
    exam.mkdir(exist_ok=True)
    questions = [
        {
            "id": f"q{k}", "subject": "s", "split": "val", "language": "en", "question": f"Which {k}?",
            "choices": ["a", "b", "c", "d"], "answer": k % 4,
            "meta": {"half": "known-words", "fact": f"f{k}", "held_out_fact": k == 7},
        }
        for k in range(8)
    ]  # fmt: skip
    (exam / "questions.jsonl").write_bytes(b"".join(orjson.dumps(q) + b"\n" for q in questions))
    return {
        "select": artifact("sft:select", tmp_path / "select"),
        "exp1": artifact("sft:exp1", tmp_path / "nowhere"),
        "exp2": artifact("sft:exp2", start),
        "tokenizer": artifact("tokenize:tokenizer", tokenizer),
        "qa": artifact("convert:qa", write_set(tmp_path, "qa", 0, records)),
        "qa.drops": artifact("clean:decontaminate", no_drops(tmp_path)),
        "demo_exam": artifact("convert:demo_exam", exam),
    }


def made_prompts(tmp_path, tokenizer, start, **more):
    out = tmp_path / "prompts"
    out.mkdir()
    node = node_of(rl, "rl:prompts", run_with(**more))
    return out, node.body(context(out, node.config, inputs(tmp_path, tokenizer, start)))


def test_prompts_are_asked_counted_and_kept(tmp_path, tokenizer, start):
    out, outcome = made_prompts(tmp_path, tokenizer, start)
    counts = outcome.counts
    assert (counts["records"], counts["ungradable"], counts["prompt_too_long"], counts["repeated"]) == (
        15,
        1,
        1,
        1,
    )
    assert (counts["held_out"], counts["asked"], counts["kept"]) == (3, 9, 9)
    assert sum(outcome.extra["passes"]) == 9
    assert "| right replies | 0 | 1 | 2 |" in outcome.summary
    kept = read_prompts(out / "train.arrow")
    assert {p.reward for p in kept} == {"exact"}
    lines = [orjson.loads(x) for x in (out / "prompts.jsonl").read_bytes().splitlines()]
    assert [x["split"] for x in lines].count("held_out") == 3
    assert {p.id for p in kept} == {x["id"] for x in lines if x["split"] == "train"}
    assert made_prompts_again(tmp_path, tokenizer, start) == (out / "train.arrow").read_bytes()


def uniform(folder, tokenizer, more):
    """A model that says every id as often as any other, and has so many `more` than the tokenizer."""
    model = steel(vocab_size=TextTokenizer.open(tokenizer).vocab_size + more)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    model.save_pretrained(folder)
    return folder


def sampled(tmp_path, tokenizer, more=0):
    export = uniform(tmp_path / "export", tokenizer, more)
    asking = prompts.Asking(export, tokenizer, "cpu", max_new_tokens=200, group=64, seed=1)
    return prompts.replies(asking, [[5, 6, 7]])[0]


def test_a_reply_ends_where_the_tokenizer_says(tmp_path):
    """Llama-3 ends a turn by a token of its own."""
    ends = ("<|eot_id|>", "<|end_of_text|>")
    found = sampled(tmp_path, foreign_tokenizers.save(tmp_path / "llama3", "llama3"))
    assert any(reply.ended for reply in found)
    assert not any(end in reply.text for reply in found for end in ends)


def test_replies_with_ids_that_have_no_token_are_not_whole(tmp_path, tokenizer):
    assert all(reply.whole for reply in sampled(tmp_path / "none", tokenizer))
    found = sampled(tmp_path / "some", tokenizer, more=20)
    assert {reply.whole for reply in found} == {True, False}
    line = prompts.Line(id="", set="", language="", about="", prompt=[1], answer="a", reward="exact")
    assert prompts.right(line, Reply("a", True))
    assert not prompts.right(line, Reply("a", True, whole=False))


def made_prompts_again(tmp_path, tokenizer, start):
    other = tmp_path / "again"
    other.mkdir()
    out, _ = made_prompts(other, tokenizer, start)
    return (out / "train.arrow").read_bytes()


def test_prompts_that_the_template_refuses_are_dropped_and_counted(tmp_path, alternating, turns):
    odd = {**asked(1, "x"), "messages": turns("user", "assistant", "assistant", "assistant")}

    def prepared(name, records):
        sets = (Share("qa", write_set(tmp_path / name, "qa", 0, records), None, 1.0),)
        return prompts.prepare(
            prompts.Work(alternating, sets, 1, 200, rewards={"qa": "exact"}, asked_by="", held_out=0)
        )

    lines, _, counts = prepared("some", [asked(0, "x"), odd])
    assert (len(lines), counts["records"], counts["template"]) == (1, 2, 1)
    with pytest.raises(NodeError, match="qa: none of its 1 records has a form: .* roles must alternate"):
        prepared("none", [odd])


def test_held_out_prompts_that_the_start_model_was_fine_tuned_on_are_counted(tmp_path, tokenizer, start):
    out, outcome = made_prompts(tmp_path, tokenizer, start)
    assert outcome.counts["held_out_trained"] == 0
    lines = [orjson.loads(x) for x in (out / "prompts.jsonl").read_bytes().splitlines()]
    held = [x["id"] for x in lines if x["split"] == "held_out"]
    other = next(x["id"] for x in lines if x["split"] == "train")
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "export").symlink_to(start / "export")
    taken = [(held[0], "train"), (held[1], "val"), (other, "train")]
    (tuned / "mixture.jsonl").write_bytes(
        b"".join(orjson.dumps({"set": "qa", "id": i, "split": split}) + b"\n" for i, split in taken)
    )
    (tmp_path / "again").mkdir()
    _, outcome = made_prompts(tmp_path / "again", tokenizer, tuned)
    assert outcome.counts["held_out_trained"] == 1
    assert "| of these in the start model's fine-tuning | 1 |" in outcome.summary


def test_a_model_that_is_never_right_leaves_nothing_to_train_on(tmp_path, tokenizer, start):
    with pytest.raises(
        NodeError, match=r"of 9 none has a share of right replies of 0.2 to 0.8 \(15 records, 1 with"
    ):
        made_prompts(tmp_path, tokenizer, start, pass_rate=[0.2, 0.8])


def test_prompts_are_chosen_by_their_share_of_right_replies():
    lines = list("abcde")
    assert prompts.chosen(lines, [0, 1, 4, 7, 8], 8, (0.1, 0.9)) == ["b", "c", "d"]
    assert prompts.chosen(lines, [0, 2, 5, 8, 10], 10, (0.2, 0.8)) == ["b", "c", "d"]
    assert prompts.histogram([0, 1, 1, 2], 2) == [1, 2, 1]


def test_training_is_handed_the_prompts_and_its_effect_is_measured(tmp_path, tokenizer, start, monkeypatch):
    folder, outcome = made_prompts(tmp_path, tokenizer, start)
    given = {}

    def train(ctx, objective, recipe, files, **more):
        given.update(objective=objective, files=files, **more)
        steel(vocab_size=272, seed=1).save_pretrained(ctx.out / "export")
        return engine.Trained([{"step": 5, "loss": 0.1, "reward": 0.25, "updates": 1}], {"ranks": 1})

    monkeypatch.setattr(engine, "train", train)
    out = tmp_path / "out"
    out.mkdir()
    node = node_of(rl, "rl:train", run_with())
    outcome = node.body(
        context(
            out,
            node.config,
            {
                "prompts": replace(
                    artifact("rl:prompts", folder), manifest={"counts": {"held_out_trained": 2}}
                ),
                **inputs(tmp_path, tokenizer, start),
            },
        )
    )
    assert given["objective"] == "grpo"
    assert given["steps"] == 5
    assert given["init_from"] == str(start / "export")
    assert given["rl"]["group"] == 8
    effect = orjson.loads((out / "rl.json").read_bytes())
    assert effect["start"] == "sft:exp2" if "start" in effect else True
    names = {(row["questions"], row["measure"]): row["n"] for row in effect["rows"]}
    assert names["all open questions", "exact"] == 7, "untrained facts stand apart"
    assert names["demo-held-out-facts", "lenient"] == 1
    assert names["held-out prompts", "exact"] == 3
    assert {
        row.get("in_fine_tuning") for row in effect["rows"] if row["questions"] == "held-out prompts"
    } == {2}
    assert "| held-out prompts (2 of them in the start model's fine-tuning) | exact |" in outcome.summary
    asked_n, never = (names.get((f"about what was {word}", "exact"), 0) for word in ("asked", "never asked"))
    assert asked_n + never == 7
    assert never >= 3, "f4 to f6 are in no prompt"
    assert outcome.counts == {"prompts": 9, "open_questions": 11, "open_ungradable": 0}


@pytest.mark.parametrize("held_out", [13, 12])
def test_held_out_prompts_must_leave_some_to_train_on(tmp_path, tokenizer, start, held_out):
    with pytest.raises(
        NodeError, match=rf"rl.held_out is {held_out}, and there are 12 prompts: none is left"
    ):
        made_prompts(tmp_path, tokenizer, start, held_out=held_out)


def questions(folder, *some):
    folder.mkdir()
    plain = {"subject": "s", "split": "test", "language": "en", "choices": [], "answer": None}
    lines = [{**plain, "id": f"q{k}", "question": f"Which {k}?", **each} for k, each in enumerate(some)]
    (folder / "questions.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return folder


def test_a_benchmark_without_options_is_asked_for_its_number(tmp_path, tokenizer):
    folder = questions(tmp_path / "gsm", {"target": "1,234"}, {"target": "−7"}, {"target": "a dozen"})
    found, left_out = open_questions.of_benchmark(folder, "gsm8k", "test", tokenizer, "")
    assert [(x.line["answer"], x.line["reward"]) for x in found] == [
        ("1234", "arithmetic"),
        ("-7", "arithmetic"),
    ]
    assert left_out == 1
    answers = open_questions.graded(found, [[Reply("so\n#### 1,234", True)], [Reply("7", True)]])
    assert [(x["exact"], x["lenient"]) for x in answers] == [(True, True), (False, False)]


def test_an_option_that_no_reply_can_be_is_left_out_and_counted(
    tmp_path, tokenizer, start, monkeypatch, caplog
):
    options = [["a\nb", "c"], ["d", "e"], [" ", "f"]]
    exam = questions(
        tmp_path / "lines", *({"choices": each, "answer": 0, "split": "val"} for each in options)
    )
    found, left_out = open_questions.of_benchmark(exam, "exam", "val", tokenizer, "")
    assert ([x.line["answer"] for x in found], left_out) == (["d"], 2)

    def train(ctx, *_, **more):
        steel(vocab_size=272, seed=1).save_pretrained(ctx.out / "export")
        return engine.Trained([{"step": 5, "loss": 0.1, "reward": 0.25, "updates": 1}], {"ranks": 1})

    folder, _ = made_prompts(tmp_path, tokenizer, start)
    monkeypatch.setattr(engine, "train", train)
    (tmp_path / "out").mkdir()
    given = inputs(tmp_path, tokenizer, start)
    prompts_made = replace(artifact("rl:prompts", folder), manifest={"counts": {}})
    given |= {"prompts": prompts_made, "demo_exam": artifact("convert:demo_exam", exam)}
    node = node_of(rl, "rl:train", run_with())
    with caplog.at_level("WARNING"):
        outcome = node.body(context(tmp_path / "out", node.config, given))
    assert (outcome.counts["open_questions"], outcome.counts["open_ungradable"]) == (4, 2)
    assert "benchmark demo_exam: 2 of 3 questions are not asked" in caplog.text


@pytest.mark.parametrize(
    ("reward", "answer", "said"),
    [
        ("exact", "北京，上海", "北京，上海"),
        ("exact", "北京，上海", "是北京，上海吧"),
        ("exact", "Café", "It is the Cafe\u0301 there"),
        ("arithmetic", "1234", "#### 1,234"),
        ("letter", "B. x", "B"),
        ("exact", "巴黎", "巴黎。"),
    ],
)
def test_what_is_exact_is_lenient_too(reward, answer, said):
    gold = REWARDS[reward].gold(answer)
    line = prompts.Line(id="", set="", language="", about="", prompt=[1], answer=gold, reward=reward)
    (found,) = open_questions.graded([open_questions.Asked(line, "r")], [[Reply(said, True)]])
    assert found["lenient"]
    (other,) = open_questions.graded([open_questions.Asked(line, "r")], [[Reply("none", True)]])
    assert not other["exact"]
    assert not other["lenient"]


@pytest.mark.parametrize(
    ("answer", "said", "expected"),
    [
        ("1234", "That makes 1,234 apples.", True),
        ("1234", "12345", False),
        ("5", "15 - 10 = 5。", True),
        ("5", "It is 15", False),
        ("5", "10-5", True),  # the answer is there; whether it is meant, no program knows
        ("-5", "10-5", False),
        ("-5", "it is −5, I think", True),
        ("42", "42.0 km", True),
        ("4", "4.2 km", False),
        ("7", "7, 8 or 9", True),
        ("7", "seven", False),
        ("5", "是5，6或7", True),
        ("10", "5，10", True),
        ("300", "1200,300", True),
        ("2", "1,2,3", True),
        ("1234", "1,2345", False),
        ("19", "COVID-19", True),
        ("5", "答案-5", True),
        ("0.5", "0.50 %", True),
    ],
)
@pytest.mark.parametrize("reward", ["arithmetic", "exact"])
def test_a_number_is_in_a_reply_only_as_a_whole(reward, answer, said, expected):
    line = prompts.Line(id="", set="", language="", about="", prompt=[1], answer=answer, reward=reward)
    (found,) = open_questions.graded([open_questions.Asked(line, "r")], [[Reply(said, True)]])
    assert found["lenient"] is expected


def test_the_effect_is_paired():
    def answers(*right):
        return [
            {"id": str(i), "row": "r", "about": "x" if i < 3 else "y", "exact": r, "lenient": True}
            for i, r in enumerate(right)
        ]

    rows = open_questions.compare(answers(0, 0, 1, 1, 0), answers(1, 1, 1, 0, 1), {"x"})
    exact = {row["questions"]: row for row in rows if row["measure"] == "exact"}
    whole = exact["all open questions"]
    assert (whole["gained"], whole["lost"]) == (3, 1)
    assert whole["p_value"] == pytest.approx(stats.binomtest(1, 4).pvalue)
    assert (exact["about what was asked"]["n"], exact["about what was never asked"]["n"]) == (3, 2)


def test_a_profile_without_the_section_has_no_stage():
    assert rl.nodes(run_of()) == []


def test_what_it_starts_from():
    assert node_of(rl, "rl:train", run_with()).inputs["select"] == "sft:select"
    after_dpo = run_with(start="dpo")
    assert node_of(rl, "rl:train", after_dpo).inputs["dpo"] == "dpo:train"
    assert node_of(rl, "rl:prompts", after_dpo).inputs["select"] == "sft:select", "whose mixture is looked at"
    with pytest.raises(NodeError, match="is no source with use: sft"):
        rl.nodes(run_with(mixture={"likes": {}}))
