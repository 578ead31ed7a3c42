import pytest

from jrobust import loops


@pytest.fixture
def rolled_loops(monkeypatch):
    """Loops as on an accelerator: without convolutions in them they compile faster so."""
    monkeypatch.setattr(loops, "unrolled", lambda unroll=None: False)
