"""The diffusers layout: a folder for each component, and what its files are called.

Knows:      the names that diffusers and transformers look for.
Is told:    a component.
Never asks: what a file holds.
"""

from __future__ import annotations

from ckptaudit.layouts.family import Component

__all__ = ["weights_file"]

# transformers' models have another name for their weights than diffusers' own.
_OF_TRANSFORMERS = {
    Component.TEXT_ENCODER,
    Component.TEXT_ENCODER_2,
    Component.IMAGE_ENCODER,
    Component.DEPTH_ESTIMATOR,
}


def weights_file(component: Component) -> str:
    """Where in the folder of a pipeline the weights of *component* lie."""
    name = "model" if component in _OF_TRANSFORMERS else "diffusion_pytorch_model"
    return f"{component.value}/{name}.safetensors"
