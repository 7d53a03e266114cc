"""Read, audit and convert legacy PyTorch checkpoints without executing them."""

from __future__ import annotations

__version__ = "0.1.0"
