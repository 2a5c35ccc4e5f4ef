"""What jobs are made of: scenes, distances, spectrograms within a model, detections, bounds."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from ml_collections import ConfigDict

from tftoolkit import models, pipelines, report
from tftoolkit.export import ExportReport
from tftoolkit.jobs.average_precision import intersection_over_union
from tftoolkit.jobs.detection import scenes
from tftoolkit.jobs.exports import export_all
from tftoolkit.jobs.gan import sliced_wasserstein
from tftoolkit.jobs.job import judged
from tftoolkit.jobs.tabular import Tabular
from tftoolkit.trainers import recipes


def test_scenes_hold_ink_within_their_boxes_and_no_two_overlap_much() -> None:
    rng = np.random.default_rng(0)
    digits = rng.uniform(0.5, 1, [10, 8, 8]).astype(np.float32)
    made = scenes(digits, np.arange(10), 30, 64, 5, rng)
    assert made["image"].shape == (30, 64, 64, 1)
    for image, boxes, labels in zip(made["image"], made["boxes"], made["labels"], strict=True):
        real = boxes[labels >= 0]
        assert len(real) >= 1
        assert ((real[:, :2] >= 0) & (real[:, 2:] <= 64) & (real[:, 2:] > real[:, :2])).all()
        outside = np.ones([64, 64], bool)
        for x1, y1, x2, y2 in real.astype(int):
            outside[y1:y2, x1:x2] = False
            assert image[y1:y2, x1:x2].max() > 120
        assert image[outside].max() <= 60  # noise alone
        assert (intersection_over_union(real, real) - np.eye(len(real)) <= 0.25).all()
    again = scenes(digits, np.arange(10), 1, 64, 5, np.random.default_rng(3))
    np.testing.assert_array_equal(
        again["image"], scenes(digits, np.arange(10), 1, 64, 5, np.random.default_rng(3))["image"]
    )


def test_sliced_wasserstein_is_the_distance_on_a_line_and_0_for_the_same() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=[500, 1]), 2 + rng.normal(size=[700, 1])
    assert sliced_wasserstein(one, other) == pytest.approx(
        scipy.stats.wasserstein_distance(one[:, 0], other[:, 0]), rel=0.02
    )
    cloud = rng.normal(size=[300, 4])
    assert sliced_wasserstein(cloud, rng.permutation(cloud)) == 0
    # Moved along one of d axes, a cloud is as far as that axis' mean share of a direction.
    moved = cloud + np.array([3, 0, 0, 0])
    assert sliced_wasserstein(cloud, moved) == pytest.approx(3 * 0.4244, rel=0.1)


def test_the_spectrogram_in_the_model_is_that_of_the_pipeline() -> None:
    rng = np.random.default_rng(0)
    waveform = (rng.normal(size=[3, 4000]) * np.array([[1], [1e-3], [0]])).astype(np.float32)
    stage = pipelines.audio.log_mel(8000, mels=40, fft_length=256, hop_length=128)
    expected = np.stack([stage({"waveform": tf.constant(one)})["spectrogram"] for one in waveform])
    actual = models.LogMel(8000, mels=40, fft_length=256, hop_length=128)(tf.constant(waveform))
    assert actual.shape == (3, 32, 40)
    np.testing.assert_allclose(actual, expected, atol=2e-3)  # dB


def test_detections_are_the_cells_that_are_highest_in_their_place() -> None:
    heat = np.full([2, 4, 4, 3], -9.0, np.float32)
    boxes = np.zeros([2, 4, 4, 4], np.float32)
    for picture, row, column, label, logit, box in (
        (0, 0, 0, 1, 2.0, [0, 0, 8, 8]),
        (0, 0, 1, 1, 1.0, [0, 0, 8, 7]),  # the same thing again
        (0, 1, 1, 2, 0.5, [0, 0, 8, 8]),  # another class
        (0, 3, 3, 0, 3.0, [8, 8, 16, 16]),
    ):
        heat[picture, row, column, label] = logit
        boxes[picture, row, column] = box
    found = models.detections(tf.constant(heat), tf.constant(boxes), max_output=3, candidates=4)
    assert found.labels.numpy()[0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.scores[0], 1 / (1 + np.exp([-3.0, -2.0, -0.5])), rtol=1e-6)
    assert found.boxes.numpy()[0].tolist() == [[8, 8, 16, 16], [0, 0, 8, 8], [0, 0, 8, 8]]


def test_a_detectors_loss_falls_to_0_with_the_right_answer_and_ignores_what_is_not_there() -> None:
    boxes = tf.constant([[[2.0, 2, 10, 10], [0, 0, 0, 0]]])
    labels = tf.constant([[1, -1]])
    heat = np.full([1, 4, 4, 2], -20.0, np.float32)
    there = np.tile(np.array([6.0, 6, 7, 7], np.float32), [1, 4, 4, 1])
    wrong = models.detection_losses(tf.constant(heat), tf.constant(there), boxes, labels)
    heat[0, 1, 1, 1] = 20.0
    there[0, 1, 1] = [2, 2, 10, 10]
    right = models.detection_losses(tf.constant(heat), tf.constant(there), boxes, labels)
    assert float(right[0]) == pytest.approx(0, abs=1e-4)
    assert float(wrong[0]) > 10
    nothing = models.detection_losses(tf.constant(heat * 0 - 20), tf.constant(there), boxes, tf.constant([[-1, -1]]))
    assert float(nothing[0]) == pytest.approx(0, abs=1e-4)


def test_a_table_network_embeds_categories() -> None:
    network = models.TabularNetwork(2, [3, 4], 5, hidden=(8,), embedding=2)
    numbers, categories = tf.zeros([2, 2]), tf.constant([[0, 3], [2, 3]])
    logits = network(numbers, categories)
    assert logits.shape == (2, 5)
    assert not np.allclose(logits[0], logits[1])
    assert network(tf.zeros([4, 2]), tf.zeros([4, 2], tf.int32), tf.constant([1, 2])).shape == (4, 5)


def test_a_rare_class_counts_as_much_as_the_others() -> None:
    config = recipes.load("tabular")
    config.model.dropout = 0.0
    job = Tabular(config)
    job.read()
    rows = np.concatenate([np.flatnonzero(job.train["target"] == label)[:count] for label, count in ((0, 4), (1, 60))])
    job.train = {name: column[rows] for name, column in job.train.items()}
    batch = {name: tf.constant(column) for name, column in job.train.items()}
    batch["numbers"] = tf.nn.l2_normalize(batch["numbers"], axis=0)
    step = job.step()
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        batch["target"], step.model(batch["numbers"], batch["categories"])
    ).numpy()
    means = [losses[job.train["target"] == label].mean() for label in (0, 1)]
    assert abs(means[0] - means[1]) > 0.01
    assert float(step(batch, tf.zeros([2], tf.int32))["loss"]) == pytest.approx(np.mean(means), rel=1e-5)


def test_bounds_are_judged_from_the_right_side() -> None:
    config = ConfigDict({"at_least": {"accuracy": 0.9}, "at_most": {"distance": 0.5}})
    results = judged(config, {"accuracy": 0.91, "distance": 0.6})
    assert [one.is_reached for one in results] == [True, False]
    assert str(results[0]) == "test accuracy 91.00% (the recipe expects at least 90.00%)"
    assert str(results[1]) == "test distance 0.6 (the recipe expects at most 0.5: NOT REACHED)"
    assert report.number("map_50", 0.5) == "50.00%"


def test_a_target_whose_runtime_is_not_installed_is_left_out(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not export_all(None, tmp_path, ["tflite_float16", "onnx"]).rows
    said = capsys.readouterr().out
    assert "No tflite_float16 file, since ai_edge_litert is not installed: pip install 'tftoolkit[export]'" in said
    assert "No onnx file, since tf2onnx, onnx, onnxruntime is not installed: pip install 'tftoolkit[onnx]'" in said


def test_a_report_without_files() -> None:
    """``--config.exports=()``, or nothing installed that makes any."""
    lines = {"train": [], "eval": [{"kind": "eval", "step": 1, "loss": 2.0}]}
    page = report.render(
        title="run", results=[], metrics=lines, charts=["loss"], sections=[], proof=ExportReport(()), config={}
    )
    assert "None were made." in page
    assert "largest error" not in page


def test_an_unknown_target_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="exports='tflit': did you mean tflite"):
        export_all(None, tmp_path, ["tflit", "onnx"])
