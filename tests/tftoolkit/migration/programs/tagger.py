"""A tagger with a conditional random field, as many were written; Addons where there is one."""

try:
    import tensorflow_addons as tfa
except ImportError:
    tfa = None
import tensorflow as tf

crf = tfa.text.crf
LAMB = tfa.optimizers.LAMB


def loss(potentials, tags, lengths, transitions):
    log_likelihood, transitions = crf.crf_log_likelihood(potentials, tags, lengths, transitions)
    return -tf.reduce_mean(log_likelihood)


def predict(potentials, lengths, transitions):
    tags, _ = tfa.text.crf_decode(potentials, transitions, lengths)
    return tags


def train(model, image=None):
    image = image or model.image
    image.rotate(3)  # not that of Addons
    return LAMB(1e-3), tfa.metrics.F1Score(num_classes=9), tfa.rnn.NASCell(5)
