"""What the crash tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from memory import world_time
from world import World


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> Iterator[None]:
    """Thousands of faults are met here: their log lines are not news."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)
    )
    yield
    structlog.reset_defaults()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Three hosts of four cores each, empty, and a clock that stands still."""
    made = World(tmp_path)
    with world_time(made.clock):
        yield made
    made.database.close()
