"""Audio stages: each maps the feature "audio" and leaves the rest of the example alone.

A waveform has shape [samples], a spectrogram [frames, mels]; both are floating point, and both may have any length.

Every sum is taken in a fixed order by elementwise operations, since matrix products and reductions may add up in
another order when the batch has another size, and then the same clip would come out with other last bits.
"""

from tftoolkit.pipelines.audio.spectrum import log_mel, mfcc, spec_augment
from tftoolkit.pipelines.audio.waveform import mix_noise, resample

__all__ = ["log_mel", "mfcc", "mix_noise", "resample", "spec_augment"]
