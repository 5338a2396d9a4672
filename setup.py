"""Packaging: flat modules, to install or to copy."""

import pathlib

import setuptools

setuptools.setup(
    name="indrnn",
    version="1.0.0",
    description=(
        "Independently and dilated recurrent neural networks for Keras 3: "
        "deep, fast, and with a memory of thousands of steps"
    ),
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    py_modules=[
        "ind_rnn_cell",
        "ind_rnn_recurrence",
        "ind_rnn",
        "deep_ind_rnn",
        "dilated_rnn",
    ],
    python_requires=">=3.11",
    install_requires=pathlib.Path("requirements.txt").read_text().split(),
    extras_require={
        "benchmarks": ["matplotlib", "statsmodels", "vega_datasets"],
        "examples": ["matplotlib"],
        "test": [
            "ai-edge-litert",
            "hypothesis",
            "matplotlib",
            "pydot",
            "pytest",
            "pytest-xdist",
            "ruff",
            "tensorboard",
            "tf_keras",
        ],
    },
)
