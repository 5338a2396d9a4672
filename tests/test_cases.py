"""The functions that choose cases leave out no value and no pair."""

import itertools

import pytest

import cases

AXES = [["a", "b", "c"], [None, 0.5], [{}, {"x": 1}, {"y": 2}, {}], [1, 2]]


def numbered(chosen):
    """Cases by the places of their values, which need not be hashable."""
    return [
        tuple(
            next(i for i, x in enumerate(axis) if x is value)
            for axis, value in zip(AXES, case, strict=True)
        )
        for case in chosen
    ]


@pytest.mark.parametrize(
    "choose, strength", [(cases.each_value, 1), (cases.every_pair, 2)]
)
def test_nothing_is_left_out(choose, strength, monkeypatch):
    monkeypatch.setattr(cases, "LONG", False)
    found = numbered(choose(*AXES))
    for axes in itertools.combinations(range(len(AXES)), strength):
        seen = {tuple(case[i] for i in axes) for case in found}
        sizes = (range(len(AXES[i])) for i in axes)
        assert seen == set(itertools.product(*sizes))
    assert len(found) <= (4, 14)[strength - 1]
    monkeypatch.setattr(cases, "LONG", True)
    product = itertools.product(*(range(len(axis)) for axis in AXES))
    assert numbered(choose(*AXES)) == list(product)


def test_pairs_that_are_missing_are_found():
    axes = {"a": [1, 2], "b": [3, 4]}
    every = [{"a": 1, "b": 3}, {"a": 2, "b": 4}, {"a": 1, "b": 4}]
    with pytest.raises(AssertionError):
        cases.assert_every_pair(every, axes)
    cases.assert_every_pair([*every, {"a": 2, "b": 3}], axes)
