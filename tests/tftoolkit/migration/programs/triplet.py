"""As in the tutorial on triplet losses."""

import io

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa
import tensorflow_datasets as tfds

model = tf.keras.Sequential(
    [
        tf.keras.layers.Flatten(),
        tfa.layers.WeightNormalization(tf.keras.layers.Dense(256, activation=tfa.activations.mish)),
        tf.keras.layers.Lambda(lambda x: tf.math.l2_normalize(x, axis=1)),
    ]
)
model.compile(
    optimizer=tfa.optimizers.Lookahead(tfa.optimizers.RectifiedAdam(0.001), sync_period=6),
    loss=tfa.losses.TripletSemiHardLoss(),
)
model.fit(tfds.load("mnist", split="train"), epochs=5, callbacks=[tfa.callbacks.TQDMProgressBar()])
np.savetxt(io.StringIO(), model.predict(tf.zeros([1, 28, 28])))
