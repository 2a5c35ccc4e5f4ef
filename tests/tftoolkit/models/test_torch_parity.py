"""Weights of PyTorch's models, loaded into ours, give PyTorch's logits, hidden states and gradients.

The rivals are Hugging Face Transformers' models and, for torchvision's, tests/torch_vision.py. Weights are random.
``pip install 'tftoolkit[parity]'`` brings what this needs.
"""

import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import models, trainers
from tftoolkit.trainers.naming import named_variables

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'tftoolkit[parity]'")
safetensors_torch = pytest.importorskip("safetensors.torch")
import torch_vision  # noqa: E402  (needs PyTorch)

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal([2, 32, 32, 3]).astype(np.float32)
TOKENS = RNG.integers(1, 50, [3, 12]).astype(np.int32)  # 0 is padding to BERT, whose row of the table gets no gradient
TYPES = RNG.integers(0, 2, [3, 12]).astype(np.int32)
LENGTHS = np.int32([12, 5, 9])
MASK = np.arange(12) < LENGTHS[:, None]
BOUND = 1e-5  # of the largest number of a tensor; what is seen is 1e-6


def transformers() -> Any:
    found = pytest.importorskip("transformers", reason="Transformers is not installed: pip install 'tftoolkit[parity]'")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return found


def hugging_face(model: str, config: str, **settings: Any) -> Any:
    package = transformers()
    torch.manual_seed(0)
    made = getattr(package, config)(**settings)
    made._attn_implementation = "eager"
    # The usual deviation of 0.02 leaves scores so small that attention is a mean.
    found = getattr(package, model)(made)
    with torch.no_grad():
        for value in found.parameters():
            value.mul_(5) if value.dim() > 1 else value.add_(0.2 * torch.randn_like(value))
    return found.eval()


TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LLAMA = {**TEXT, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "pad_token_id": None}
BERT = {
    **{**TEXT, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "num_labels": 3,
}
GPT2 = {
    **{"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16},
    **{"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0},
}
VIT = {
    **{key: value for key, value in TEXT.items() if key != "vocab_size"},
    **{"image_size": 32, "patch_size": 8, "num_labels": 5, "hidden_dropout_prob": 0.0},
}
SCALED = {
    **{"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 32,  # of the 4 pairs one stays, one is in between, two are stretched
}
SIZES = {"width": 32, "layers": 2, "heads": 4, "hidden": 64}
OURS_LLAMA = {**SIZES, "kv_heads": 2, "epsilon": 1e-5}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of PyTorch's and ours, and what each makes of the same inputs: logits and hidden states."""

    names: str
    theirs: Callable[[], Any]
    ours: Callable[[], tf.Module]
    theirs_out: Callable[[Any], tuple[Any, list[Any]]]
    ours_out: Callable[[Any], tuple[Any, list[Any]]]


def of_text(model: Any, **inputs: np.ndarray) -> tuple[Any, list[Any]]:
    given = {name: torch.from_numpy(value.astype(np.int64)) for name, value in inputs.items()}
    out = model(torch.from_numpy(TOKENS.astype(np.int64)), output_hidden_states=True, **given)
    return out.logits, list(out.hidden_states)


def decoded(model: Any) -> tuple[Any, list[Any]]:
    *states, last = model.hidden_states(TOKENS)  # the last of Hugging Face's is behind the norm
    return model(TOKENS), [*states, model.norm(last)]


def bert(head: str, model: str) -> Case:
    return Case(
        "bert",
        lambda: hugging_face(model, "BertConfig", **BERT),
        lambda: models.Bert(50, **SIZES, context=16, head=head, classes=3, seed=1),
        lambda model: of_text(model, attention_mask=MASK, token_type_ids=TYPES),
        lambda model: (
            model(TOKENS, lengths=LENGTHS, types=TYPES),
            model.hidden_states(TOKENS, lengths=LENGTHS, types=TYPES),
        ),
    )


def llama(model: str, config: str, settings: dict[str, Any], **ours: Any) -> Case:
    return Case(
        "llama",
        lambda: hugging_face(model, config, **LLAMA, **settings),
        lambda: models.Llama(50, **OURS_LLAMA, **ours, seed=1),
        lambda model: of_text(model, attention_mask=MASK),
        decoded,
    )


def torchvision(kind: str, *arguments: Any, **options: Any) -> Any:
    """Of the same weights in each run: where a ReLU's input is all but 0, rounding decides on its gradient."""
    torch.manual_seed(0)
    return torch_vision.randomized(getattr(torch_vision, kind)(*arguments, **options))


def images_first(x: np.ndarray) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def resnet(depths: tuple[int, ...], block: str) -> Case:
    return Case(
        "resnet",
        lambda: torchvision("ResNet", getattr(torch_vision, block), depths, classes=5, width=8),
        lambda: models.ResNet(depths, bottleneck=block == "Bottleneck", classes=5, width=8, seed=1),
        lambda model: (
            model(images_first(IMAGES)),
            [one.permute(0, 2, 3, 1) for one in model.stages(images_first(IMAGES))],
        ),
        lambda model: (model(IMAGES), model.stages(IMAGES)),
    )


def vit_of_hugging_face(model: Any) -> tuple[Any, list[Any]]:
    out = model(images_first(IMAGES), output_hidden_states=True)
    return out.logits, list(out.hidden_states)


CASES = {
    "resnet18": resnet((2, 2, 2, 2), "Basic"),
    "resnet34": resnet((3, 4, 6, 3), "Basic"),
    "resnet of bottlenecks": resnet((1, 2, 1, 1), "Bottleneck"),
    "resnet50": resnet((3, 4, 6, 3), "Bottleneck"),
    "vit of torchvision": Case(
        "vit_b_16",
        lambda: torchvision("ViT", 32, 8, 2, 4, 32, 64, classes=5),
        lambda: models.ViT(**SIZES, patch=8, image=32, classes=5, seed=1),
        lambda model: (model(images_first(IMAGES)), model.states(images_first(IMAGES))),
        lambda model: (model(IMAGES), model.hidden_states(IMAGES)),
    ),
    "vit of Transformers": Case(
        "vit",
        lambda: hugging_face("ViTForImageClassification", "ViTConfig", **VIT),
        lambda: models.ViT(**SIZES, patch=8, image=32, classes=5, epsilon=1e-12, seed=1),
        vit_of_hugging_face,
        lambda model: (model(IMAGES), model.hidden_states(IMAGES)),
    ),
    "bert, classes": bert("classes", "BertForSequenceClassification"),
    "bert, masked tokens": bert("masked_lm", "BertForMaskedLM"),
    "gpt2": Case(
        "gpt2",
        lambda: hugging_face("GPT2LMHeadModel", "GPT2Config", **GPT2),
        lambda: models.Gpt2(50, width=32, layers=2, heads=4, context=16, seed=1),
        lambda model: of_text(model, attention_mask=MASK),
        decoded,
    ),
    "llama": llama("LlamaForCausalLM", "LlamaConfig", {}),
    "llama, tied": llama("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True}, tied=True),
    "llama 3.1": llama(
        "LlamaForCausalLM", "LlamaConfig", {"rope_parameters": SCALED}, rotary_base=100.0, rotary_scaling=SCALED
    ),
    "qwen2": llama("Qwen2ForCausalLM", "Qwen2Config", {}, qkv_bias=True),
}


def saved(path: Any, tensors: dict[str, Any]) -> Any:
    safetensors_torch.save_file({name: value.detach().contiguous().clone() for name, value in tensors.items()}, path)
    return path


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference, as a part of the largest number; of sequences without what is padding."""
    one, other = np.asarray(ours), theirs.detach().numpy()
    assert one.shape == other.shape
    if one.shape[:2] == MASK.shape:
        one, other = one[MASK], other[MASK]
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """A case, PyTorch's model, ours with its weights, and what loading reported."""
    case = CASES[request.param]
    theirs, ours = case.theirs(), case.ours()
    path = saved(tmp_path_factory.mktemp("weights") / "model.safetensors", theirs.state_dict())
    return case, theirs, ours, trainers.load_weights(ours, path, names=models.torch_names(case.names))


def test_values(pair):
    case, theirs, ours, report = pair
    assert set(report.loaded) == set(named_variables(ours))
    with torch.no_grad():
        logits, states = case.theirs_out(theirs)
    our_logits, our_states = case.ours_out(ours)
    assert apart(our_logits, logits) <= BOUND
    assert len(our_states) == len(states)
    assert max(apart(one, other) for one, other in zip(our_states, states, strict=True)) <= BOUND


def test_gradients(pair, tmp_path):
    """Of a sum of logits with random weights. PyTorch's come through the names, as weights do."""
    case, theirs, ours, _ = pair
    logits, _ = case.theirs_out(theirs)
    factors = np.random.default_rng(1).standard_normal(logits.shape).astype(np.float32)
    if logits.dim() == 3:
        factors *= MASK[..., None]
    theirs.zero_grad()
    (logits * torch.from_numpy(factors)).sum().backward()
    gradients = {name: value.grad for name, value in theirs.named_parameters()}
    holder = case.ours()
    names = models.torch_names(case.names)
    trainers.load_weights(holder, saved(tmp_path / "g.safetensors", gradients), names=names, partial=True)
    expected = named_variables(holder)
    weights = {name: value for name, value in named_variables(ours).items() if value.trainable}
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(case.ours_out(ours)[0] * factors)
    found = dict(zip(weights, map(tf.convert_to_tensor, tape.gradient(loss, list(weights.values()))), strict=True))
    largest = max(np.abs(expected[name]).max() for name in found)
    for name, gradient in found.items():
        # That by a key's bias is 0 but for rounding.
        scale = max(np.abs(expected[name]).max(), 1e-2 * largest)
        assert np.abs(gradient - expected[name]).max() <= BOUND * scale, name


@pytest.mark.parametrize("name", ["resnet18", "resnet of bottlenecks"])
def test_batch_norm_in_training(name, tmp_path):
    """Logits by the batch's moments, and what the moving ones become."""
    case, names = CASES[name], models.torch_names("resnet")
    theirs, ours, after = case.theirs().train(), case.ours(), case.ours()
    images = np.random.default_rng(2).standard_normal([4, 64, 64, 3]).astype(np.float32)
    trainers.load_weights(ours, saved(tmp_path / "a.safetensors", theirs.state_dict()), names=names)
    with torch.no_grad():
        expected = theirs(images_first(images))
    assert apart(ours(images, training=True), expected) <= BOUND
    trainers.load_weights(after, saved(tmp_path / "b.safetensors", theirs.state_dict()), names=names)
    for variable, value in named_variables(after).items():
        np.testing.assert_allclose(named_variables(ours)[variable], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["gpt2", "llama", "llama, tied", "bert, classes", "vit of Transformers"])
def test_what_save_pretrained_writes(case, tmp_path):
    """Its own names, in several files, without what is tied; and of the model inside alone."""
    case = CASES[case]
    theirs, ours = case.theirs(), case.ours()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 1
    names = models.torch_names(case.names)
    assert not trainers.load_weights(ours, index, names=names).missing
    with torch.no_grad():
        assert apart(case.ours_out(ours)[0], case.theirs_out(theirs)[0]) <= BOUND
    theirs.base_model.save_pretrained(tmp_path / "inside")
    report = trainers.load_weights(case.ours(), tmp_path / "inside/model.safetensors", names=names, partial=True)
    assert not report.unused
    assert set(report.missing) <= {"head/table", "head/kernel", "head/bias", "classifier/kernel", "classifier/bias"}


@pytest.mark.parametrize("case", CASES)
def test_the_way_back(case, tmp_path):
    """What save_weights writes under torch's names PyTorch takes as its own."""
    case = CASES[case]
    ours, theirs = case.ours(), case.theirs()
    path = tmp_path / "model.safetensors"
    if hasattr(theirs, "save_pretrained"):
        name = "vit-base-patch16-224" if case.names == "vit" else case.names
        theirs.config.save_pretrained(tmp_path)
        trainers.save_weights(ours, path, names=models.torch_names(name))
        theirs = type(theirs).from_pretrained(tmp_path, attn_implementation="eager").eval()
    else:
        trainers.save_weights(ours, path, names=models.torch_names(case.names))
        theirs.load_state_dict(safetensors_torch.load_file(path))
        theirs.eval()
    with torch.no_grad():
        assert apart(case.ours_out(ours)[0], case.theirs_out(theirs)[0]) <= BOUND


def test_half_precision(tmp_path):
    """bfloat16 and float16 in the file become float32 here, exactly."""
    case = CASES["gpt2"]
    theirs = case.theirs()
    for dtype in (torch.bfloat16, torch.float16):
        ours = case.ours()
        state = {name: value.to(dtype) for name, value in theirs.state_dict().items()}
        trainers.load_weights(ours, saved(tmp_path / "w.safetensors", state), names=models.torch_names("gpt2"))
        np.testing.assert_array_equal(ours.embedding.table, state["transformer.wte.weight"].float().numpy())


def test_pickles_are_refused_with_a_command_that_works(tmp_path):
    case = CASES["gpt2"]
    torch.save(case.theirs().state_dict(), tmp_path / "model.bin")
    with pytest.raises(ValueError, match="is a pickle, which may run any code") as error:
        trainers.load_weights(case.ours(), tmp_path / "model.bin", names=models.torch_names("gpt2"))
    command = str(error.value).splitlines()[-1].strip()
    assert command.startswith("python -c ")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    report = trainers.load_weights(case.ours(), tmp_path / "model.safetensors", names=models.torch_names("gpt2"))
    assert not report.missing


def test_the_names_of_torchvision():
    """The written-out rival has torchvision's names and shapes, and each is a variable of ours or ignored."""
    golden = json.loads(torch_vision.NAMES.read_text())
    for name, expected in golden.items():
        with torch.device("meta"):
            assert torch_vision.names(getattr(torch_vision, name)()) == expected
