"""Which cases a test takes: few that cover what meets, or all of them."""

import itertools
import os

# In the environment: all cases of every test, not a cover of them.
LONG = "LONG" in os.environ


def more(few, others):
    """These cases; LONG: the others too."""
    return [*few, *others] if LONG else few


def covering(strength, cases):
    """Few of these cases, with every `strength` values that meet in some.

    A case is a tuple. Each time the one with most that has not yet been seen.
    LONG: all cases.
    """
    if LONG:
        return cases
    parts = {
        case: {*itertools.combinations(enumerate(case), strength)}
        for case in cases
    }
    chosen, rest = [], set().union(*parts.values())
    while rest:
        chosen.append(max(cases, key=lambda case: len(parts[case] & rest)))
        rest -= parts[chosen[-1]]
    return chosen


def _of_product(strength, axes):
    axes = [list(axis) for axis in axes]
    product = list(itertools.product(*(range(len(axis)) for axis in axes)))
    return [
        tuple(axis[i] for axis, i in zip(axes, case, strict=True))
        for case in covering(strength, product)
    ]


def each_value(*axes):
    """Cases in which each value of every axis occurs. LONG: the product."""
    return _of_product(1, axes)


def every_pair(*axes):
    """Cases in which every two values of two axes meet. LONG: the product."""
    return _of_product(2, axes)


def assert_every_pair(cases, axes):
    """Every two values of two axes occur together in some case."""
    for a, b in itertools.combinations(axes, 2):
        seen = {(case[a], case[b]) for case in cases}
        assert seen == set(itertools.product(axes[a], axes[b])), (a, b)
