from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pacs_folder() -> Path:
    """The real PACS, beside the checkout where there is one."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "PACS"
    if not folder.is_dir():
        pytest.skip("PACS is not here")
    return folder
