"""Recipes for ``tfa.callbacks``."""

import time

import keras


class TimeStopping(keras.callbacks.Callback):
    def __init__(self, seconds=86400):
        super().__init__()
        self.seconds = seconds

    def on_train_begin(self, logs=None):
        self.end = time.monotonic() + self.seconds

    def on_train_batch_end(self, batch, logs=None):
        if time.monotonic() >= self.end:
            self.model.stop_training = True
