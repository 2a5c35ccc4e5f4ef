"""A source over sound files: WAV, FLAC and OGG, decoded by libsndfile."""

import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.progress import progress
from tftoolkit.pipelines.sources.files import FilePath, identity, list_files, names_and_sizes, need_local, read_part
from tftoolkit.pipelines.sources.folder import ClassFolder
from tftoolkit.pipelines.sources.source import Example, Spec, fetch_in_python

EXTENSIONS = frozenset({".wav", ".flac", ".ogg"})


class _Clip(NamedTuple):
    sample_rate: int  # Hz
    channels: int
    frames: int


class AudioSource:
    """See ``audio``.

    Attributes:
      sample_rate: of all files, in Hz.
      classes: the classes' names, where the files lie in a folder per class; the label is the place in it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        sizes: dict[str, int],
        folder: ClassFolder | None,
        sample_rate: int | None,
        frames: int | None,
    ) -> None:
        self._paths = list(paths)
        self._names = list(sizes)
        self._sizes = list(sizes.values())
        self._identity = identity(sizes)
        self._labels = None if folder is None else folder.labels
        self.classes = () if folder is None else folder.classes
        self._frames = frames
        clips = _headers(self._paths, self._sizes)
        self.sample_rate, self._channels = _agreed(self._paths, clips, sample_rate)
        lengths = np.array([0 if clip is None else clip.frames for clip in clips])
        # A file that cannot be read counts as one example, so that its turn comes and it is named.
        pieces = np.ones(len(clips), np.int64) if frames is None else lengths // frames
        self._lengths = lengths
        self._first = np.cumsum([0, *np.where([clip is None for clip in clips], 1, pieces)])
        if not self._first[-1]:
            raise ValueError(f"frames={frames}: no file is as long; the longest has {lengths.max()} frames")

    @property
    def element_spec(self) -> Spec:
        shape = [self._frames] if self._channels == 1 else [self._frames, self._channels]
        spec = {"waveform": tf.TensorSpec(shape, tf.float32), "path": tf.TensorSpec([], tf.string)}
        if self._labels is not None:
            spec["label"] = tf.TensorSpec([], tf.int64)
        return spec

    def __len__(self) -> int:
        return int(self._first[-1])

    def lengths(self, feature: str) -> np.ndarray:
        """Number of frames of every example, int64[len(self)], from the files' headers."""
        if feature != "waveform":
            raise ValueError(f"feature={feature!r}: only 'waveform' has a length")
        return self._lengths if self._frames is None else np.full(len(self), self._frames)

    def fetch(self, indices: tf.Tensor) -> Example:
        return fetch_in_python(self._read, indices, self.element_spec)

    def fingerprint(self) -> dict[str, Any]:
        parts = {} if self._frames is None else {"frames": self._frames}
        return {"kind": "audio", **self._identity, **parts, "length": len(self)}

    def describe(self, index: int) -> str:
        file, start = self._place(index)
        return self._paths[file] if self._frames is None else f"{self._paths[file]}, from frame {start}"

    def _place(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return file, (index - int(self._first[file])) * (self._frames or 0)

    def _read(self, rows: np.ndarray) -> list[Any]:
        places = [self._place(int(row)) for row in rows]
        waveforms = [self._waveform(file, start) for file, start in places]
        values: list[Any] = [waveforms, [self._names[file].encode() for file, _ in places]]
        if self._labels is not None:
            values.append([self._labels[file] for file, _ in places])
        return values

    def _waveform(self, file: int, start: int) -> np.ndarray:
        path = self._paths[file]
        sound = _open(path)
        with sound:
            clip = _clip(sound)
            if (clip.sample_rate, clip.channels) != (self.sample_rate, self._channels):
                raise SourceError(f"{path} has changed: it is now {clip}")
            reason = _truncated(path, self._sizes[file])
            if reason:
                raise SourceError(f"{path} is truncated: {reason}")
            count = int(self._lengths[file]) if self._frames is None else self._frames
            try:
                sound.seek(start)
                waveform: np.ndarray = sound.read(count, dtype="float32")
            except RuntimeError as error:  # soundfile.LibsndfileError
                raise SourceError(f"{path}, from frame {start}: it is damaged: {error}") from error
        if len(waveform) < count:
            raise SourceError(f"{path} is damaged or truncated: it ends at frame {start + len(waveform)}")
        return waveform


def audio(
    files: FilePath | Sequence[FilePath], *, sample_rate: int | None = None, frames: int | None = None
) -> AudioSource:
    """A source over sound files; needs soundfile (``pip install 'tftoolkit[audio]'``).

    An example is {"waveform": float32 [frames] or [frames, channels] in -1 … 1, "path": string}, and "label": int64
    where the files lie in a folder per class. The number of frames varies unless ``frames`` is given. Only the headers
    are read at first.

    Args:
      files: a folder ``folder/<class>/….wav|.flac|.ogg``, or one or more files, or patterns with ``*``, in order.
      sample_rate: in Hz, what all files must have; default: that of the first. Nothing is resampled here.
      frames: cuts every file into pieces of so many frames, each one example, of which only that part is read; the rest
        at a file's end is left out. Default: an example is a whole file.

    Raises:
      ImportError: soundfile is not installed.
      ValueError: no file, files with different sample rates or channels, or none that has ``frames``.
      FileNotFoundError, PermissionError: a file or a folder cannot be read.
      SourceError: no file is a sound file. While iterating: a file is damaged, truncated or gone.
    """
    for name, value in (("sample_rate", sample_rate), ("frames", frames)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}: expected a positive integer")
    if isinstance(files, str | os.PathLike) and os.path.isdir(os.path.expanduser(files)):
        folder = ClassFolder.scan(files, EXTENSIONS)
        names = [os.fsdecode(name) for name in folder.files]
        paths = [folder.path(index) for index in range(len(names))]
        sizes = dict(zip(names, folder.sizes.tolist(), strict=True))
        return AudioSource(paths, sizes, folder, sample_rate, frames)
    for file in [files] if isinstance(files, str | os.PathLike) else files:
        need_local("files", file)
    paths = list_files(files)
    return AudioSource(paths, names_and_sizes(paths), None, sample_rate, frames)


def _open(path: str) -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("sources.audio needs the library soundfile: pip install 'tftoolkit[audio]'") from error
    try:
        return soundfile.SoundFile(path)
    except (RuntimeError, OSError, TypeError) as error:  # LibsndfileError; TypeError: raw data without a header
        raise SourceError(f"{path} cannot be read as a sound file: {error}") from error


def _clip(sound: Any) -> _Clip:
    return _Clip(sound.samplerate, sound.channels, sound.frames)


def _headers(paths: list[str], sizes: list[int]) -> list[_Clip | None]:
    """None for a file that cannot be read, unless none can."""
    clips: list[_Clip | None] = []
    first_error = None
    with progress("reading sound files' headers", len(paths), " files") as bar:
        for path in paths:
            try:
                with _open(path) as sound:
                    clips.append(_clip(sound))
            except SourceError as error:
                first_error = first_error or error
                clips.append(None)
            bar.update(1)
    if first_error is not None and not any(clips):
        raise first_error
    return clips


def _agreed(paths: list[str], clips: list[_Clip | None], sample_rate: int | None) -> tuple[int, int]:
    """Sample rate and channels of all clips that can be read."""
    known = [(path, clip) for path, clip in zip(paths, clips, strict=True) if clip is not None]
    first_path, first = known[0]
    for path, clip in known:
        wanted = first.sample_rate if sample_rate is None else sample_rate
        of = f"like {first_path}" if sample_rate is None else f"as sample_rate={sample_rate} says"
        if clip.sample_rate != wanted:
            raise ValueError(f"files: {path} has {clip.sample_rate} Hz and not {wanted} {of}; resample it first")
        if clip.channels != first.channels:
            raise ValueError(f"files: {path} has {clip.channels} channels, but {first_path} has {first.channels}")
    return first.sample_rate, first.channels


def _truncated(path: str, size: int) -> str:
    """Why a file is not whole, or "": libsndfile takes the end of a WAV or OGG file for the end of the sound."""
    head = read_part(path, 0, min(size, 12))
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        told = struct.unpack("<I", head[4:8])[0] + 8
        unknown = told in (8, (1 << 32) + 7)  # written as a stream
        return "" if unknown or told <= size else f"it has {size} bytes of {told}"
    if head[:4] == b"OggS":
        tail = read_part(path, max(0, size - (1 << 16)), min(size, 1 << 16))  # a page has less than 64 KiB
        page = tail[tail.rfind(b"OggS") :]  # RFC 3533: flags at 5 (4: the last page), number of segments at 26
        whole = len(page) >= 27 and page[5] & 4 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        return "" if whole else "its last page is missing or cut off"
    return ""
