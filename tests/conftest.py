"""What all tests share: a seed, and a warning that old Keras is wrong about."""

import gc
import importlib.metadata
import random

import keras
import pytest


def pytest_configure(config):
    if importlib.metadata.version("keras").startswith("3.10."):
        # It warns of every functional model that it has loaded.
        config.addinivalue_line(
            "filterwarnings",
            "ignore:(?s).*structure of `inputs` doesn't match:UserWarning",
        )


@pytest.fixture(scope="module", autouse=True)
def old_objects():
    """TensorFlow collects garbage when it saves: skip what is there already."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """The same weights each time: Keras draws its seeds from `random`."""
    random.seed(0)


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
