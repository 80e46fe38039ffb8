"""Intervals and tests against scipy and known values."""

import pytest
from scipy import stats

from tasks.evaluate.statistics import macro, mcnemar_exact, paired, wilson


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (5, 10), (973, 1000), (1, 3), (318, 1346)])
def test_wilson_is_scipys(correct, n):
    interval = stats.binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson(correct, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [(0, 5), (3, 9), (7, 7), (40, 61), (400, 655), (900, 1100)])
def test_mcnemar_is_the_binomial_test(a, b):
    assert mcnemar_exact(a, b) == pytest.approx(stats.binomtest(a, a + b).pvalue, rel=1e-9)
    assert mcnemar_exact(a, b) == mcnemar_exact(b, a)


def test_mcnemar_without_a_difference():
    assert mcnemar_exact(0, 0) == 1.0


def answers(bits, **more):
    line = {"benchmark": "b", "protocol": "cloze"} | more
    return [{"id": str(i), "correct": bool(bit), **line} for i, bit in enumerate(bits)]


def test_paired_counts_the_questions_on_which_they_differ():
    got = paired(answers([1, 1, 1, 0, 0]), answers([1, 0, 0, 0, 1]))
    assert got == {"n": 5, "accuracy_a": 0.6, "accuracy_b": 0.4, "only_a": 2, "only_b": 1, "p_value": 1.0}


def test_paired_filters_both_sides():
    mixed = answers([1, 0]) + answers([0, 0], protocol="options-only", scoring="cloze")
    assert paired(mixed, answers([1, 0]), benchmark="b", protocol="cloze")["n"] == 2


def test_paired_wants_the_same_questions():
    with pytest.raises(ValueError, match="different questions"):
        paired(answers([1, 1]), answers([1]))
    with pytest.raises(ValueError, match="twice"):
        paired(answers([1]) * 2, answers([1]))


def test_every_subject_weighs_the_same():
    assert macro([(1, 1), (0, 9)]) == 0.5
    assert macro([(1, 1), (0, 0)]) == 1.0
    assert macro([]) == 0.0
