"""The paper's networks in plain PyTorch, layer by layer those of models/: the peers in benchmarks/training_step.py."""

import torch
from torch import nn
from torch.nn import functional

from models.googlenet import AUXILIARY_AFTER, INCEPTION, POOL_AFTER


def conv_relu(channels: int, filters: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, filters, kernel_size, padding=kernel_size // 2), nn.ReLU(inplace=True))


def conv_bn(channels: int, filters: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, filters, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters))


def conv_bn_relu(channels: int, filters: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(channels, filters, kernel_size), nn.ReLU(inplace=True))


def baseline(num_classes: int = 200) -> nn.Module:
    return nn.Sequential(
        conv_relu(3, 16, 7),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(28 * 28 * 16, 1024),
        nn.ReLU(inplace=True),
        nn.Linear(1024, num_classes),
    )


def alexnet(num_classes: int = 200, dropout: float = 0.5) -> nn.Module:
    return nn.Sequential(
        conv_relu(3, 64, 7),
        conv_relu(64, 64, 5),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(64),
        conv_relu(64, 128, 5),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(128),
        conv_relu(128, 256, 3),
        conv_relu(256, 256, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(7 * 7 * 256, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(1024, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(1024, num_classes),
    )


class Inception(nn.Module):
    """1x1 | 1x1, 3x3 | 1x1, 5x5 | max-pool, 1x1, concatenated."""

    def __init__(self, channels: int, filters: tuple[int, ...]):
        super().__init__()
        ones, reduce3, threes, reduce5, fives, pooled = filters
        self.branches = nn.ModuleList(
            [
                conv_bn_relu(channels, ones, 1),
                nn.Sequential(conv_bn_relu(channels, reduce3, 1), conv_bn_relu(reduce3, threes, 3)),
                nn.Sequential(conv_bn_relu(channels, reduce5, 1), conv_bn_relu(reduce5, fives, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv_bn_relu(channels, pooled, 1)),
            ]
        )
        self.channels = ones + threes + fives + pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, num_classes))


class GoogLeNet(nn.Module):
    """With batch normalisation and both auxiliary heads; gives three logits, the network's own first."""

    def __init__(self, num_classes: int = 200):
        super().__init__()
        self.stem = conv_bn_relu(3, 64, 7)
        self.inceptions, self.heads = nn.ModuleDict(), nn.ModuleDict()
        channels = 64
        for number, filters in INCEPTION.items():
            self.inceptions[str(number)] = Inception(channels, filters)
            channels = self.inceptions[str(number)].channels
            if number in AUXILIARY_AFTER:
                self.heads[str(number)] = nn.Sequential(
                    nn.AvgPool2d(5, 3), conv_bn_relu(channels, 128, 1), classifier(128, num_classes, 0.3)
                )
        self.classifier = classifier(channels, num_classes, 0.4)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x)
        auxiliary = []
        for number in INCEPTION:
            x = self.inceptions[str(number)](x)
            if number in AUXILIARY_AFTER:
                auxiliary.append(self.heads[str(number)](x))
            if number in POOL_AFTER:
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        return [self.classifier(x), *auxiliary]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the block strides."""

    def __init__(self, channels: int, filters: int, stride: int):
        super().__init__()
        self.conv1, self.conv2 = conv_bn(channels, filters, 3, stride), conv_bn(filters, filters, 3)
        self.shortcut = nn.Identity() if stride == 1 else conv_bn(channels, filters, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(functional.relu(self.conv1(x), inplace=True))
        return functional.relu(y + self.shortcut(x), inplace=True)


def resnet20(num_classes: int = 200) -> nn.Module:
    blocks, channels = [], 64
    for stage, filters in enumerate((64, 128, 256, 512)):
        blocks += [BasicBlock(channels, filters, 2 if stage else 1), BasicBlock(filters, filters, 1)]
        channels = filters
    return nn.Sequential(conv_bn_relu(3, 64, 7), *blocks, classifier(channels, num_classes, 0.0))


REGISTRY = {"baseline": baseline, "alexnet": alexnet, "googlenet": GoogLeNet, "resnet20": resnet20}


class Step:
    """A training step that does what training.step.Trainer's does, in float32 on the CPU.

    Args:
      name: A key of `REGISTRY`.
      mean_crops: (10, 56, 56, 3) float32, the ten crops of the mean image.
      memory_format: torch.channels_last or torch.contiguous_format.
      learning_rate: Of SGD.
      momentum: Of SGD.
      weight_decay: The loss has this times sum(w^2)/2, over the kernels.
      clip_norm: Gradients are scaled down to this global norm.
      auxiliary_weight: Of each auxiliary head's cross-entropy in the loss.
      scale: What the crops are divided by once the mean is off.
    """

    def __init__(
        self,
        name: str,
        mean_crops,
        memory_format: torch.memory_format,
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        clip_norm: float,
        auxiliary_weight: float,
        scale: float,
    ):
        self.model = REGISTRY[name]().to(memory_format=memory_format).train()
        self.kernels = [weight for weight in self.model.parameters() if weight.ndim > 1]
        self.optimizer = torch.optim.SGD(self.model.parameters(), learning_rate, momentum=momentum)
        self.mean_crops = torch.from_numpy(mean_crops)
        self.memory_format = memory_format
        self.weight_decay, self.clip_norm = weight_decay, clip_norm
        self.auxiliary_weight, self.scale = auxiliary_weight, scale

    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.model.parameters())

    def __call__(self, images: torch.Tensor, which: torch.Tensor, labels: torch.Tensor) -> None:
        """One step on crops (N, 56, 56, 3) uint8, which of the ten they are (N,) and labels (N,), both int64."""
        inputs = (images.float() - self.mean_crops[which]) / self.scale
        inputs = inputs.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)
        outputs = self.model(inputs)
        logits, *auxiliary = outputs if isinstance(outputs, list) else [outputs]
        loss = functional.cross_entropy(logits, labels)
        loss = loss + self.weight_decay / 2 * sum(kernel.square().sum() for kernel in self.kernels)
        for head in auxiliary:
            loss = loss + self.auxiliary_weight * functional.cross_entropy(head, labels)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
