"""Fixtures of the tests of tracking."""

import shutil
from pathlib import Path

import pytest
from tracking_store import EXPERIMENT, Store

from openspectra.tracking.sync import track


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An SQLite store with all tables, made once: it takes seconds."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    track([], EXPERIMENT, f"sqlite:///{database}")
    return database


@pytest.fixture
def store(empty_store, tmp_path) -> Store:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Store(tmp_path / "mlflow.db")
