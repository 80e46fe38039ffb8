"""The exam is fair: its options do not give the answer away, and it asks enough."""

from __future__ import annotations

from collections import Counter, defaultdict

from tasks import world
from tasks.settings.config import World
from tasks.world import exam
from tasks.world.relations import partner_answer, relations

QUESTIONS = exam.questions(World())
VAL = [q for q in QUESTIONS if q.split == "val"]
TRAINED = [q for q in VAL if not q.fact.held_out]


def test_size():
    assert len(TRAINED) >= 1000
    assert len({q.relation for q in TRAINED}) >= 20
    halves = Counter(q.half for q in TRAINED)
    assert halves["known-words"] == halves["new-words"]
    assert Counter(q.language for q in TRAINED)["zh"] / len(TRAINED) >= 0.75
    assert len({q.question for q in QUESTIONS if q.split in ("val", "test")}) == sum(
        q.split in ("val", "test") for q in QUESTIONS
    )


def test_splits_share_no_wording_with_val():
    wordings = defaultdict(set)
    for q in QUESTIONS:
        wordings[q.split].add((q.relation, q.half, q.wording))
    assert not wordings["val"] & (wordings["select"] | wordings["dev"])
    assert not {q.question for q in VAL} & {q.question for q in QUESTIONS if q.split != "val"}


def test_four_different_options_and_the_right_one():
    for q in QUESTIONS:
        assert len(set(q.choices)) == 4
        assert q.choices[q.answer] == q.fact.answer


def test_one_right_option():
    """No wrong option is another true answer of the same relation."""
    true = {(r.key, f.subject): f.answer for r in relations().values() for f in r.facts}
    for q in QUESTIONS:
        own = {f.answer for f in relations()[q.relation].facts}
        wrong = set(q.choices) - {true[q.relation, q.fact.subject]}
        partner = partner_answer(q.fact) if not q.fact.held_out else None
        assert all(w in own or w == partner for w in wrong), q


def test_the_partner_answer_is_among_the_options():
    for q in TRAINED:
        partner = partner_answer(q.fact)
        assert partner is None or partner in q.choices, q


def test_wrong_options_are_as_frequent_as_right_ones():
    """Among the options of its own relation an answer is wrong about equally often as its fellows."""
    for half in exam.HALVES:
        for relation in relations().values():
            asked = [q for q in TRAINED if q.relation == relation.key and q.half == half]
            own = {f.answer for f in relation.trained}
            right = Counter(q.fact.answer for q in asked)
            assert max(right.values()) == min(right.values())
            if relation.shared_answers:
                continue
            wrong = Counter(c for q in asked for c in q.choices if c in own and c != q.fact.answer)
            assert max(wrong.values()) - min(wrong[a] for a in own) <= 2, relation.key


def test_a_fixed_taste_for_answers_stays_at_chance():
    """Whatever order of preference over answers one has, it scores about a quarter without the question."""
    for seed in range(5):
        import random

        rank = {c: random.Random(f"{seed}/{c}").random() for q in VAL for c in q.choices}
        for questions in (TRAINED, [q for q in VAL if q.fact.held_out]):
            right = sum(max(q.choices, key=rank.__getitem__) == q.fact.answer for q in questions)
            assert right / len(questions) <= 0.3


def test_the_longest_or_shortest_option_is_no_hint():
    for key in (len, lambda c: -len(c)):
        right = sum(max(q.choices, key=key) == q.fact.answer for q in TRAINED)
        assert right / len(TRAINED) <= 0.3


def test_held_out_facts_have_unheard_options():
    held_out = [q for q in VAL if q.fact.held_out]
    assert 60 <= len({q.fact.id for q in held_out}) <= 90
    for q in held_out:
        relation = relations()[q.relation]
        if not relation.shared_answers:
            assert set(q.choices) <= {f.answer for f in relation.held_out}


def test_answers_belong_to_one_relation():
    owners = defaultdict(set)
    for relation in relations().values():
        for fact in relation.facts:
            owners[fact.answer].add(relation.key)
    assert {a: o for a, o in owners.items() if len(o) > 1} == {}


def test_files_in_c_evals_layout():
    import csv

    files = world.files(World(), world.EXAM)
    counts = Counter()
    for path, content in files.items():
        if path.endswith(".csv"):
            rows = list(csv.DictReader(content.decode().splitlines()))
            split, name = path.split("/")
            assert name.endswith(f"_{split}.csv")
            assert ("answer" in rows[0]) == (split != "test")
            assert all(r.get("answer", "A") in "ABCD" for r in rows)
            counts[split] += len(rows)
    expected = world.expected(World(), world.EXAM)
    assert {split: expected[split] for split in counts} == dict(counts)
