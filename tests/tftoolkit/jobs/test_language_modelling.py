"""Language models: what a step computes, what is resumed, what the recipes reach."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import recipe_results
import tensorflow as tf

from tftoolkit import jobs, models, trainers
from tftoolkit.jobs import job as scaffold
from tftoolkit.jobs.language_modelling import CarriedState, LanguageModelling, PackedDocuments, borders
from tftoolkit.pipelines.datasets.python_texts import python_texts
from tftoolkit.trainers import recipes

TINY = {
    "text_rnn": {
        "model.cell": "lstm",
        "model.width": 24,
        "model.embedding": 8,
        "batch_size": 4,
        "length": 8,
        "evaluation_rows": 2,
    },
    "text_gpt": {
        **{"model.width": 32, "model.layers": 1, "model.heads": 2, "model.hidden": 64, "model.context": 64},
        **{"batch_size": 4, "length": 32, "evaluation_rows": 2, "vocabulary": 300, "sample_tokens": 20},
    },
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twenty short texts, of which two are held out."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for number in range(20):
        words = [("the cat sat", "on a mat", "and saw a rat")[i] for i in rng.integers(0, 3, 60)]
        (folder / f"{number:02}.txt").write_text(" ".join(words))
    return folder


def tiny(name, corpus, **changes):
    config = recipes.load(name)
    schedule = {
        "steps": 12,
        "runner": "graph",
        "steps_per_call": 3,
        "log_every": 3,
        "evaluate_every": 6,
        "checkpoint_every": 6,
    }
    settings = {"corpus": str(corpus), **schedule, "log_every": 3, "warmup_steps": 2, **TINY[name], **changes}
    config.update_from_flattened_dict(settings)
    return LanguageModelling(config)


def trained(job, directory, steps):
    """The step's variables after so many steps, in a trainer that begins with the directory's checkpoint."""
    job.read()
    step = job.step()
    scaffold._trainer(job, step, directory).run(steps)
    return {name: variable.numpy() for name, variable in step.named_variables().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_rnn", "text_gpt"])
def test_a_resumed_run_ends_with_the_same_bits(name, corpus, tmp_path):
    whole = trained(tiny(name, corpus), tmp_path / "whole", 12)
    trained(tiny(name, corpus), tmp_path / "parts", 6)
    parts = trained(tiny(name, corpus), tmp_path / "parts", 12)
    assert whole.keys() == parts.keys()
    assert all((whole[key] == parts[key]).all() for key in whole)
    if name == "text_rnn":
        states = [key for key in whole if key.startswith("state/")]
        assert len(states) == 2
        assert all(np.abs(whole[key]).max() > 0 for key in states)


def carried(model, carries):
    update = trainers.Update(model, trainers.optimizers.Sgd(0.0))
    return CarriedState(model, update, 2, carries)


def window(tokens, continues):
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "continues": tf.constant(continues)}


def test_the_state_goes_on_where_a_row_does_and_begins_anew_where_it_does_not():
    model = models.Recurrent(20, width=8, seed=1)
    tokens = tf.constant(np.random.default_rng(0).integers(0, 20, [2, 9]), tf.int32)
    first, second = window(tokens[:, :5], [False, False]), window(tokens[:, 4:], [True, False])
    key = tf.zeros([2], tf.int32)

    def loss(row, begin):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tokens[row : row + 1, begin + 1 :], model(tokens[row : row + 1, begin:-1])
        )
        return losses.numpy()[0, -4:]

    step = carried(model, True)
    step(first, key)
    found = float(step(second, key)["loss"])
    assert found == pytest.approx(np.mean([loss(0, 0), loss(1, 4)]), rel=1e-6)
    step = carried(model, False)
    step(first, key)
    found = float(step(second, key)["loss"])
    assert found == pytest.approx(np.mean([loss(0, 4), loss(1, 4)]), rel=1e-6)


def test_borders_of_packed_windows():
    positions = tf.constant([[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]])  # the last three: one token, then padding
    assert borders(positions).numpy().tolist() == [0, 3, 5, 7, 8, 9, *[10] * 5]


def test_packed_documents_do_not_see_each_other():
    model = models.Llama(20, width=16, layers=2, heads=2, seed=1)
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 20, length) for length in (7, 3, 6, 4)]
    rows = [documents[:2], documents[2:]]
    batch = {
        "tokens": [np.concatenate(row) for row in rows],
        "positions": [np.concatenate([np.arange(len(one)) for one in row]) for row in rows],
        "segment_ids": [np.repeat([1, 2], [len(one) for one in row]) for row in rows],
    }
    batch = {name: tf.constant(np.stack(value), tf.int32) for name, value in batch.items()}
    step = PackedDocuments(model, trainers.Update(model, trainers.optimizers.Sgd(0.0)))
    found = float(step(batch, tf.zeros([2], tf.int32))["loss"])
    losses = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(one[1:], model(tf.constant([one]))[0, :-1]).numpy()
        for one in documents
    ]
    assert found == pytest.approx(np.mean(np.concatenate(losses)), rel=1e-5)


def test_bits_per_character_are_those_of_the_held_out_text(corpus):
    job = tiny("text_rnn", corpus)
    job.read()
    job.step()
    found = job.evaluate()
    # Bytes, each a token: nats per token, but the ends of documents are no characters.
    assert found["bits_per_character"] == pytest.approx(found["loss"] / np.log(2), rel=0.01)
    assert found["loss"] == pytest.approx(np.log(257), rel=0.1)


def test_a_corpus_that_is_too_small_is_refused(tmp_path):
    (tmp_path / "one.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a folder with at least 10 \.txt files is needed .* this one has 1"):
        tiny("text_rnn", tmp_path).read()


@pytest.mark.slow
def test_pythons_texts_repeat_nothing():
    paragraphs = [part for split in ("train", "test") for text in python_texts(split) for part in text.split("\n\n")]
    words = [" ".join(part.split()) for part in paragraphs]
    assert len(words) == len(set(words)) > 5000
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'all'"):
        python_texts("all")


def train(directory, name, *options, **environment):
    command = [sys.executable, "-m", "tftoolkit", "train", name, f"--directory={directory}", *options]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.exhaustive  # test_digits.py kills runs of a recipe, and resumed states are compared above
def test_a_killed_run_goes_on_with_its_state_writes_files_and_a_report(corpus, tmp_path):
    options = [f"--config.{key}={value}" for key, value in TINY["text_rnn"].items()]
    options += [f"--config.corpus={corpus}", "--config.steps=60", "--config.evaluate_every=20"]
    options += ["--config.checkpoint_every=20", "--config.exports=('tflite',)", "--config.max_drop=0.5"]
    options += ["--config.web_page=False"]
    whole = train(tmp_path / "whole", "text_rnn", *options)
    assert whole.returncode == 0, whole.stderr
    killed = train(tmp_path / "parts", "text_rnn", *options, TFTOOLKIT_FAULTS="save:kill:2")
    assert killed.returncode == -9
    again = train(tmp_path / "parts", "text_rnn", *options)
    assert again.returncode == 0, again.stderr
    for file in ("metrics.jsonl", "export/model.tflite", "export/tokenizer.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()
    page = (tmp_path / "parts" / "report.html").read_text()
    assert "<td>the first 200 of 200</td>" in page
    assert page.count("Temperature") == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("cell", ["gru", "simple"])  # what is killed above has an LSTM
def test_other_cells_learn_and_their_files_write_the_same(cell, corpus, tmp_path):
    changes = {"model.cell": cell, "steps": 30, "evaluate_every": 10, "checkpoint_every": 30}
    changes |= {"exports": ("saved_model", "tflite", "onnx"), "web_page": False, "max_drop": 0.5}
    job = tiny("text_rnn", corpus, **changes)
    jobs.run(job, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [line["bits_per_character"] for line in lines if line["kind"] == "eval"]
    assert found[-1] < found[0] - 0.3
    assert (tmp_path / "report.html").read_text().count("<td>the first 200 of 200</td>") == 3


@pytest.mark.slow
def test_a_carried_state_beats_a_zeroed_one(tmp_path):
    found = {}
    for carries in (True, False):
        config = recipes.load("text_rnn")
        config.update_from_flattened_dict(
            {"carry_state": carries, "length": 8, "steps": 400, "model.width": 96, "warmup_steps": 50}
        )
        job = LanguageModelling(config)
        trained(job, tmp_path / str(carries), 400)
        found[carries] = job.evaluate()["bits_per_character"]
    print(found)
    assert found[True] < found[False] - 0.05


@pytest.mark.parametrize("seed", recipe_results.SEEDS)
@pytest.mark.parametrize("name", ["text_rnn", "text_gpt"])
def test_the_recipe_reaches_what_it_expects(name, seed, tmp_path):
    config = recipes.load(name)
    config.seed = seed
    more = [] if not seed else ["--config.exports=('tflite',)", "--config.web_page=False"]
    done = train(tmp_path, name, f"--config.seed={seed}", *more)
    assert done.returncode == 0, done.stderr
    assert "NOT REACHED" not in done.stdout
    if seed:
        config.update({"exports": ("tflite",), "web_page": False})
    recipe_results.check(tmp_path, LanguageModelling(config))


def test_the_job_is_found_by_name():
    assert jobs.find("language_modelling") is LanguageModelling
