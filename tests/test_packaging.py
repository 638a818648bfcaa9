"""What a wheel holds."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KERNEL = "shiftproof/optim/genie/kernel/genie_kernel.so"


@pytest.mark.slow
def test_a_wheel_built_beside_torch_holds_the_compiled_kernel(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir"]
    subprocess.run([*build, str(tmp_path), str(ROOT)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.startswith("shiftproof-")
    assert not wheel.name.endswith("none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        study = "shiftproof/studies/named/optimizers.yaml"
        assert {KERNEL, "shiftproof/optim/genie/kernel/genie.cpp", study} <= set(archive.namelist())
        embedded = {f"shiftproof/data/embedded/{name}" for name in ("vowels.csv", "heart_disease.csv", "README.md")}
        assert embedded <= set(archive.namelist())
        [metadata] = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
        assert "License-Expression: Apache-2.0 AND CC-BY-4.0" in metadata.splitlines()
        assert "License-File: src/shiftproof/data/embedded/README.md" in metadata.splitlines()
        archive.extractall(tmp_path / "installed")
    step = (
        "import torch; from shiftproof.optim import GENIE; p = torch.ones(3); p.grad = torch.ones(3);"
        "o = GENIE([p], fused=True); o.step(); print(repr(o))"
    )
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "", "SHIFTPROOF_CACHE": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", step], env=environment, capture_output=True, text=True, check=True)
    assert "group 0: fused (" in done.stdout
    assert not (tmp_path / "none").exists()


def test_the_core_imports_no_optional_package():
    """What `pip install shiftproof` gives works where torch and numpy alone are installed."""
    code = (
        "import sys; import shiftproof.optim, shiftproof.annealing, shiftproof.diagnostics;"
        "optional = {'matplotlib', 'scipy', 'sklearn', 'pandas', 'umap', 'timm', 'torchvision', 'PIL', 'jinja2'};"
        "optional |= {'accelerate', 'lightning', 'peft', 'transformers'};"
        "print(sorted(optional & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
