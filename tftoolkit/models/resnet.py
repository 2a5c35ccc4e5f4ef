"""ResNets for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.models.blocks import Dense, Rng, normal


class Conv(tf.Module):
    """A convolution without bias, padded by half its kernel at every side, as PyTorch pads.

    TensorFlow's "SAME" is the same for a stride of 1 alone: for 2 it pads one side less.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, rng: Rng) -> None:
        super().__init__()
        # He et al. 2015, by what leaves the layer.
        self.kernel = normal(rng, [size, size, inputs, outputs], (2 / (outputs * size**2)) ** 0.5, tf.float32)
        self._stride, self._padding = stride, size // 2

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """[batch, height, width, inputs] → [batch, ⌈height / stride⌉, ⌈width / stride⌉, outputs]."""
        if self._stride == 1:
            return tf.nn.conv2d(x, self.kernel, strides=1, padding="SAME")
        around = [[0, 0], *[[self._padding] * 2] * 2, [0, 0]]
        return tf.nn.conv2d(tf.pad(x, around), self.kernel, strides=self._stride, padding="VALID")


class BatchNorm(tf.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) with PyTorch's settings; its momentum is 1 minus Keras's.

    Attributes:
      gamma, beta: scale and shift.
      mean, variance: moving ones, of the batches that were normalised in training; the variance is the unbiased one.
    """

    KEPT_FLOAT32 = frozenset({"mean", "variance"})

    def __init__(self, channels: int, *, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.gamma, self.beta = tf.Variable(tf.ones([channels])), tf.Variable(tf.zeros([channels]))
        moving = {
            **{"trainable": False, "synchronization": tf.VariableSynchronization.ON_READ},
            "aggregation": tf.VariableAggregation.MEAN,
        }
        self.mean, self.variance = (
            tf.Variable(tf.zeros([channels]), **moving),
            tf.Variable(tf.ones([channels]), **moving),
        )
        self._epsilon, self._momentum = epsilon, momentum

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[batch, height, width, channels] → the same; in training by the batch's own moments, which are noted."""
        found = tf.raw_ops.FusedBatchNormV3(
            **{"x": x, "scale": tf.cast(self.gamma, tf.float32), "offset": tf.cast(self.beta, tf.float32)},
            **{"mean": [] if training else self.mean, "variance": [] if training else self.variance},
            **{"epsilon": self._epsilon, "is_training": training},
        )
        if training:
            self.mean.assign_add(self._momentum * (found.batch_mean - self.mean))
            self.variance.assign_add(self._momentum * (found.batch_variance - self.variance))
        return found.y


class Shortcut(tf.Module):
    """What brings a block's input to the size of its output."""

    def __init__(self, inputs: int, outputs: int, stride: int, rng: Rng) -> None:
        super().__init__()
        self.conv, self.bn = Conv(inputs, outputs, 1, stride, rng), BatchNorm(outputs)

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.bn(self.conv(x), training)


class BasicBlock(tf.Module):
    """Two 3×3 convolutions beside a shortcut."""

    EXPANSION = 1

    def __init__(self, inputs: int, width: int, stride: int, rng: Rng) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(inputs, width, 3, stride, rng), BatchNorm(width)
        self.conv2, self.bn2 = Conv(width, width, 3, 1, rng), BatchNorm(width)
        self.downsample = Shortcut(inputs, width, stride, rng) if stride > 1 or inputs != width else None

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        y = tf.nn.relu(self.bn1(self.conv1(x), training))
        y = self.bn2(self.conv2(y), training)
        return tf.nn.relu(y + (x if self.downsample is None else self.downsample(x, training)))


class Bottleneck(tf.Module):
    """A 3×3 convolution between two of 1×1 beside a shortcut; the 3×3 has the stride ("v1.5")."""

    EXPANSION = 4

    def __init__(self, inputs: int, width: int, stride: int, rng: Rng) -> None:
        super().__init__()
        outputs = self.EXPANSION * width
        self.conv1, self.bn1 = Conv(inputs, width, 1, 1, rng), BatchNorm(width)
        self.conv2, self.bn2 = Conv(width, width, 3, stride, rng), BatchNorm(width)
        self.conv3, self.bn3 = Conv(width, outputs, 1, 1, rng), BatchNorm(outputs)
        self.downsample = Shortcut(inputs, outputs, stride, rng) if stride > 1 or inputs != outputs else None

    def __call__(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        y = tf.nn.relu(self.bn1(self.conv1(x), training))
        y = tf.nn.relu(self.bn2(self.conv2(y), training))
        y = self.bn3(self.conv3(y), training)
        return tf.nn.relu(y + (x if self.downsample is None else self.downsample(x, training)))


class ResNet(tf.Module):
    """A residual network (He et al. 2015, https://arxiv.org/abs/1512.03385), torchvision's, channels last.

    Args:
      depths: blocks of each of the four stages.
      bottleneck: whether these are bottlenecks, as from 50 layers on.
      classes: how many logits there are.
      width: of the first stage; each next one is twice as wide.
      channels: of the images.
      seed: of the first weights.

    Raises ValueError where depths are not four.
    """

    def __init__(
        self,
        depths: Sequence[int],
        *,
        bottleneck: bool = False,
        classes: int = 1000,
        width: int = 64,
        channels: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(depths) != 4:
            raise ValueError(f"depths must be four numbers, got {depths!r}")
        rng = np.random.default_rng(seed)
        self.conv1, self.bn1 = Conv(channels, width, 7, 2, rng), BatchNorm(width)
        block = Bottleneck if bottleneck else BasicBlock
        inputs, stages = width, list[list[tf.Module]]()
        for number, depth in enumerate(depths):
            stages.append([])
            for place in range(depth):
                stages[-1].append(block(inputs, width * 2**number, 2 if number and not place else 1, rng))
                inputs = width * 2**number * block.EXPANSION
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = Dense(inputs, classes, rng=rng)

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits, [batch, classes].

        Args:
          images: float [batch, height, width, channels]; torchvision's weights want the mean and deviation of ImageNet
            taken away: (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225].
          training: whether the norms take the batch's moments, and note them.
        """
        return self.fc(self.features(images, training))

    def features(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[batch, 8 * width, times 4 for bottlenecks], the mean over the last stage, of which ``fc`` makes logits."""
        return tf.reduce_mean(self.stages(images, training)[-1], axis=[1, 2])

    def stages(self, images: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Feature maps in front of the first stage and behind each: a 4th, 4th, 8th, 16th and 32nd of the images."""
        x = tf.nn.relu(self.bn1(self.conv1(tf.cast(images, self.conv1.kernel.dtype)), training))
        # Zeros are as good as minus infinity behind a relu.
        found = [tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), ksize=3, strides=2, padding="VALID")]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = found[-1]
            for block in stage:
                x = block(x, training)
            found.append(x)
        return found


def resnet18(**settings: Any) -> ResNet:
    """18 layers; settings are those of ``ResNet``."""
    return ResNet((2, 2, 2, 2), **settings)


def resnet34(**settings: Any) -> ResNet:
    """34 layers; settings are those of ``ResNet``."""
    return ResNet((3, 4, 6, 3), **settings)


def resnet50(**settings: Any) -> ResNet:
    """50 layers; settings are those of ``ResNet``."""
    return ResNet((3, 4, 6, 3), bottleneck=True, **settings)
