"""The page of ``tftoolkit data inspect``: one file that shows examples to a person and opens without a network."""

import base64
import dataclasses
import io
import itertools
import math
import wave
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from PIL import Image

from tftoolkit.data_tools.inspection import Feature, Row, Survey, bytes_text, is_skewed, length_edges, shown
from tftoolkit.pipelines import audio
from tftoolkit.pipelines.stages.packing import POSITIONS, SEGMENT_IDS

GENERATOR = "tftoolkit data inspect"  # stands in the page, so that no other file is replaced

_SIDE = 160  # of a thumbnail, in pixels
_SECONDS = 10  # of a sound
_TOKENS, _LETTERS = 160, 1200  # of a sequence, of a text
_LABELS = 40
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")  # JPEG, PNG, GIF, BMP


@dataclasses.dataclass
class Card:
    """What the page shows of one example. ``width`` is "small", "medium" or "wide", as its contents need."""

    name: str
    error: str
    title: str = ""
    width: str = "small"
    pictures: list[tuple[str, str, bool]] = dataclasses.field(default_factory=list)
    """(name, data URI, whether its pixels are enlarged)."""
    sounds: list[str] = dataclasses.field(default_factory=list)
    texts: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    sequences: list["Sequence"] = dataclasses.field(default_factory=list)
    values: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def is_row(self, features: int) -> bool:
        """Whether a row of a table can show it: there is a value of each feature, and nothing to look at or hear."""
        return bool(self.error) or (len(self.values) == features and not self.pictures and not self.sounds)


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Tokens in a row; ``runs`` are (segment, share of the length in %), 0 where nothing is."""

    name: str
    length: int
    filled: int
    segments: int
    runs: list[tuple[int, float]]
    tokens: list[tuple[int, str]]
    """(segment, the token as text) of the first ones."""


def write_contact_sheet(path: str, title: str, survey: Survey, tokenizer: Any = None) -> None:
    """Writes the page; ``tokenizer`` (``text.Tokenizer``) makes text of tokens.

    Raises:
      FileExistsError: there is a file of that name which is no such page.
      OSError: it cannot be written.
    """
    file = Path(path).expanduser()
    if file.exists() and f'content="{GENERATOR}"' not in file.read_text(errors="replace")[:1000]:
        raise FileExistsError(f"--page={path}: the file is none of {GENERATOR} and is not replaced; name another")
    file.write_text(render(title, survey, tokenizer), encoding="utf-8")


def render(title: str, survey: Survey, tokenizer: Any = None) -> str:
    """The page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tftoolkit.data_tools", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    cards = [_card(row, survey, tokenizer) for row in survey.shown]
    most = max((count for *_, count in survey.labels), default=1)
    labels = [(shown(value), name, count, 100 * count / most) for value, name, count in survey.labels]
    return environment.get_template("contact_sheet.html").render(
        generator=GENERATOR,
        title=title,
        survey=survey,
        stored=None if survey.stored_bytes is None else bytes_text(survey.stored_bytes),
        tensors=bytes_text(survey.example_bytes * survey.count),
        each=bytes_text(survey.example_bytes),
        features=[(name, one, _range(name, one, survey)) for name, one in survey.features.items()],
        labels=labels[:_LABELS],
        more_labels=len(labels) - len(labels[:_LABELS]),
        lengths=[(name, len(lengths), _histogram(lengths)) for name, lengths in survey.lengths.items()],
        cards=cards,
        is_table=all(card.is_row(len(survey.features)) for card in cards),
        numeric={name for name, one in survey.features.items() if one.low is not None},
    )


def _range(name: str, feature: Feature, survey: Survey) -> str:
    if feature.low is None:
        return ""
    text = f"{shown(feature.low)} to {shown(feature.high)}"
    if any(_is_picture(name, row.features.get(name)) for row in survey.shown):
        low, high = _scale(feature)
        text += f"; shown from {low:g} (black) to {high:g} (white)"
    return text


def _card(row: Row, survey: Survey, tokenizer: Any) -> Card:
    card = Card(row.name, row.error)
    if row.error:
        card.width = "medium"
    segments = row.features.get(SEGMENT_IDS)
    for name, value in row.features.items():
        feature = survey.features[name]
        if segments is not None and name in (SEGMENT_IDS, POSITIONS):
            continue
        if name == survey.label and survey.classes and 0 <= value < len(survey.classes):
            card.title = survey.classes[int(value)]
        elif _is_file(value):
            _add_file(card, name, value)
        elif _is_picture(name, value):
            _add_picture(card, name, _pixels(value, *_scale(feature)))
        elif _is_sound(name, value):
            _add_sound(card, name, value, survey.sample_rate or 16000)
        elif isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "f" and value.size:
            _add_picture(card, name, _colours(value.T[::-1], *_scale(feature)))
        elif _is_sequence(value):
            card.sequences.append(_sequence(name, value, segments, tokenizer))
            card.width = "wide"
        elif isinstance(value, bytes) and _text(value) is not None and (len(value) > 30 or name == "text"):
            text = str(_text(value))
            card.texts.append((name, text[:_LETTERS] + (" …" if len(text) > _LETTERS else "")))
            card.width = "wide" if card.width == "small" else card.width
        else:
            card.values.append((name, shown(value)))
    return card


def _is_file(value: Any) -> bool:
    return isinstance(value, bytes) and value.startswith(_MAGIC)


def _is_picture(name: str, value: Any) -> bool:
    """Pixels [height, width, 1, 3 or 4]; [height, width] if the name says so; or a few of them, one after another."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or not value.size:
        return False
    return (value.ndim in (3, 4) and value.shape[-1] in (1, 3, 4)) or (value.ndim == 2 and "image" in name)


def _is_sound(name: str, value: Any) -> bool:
    return isinstance(value, np.ndarray) and name == "waveform" and value.dtype.kind == "f" and value.size > 0


def _is_sequence(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu" and len(value) > 4


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


# --- pictures ---------------------------------------------------------------------------------------------------------


def _scale(feature: Feature) -> tuple[float, float]:
    """What is shown black and white: the usual range of such numbers if they are in it, else theirs."""
    low, high = float(feature.low or 0), float(feature.high or 0)
    if not math.isfinite(low) or not math.isfinite(high):
        return 0.0, 1.0
    if feature.spec.dtype == tf.uint8:
        return 0.0, 255.0 if high > 64 else max(high, 1.0)
    if low >= 0:
        return 0.0, 1.0 if high <= 1 else 255.0 if 64 < high <= 255 else high
    return low, max(high, low + 1e-6)


def _pixels(value: np.ndarray, low: float, high: float) -> Image.Image:
    if value.ndim == 4:
        value = np.concatenate(list(value[:8]), axis=1)
    scaled = np.nan_to_num((value.astype(np.float32) - low) / (high - low)).clip(0, 1)
    pixels = (255 * scaled).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


def _colours(value: np.ndarray, low: float, high: float) -> Image.Image:
    scaled = np.nan_to_num((value - low) / (high - low)).clip(0, 1)
    picture = Image.fromarray((255 * matplotlib.colormaps["magma"](scaled)[..., :3]).astype(np.uint8))
    return picture.resize((min(max(picture.width, 300), 600), max(picture.height, 100)), Image.Resampling.NEAREST)


def _add_file(card: Card, name: str, content: bytes) -> None:
    try:
        picture = Image.open(io.BytesIO(content))
        size, kind = picture.size, picture.format
        _add_picture(card, name, picture.convert("RGB"))
        card.values.append((name, f"{kind}, {size[0]} × {size[1]}, {len(content):,} bytes"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        card.values.append((name, f"cannot be decoded: {error}"))


def _add_picture(card: Card, name: str, picture: Image.Image) -> None:
    enlarged = max(picture.size) < _SIDE // 2
    if picture.width > 2 * picture.height:
        card.width = "medium" if card.width == "small" else card.width
        picture.thumbnail((600, _SIDE))
    else:
        picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    if enlarged or picture.mode not in ("L", "RGB"):
        picture.save(file, "PNG")
    else:
        picture.save(file, "JPEG", quality=85)
    kind = "png" if file.getvalue().startswith(b"\x89PNG") else "jpeg"
    card.pictures.append((name, f"data:image/{kind};base64,{_base64(file)}", enlarged))


# --- sounds -----------------------------------------------------------------------------------------------------------


def _add_sound(card: Card, name: str, waveform: np.ndarray, sample_rate: int) -> None:
    """Log-mel spectrogram of the first seconds, and the sound itself."""
    mono = waveform[: _SECONDS * sample_rate].astype(np.float32)
    mono = mono.mean(axis=1) if mono.ndim == 2 else mono
    length = max(256, 1 << round(math.log2(0.032 * sample_rate)))
    hop = max(1, len(mono) // 300, sample_rate // 200)
    stage = audio.log_mel(sample_rate, mels=40, fft_length=length, hop_length=hop)
    decibel = stage({"waveform": tf.constant(mono)})["spectrogram"].numpy()
    decibel -= decibel.max()
    _add_picture(card, name, _colours(decibel.T[::-1], -80.0, 0.0))
    card.width = "medium"
    seconds = len(waveform) / sample_rate
    card.values.append((name, f"{seconds:.2f} s, {sample_rate:,} Hz, {'×'.join(map(str, waveform.shape))} samples"))
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(sample_rate)
        sound.writeframes((32767 * np.nan_to_num(mono).clip(-1, 1)).astype("<i2").tobytes())
    card.sounds.append(f"data:audio/wav;base64,{_base64(file)}")


# --- tokens -----------------------------------------------------------------------------------------------------------


def _sequence(name: str, values: np.ndarray, segments: Any, tokenizer: Any) -> Sequence:
    packed = segments is not None and len(segments) == len(values)
    ids = np.asarray(segments) if packed else np.ones(len(values), np.int32)
    runs = [(int(segment), len(list(run))) for segment, run in itertools.groupby(ids.tolist())]
    first = list(zip(ids[:_TOKENS].tolist(), _token_texts(values[:_TOKENS], tokenizer), strict=True))
    return Sequence(
        name=name,
        length=len(values),
        filled=int((ids > 0).sum()),
        segments=int(ids.max()) if packed else 0,
        runs=[(segment, 100 * count / len(values)) for segment, count in runs],
        tokens=first,
    )


def _token_texts(tokens: np.ndarray, tokenizer: Any) -> list[str]:
    if tokenizer is None:
        return [str(token) for token in tokens.tolist()]
    return [tokenizer.decode([token]).replace("\n", "⏎") for token in tokens.tolist()]


# --- the rest ---------------------------------------------------------------------------------------------------------


def _histogram(lengths: np.ndarray) -> str:
    """As inline SVG."""
    edges, median = length_edges(lengths, 40), np.median(lengths)
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(5.4, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.stairs(np.histogram(lengths, edges)[0], edges - 0.5, fill=True, color="#3b6ea8")
        axes.axvline(median, color="#c62828", linewidth=1)
        if is_skewed(lengths):
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        title = f"{lengths.min():,} to {lengths.max():,}, median {median:,.0f} (red), mean {lengths.mean():,.1f}"
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel("examples")
        axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]  # without the XML prologue


def _base64(file: io.BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode()
