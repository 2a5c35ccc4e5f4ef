"""Trains a language model on the English text that comes with Python, or on text files of one's own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit import export, models, pipelines, report, trainers
from tftoolkit.jobs import settings
from tftoolkit.jobs.job import Job
from tftoolkit.jobs.writing import Writing
from tftoolkit.pipelines import sources, text
from tftoolkit.pipelines.datasets.python_texts import HELD_OUT, python_texts

END = "<end>"  # of a document
_IGNORED = -100
_MOST_TOKENS = 1 << 20  # four times as many as any language model's
_FILES_NOTE = (
    "Each token is the likeliest one, behind a held-out text. In the table of files, milliseconds are those of a "
    "token, and bits per character those of the beginning of the held-out text."
)


class CarriedState(trainers.Step):
    """Truncated back-propagation through time: gradients end where the batch begins, the state doesn't.

    The state is a variable of the step, so it stands in checkpoints. A row whose "continues" is False begins anew.
    """

    def __init__(self, model: models.Recurrent, update: trainers.Update, rows: int, carries: bool = True) -> None:
        super().__init__()
        self.model, self.update, self._carries = model, update, carries
        self.state = {name: tf.Variable(zero, trainable=False) for name, zero in model.empty_cache(rows).items()}

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        goes_on = batch["continues"] if self._carries else tf.zeros_like(batch["continues"])
        with tf.GradientTape() as tape:
            state = {name: tf.convert_to_tensor(value) for name, value in self.state.items()}
            hidden, after = self.model.decode(batch["tokens"], state, tf.cast(goes_on, tf.int32), key=key)
            logits = self.model.logits(hidden)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["targets"], logits))
        metrics = self.update.apply(tape.gradient(loss, self.update.weights))
        for name, value in after.items():
            self.state[name].assign(value)
        return {"loss": loss, **metrics}


class PackedDocuments(trainers.Step):
    """A decoder on windows of several documents each, of which none sees another."""

    def __init__(self, model: Any, update: trainers.Update) -> None:
        super().__init__()
        self.model, self.update = model, update

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens, segments, positions = (batch[name] for name in ("tokens", "segment_ids", "positions"))
        following = tf.roll(tokens, -1, axis=1)
        is_last = segments != tf.concat([segments[:, 1:], tf.zeros_like(segments[:, :1])], axis=1)
        labels = tf.where(is_last | (segments == 0), _IGNORED, following)
        with tf.GradientTape() as tape:
            loss = self.model.loss(tokens, labels, positions=positions, borders=borders(positions), key=key)
        return {"loss": loss, **self.update.apply(tape.gradient(loss, self.update.weights))}


def borders(positions: tf.Tensor) -> tf.Tensor:
    """Where the documents of a batch begin in its rows laid one behind the other: wherever a position is 0.

    int32[tokens + 1]: behind the last begin all are the end, as XLA must know the size: so many empty documents.
    """
    flat = tf.reshape(positions, [-1])
    count = tf.size(flat)
    return tf.concat([tf.sort(tf.where(flat == 0, tf.range(count), count)), [count]], axis=0)


class LanguageModelling(Job):
    """Settings: ``corpus`` (the text that comes with Python, or a folder with .txt files, of which every tenth is held
    out), ``vocabulary`` (256: bytes; more: as many tokens by byte-pair encoding), ``model`` (a name of
    ``tftoolkit.models``, and its arguments), ``length`` (tokens per window), ``batch_size``, ``carry_state`` (of a
    recurrent model), and those of optimizer, samples and export.

    Bits per character are those of UTF-8's bytes: in English text a few in ten thousand are parts of a character.
    """

    charts = ("loss", "bits_per_character")

    def model_names(self) -> list[str]:
        return [name for name in super().model_names() if hasattr(getattr(models, name), "empty_cache")]

    def check(self) -> None:
        super().check()
        config, between = self.config, settings.between
        if "tflite_int8" in config.exports:
            raise ValueError(
                "config.exports: there is no tflite_int8 of a language model; tflite_dynamic has int8 weights"
            )
        between(config, "vocabulary", 256, _MOST_TOKENS)
        between(config, "length", 2)
        between(config, "evaluation_rows", 1)
        settings.one_of("optimizer", config.optimizer, ("adamw", "muon"))
        between(config, "capacity", 1, config.model.get("context"), "the model's context")
        room = "what is written must fit into a file's cache, behind a prompt of prefill + 3 tokens"
        between(config, "prefill", 1, config.capacity - 5, room)
        between(config, "compared_tokens", 1, config.capacity - config.prefill - 4, room)
        for temperature in config.temperatures:
            if not 0 <= temperature < float("inf"):
                raise ValueError(f"config.temperatures={config.temperatures}: each must be a finite number, 0 or above")
        if not config.prompt:
            raise ValueError("config.prompt is empty: the samples must begin with something")

    def read(self) -> None:
        config = self.config
        texts = {split: self._texts(split) for split in ("train", "test")}
        if config.vocabulary == 256:
            self.tokenizer = text.byte_tokenizer([END])
        else:
            self.tokenizer = text.train_bpe_tokenizer(texts["train"], config.vocabulary, [END])
        if (context := config.model.get("context")) is not None:
            given = len(self.tokenizer.encode(config.prompt))
            if given >= context:
                raise ValueError(
                    f"config.prompt has {given} tokens, and the model's context is {context}: shorten it, or choose a "
                    "larger config.model.context"
                )
            why = f"the prompt has {given} tokens, and the model's context is {context}"
            settings.between(config, "sample_tokens", 1, context - given, why)
        self._folder = tempfile.TemporaryDirectory(prefix="tftoolkit-text-")
        self._files = {split: Path(self._folder.name) / f"{split}.tokens" for split in texts}
        for split, documents in texts.items():
            text.write_tokens(documents, self._files[split], self.tokenizer, end_of_document=END)
        ends = self.tokenizer.special_tokens.values()
        names = [self.tokenizer.backend.id_to_token(i) for i in range(self.tokenizer.vocabulary_size)]
        # In byte-level vocabularies each letter of a token's name stands for a byte.
        self._bytes = np.array([0 if i in ends else len(name) for i, name in enumerate(names)], np.int32)
        self._held_out = np.concatenate([self.tokenizer.encode(document) for document in texts["test"]])

    def _texts(self, split: str) -> list[str]:
        if self.config.corpus == "python":
            return python_texts(split)
        paths = sorted(Path(self.config.corpus).expanduser().rglob("*.txt"))
        if len(paths) < HELD_OUT:
            raise ValueError(
                f"corpus={self.config.corpus!r}: a folder with at least {HELD_OUT} .txt files is needed (every tenth "
                f"is held out), this one has {len(paths)}"
            )
        is_test = [number % HELD_OUT == HELD_OUT - 1 for number in range(len(paths))]
        return [path.read_text("utf-8") for path, test in zip(paths, is_test, strict=True) if test == (split == "test")]

    @property
    def _is_recurrent(self) -> bool:
        return bool(self.config.model.name == "Recurrent")

    def pipeline(self) -> pipelines.Pipeline:
        config = self.config
        if self._is_recurrent:
            rows = sources.token_windows(
                self._files["train"], config.length, targets=True, continue_rows=config.batch_size
            )
            return pipelines.Pipeline(rows, seed=config.seed).batch(config.batch_size)
        documents = pipelines.Pipeline(sources.tokens(self._files["train"]), seed=config.seed)
        return documents.shuffle().pack(config.length).batch(config.batch_size, drop_remainder=True)

    def step(self) -> trainers.Step:
        config = self.config
        options = config.model.to_dict()
        make = getattr(models, options.pop("name"))
        self.model = make(self.tokenizer.vocabulary_size, **options, seed=config.seed)
        kind = {"adamw": trainers.optimizers.AdamW, "muon": trainers.optimizers.Muon}[config.optimizer]
        optimizer = self.optimizer(kind, fused=config.fused)
        update = trainers.Update(self.model, optimizer, clip_norm=config.clip_norm)
        if self._is_recurrent:
            return CarriedState(self.model, update, config.batch_size, config.carry_state)
        return PackedDocuments(self.model, update)

    def evaluate(self) -> dict[str, float]:
        """Of all held-out text. A recurrent model reads it in rows side by side, with its state carried along if it was
        in training; another in windows that overlap by half, of which it is judged by the second halves."""
        length, rows = self.config.length, self.config.evaluation_rows
        if self._is_recurrent:
            source = sources.token_windows(self._files["test"], length, targets=True, continue_rows=rows)
        else:
            source = sources.token_windows(self._files["test"], length, stride=length // 2, targets=True)
        nothing, sums = self.model.empty_cache(rows, 1), np.zeros(3)
        carries, state = self._is_recurrent and self.config.carry_state, nothing
        for batch in pipelines.Pipeline(source).batch(rows, drop_remainder=True).dataset(epochs=1):
            before = state if carries else nothing
            found, state = self._judged(batch["tokens"], batch["targets"], before)
            sums += found.numpy()
        nats, tokens, count = sums
        return {"bits_per_character": nats / np.log(2) / count, "loss": nats / tokens}

    @tf.function(autograph=False)
    def _judged(self, tokens: tf.Tensor, targets: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        """Sum of the losses, number of tokens, number of characters; and the next state."""
        if self._is_recurrent:
            hidden, state = self.model.decode(tokens, state)
        else:
            half = self.config.length // 2
            hidden, targets = self.model.hidden(tokens)[:, half:], targets[:, half:]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, self.model.logits(hidden))
        characters = tf.reduce_sum(tf.gather(self._bytes, targets))
        sums = [tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32), tf.cast(characters, tf.float32)]
        return tf.stack(sums), state

    def export(self, folder: Path) -> export.ExportReport:
        self.tokenizer.save(folder / "tokenizer.json")
        self._writing = Writing(self.model, self._held_out, self._bytes, self.tokenizer, self.config)
        return self._writing.write_files(folder)

    def sections(self) -> Sequence[report.Section]:
        config = self.config
        texts = [
            (f"Temperature {value}", config.prompt + self._written(value, config.sample_tokens))
            for value in config.temperatures
        ]
        note = f"Each text begins with “{config.prompt.strip()}”, which was given."
        return [
            report.Section("What it writes", note, texts=texts),
            report.Section("Files that write", _FILES_NOTE, table=self._writing.table),
        ]

    def _written(self, temperature: float, count: int) -> str:
        written: str = models.generate(
            self.model, self.config.prompt, count, temperature=temperature, tokenizer=self.tokenizer, seed=0
        )
        return written


JOB = LanguageModelling
