"""The file for C-Eval's server: written when all is there, refused otherwise."""

import orjson
import pytest

from tasks.evaluate import protocols, subjects, submission
from tasks.evaluate.benchmarks import Question
from tasks.settings.errors import NodeError


def everything():
    return [
        Question(f"{subject}{k}", "ceval", subject, "test", "zh", "q", tuple("abcd"), None, number=str(k))
        for subject, n in subjects.table("ceval")["test"].items()
        for k in range(n)
    ]


def write_questions(folder, asked):
    lines = [
        {"id": q.id, "subject": q.subject, "split": q.split, "language": "zh", "question": "q"}
        | {"choices": list(q.choices), "answer": None, "meta": {"id": q.number}}
        for q in asked
    ]
    (folder / "questions.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return folder


def test_a_whole_submission(tmp_path):
    asked = submission.questions(write_questions(tmp_path, everything()), "ceval", "ceval")
    answers = [{"id": q.id, "answer": k % 4} for k, q in enumerate(asked)]
    name = submission.write(tmp_path, "ceval", asked, answers)
    table = orjson.loads((tmp_path / name).read_bytes())
    assert len(table) == 52
    assert submission.validate(table) == 12_342
    assert table[asked[5].subject][asked[5].number] == "B"


def test_a_part_of_one_is_refused_before_a_model_is_asked(tmp_path):
    few = [q for q in everything() if q.subject == "logic"]
    with pytest.raises(NodeError, match=r"no submission for exam: 51 of 52 subjects are missing"):
        submission.questions(write_questions(tmp_path, few), "exam", "ceval")
    one_less = everything()[:-1]
    with pytest.raises(NodeError, match=r"has \d+ answers, and not one each for 0 to"):
        submission.questions(write_questions(tmp_path, one_less), "exam", "ceval")


def test_a_wrong_letter_is_refused():
    table = {s: dict.fromkeys(map(str, range(n)), "A") for s, n in subjects.table("ceval")["test"].items()}
    assert submission.validate(table) == 12_342
    table["logic"]["3"] = "E"
    with pytest.raises(NodeError, match="logic 3 is answered 'E'"):
        submission.validate(table)


def test_its_protocol_picks_a_letter():
    assert submission.protocol(["cloze", "official-5shot", "paper-first-token"]) == "official-5shot"
    with pytest.raises(NodeError, match="needs a protocol that picks a letter"):
        submission.protocol(["cloze", "open-exact"])


def test_the_subjects_are_all_there():
    counts = {family: len(subjects.names(family)) for family in ("ceval", "cmmlu", "mmlu")}
    assert counts == {"ceval": 52, "cmmlu": 67, "mmlu": 57}
    assert len(subjects.categories("ceval", subjects.names("ceval"))["hard"]) == 8
    assert len(subjects.categories("cmmlu", subjects.names("cmmlu"))["China specific"]) == 15
    assert subjects.categories("own", ["x"]) == {}
    assert subjects.name("own", "my_subject") == "my subject"
    assert protocols.of("official-5shot").shots == 5
