"""Adam for networks that remember thousands of steps."""

import keras
from keras import ops

from ind_rnn_cell import _inverse_gain

EXPONENT = 0.875  # that of `UnitGain`


@keras.saving.register_keras_serializable(package="ind_rnn")
class TimeScaledAdam(keras.optimizers.Adam):
    """Adam whose steps are shorter for neurons with a longer memory.

    A neuron of IndRNN that remembers tau steps adds up as many inputs: when
    its weights move by 0.001, its state moves by up to 0.001 tau. Adam's steps
    do not depend on the size of the gradient, so over T = 5000 steps they are
    too long for the neurons that remember most, or too short for all others.
    This one multiplies the learning rate of each neuron n by

        max(1 - |u_n|, 1 / T)            for its recurrent weight u_n,
        max(1 - |u_n|, 1 / T) ** 0.875   for its bias and column of the kernel,

    which is what `UnitGain` multiplies the columns by at the start: relative to
    their sizes, all of them move alike. T is the number of time steps of the
    layer, or 1000 where it is not known, as in `UnitGain`. All other weights,
    those of normalization and Keras' own layers among them, have the steps of
    Adam. The gain and its measurements: docs/training.md.

    Arguments:
        **kwargs: Those of `keras.optimizers.Adam`. Its learning rate is that
            of a neuron without memory: 3e-2 was best for the adding problem
            over 100 to 5000 steps.

    Example:
        >>> from ind_rnn import IndRNN
        >>> model = keras.Sequential([keras.Input((5000, 2)), IndRNN(32)])
        >>> model.compile(TimeScaledAdam(1e-2, global_clipnorm=1.0), "mse")
    """

    def update_step(self, gradient, variable, learning_rate):
        # With TensorFlow, `variable` is not the one that the cell has made.
        weight = self._trainable_variables[self._get_variable_index(variable)]
        neurons = getattr(weight, "ind_rnn_neurons", None)
        if neurons is not None:
            u, time_steps = neurons
            exponent = 1.0 if weight is u else EXPONENT
            scale = _inverse_gain(u, time_steps, exponent)
            learning_rate = ops.cast(learning_rate, scale.dtype) * scale
        super().update_step(gradient, variable, learning_rate)
