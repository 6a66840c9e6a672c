"""The embedded default's float network: trained on the spot in seconds, kept for the next run."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ptmq_lightning.data.digits import open_digits
from ptmq_lightning.data.module import calibration_images
from ptmq_lightning.models.zoo import build
from ptmq_lightning.runtime.files import replacing_file

log = logging.getLogger(__name__)

EPOCHS = 12
BATCH = 64
LEARNING_RATE = 1e-2


def train_digits(cache_dir: Path, seed: int = 0) -> Path:
    """The float digits network's weights for ``seed``: trained on the 1,097 training digits, or found in ``cache_dir``.

    Returns:
        the safetensors file. It appears whole or not at all, so runs may share the folder.
    """
    path = Path(cache_dir) / f"digits_resnet_seed{seed}.safetensors"
    if path.exists():
        return path
    log.info("training the float digits network (seed %d) into %s", seed, path)
    network = _trained(seed)
    with replacing_file(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, part)
    return path


def _trained(seed: int) -> nn.Module:
    """Cross entropy, AdamW, one cycle of the learning rate: a plain loop, the same network for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build("digits_resnet", pretrained=False)
    network = built.module.train()
    train, _ = open_digits(built.preprocessing)
    images = calibration_images(train, list(range(len(train))))  # (N, 3, 16, 16)
    labels = torch.from_numpy(train.labels).long()  # (N,)
    generator = torch.Generator().manual_seed(seed)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH)[: len(images) // BATCH]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()
