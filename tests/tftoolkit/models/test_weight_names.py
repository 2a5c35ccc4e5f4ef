"""Weights under PyTorch's names: out and in again, and what doesn't fit. With PyTorch itself: test_torch_parity.py."""

import functools
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from tftoolkit import models, trainers
from tftoolkit.trainers.naming import named_variables

SIZES = {"width": 16, "layers": 2, "heads": 2}
MAKE = {
    "resnet18": lambda **options: models.resnet18(classes=3, width=4, **options),
    "vit_b_16": lambda **options: models.ViT(**SIZES, patch=8, image=16, classes=3, **options),
    "vit-base-patch16-224": lambda **options: models.ViT(**SIZES, patch=8, image=16, classes=3, **options),
    "bert": lambda **options: models.Bert(20, **SIZES, context=8, head="masked_lm", **options),
    "gpt2": lambda **options: models.Gpt2(20, **SIZES, context=8, **options),
    "llama": lambda **options: models.Llama(20, **SIZES, kv_heads=1, **options),
}
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)
TORCHVISION = json.loads((Path(__file__).parents[2] / "torchvision_names.json").read_text())


def values(model):
    return {name: value.numpy() for name, value in named_variables(model).items()}


def assert_same(model, expected):
    assert values(model).keys() == expected.keys()
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.fixture
def written(tmp_path):
    """A GPT-2 in a file, and that file's tensors, to be written anew."""
    model, path = MAKE["gpt2"](seed=1), tmp_path / "model.safetensors"
    trainers.save_weights(model, path, names=models.torch_names("gpt2"))
    return model, path, load_file(path)


@pytest.mark.parametrize("name", MAKE)
def test_out_and_in_again(name, tmp_path):
    one, other, names = MAKE[name](seed=1), MAKE[name](seed=2), models.torch_names(name)
    trainers.save_weights(one, tmp_path / "model.safetensors", names=names)
    report = trainers.load_weights(other, tmp_path / "model.safetensors", names=names)
    assert_same(other, values(one))
    assert set(report.loaded) == set(values(one))
    assert report.reshaped
    assert "transposed or divided" in str(report)


def test_all_names_of_torchvision_are_known():
    class Everything:
        def __contains__(self, name):
            return True

    for architecture, tensors in TORCHVISION.items():
        names = models.torch_names(architecture)
        for name in tensors:
            known = names.found(name, Everything()) is not None
            assert known != names.is_ignored(name)
            assert names.is_ignored(name) == name.endswith("num_batches_tracked")


@pytest.mark.parametrize("name", [one if one == "resnet18" else exhaustive(one) for one in TORCHVISION])
def test_shapes_are_those_of_torchvision(name, tmp_path):
    model = models.ViT.preset(name) if name.startswith("vit") else getattr(models, name)()
    trainers.save_weights(model, tmp_path / "m.safetensors", names=models.torch_names(name))
    found = {name: list(array.shape) for name, array in load_file(tmp_path / "m.safetensors").items()}
    golden = {name: shape for name, shape in TORCHVISION[name].items() if "num_batches" not in name}
    assert found == golden


# Of their publishers' models: torchvision's, and without heads those of Hugging Face's names.
PARAMETERS = {
    **{"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032},
    **{"vit_b_16": 86_567_656, "vit_b_32": 88_224_232, "vit_l_16": 304_326_632, "vit_l_32": 306_535_400},
    **{"vit_h_14": 632_045_800, "vit-base-patch16-224": 86_567_656},
    **{"bert-base-uncased": 109_482_240, "bert-base-cased": 108_310_272},
    **{"bert-large-uncased": 335_141_888, "bert-large-cased": 333_579_264},
    **{"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200},
    **{"distilgpt2": 81_912_576, "llama-2-7b": 6_738_415_616, "llama-3-8b": 8_030_261_248},
    **{"llama-3.2-1b": 1_235_814_400, "tinyllama-1.1b": 1_100_048_384},
    **{"smollm2-135m": 134_515_008, "qwen2-0.5b": 494_032_768},
}
RESNETS = {name: getattr(models, name) for name in PARAMETERS if name.startswith("resnet")}
PRESETS = {name: kind for kind in (models.ViT, models.Bert, models.Gpt2, models.Llama) for name in kind.PRESETS}


FAST = ("resnet50", "vit_b_16", "bert-base-uncased", "gpt2", "qwen2-0.5b")


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else exhaustive(name) for name in [*RESNETS, *PRESETS]],
)
def test_known_models_have_as_many_parameters_as_their_publishers(name, monkeypatch):
    def unfilled(rng, shape, deviation, dtype):
        return tf.Variable(tf.zeros(shape, dtype))

    for module in ("blocks", "resnet", "vit"):
        monkeypatch.setattr(f"tftoolkit.models.{module}.normal", unfilled)
    with tf.Graph().as_default():  # where variables hold nothing yet: the largest would take 32 GB
        model = RESNETS[name]() if name in RESNETS else PRESETS[name].preset(name)
    assert sum(variable.shape.num_elements() for variable in model.trainable_variables) == PARAMETERS[name]


def test_prefixes_and_older_spellings(tmp_path, written):
    model, path, tensors = written
    for change in (
        lambda name: name.removeprefix("transformer."),  # of GPT2Model
        lambda name: f"module.{name}",  # of DataParallel
        lambda name: f"module._orig_mod.{name}",
    ):
        save_file({change(name): array for name, array in tensors.items()}, path)
        other = MAKE["gpt2"]()
        trainers.load_weights(other, path, names=models.torch_names("gpt2"))
        assert_same(other, values(model))
    bert, names = MAKE["bert"](seed=1), models.torch_names("bert")
    trainers.save_weights(bert, path, names=names)
    spelt = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(path)
    for new, old in spelt.items():
        tensors = {name.replace(new, old): array for name, array in tensors.items()}
    tensors["bert.embeddings.position_ids"] = np.arange(8)[None]
    save_file(tensors, path)
    other = MAKE["bert"]()
    assert trainers.load_weights(other, path, names=names).ignored == ("bert.embeddings.position_ids",)
    assert_same(other, values(bert))


def test_a_head_for_other_classes(tmp_path):
    """As for transfer learning: what fits is loaded, and the report says what became of the rest."""
    path, names = tmp_path / "model.safetensors", models.torch_names("resnet18")
    trainers.save_weights(MAKE["resnet18"](seed=1), path, names=names)
    other = models.resnet18(classes=5, width=4)
    before = values(other)
    with pytest.raises(ValueError, match=r"partial=True loads what fits") as error:
        trainers.load_weights(other, path, names=names)
    assert "differs: fc/kernel: float32[32, 3] in the file, float32[32, 5] here" in str(error.value)
    assert_same(other, before)
    report = trainers.load_weights(other, path, names=names, partial=True)
    assert sorted(report.differing) == ["fc/bias", "fc/kernel"]
    assert report.reshaped["conv1/kernel"] == "conv1.weight [4, 3, 7, 7] → [7, 7, 3, 4]"
    assert (report.missing, report.unused) == ((), ())


def test_weights_of_another_architecture(written):
    _, path, _ = written
    for name in ("llama", "resnet18", "bert"):
        model = MAKE[name](seed=2)
        before = values(model)
        with pytest.raises(ValueError, match="doesn't fit the model") as error:
            trainers.load_weights(model, path, names=models.torch_names(name))
        assert_same(model, before)
        text = str(error.value)
        assert len(text.splitlines()) < 40
        if name == "llama":
            assert (
                "missing in the file: blocks/0/attention_norm/gamma (float32[16], sought as "
                "model.layers.0.input_layernorm.weight" in text
            )
            assert "not in the model: transformer.h.0.attn.c_attn.bias (float32[48])" in text
    with pytest.raises(ValueError, match="nothing in"):
        trainers.load_weights(MAKE["resnet18"](), path, names=models.torch_names("resnet18"), partial=True)


def test_nearest_names(written):
    model, path, tensors = written
    save_file({name.replace("c_fc", "fc_in"): array for name, array in tensors.items()}, path)
    with pytest.raises(ValueError, match="missing") as error:
        trainers.load_weights(model, path, names=models.torch_names("gpt2"))
    assert (
        "missing in the file: blocks/0/mlp/up/kernel (float32[16, 64], sought as transformer.h.0.mlp.c_fc.weight; "
        "nearest in the file: transformer.h.0.mlp.fc_in.weight float32[16, 64]" in str(error.value)
    )


def test_a_deeper_model_and_a_shallower_one(written):
    _, path, _ = written
    names = models.torch_names("gpt2")
    with pytest.raises(ValueError, match="missing in the file: blocks/2/"):
        trainers.load_weights(models.Gpt2(20, **{**SIZES, "layers": 3}, context=8), path, names=names)
    with pytest.raises(ValueError, match=r"not in the model: transformer\.h\.1\."):
        trainers.load_weights(models.Gpt2(20, **{**SIZES, "layers": 1}, context=8), path, names=names)


def test_tensors_that_can_not_be_turned_or_divided(written):
    model, path, tensors = written
    tensors["transformer.h.0.attn.c_attn.weight"] = np.zeros([16, 47], np.float32)
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=r"blocks/0/attention/key/kernel: float32\[16, 47\] in the file, which can't be"
    ):
        trainers.load_weights(model, path, names=models.torch_names("gpt2"))
    llama, names = MAKE["llama"](), models.torch_names("llama")
    trainers.save_weights(llama, path, names=names)
    tensors = load_file(path) | {"model.layers.0.mlp.up_proj.weight": np.zeros([4], np.float32)}
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"blocks/0/mlp/up/kernel: float32\[4\] in the file, which should have 2 axes"):
        trainers.load_weights(llama, path, names=names)


def test_tied_weights(written):
    model, path, tensors = written
    names, table = models.torch_names("gpt2"), tensors["transformer.wte.weight"]
    for given in (
        {"lm_head.weight": table, "transformer.wte.weight": table},
        {"lm_head.weight": table},
        {"transformer.wte.weight": table},
    ):
        others = {name: array for name, array in tensors.items() if name != "transformer.wte.weight"}
        save_file(others | given, path)
        other = MAKE["gpt2"]()
        trainers.load_weights(other, path, names=names)
        assert_same(other, values(model))
    before = values(other)
    save_file(tensors | {"lm_head.weight": table + 1}, path)
    with pytest.raises(
        ValueError, match=r"transformer\.wte\.weight and lm_head\.weight differ in the file, but are one"
    ):
        trainers.load_weights(other, path, names=names)
    assert_same(other, before)
    llama = models.torch_names("llama")
    trainers.save_weights(MAKE["llama"](tied=True), path, names=llama)
    with pytest.raises(
        ValueError, match=r"missing in the file: head/table \(float32\[20, 16\], sought as lm_head\.weight"
    ):
        trainers.load_weights(MAKE["llama"](), path, names=llama)


def test_buffers_are_ignored(written):
    model, path, tensors = written
    save_file(tensors | {"transformer.h.0.attn.bias": np.ones([1, 1, 8, 8], bool)}, path)
    report = trainers.load_weights(model, path, names=models.torch_names("gpt2"))
    assert report.ignored == ("transformer.h.0.attn.bias",)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_becomes_float32(written, dtype):
    _, path, tensors = written
    save_file({name: array.astype(dtype) for name, array in tensors.items()}, path)
    model = MAKE["gpt2"]()
    trainers.load_weights(model, path, names=models.torch_names("gpt2"))
    table = tensors["transformer.wte.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(model.embedding.table, table)


def test_files_with_an_index(tmp_path, written):
    model, _, tensors = written
    names = models.torch_names("gpt2")
    parts = [dict(list(tensors.items())[number::2]) for number in range(2)]
    files = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        save_file(part, tmp_path / file)
    places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    other = MAKE["gpt2"]()
    trainers.load_weights(other, index, names=names)
    assert_same(other, values(model))

    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"but model\.safetensors\.index\.json: the weights are in several files"
    ):
        trainers.load_weights(other, tmp_path / "model.safetensors", names=names)
    for content, message in (
        ("[]", 'it must hold {"weight_map"'),
        ('{"weight_map": {"a": 3}}', 'it must hold {"weight_map"'),
        ("{", "can't be read"),
        (json.dumps({"weight_map": places | {"x": "../x.safetensors"}}), "it names '../x.safetensors', which is not"),
        (json.dumps({"weight_map": places | {"x": "other.safetensors"}}), "it names 'other.safetensors', which is not"),
        (json.dumps({"weight_map": places | {"x": files[0]}}), f"{files[0]} does not hold x"),
    ):
        index.write_text(content)
        before = values(other)
        with pytest.raises(ValueError, match="can't be read") as error:
            trainers.load_weights(other, index, names=names)
        assert message in str(error.value)
        assert_same(other, before)
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / files[1]).write_bytes((tmp_path / files[1]).read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"can't be read: {files[1]}: "):
        trainers.load_weights(other, index, names=names)


@pytest.mark.parametrize("ending", [".bin", ".pt", ".pth"])
def test_pickles_are_refused(tmp_path, ending):
    with pytest.raises(ValueError, match="is a pickle, which may run any code") as error:
        trainers.load_weights(MAKE["gpt2"](), tmp_path / f"model{ending}", names=models.torch_names("gpt2"))
    assert "python -c 'import torch; from safetensors.torch import save_file" in str(error.value)


def test_what_has_no_name():
    with pytest.raises(ValueError, match="there are no names for 'resnet19'; there are for resnet, resnet18"):
        models.torch_names("resnet19")
    names = trainers.WeightNames((trainers.WeightRule("fc/kernel", "fc.weight", axes=(1, 0)),))
    with pytest.raises(ValueError, match="there is no rule for bn1/beta"):
        trainers.save_weights(MAKE["resnet18"](), "model.safetensors", names=names)
