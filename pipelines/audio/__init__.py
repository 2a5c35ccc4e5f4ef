"""Audio stages: on the feature "waveform" [samples], as ``sources.audio`` gives it, and on what is made of it.

``resample`` and ``mix_noise`` change the waveform, ``log_mel`` makes it a "spectrogram" [frames, mels],
``spec_augment`` changes that, ``mfcc`` makes it "mfcc" [frames, coefficients]. All are floating point and may have any
length; the rest of the example is left alone.

Every sum is taken in a fixed order by elementwise operations, since matrix products and reductions may add up in
another order when the batch has another size, and then the same clip would come out with other last bits.
"""

from tftoolkit.pipelines.audio.spectrum import log_mel, mfcc, spec_augment
from tftoolkit.pipelines.audio.waveform import mix_noise, resample

__all__ = ["log_mel", "mfcc", "mix_noise", "resample", "spec_augment"]
