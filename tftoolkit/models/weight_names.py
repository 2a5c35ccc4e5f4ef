"""The names that PyTorch's models give their weights, and how these lie there.

Files as torchvision and Hugging Face Transformers write them: kernels of convolutions are [outputs, inputs, height,
width], those of products [outputs, inputs] but in GPT-2, whose are [inputs, outputs] as here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tftoolkit.models.bert import Bert
from tftoolkit.models.gpt2 import Gpt2
from tftoolkit.models.llama import Llama
from tftoolkit.models.vit import ViT
from tftoolkit.trainers import WeightNames, WeightRule

_TURNED = (1, 0)
_HWIO = (2, 3, 1, 0)
# Of models that were wrapped, by DataParallel or torch.compile.
_WRAPPED = (r"^(module\.|_orig_mod\.)+", "")
_QKV = ("query", "key", "value")


def torch_names(architecture: str) -> WeightNames:
    """The names of an architecture's weights in PyTorch, for ``trainers.load_weights`` and ``save_weights``.

    Args:
      architecture: "resnet", "vit", "bert", "gpt2" or "llama", or a model of that kind: "resnet18", "vit_b_16", ….
        Files of ViTs may have torchvision's names or Hugging Face's; the latter are written for
        "vit-base-patch16-224", the former for others. Where Hugging Face's names begin in a model for a task with
        "bert.", "vit.", "transformer." or "model.", they may do without; they are written with it.

    Raises:
      ValueError: there are no names for it.
    """
    known = {name: kind for kind, (presets, _) in _ARCHITECTURES.items() for name in (kind, *presets)}
    if architecture not in known:
        raise ValueError(f"there are no names for {architecture!r}; there are for {', '.join(known)}")
    return _ARCHITECTURES[known[architecture]][1](architecture)


def _dense(name: str, source: str) -> Iterator[WeightRule]:
    yield WeightRule(f"{name}/kernel", f"{source}.weight", _TURNED)
    yield WeightRule(f"{name}/bias", f"{source}.bias")


def _norm(name: str, source: str) -> Iterator[WeightRule]:
    yield WeightRule(f"{name}/gamma", f"{source}.weight")
    yield WeightRule(f"{name}/beta", f"{source}.bias")


def _batch_norm(name: str, source: str) -> Iterator[WeightRule]:
    yield from _norm(name, source)
    yield WeightRule(f"{name}/mean", f"{source}.running_mean")
    yield WeightRule(f"{name}/variance", f"{source}.running_var")


def _fused(name: str, kernel: str, bias: str, axes: tuple[int, ...] | None) -> Iterator[WeightRule]:
    """Queries, keys and values in one tensor."""
    yield WeightRule(tuple(f"{name}/{one}/kernel" for one in _QKV), kernel, axes)
    yield WeightRule(tuple(f"{name}/{one}/bias" for one in _QKV), bias)


def _resnet(_: str) -> WeightNames:
    def rules() -> Iterator[WeightRule]:
        for name, source in (("conv1", "conv1"), ("layer*/*/conv*", "layer*.*.conv*")):
            yield WeightRule(f"{name}/kernel", f"{source}.weight", _HWIO)
        yield from _batch_norm("bn1", "bn1")
        yield from _batch_norm("layer*/*/bn*", "layer*.*.bn*")
        yield WeightRule("layer*/*/downsample/conv/kernel", "layer*.*.downsample.0.weight", _HWIO)
        yield from _batch_norm("layer*/*/downsample/bn", "layer*.*.downsample.1")
        yield from _dense("fc", "fc")

    counters = (
        "bn1.num_batches_tracked",
        "layer*.*.bn*.num_batches_tracked",
        "layer*.*.downsample.1.num_batches_tracked",
    )
    return WeightNames(tuple(rules()), (_WRAPPED,), counters)


def _vit(architecture: str) -> WeightNames:
    rules = [*_vit_of_torchvision()], [*_vit_of_hugging_face()]
    first, second = reversed(rules) if architecture == "vit-base-patch16-224" else rules
    pooler = ("vit.pooler.dense.weight", "vit.pooler.dense.bias")  # which classifiers don't have
    return WeightNames((*first, *second), (_WRAPPED, (r"^vit\.", "")), pooler)


def _vit_of_torchvision() -> Iterator[WeightRule]:
    block, source = "blocks/*", "encoder.layers.encoder_layer_*"
    yield WeightRule("patches/kernel", "conv_proj.weight", _HWIO)
    yield WeightRule("patches/bias", "conv_proj.bias")
    yield WeightRule("class_token", "class_token")
    yield WeightRule("position_embedding", "encoder.pos_embedding")
    yield from _norm(f"{block}/attention_norm", f"{source}.ln_1")
    attention = f"{source}.self_attention"
    yield from _fused(f"{block}/attention", f"{attention}.in_proj_weight", f"{attention}.in_proj_bias", _TURNED)
    yield from _dense(f"{block}/attention/out", f"{attention}.out_proj")
    yield from _norm(f"{block}/mlp_norm", f"{source}.ln_2")
    for up, down in (("mlp.0", "mlp.3"), ("mlp.linear_1", "mlp.linear_2")):  # today's, and those before 0.14
        yield from _dense(f"{block}/mlp/up", f"{source}.{up}")
        yield from _dense(f"{block}/mlp/down", f"{source}.{down}")
    yield from _norm("norm", "encoder.ln")
    yield from _dense("head", "heads.head")


def _vit_of_hugging_face() -> Iterator[WeightRule]:
    yield WeightRule("patches/kernel", "vit.embeddings.patch_embeddings.projection.weight", _HWIO)
    yield WeightRule("patches/bias", "vit.embeddings.patch_embeddings.projection.bias")
    yield WeightRule("class_token", "vit.embeddings.cls_token")
    yield WeightRule("position_embedding", "vit.embeddings.position_embeddings")
    for source, query, out, up, down in (
        # What files hold, and what the models of version 5 call it.
        (
            "vit.encoder.layer.*",
            "attention.attention.{}",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ),
        ("vit.layers.*", "attention.{0[0]}_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"),
    ):
        for name in _QKV:
            yield from _dense(f"blocks/*/attention/{name}", f"{source}.{query.format(name)}")
        yield from _dense("blocks/*/attention/out", f"{source}.{out}")
        yield from _norm("blocks/*/attention_norm", f"{source}.layernorm_before")
        yield from _norm("blocks/*/mlp_norm", f"{source}.layernorm_after")
        yield from _dense("blocks/*/mlp/up", f"{source}.{up}")
        yield from _dense("blocks/*/mlp/down", f"{source}.{down}")
    yield from _norm("norm", "vit.layernorm")
    yield from _dense("head", "classifier")


def _bert(_: str) -> WeightNames:
    def rules() -> Iterator[WeightRule]:
        for name, source in (
            ("embedding", "word"),
            ("position_embedding", "position"),
            ("type_embedding", "token_type"),
        ):
            yield WeightRule(f"{name}/table", f"bert.embeddings.{source}_embeddings.weight")
        yield from _norm("norm", "bert.embeddings.LayerNorm")
        for name in _QKV:
            yield from _dense(f"blocks/*/attention/{name}", f"bert.encoder.layer.*.attention.self.{name}")
        yield from _dense("blocks/*/attention/out", "bert.encoder.layer.*.attention.output.dense")
        yield from _norm("blocks/*/attention_norm", "bert.encoder.layer.*.attention.output.LayerNorm")
        yield from _dense("blocks/*/mlp/up", "bert.encoder.layer.*.intermediate.dense")
        yield from _dense("blocks/*/mlp/down", "bert.encoder.layer.*.output.dense")
        yield from _norm("blocks/*/mlp_norm", "bert.encoder.layer.*.output.LayerNorm")
        yield from _dense("pooler", "bert.pooler.dense")
        yield from _dense("classifier", "classifier")
        yield from _dense("masked_lm/dense", "cls.predictions.transform.dense")
        yield from _norm("masked_lm/norm", "cls.predictions.transform.LayerNorm")
        yield WeightRule("masked_lm/bias", "cls.predictions.bias")
        yield WeightRule("masked_lm/bias", "cls.predictions.decoder.bias")
        yield WeightRule("embedding/table", "cls.predictions.decoder.weight")

    renames = (
        _WRAPPED,
        (r"^bert\.", ""),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    )
    return WeightNames(tuple(rules()), renames, ("bert.embeddings.position_ids",))


def _gpt2(_: str) -> WeightNames:
    def rules() -> Iterator[WeightRule]:
        yield WeightRule("embedding/table", "transformer.wte.weight")
        yield WeightRule("position_embedding/table", "transformer.wpe.weight")
        yield from _norm("blocks/*/attention_norm", "transformer.h.*.ln_1")
        yield from _fused(
            "blocks/*/attention", "transformer.h.*.attn.c_attn.weight", "transformer.h.*.attn.c_attn.bias", None
        )
        yield from _norm("blocks/*/mlp_norm", "transformer.h.*.ln_2")
        for name, source in (("attention/out", "attn.c_proj"), ("mlp/up", "mlp.c_fc"), ("mlp/down", "mlp.c_proj")):
            yield WeightRule(f"blocks/*/{name}/kernel", f"transformer.h.*.{source}.weight")
            yield WeightRule(f"blocks/*/{name}/bias", f"transformer.h.*.{source}.bias")
        yield from _norm("norm", "transformer.ln_f")
        yield WeightRule("embedding/table", "lm_head.weight")  # tied

    return WeightNames(
        tuple(rules()),
        (_WRAPPED, (r"^transformer\.", "")),
        ("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
    )


def _llama(_: str) -> WeightNames:
    def rules() -> Iterator[WeightRule]:
        yield WeightRule("embedding/table", "model.embed_tokens.weight")
        for name, source in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            yield from _dense(f"blocks/*/attention/{name}", f"model.layers.*.self_attn.{source}_proj")
        for name in ("gate", "up", "down"):
            yield from _dense(f"blocks/*/mlp/{name}", f"model.layers.*.mlp.{name}_proj")
        yield WeightRule("blocks/*/attention_norm/gamma", "model.layers.*.input_layernorm.weight")
        yield WeightRule("blocks/*/mlp_norm/gamma", "model.layers.*.post_attention_layernorm.weight")
        yield WeightRule("norm/gamma", "model.norm.weight")
        yield WeightRule("head/table", "lm_head.weight")
        yield WeightRule("embedding/table", "lm_head.weight")  # where the model has no head of its own

    angles = ("model.rotary_emb.inv_freq", "model.layers.*.self_attn.rotary_emb.inv_freq")
    return WeightNames(tuple(rules()), (_WRAPPED, (r"^model\.", "")), angles)


_ARCHITECTURES: dict[str, tuple[tuple[str, ...], Callable[[str], WeightNames]]] = {
    "resnet": (("resnet18", "resnet34", "resnet50"), _resnet),
    "vit": (tuple(ViT.PRESETS), _vit),
    "bert": (tuple(Bert.PRESETS), _bert),
    "gpt2": (tuple(Gpt2.PRESETS), _gpt2),
    "llama": (tuple(Llama.PRESETS), _llama),
}
