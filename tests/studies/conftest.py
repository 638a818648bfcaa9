"""What tests of studies that open data of their own need."""

import pytest

from shiftproof.studies import study_data


@pytest.fixture
def opened_anew(tmp_path, monkeypatch):
    """An empty cache of pictures, and nothing that was opened or said before."""
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    for cached in (study_data.open_dataset, study_data._look, study_data.say):
        cached.cache_clear()
