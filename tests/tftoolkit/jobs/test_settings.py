"""Settings that cannot work are refused before anything is trained, in a message that names one."""

import pytest

from tftoolkit import jobs
from tftoolkit.jobs import run_folder
from tftoolkit.trainers import recipes

WRONG = [
    ("digits", {"exports": ("tflite", "onxx")}, r"config\.exports='onxx': did you mean onnx\?"),
    ("digits", {"model.name": "DigitCnn"}, r"config\.model\.name='DigitCnn': did you mean DigitsCnn"),
    ("digits", {"steps": 0}, r"config\.steps=0 must be at least 1"),
    ("digits", {"seed": -1}, r"config\.seed=-1 must be at least 0"),
    ("digits", {"learning_rate": -1.0}, r"config\.learning_rate=-1\.0 must be at least 0"),
    ("gan", {"batch_size": -1}, r"config\.batch_size=-1 must be at least 1"),
    ("tabular", {"dataset": "breast_canser"}, r"config\.dataset='breast_canser': did you mean breast_cancer"),
    ("tabular", {"dataset": "linnerud"}, r"config\.dataset='linnerud'"),
    ("transfer", {"shots": 0}, r"config\.shots=0 must be at least 1"),
    ("transfer", {"scratch.steps": 0}, r"config\.scratch\.steps=0 must be at least 1"),
    ("text_rnn", {"prompt": ""}, r"config\.prompt is empty"),
    ("text_rnn", {"temperatures": (0.5, -1.0)}, r"config\.temperatures=\(0\.5, -1\.0\): each must be a finite number"),
    ("text_rnn", {"temperatures": (float("nan"),)}, r"each must be a finite number"),
    ("text_rnn", {"vocabulary": 255}, r"config\.vocabulary=255 must be from 256 to"),
    ("text_rnn", {"model.name": "recurent"}, r"did you mean Recurrent\? There are: Gpt2, Llama, Recurrent$"),
    ("text_rnn", {"exports": ("tflite", "tflite_int8")}, r"there is no tflite_int8 .* tflite_dynamic has int8 weights"),
    ("digits", {"model.name": "Llama"}, r"config\.model\.\w+: Llama has no such argument; it has: context"),
    ("text_gpt", {"model.name": "Gpt2"}, r"config\.model\.deviation: Gpt2 has no such argument"),
    ("text_rnn", {"length": 1}, r"config\.length=1 must be at least 2"),
    ("text_rnn", {"compared_tokens": 300}, r"config\.compared_tokens=300 must be from 1 to 244: .* file's cache"),
    ("text_rnn", {"optimizer": "sgd"}, r"config\.optimizer='sgd'"),
    ("text_gpt", {"model.dropout": 1.0}, r"config\.model\.dropout=1\.0 must be at least 0 and less than 1"),
    ("text_gpt", {"capacity": 1024}, r"config\.capacity=1024 must be from 1 to 512: the model's context"),
    ("text_gpt", {"prefill": 256}, r"config\.prefill=256 must be from 1 to 251"),
]


def changed(recipe, changes):
    config = recipes.load(recipe)
    config.update_from_flattened_dict(changes)
    return jobs.find(config.job)(config)


@pytest.mark.parametrize(("recipe", "changes", "said"), WRONG)
def test_wrong_ones_are_refused_before_anything_is_written(recipe, changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        jobs.run(changed(recipe, changes), tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", recipes.names())
def test_those_of_the_recipes_are_not(recipe):
    changed(recipe, {}).check()


@pytest.mark.slow
def test_a_text_longer_than_the_context_is_refused_before_training(tmp_path):
    job = changed("text_gpt", {"sample_tokens": 600, "vocabulary": 300})
    with pytest.raises(ValueError, match=r"config\.sample_tokens=600 must be from 1 to 5\d\d: the prompt has "):
        jobs.run(job, tmp_path / "run", "text_gpt")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["config.json"]
    job = changed("text_gpt", {"prompt": "word " * 600, "vocabulary": 300})
    with pytest.raises(ValueError, match=r"config\.prompt has \d+ tokens, and the model's context is 512: shorten it"):
        jobs.run(job, tmp_path / "run", "text_gpt")


def test_more_classes_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    job = changed("transfer", {"classes": 6})
    job.directory = tmp_path
    with pytest.raises(ValueError, match=r"config\.classes=6: twice as many are needed, and digits has no class 10"):
        job.read()


@pytest.mark.slow
def test_damaged_weights_are_refused_before_anything_is_trained(tmp_path):
    pytest.importorskip("safetensors")
    job = changed("transfer", {})
    job.directory = tmp_path
    job.read()
    (tmp_path / "pretrained.safetensors").write_bytes(b"\x10" + bytes(40))
    with pytest.raises(ValueError, match=r"pretrained\.safetensors can't be read"):
        job.prepare()
    assert [file.name for file in tmp_path.iterdir()] == ["pretrained.safetensors"]


def test_an_unknown_job():
    with pytest.raises(ValueError, match=r"config\.job='image_clasification': did you mean image_classification or "):
        jobs.find("image_clasification")
    with pytest.raises(ValueError, match=r"There are: audio_classification, detection, gan, image_classification, "):
        jobs.find("exports")


def test_a_folder_in_which_nothing_was_trained_takes_other_settings(tmp_path):
    run_folder.claim(tmp_path, {"steps": -1})
    run_folder.claim(tmp_path, {"steps": 5})
    (tmp_path / "metrics.jsonl").touch()
    run_folder.claim(tmp_path, {"steps": 5})
    with pytest.raises(run_folder.RunFolderError, match="steps: 5 there, 6 now"):
        run_folder.claim(tmp_path, {"steps": 6})


def test_a_model_of_tutorials_takes_pictures_of_any_size():
    job = changed("digits_cnn", {"image_size": 32})
    job.step()
    assert job.model.input_shape == (None, 32, 32, 1)
