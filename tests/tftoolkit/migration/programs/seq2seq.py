"""As in the tutorial on translation with attention."""

import tensorflow as tf
import tensorflow_addons as addons
from tensorflow_addons.seq2seq import BahdanauAttention
from tensorflow_addons.seq2seq import LuongAttention as Luong


class Decoder(tf.keras.Model):
    def __init__(self, units, attention_type="luong"):
        super().__init__()
        self.attention_type = attention_type
        self.cell = tf.keras.layers.LSTMCell(units)
        self.sampler = addons.seq2seq.sampler.TrainingSampler()
        self.attention = self.build_attention(units)
        cell = addons.seq2seq.AttentionWrapper(self.cell, self.attention, attention_layer_size=units)
        self.decoder = addons.seq2seq.BasicDecoder(cell, sampler=self.sampler)

    def build_attention(self, units):
        if self.attention_type == "bahdanau":
            return BahdanauAttention(units=units)
        return Luong(units=units)


def evaluate(decoder, cell, embedding, inputs):
    search = addons.seq2seq.BeamSearchDecoder(cell, beam_width=3)
    state = cell.get_initial_state(addons.seq2seq.tile_batch(inputs, multiplier=3))
    return search(embedding, start_tokens=[1], end_token=2, initial_state=state)
