"""The functions that choose cases leave out no value and no pair."""

import itertools

import pytest

import cases

AXES = [["a", "b", "c"], [None, 0.5], [{}, {"x": 1}, {"y": 2}, {}], [1, 2]]


def drawn(*axes):
    found = cases.every_drawn_pair(dict(enumerate(axes)), 300)
    return [tuple(case[i] for i in range(len(axes))) for case in found]


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
    "choose, strength, most, all_of_them",
    [
        (cases.each_value, 1, 4, 48),
        (cases.every_pair, 2, 14, 48),
        (drawn, 2, 18, 300),
    ],
)
def test_nothing_is_left_out(choose, strength, most, all_of_them, monkeypatch):
    for is_long in (False, True):
        monkeypatch.setattr(cases, "LONG", is_long)
        found = numbered(choose(*AXES))
        for axes in itertools.combinations(range(len(AXES)), strength):
            seen = {tuple(case[i] for i in axes) for case in found}
            sizes = (range(len(AXES[i])) for i in axes)
            assert seen == set(itertools.product(*sizes))
        assert len(found) == all_of_them if is_long else len(found) <= most


def test_draws_without_a_pair_are_an_error():
    with pytest.raises(AssertionError):
        cases.every_drawn_pair({"a": [1, 2], "b": [3, 4]}, 3)
