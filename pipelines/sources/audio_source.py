"""A source over sound files: WAV, FLAC and OGG, decoded by libsndfile."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.progress import progress
from tftoolkit.pipelines.sources.files import FilePath, identity, list_files, names_and_sizes, need_local, read_part
from tftoolkit.pipelines.sources.folder import ClassFolder
from tftoolkit.pipelines.sources.resampling import Resampler
from tftoolkit.pipelines.sources.source import Example, Spec, fetch_in_python
from tftoolkit.pipelines.sources.wav import WithSize, missing_size

EXTENSIONS = frozenset({".wav", ".flac", ".ogg"})

_MOST_FRAMES = 1 << 60


class _Clip(NamedTuple):
    sample_rate: int  # Hz
    channels: int
    frames: int


class AudioSource:
    """See ``audio``.

    Attributes:
      sample_rate: of all examples, in Hz.
      classes: the classes' names, where the files lie in a folder per class; the label is the place in it.
    """

    def __init__(
        self,
        paths: Sequence[str],
        sizes: dict[str, int],
        folder: ClassFolder | None,
        sample_rate: int | None,
        channels: int | None,
        frames: int | None,
    ) -> None:
        self._paths = list(paths)
        self._names = list(sizes)
        self._sizes = list(sizes.values())
        self._folder = folder
        self.classes = () if folder is None else folder.classes
        self._frames = frames
        self._clips = _headers(self._paths, self._sizes)
        self.sample_rate, self._channels = _agreed(self._paths, self._clips, sample_rate, channels)
        self._resamplers = {
            clip.sample_rate: Resampler(clip.sample_rate, self.sample_rate)
            for clip in self._clips
            if clip is not None and clip.sample_rate != self.sample_rate
        }
        self._identity = self._identified(sizes)
        lengths = np.array([0 if clip is None else self._length(clip) for clip in self._clips])
        # A file that cannot be read counts as one example, so that its turn comes and it is named.
        pieces = np.ones(len(lengths), np.int64) if frames is None else lengths // frames
        self._lengths = lengths
        self._first = np.cumsum([0, *np.where([clip is None for clip in self._clips], 1, pieces)])
        if not self._first[-1]:
            raise ValueError(f"frames={frames}: no file is as long; the longest has {lengths.max()} frames")

    def _length(self, clip: _Clip) -> int:
        resampler = self._resamplers.get(clip.sample_rate)
        return clip.frames if resampler is None else resampler.length(clip.frames)

    def _identified(self, sizes: dict[str, int]) -> dict[str, Any]:
        """What identifies the examples: files, and what is changed in them."""
        mixed = any(clip is not None and clip.channels != self._channels for clip in self._clips)
        return {
            **identity(sizes),
            **({} if self._folder is None else self._folder.identity()),
            **({} if self._frames is None else {"frames": self._frames}),
            **({"sample_rate": self.sample_rate} if self._resamplers else {}),
            **({"channels": self._channels} if mixed else {}),
        }

    @property
    def element_spec(self) -> Spec:
        shape = [self._frames] if self._channels == 1 else [self._frames, self._channels]
        spec = {"waveform": tf.TensorSpec(shape, tf.float32), "path": tf.TensorSpec([], tf.string)}
        if self._folder is not None:
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
        return {"kind": "audio", **self._identity, "length": len(self)}

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
        if self._folder is not None:
            values.append([self._folder.labels[file] for file, _ in places])
        return values

    def _waveform(self, file: int, start: int) -> np.ndarray:
        """The example that begins at frame ``start``, counted at the rate that it comes in."""
        path, known = self._paths[file], self._clips[file]
        with _open(path, self._sizes[file]) as sound:
            clip = _clip(sound)
            if known is not None and clip != known:
                raise SourceError(f"{path} has changed: it is now {clip}", code="source-damaged")
            if _cut_off_ogg(path, self._sizes[file]):
                raise SourceError(f"{path} is truncated: its last page is missing or cut off", code="source-damaged")
            count = int(self._lengths[file]) if self._frames is None else self._frames
            resampler = self._resamplers.get(clip.sample_rate)
            if resampler is None or not count:
                samples = _mixed(_samples(path, sound, start, start + count), self._channels)
            else:
                first, end = resampler.needed(start, count)
                inside = max(first, 0), min(end, clip.frames)
                found = _samples(path, sound, *inside).astype(np.float64)
                padded = np.pad(found, [[inside[0] - first, end - inside[1]], [0, 0]])
                samples = resampler.resampled(_mixed(padded, self._channels), start, count)
        waveform: np.ndarray = samples.astype(np.float32)
        return waveform[:, 0] if self._channels == 1 else waveform


def _samples(path: str, sound: Any, start: int, end: int) -> np.ndarray:
    """float32[end - start, channels]."""
    try:
        sound.seek(start)
        samples: np.ndarray = sound.read(end - start, dtype="float32", always_2d=True)
    except RuntimeError as error:  # soundfile.LibsndfileError
        raise SourceError(f"{path}, from frame {start}: it is damaged: {error}", code="source-damaged") from error
    if len(samples) < end - start:
        raise SourceError(
            f"{path} is damaged or truncated: it ends at frame {start + len(samples)}", code="source-damaged"
        )
    return samples


def _mixed(samples: np.ndarray, channels: int) -> np.ndarray:
    """From one channel to many, or to their mean."""
    if samples.shape[1] == channels:
        return samples
    if samples.shape[1] == 1:
        return np.repeat(samples, channels, axis=1)
    return samples.mean(axis=1, dtype=np.float64, keepdims=True)


def audio(
    files: FilePath | Sequence[FilePath],
    *,
    sample_rate: int | None = None,
    channels: int | None = None,
    frames: int | None = None,
    classes: Sequence[str] | None = None,
) -> AudioSource:
    """A source over sound files; needs soundfile (``pip install 'tftoolkit[audio]'``).

    An example is {"waveform": float32 [frames] or [frames, channels] in -1 … 1, "path": string}, and "label": int64
    where the files lie in a folder per class. The number of frames varies unless ``frames`` is given. Only the headers
    are read at first.

    Args:
      files: a folder ``folder/<class>/….wav|.flac|.ogg``, or one or more files, or patterns with ``*``, in order.
      sample_rate: in Hz, what all come in: other files are resampled, by the filter of ``audio.resample``. Default:
        that of the first file, which all must have.
      channels: what all come in: many are mixed down to 1 by their mean, 1 is repeated. Default: those of the first
        file, which all must have.
      frames: cuts every file into pieces of so many frames (of ``sample_rate``), each one example, of which only that
        part is read; the rest at a file's end is left out. Default: an example is a whole file.
      classes: the classes' names in the order of their numbers, as in ``images``: ``classes=train.classes``.

    Raises:
      ImportError: soundfile is not installed.
      TypeError, ValueError: no file, files with different sample rates or channels, none that has ``frames``, or
        ``classes`` that do not fit the folder.
      FileNotFoundError, PermissionError: a file or a folder cannot be read.
      IsADirectoryError: a folder in a list of files.
      SourceError: no file is a sound file. While iterating: a file is damaged, truncated or gone.
    """
    for name, value in (("sample_rate", sample_rate), ("channels", channels), ("frames", frames)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}: expected a positive integer")
    if isinstance(files, str | os.PathLike) and os.path.isdir(os.path.expanduser(files)):
        folder = ClassFolder.scan(files, EXTENSIONS, classes)
        names = [os.fsdecode(name) for name in folder.files]
        paths = [folder.path(index) for index in range(len(names))]
        sizes = dict(zip(names, folder.sizes.tolist(), strict=True))
        return AudioSource(paths, sizes, folder, sample_rate, channels, frames)
    if classes is not None:
        raise ValueError("classes: only a folder with a folder per class has them; give that folder as files")
    for file in [files] if isinstance(files, str | os.PathLike) else files:
        need_local("files", file)
    paths = list_files(files)
    return AudioSource(paths, names_and_sizes(paths), None, sample_rate, channels, frames)


def _open(path: str, size: int) -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("sources.audio needs the library soundfile: pip install 'tftoolkit[audio]'") from error
    missing = missing_size(path, size)
    try:
        return soundfile.SoundFile(path if missing is None else WithSize(path, missing))
    except (RuntimeError, OSError, TypeError) as error:  # LibsndfileError; TypeError: raw data without a header
        raise SourceError(f"{path} cannot be read as a sound file: {error}", code="source-damaged") from error


def _clip(sound: Any) -> _Clip:
    if sound.frames > _MOST_FRAMES:
        raise SourceError(
            f"{sound.name}: its header does not say how long it is, as FLAC from a pipe; encode it again",
            code="source-format",
        )
    return _Clip(sound.samplerate, sound.channels, sound.frames)


def _headers(paths: list[str], sizes: list[int]) -> list[_Clip | None]:
    """None for a file that cannot be read, unless none can."""
    clips: list[_Clip | None] = []
    first_error = None
    with progress("reading sound files' headers", len(paths), " files") as bar:
        for path, size in zip(paths, sizes, strict=True):
            try:
                with _open(path, size) as sound:
                    clips.append(_clip(sound))
            except SourceError as error:
                first_error = first_error or error
                clips.append(None)
            bar.update(1)
    if first_error is not None and not any(clips):
        raise first_error
    return clips


def _agreed(
    paths: list[str], clips: list[_Clip | None], sample_rate: int | None, channels: int | None
) -> tuple[int, int]:
    """Sample rate and channels that all come in."""
    known = [(path, clip) for path, clip in zip(paths, clips, strict=True) if clip is not None]
    first_path, first = known[0]
    for path, clip in known:
        if sample_rate is None and clip.sample_rate != first.sample_rate:
            raise ValueError(
                f"files: {path} has {clip.sample_rate} Hz and not {first.sample_rate} like {first_path}; give "
                f"sample_rate={first.sample_rate} to have all resampled"
            )
        if channels is None and clip.channels != first.channels:
            raise ValueError(
                f"files: {path} has {clip.channels} channels, but {first_path} has {first.channels}; give channels=1 "
                "to have all mixed down"
            )
        if channels is not None and channels > 1 and clip.channels not in (1, channels):
            raise ValueError(
                f"channels={channels}: {path} has {clip.channels}; only one of them can be made, or of one"
            )
    return sample_rate or first.sample_rate, channels or first.channels


def _cut_off_ogg(path: str, size: int) -> bool:
    """libsndfile takes the end of an OGG file for the end of the sound."""
    if read_part(path, 0, min(size, 4)) != b"OggS":
        return False
    tail = read_part(path, max(0, size - (1 << 16)), min(size, 1 << 16))  # a page has less than 64 KiB
    page = tail[tail.rfind(b"OggS") :]  # RFC 3533: flags at 5 (4: the last page), number of segments at 26
    return not (len(page) >= 27 and page[5] & 4 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]]))
