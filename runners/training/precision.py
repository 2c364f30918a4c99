"""The precision in which a model computes, in training and in scoring alike."""

from __future__ import annotations

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a model is called.

    Args:
        device: where the model is.
        precision: ``bfloat16`` for PyTorch's mixed precision; anything else changes nothing.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
