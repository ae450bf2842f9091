"""The harness itself: a real process that answers, and that is gone when it is done with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.process import HOSTS, running


def test_a_treadle_of_its_own_comes_up_and_is_gone_afterwards(tmp_path: Path) -> None:
    with running(tmp_path) as treadle:
        assert treadle.get("/healthz") == (
            200, {"status": "ok", "hosts_up": len(HOSTS), "hosts": len(HOSTS)}
        )
        assert treadle.folder.is_relative_to(tmp_path)
    with pytest.raises(OSError):
        treadle.get("/healthz")
    with pytest.raises(ProcessLookupError):
        os.kill(treadle.pid, 0)
