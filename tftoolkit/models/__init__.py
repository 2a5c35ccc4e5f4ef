"""Models as plain ``tf.Module``s: what recipes train, architectures with weights from elsewhere, and their blocks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tftoolkit.models.audio_classifier import LogMel, SpectrogramClassifier
    from tftoolkit.models.bert import Bert
    from tftoolkit.models.blocks import Attention, Dense, Embedding, LayerNorm, Mlp, RmsNorm, TransformerBlock
    from tftoolkit.models.classifiers import convolutional_classifier, dense_classifier
    from tftoolkit.models.dense_network import DenseNetwork
    from tftoolkit.models.digits_cnn import DigitsCnn
    from tftoolkit.models.flash_multi_head_attention import FlashMultiHeadAttention
    from tftoolkit.models.generation import generate, generation_signatures
    from tftoolkit.models.gpt2 import Gpt2
    from tftoolkit.models.heat_map_detector import Detections, HeatMapDetector, detection_losses, detections
    from tftoolkit.models.keras_layer import KerasLayer
    from tftoolkit.models.llama import Llama
    from tftoolkit.models.recurrent import Recurrent
    from tftoolkit.models.resnet import ResNet, resnet18, resnet34, resnet50
    from tftoolkit.models.rotary import Rotary
    from tftoolkit.models.tabular_network import TabularNetwork
    from tftoolkit.models.vit import ViT
    from tftoolkit.models.weight_names import torch_names

__all__ = [
    "Attention",
    "Bert",
    "Dense",
    "DenseNetwork",
    "Detections",
    "DigitsCnn",
    "Embedding",
    "FlashMultiHeadAttention",
    "Gpt2",
    "HeatMapDetector",
    "KerasLayer",
    "LayerNorm",
    "Llama",
    "LogMel",
    "Mlp",
    "Recurrent",
    "ResNet",
    "RmsNorm",
    "Rotary",
    "SpectrogramClassifier",
    "TabularNetwork",
    "TransformerBlock",
    "ViT",
    "convolutional_classifier",
    "dense_classifier",
    "detection_losses",
    "detections",
    "generate",
    "generation_signatures",
    "resnet18",
    "resnet34",
    "resnet50",
    "torch_names",
]

# Name → module.
_HOME = {
    "Attention": "blocks",
    "Bert": "bert",
    "Dense": "blocks",
    "DenseNetwork": "dense_network",
    "Detections": "heat_map_detector",
    "DigitsCnn": "digits_cnn",
    "Embedding": "blocks",
    "FlashMultiHeadAttention": "flash_multi_head_attention",
    "Gpt2": "gpt2",
    "HeatMapDetector": "heat_map_detector",
    "KerasLayer": "keras_layer",
    "LayerNorm": "blocks",
    "Llama": "llama",
    "LogMel": "audio_classifier",
    "Mlp": "blocks",
    "Recurrent": "recurrent",
    "ResNet": "resnet",
    "RmsNorm": "blocks",
    "Rotary": "rotary",
    "SpectrogramClassifier": "audio_classifier",
    "TabularNetwork": "tabular_network",
    "TransformerBlock": "blocks",
    "ViT": "vit",
    "convolutional_classifier": "classifiers",
    "dense_classifier": "classifiers",
    "detection_losses": "heat_map_detector",
    "detections": "heat_map_detector",
    "generate": "generation",
    "generation_signatures": "generation",
    "resnet18": "resnet",
    "resnet34": "resnet",
    "resnet50": "resnet",
    "torch_names": "weight_names",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
