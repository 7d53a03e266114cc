"""What tests share: properties tried on the same examples everywhere, and thin models."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from ckptaudit.layouts import FAMILIES

if TYPE_CHECKING:
    from ckptaudit.layouts import Family

settings.register_profile(
    "ckptaudit",
    deadline=None,
    derandomize=True,
    max_examples=100,
    # A file of a thousand keys is a large example, however it is drawn.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ckptaudit")


@pytest.fixture
def thin_family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Family:
    """The family named, with thin layers; it takes the place of the real one."""
    from narrow import narrow  # noqa: PLC0415 - it needs torch, which few tests do

    made = narrow(FAMILIES[request.param])
    # The package has a function of the module's name.
    module = sys.modules["ckptaudit.layouts.detect"]
    monkeypatch.setattr(module, "FAMILIES", {**FAMILIES, made.name: made})
    return made
