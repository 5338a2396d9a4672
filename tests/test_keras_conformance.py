"""Keras' own layer test, on IndRNN and on RNN(IndRNNCell)."""

import keras
import pytest
from keras.src import testing

from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell

B, T, F, N = 3, 2, 4, 5
CASES = [
    ({}, {}, (B, N)),
    ({"use_bias": False}, {"return_sequences": True}, (B, T, N)),
    ({"activation": "tanh"}, {"zero_output_for_mask": True}, (B, N)),
    ({"recurrent_max_abs": 0.9}, {"go_backwards": True}, (B, N)),
    ({"dropout": 0.1, "recurrent_dropout": 0.1, "seed": 1}, {}, (B, N)),
    ({}, {"unroll": True}, (B, N)),
]


@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed:UserWarning")
class ConformanceTest(testing.TestCase):
    def check(self, cls, arguments, shape, use_bias=True, mixed=True):
        self.run_layer_test(
            cls,
            init_kwargs=arguments,
            input_shape=(B, T, F),
            call_kwargs={"training": True},
            expected_output_shape=shape,
            expected_num_trainable_weights=2 + use_bias,
            expected_num_non_trainable_weights=0,
            supports_masking=True,
            run_mixed_precision_check=mixed,
        )

    def test_layer(self):
        for of_cell, of_layer, shape in CASES:
            with self.subTest(**of_cell, **of_layer):
                arguments = {"units": N, **of_cell, **of_layer}
                use_bias = of_cell.get("use_bias", True)
                self.check(IndRNN, arguments, shape, use_bias)

    def test_cell(self):
        for of_cell, of_layer, shape in CASES:
            with self.subTest(**of_cell, **of_layer):
                arguments = {"cell": IndRNNCell(N, **of_cell), **of_layer}
                use_bias = of_cell.get("use_bias", True)
                # RNN leaves the cell in float32, but not its dropout masks.
                mixed = "dropout" not in of_cell
                self.check(keras.layers.RNN, arguments, shape, use_bias, mixed)
