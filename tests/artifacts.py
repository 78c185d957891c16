"""A tiny trained artifact on built-in data, made once per worker."""

from __future__ import annotations

from pathlib import Path

import pytest

import exitkit
from exitkit.data import demo


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    demo.build_model(folder, layers=4, width=32, heads=2)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """Four exits over `demo:reviews`, good enough that exits differ."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    exitkit.train(
        model=str(encoder),
        data="demo:reviews",
        output=folder,
        epochs=1,
        max_train_samples=2000,
        recipe={"name": "joint", "learning_rate": 2e-3, "head_learning_rate": 2e-3},
    )
    return folder


@pytest.fixture
def artifact(trained: Path, tmp_path: Path) -> Path:
    """A copy of its own, to change."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    return folder
