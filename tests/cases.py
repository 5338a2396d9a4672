"""Which cases a test takes: few that cover what meets, or all of them."""

import itertools
import os

import numpy as np

# In the environment: all cases of every test, not a cover of them.
LONG = "LONG" in os.environ


def more(few, others):
    """These cases; LONG: the others too."""
    return [*few, *others] if LONG else few


def _covering(strength, cases):
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
        for case in _covering(strength, product)
    ]


def each_value(*axes):
    """Cases in which each value of every axis occurs. LONG: the product."""
    return _of_product(1, axes)


def every_pair(*axes):
    """Cases in which every two values of two axes meet. LONG: the product."""
    return _of_product(2, axes)


def drawn(axes, seed, **fixed):
    """A case {name: value}: the options of `fixed`, all others drawn."""
    rng = np.random.default_rng(seed)
    case = {name: rng.choice(len(values)) for name, values in axes.items()}
    return {name: axes[name][i] for name, i in case.items()} | fixed


def every_drawn_pair(axes, draws):
    """`every_pair` of axes by name, from so many draws. LONG: all draws."""
    places = {name: range(len(values)) for name, values in axes.items()}
    cases = [tuple(drawn(places, seed).values()) for seed in range(draws)]
    cases = _covering(2, cases)
    for a, b in itertools.combinations(range(len(axes)), 2):
        pairs = itertools.product([*places.values()][a], [*places.values()][b])
        assert {(case[a], case[b]) for case in cases} == {*pairs}
    return [
        {name: axes[name][i] for name, i in zip(axes, case, strict=True)}
        for case in cases
    ]
