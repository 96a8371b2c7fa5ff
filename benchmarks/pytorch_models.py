"""The paper's networks and training step in plain PyTorch, layer by layer as in models/, for training_step.py."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.googlenet import AUXILIARY_AFTER, INCEPTION, POOL_AFTER

EPSILON = 1e-3
MOMENTUM = 0.1  # Of the new value: Keras' momentum, that of the old one, is 0.9.


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)


def conv_relu(channels: int, filters: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, filters, kernel_size, padding=kernel_size // 2), nn.ReLU(inplace=True))


def conv_bn(channels: int, filters: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, filters, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, batch_norm(filters))


def conv_bn_relu(channels: int, filters: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(channels, filters, kernel_size), nn.ReLU(inplace=True))


def baseline(num_classes: int = 200) -> nn.Module:
    return nn.Sequential(
        conv_relu(3, 16, 7),
        nn.MaxPool2d(2),
        batch_norm(16),
        nn.Flatten(),
        nn.Linear(28 * 28 * 16, 1024, bias=False),
        nn.BatchNorm1d(1024, eps=EPSILON, momentum=MOMENTUM),
        nn.ReLU(inplace=True),
        nn.Linear(1024, num_classes),
    )


def alexnet(num_classes: int = 200) -> nn.Module:
    return nn.Sequential(
        conv_relu(3, 64, 7),
        conv_relu(64, 64, 5),
        nn.MaxPool2d(2),
        batch_norm(64),
        conv_relu(64, 128, 5),
        nn.MaxPool2d(2),
        batch_norm(128),
        conv_relu(128, 256, 3),
        conv_relu(256, 256, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(7 * 7 * 256, 1024),
        nn.ReLU(inplace=True),
        nn.Linear(1024, 1024),
        nn.ReLU(inplace=True),
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


def classifier(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


class GoogLeNet(nn.Module):
    """With batch normalization and both auxiliary heads; returns three logits, the network's own first."""

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
                    nn.AvgPool2d(5, 3), conv_bn_relu(channels, 128, 1), classifier(128, num_classes)
                )
        self.classifier = classifier(channels, num_classes)

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
    return nn.Sequential(conv_bn_relu(3, 64, 7), *blocks, classifier(channels, num_classes))


REGISTRY = {"baseline": baseline, "alexnet": alexnet, "googlenet": GoogLeNet, "resnet20": resnet20}


class Step:
    """The step of training.step.Trainer in PyTorch.

    Args:
      name: A key of `REGISTRY`.
      mean_crops: (crops, 56, 56, 3) float32, the crops of the mean image.
      memory_format: torch.channels_last or torch.contiguous_format.
      device: "cpu" or "cuda".
      compiled: Whether torch.compile compiles the network.
      dtype: torch.float32, or the autocast dtype; float16 has dynamic loss scaling.
      learning_rate: SGD's.
      momentum: SGD's; Nesterov's if it is not 0.
      weight_decay: The kernels' gradients are those of a loss that has this times sum(w^2)/2 over them.
      clip_norm: Gradients are scaled down to this global norm.
      auxiliary_weight: Weight of each auxiliary head's cross-entropy in the loss.
      scale: What the crops are divided by after the mean is subtracted.
    """

    def __init__(
        self,
        name: str,
        mean_crops: np.ndarray,
        memory_format: torch.memory_format,
        *,
        device: str = "cpu",
        compiled: bool = False,
        dtype: torch.dtype,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        clip_norm: float,
        auxiliary_weight: float,
        scale: float,
    ):
        self.model = REGISTRY[name]().to(device, memory_format=memory_format).train()
        self.kernels = [weight for weight in self.model.parameters() if weight.ndim > 1]
        nesterov = momentum > 0  # PyTorch refuses it at momentum 0, where it changes nothing.
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), learning_rate, momentum=momentum, nesterov=nesterov, fused=True
        )
        self.autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.mean_crops = torch.from_numpy(mean_crops).to(device)
        self.memory_format = memory_format
        self.weight_decay, self.clip_norm = weight_decay, clip_norm
        self.auxiliary_weight, self.scale = auxiliary_weight, scale

    def num_parameters(self) -> int:
        return sum(weight.numel() for weight in self.model.parameters())

    def __call__(self, images: torch.Tensor, crop_index: torch.Tensor, labels: torch.Tensor) -> None:
        """One step on crops (N, 56, 56, 3) uint8, the index of each (N,) and labels (N,), both int64."""
        inputs = (images.float() - self.mean_crops[crop_index]) / self.scale
        inputs = inputs.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)
        with self.autocast:
            outputs = self.forward(inputs)
        logits, *auxiliary = outputs if isinstance(outputs, list) else [outputs]
        loss = functional.cross_entropy(logits.float(), labels)
        for head in auxiliary:
            loss = loss + self.auxiliary_weight * functional.cross_entropy(head.float(), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        with torch.no_grad():
            # The gradient of weight decay. Autograd would take several times as long.
            for kernel in self.kernels:
                kernel.grad.add_(kernel, alpha=self.weight_decay)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
