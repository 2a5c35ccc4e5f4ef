"""torchvision's ResNet and ViT written out in plain PyTorch: the same architectures under the same names.

torchvision itself comes for some versions of PyTorch only. ``python tests/torch_vision.py``, where it is installed,
compares values with it and writes the names that it gives its weights, torchvision_names.json, anew.
"""

import json
from functools import partial
from pathlib import Path

import torch
from torch import nn

NAMES = Path(__file__).with_name("torchvision_names.json")


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    def __init__(self, block: type, depths: tuple[int, ...], classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for number, depth in enumerate(depths):
            blocks = []
            for place in range(depth):
                blocks.append(block(inputs, width * 2**number, 2 if number and not place else 1))
                inputs = width * 2**number * block.expansion
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = [nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, padding=1)]
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            found.append(stage(found[-1]))
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stages(x)[-1].mean([2, 3]))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, width, eps=1e-6)
        self.ln_1, self.self_attention = norm(), nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = norm()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0), nn.Linear(hidden, width), nn.Dropout(0)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, length: int, width: int, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.randn(1, length, width) / 50)
        self.layers = nn.Sequential()
        for number in range(layers):
            self.layers.add_module(f"encoder_layer_{number}", EncoderBlock(width, heads, hidden))
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def states(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = [x + self.pos_embedding]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return found


class ViT(nn.Module):
    def __init__(
        self, image: int, patch: int, layers: int, heads: int, width: int, hidden: int, classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder((image // patch) ** 2 + 1, width, layers, heads, hidden)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(width, classes))

    def states(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        return self.encoder.states(torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.heads(self.encoder.ln(self.states(x)[-1])[:, 0])


resnet18 = partial(ResNet, Basic, (2, 2, 2, 2))
resnet34 = partial(ResNet, Basic, (3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, (3, 4, 6, 3))
vit_b_16 = partial(ViT, 224, 16, 12, 12, 768, 3072)


def names(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with norms, biases and moving statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point and value.dim() == 1:
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(noise.abs() + 0.5 if name.endswith(("running_var", "weight")) else 0.2 * noise)
    return model.eval()


def main() -> None:
    import torchvision

    found = {}
    for name, ours in {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "vit_b_16": vit_b_16}.items():
        theirs = randomized(getattr(torchvision.models, name)())
        found[name] = names(theirs)
        mine = ours().eval()
        mine.load_state_dict(theirs.state_dict())
        images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            one, other = mine(images), theirs(images)
        print(f"{name}: {float((one - other).abs().max() / other.abs().max()):.1e}")
    NAMES.write_text("{\n" + ",\n".join(f'"{name}": {json.dumps(one)}' for name, one in found.items()) + "\n}\n")


if __name__ == "__main__":
    main()
