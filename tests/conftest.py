"""What all tests share: a seed, and a warning that old Keras is wrong about."""

import importlib.metadata
import random

import pytest


def pytest_configure(config):
    if importlib.metadata.version("keras").startswith("3.10."):
        # It warns of every functional model that it has loaded.
        config.addinivalue_line(
            "filterwarnings",
            "ignore:(?s).*structure of `inputs` doesn't match:UserWarning",
        )


@pytest.fixture(autouse=True)
def seeded():
    """The same weights each time: Keras draws its seeds from `random`."""
    random.seed(0)
