"""For tests of plugins: what `exitkit.testing` has, as fixtures that pytest knows wherever exitkit is installed.

pytest imports this module in every run, so torch waits until a test asks for one of them.
"""

from __future__ import annotations

from typing import Any

import pytest


def _offered(name: str) -> Any:
    """A fixture that gives a function of `exitkit.testing`."""

    def fixture() -> Any:
        from exitkit import testing

        return getattr(testing, name)

    fixture.__doc__ = f"The function `exitkit.testing.{name}`."
    return pytest.fixture(scope="session", name=name)(fixture)


tiny_model = _offered("tiny_model")
tiny_batch = _offered("tiny_batch")
check_policy = _offered("check_policy")
check_recipe = _offered("check_recipe")
check_family = _offered("check_family")
check_distiller = _offered("check_distiller")
