"""Keras' own layer test, on all layers and on RNN(IndRNNCell)."""

import keras
import pytest
from keras.src import testing

from ind_rnn import IndRNN
from ind_rnn_cell import IndRNNCell
from indy import IndyGRU, IndyLSTM

B, T, F, N = 3, 2, 4, 5
RANDOM = {"dropout": 0.1, "recurrent_dropout": 0.1, "seed": 1}
OTHERS = {
    "activation": "tanh",
    "recurrent_max_abs": 0.9,
    "go_backwards": True,
    "zero_output_for_mask": True,
}


CASES = [
    (IndRNN, {"use_bias": False, "return_sequences": True}),
    (IndRNN, OTHERS),
    (IndRNN, RANDOM),
    (IndRNN, {"unroll": True}),
    (IndRNNCell, {"recurrent_max_abs": 0.9}),
    (IndRNNCell, RANDOM),
    (IndyLSTM, {}),
    (IndyGRU, RANDOM),
]


@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed:UserWarning")
class ConformanceTest(testing.TestCase):
    def test_layers(self):
        for cls, options in CASES:
            given = {"units": N, **options}
            time = (T,) if "return_sequences" in options else ()
            mixed = True
            with self.subTest(cls=cls.__name__, **options):
                if cls is IndRNNCell:
                    cls, given = keras.layers.RNN, {"cell": cls(**given)}
                    # RNN leaves it in float32, but not its dropout masks.
                    mixed = options is not RANDOM
                self.run_layer_test(
                    cls,
                    init_kwargs=given,
                    input_shape=(B, T, F),
                    call_kwargs={"training": True},
                    expected_output_shape=(B, *time, N),
                    expected_num_trainable_weights=2 if time else 3,
                    expected_num_non_trainable_weights=0,
                    supports_masking=True,
                    run_mixed_precision_check=mixed,
                )
