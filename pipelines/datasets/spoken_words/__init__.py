"""Eight words, spoken by many voices of espeak-ng, as a folder of sound files; tones where that is not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import scipy.signal

from tftoolkit.pipelines.errors import SourceError

WORDS = ("down", "go", "left", "no", "right", "stop", "up", "yes")
MELODIES = tuple(f"melody_{number}" for number in range(len(WORDS)))
SAMPLE_RATE, SAMPLES = 8000, 8000  # in Hz; a second
# Variants of espeak-ng's voice: how the speaker sounds. Each has read every word with each accent.
_TRAIN_VOICES = (
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo"),
    *("Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "adam", "anika", "antonio"),
    *("aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa"),
    *("gustave", "iven", "john", "linda", "marcelo", "max", "michel", "miguel", "norbert", "pablo"),
    *("paul", "pedro", "quincy", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac"),
)
_TEST_VOICES = ("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7")
_ACCENTS = ("en-us", "en-gb-scotland")
_PROGRAM = "espeak-ng"


class MissingVoicesError(SourceError):
    """espeak-ng is not installed, or has not the voices that are needed."""

    error_code = "missing-voices"


def prepare(data_dir: Path, *, tones: bool = False) -> Path:
    """Writes the clips below ``data_dir`` unless they are there; several processes may call it at once.

    Args:
      tones: eight melodies of three tones, in the timbres of many instruments, in place of words. Their folders are
        called ``MELODIES``, so that what was begun on one of the two is not taken for the other.

    Returns:
      The folder: ``train/WORD/VOICE.wav`` and ``test/WORD/VOICE.wav``, of other voices; 16 bits, mono, 8 kHz, a second
      each.

    Raises:
      MissingVoicesError: espeak-ng is not installed (Debian: apt install espeak-ng).
      SourceError: ``data_dir`` cannot be written to.
    """
    folder = data_dir / ("tones/1.1.0" if tones else "spoken_words/1.0.0")
    if folder.exists():
        return folder
    words, speak = (MELODIES, _sing) if tones else (WORDS, _espeak())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / ".lock"):
            if not folder.exists():
                _write_all(folder, words, speak)
    except MissingVoicesError:  # an OSError, too, but not of the folder
        raise
    except OSError as error:
        raise SourceError(
            f"cannot prepare the spoken words in {data_dir}: {error}; name a folder that can be written to with the "
            "environment variable TFDS_DATA_DIR",
            code="source-unwritable",
        ) from error
    return folder


_Speaker = Callable[[str, str, str], np.ndarray]


def _write_all(folder: Path, words: Sequence[str], speak: _Speaker) -> None:
    tasks = [
        (split, word, voice, accent)
        for split, voices in (("train", _TRAIN_VOICES), ("test", _TEST_VOICES))
        for word in words
        for voice in voices
        for accent in _ACCENTS
    ]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        clips = list(threads.map(lambda task: _fitted(speak(*task[1:])), tasks))
    temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    # espeak-ng takes its usual voice for one that it doesn't have: who sounds like another has not been heard.
    known: set[bytes] = set()
    try:
        for (split, word, voice, accent), clip in zip(tasks, clips, strict=True):
            samples = np.round(32767 * clip).astype("<i2").tobytes()
            if samples in known:
                continue
            known.add(samples)
            path = temporary / split / word / f"{voice}-{accent}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes(samples)
        if len(known) < len(tasks) / 2:
            raise MissingVoicesError(
                f"espeak-ng has only some of the voices: {len(known)} of {len(tasks)} clips differ"
            )
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fitted(samples: np.ndarray) -> np.ndarray:
    """A second with the clip in its middle, its peak at 0.9; silence at both ends of the clip doesn't count."""
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    clip = samples[loud[0] : loud[-1] + 1][:SAMPLES]
    padded = np.zeros(SAMPLES)
    begin = (SAMPLES - len(clip)) // 2
    padded[begin : begin + len(clip)] = 0.9 * clip / np.abs(clip).max()
    return padded


def _espeak() -> _Speaker:
    program = shutil.which(_PROGRAM)
    if program is None:
        raise MissingVoicesError("espeak-ng, which speaks the words, is not installed (Debian: apt install espeak-ng)")

    def speak(word: str, voice: str, accent: str) -> np.ndarray:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            command = [program, "-v", f"{accent}+{voice}", "-w", file.name, word]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise MissingVoicesError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
            with wave.open(file.name, "rb") as sound:
                rate = sound.getframerate()
                samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 32768
        if not np.any(samples):
            raise MissingVoicesError(f"espeak-ng says nothing with the voice {accent}+{voice}")
        return np.asarray(scipy.signal.resample_poly(samples, SAMPLE_RATE, rate))

    return speak


def _sing(word: str, voice: str, accent: str) -> np.ndarray:
    """Each word is a melody: three times one of two tones; the voice is the key and the timbre."""
    rng = np.random.default_rng(list(f"{voice}-{accent}".encode()))
    base, length = rng.uniform(250, 500), int(rng.uniform(0.12, 0.25) * SAMPLE_RATE)
    overtones = rng.uniform(0, 1, 5) / np.arange(1, 6)
    time = np.arange(length) / SAMPLE_RATE
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
    number = MELODIES.index(word)
    tones = [base * (1.5 if number >> place & 1 else 1.0) for place in range(3)]
    waves = [
        fade * sum(weight * np.sin(2 * np.pi * tone * (i + 1) * time) for i, weight in enumerate(overtones))
        for tone in tones
    ]
    return np.concatenate(waves) + 0.01 * rng.standard_normal(3 * length)
