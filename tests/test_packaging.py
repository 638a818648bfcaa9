"""What a wheel holds, and that it is enough; what the workflow and the wheels' configuration say."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from readme_commands import shiftproof_commands, write_patients

ROOT = Path(__file__).parents[1]
KERNEL = "shiftproof/optim/genie/kernel/genie_kernel.so"
STEP = ROOT / "tests" / "step_of_wheel.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built beside torch."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [built] = folder.iterdir()  # the kernel that was compiled for it is only in it
    return built


@pytest.fixture
def installed(wheel, tmp_path):
    """The scripts of an environment where shiftproof is the wheel, and all else that of this one."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # a line of a .pth file is put on the path, and .pth files there, such as a clone's, are not read
    (environment / "lib" / version / "site-packages" / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


@pytest.mark.slow
def test_a_wheel_built_beside_torch_holds_the_compiled_kernel(wheel, tmp_path):
    assert wheel.name.startswith("shiftproof-")
    assert re.search(r"-py3-none-(?!any)\w+\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        study = "shiftproof/studies/named/optimizers.yaml"
        assert {KERNEL, "shiftproof/optim/genie/kernel/genie.cpp", study} <= set(archive.namelist())
        embedded = {f"shiftproof/data/embedded/{name}" for name in ("vowels.csv", "heart_disease.csv", "README.md")}
        assert embedded <= set(archive.namelist())
        [metadata] = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
        assert "License-Expression: Apache-2.0 AND CC-BY-4.0" in metadata.splitlines()
        assert "License-File: src/shiftproof/data/embedded/README.md" in metadata.splitlines()
        archive.extractall(tmp_path / "installed")
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""}
    done = subprocess.run([sys.executable, str(STEP)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "group 0: fused (" in done.stdout
    assert "shiftproof:" not in done.stderr


@pytest.mark.slow
def test_a_wheel_runs_the_readme_and_a_named_study_in_an_empty_folder(installed, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    write_patients(work)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{installed}{os.pathsep}{os.environ['PATH']}", "SHIFTPROOF_CACHE": str(tmp_path / "cache")}

    def run(*command):
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        assert "compiling" not in done.stderr
        return done.stdout

    assert run("python", "-c", "import shiftproof; print(shiftproof.__file__)").startswith(str(installed.parent))
    [loop] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    run("python", "-c", loop)
    for arguments in shiftproof_commands():
        run("shiftproof", *arguments)
    assert (work / "runs" / "mine" / "report.html").stat().st_size
    run("shiftproof", "study", "run", "optimizers", "--scale", "smoke", "--output", "runs/smoke")
    assert "erm + genie" in run("shiftproof", "study", "table", "runs/smoke")
    run("shiftproof", "study", "report", "runs/smoke")
    assert "<svg" in (work / "runs" / "smoke" / "report.html").read_text(encoding="utf-8")
    run("shiftproof", "figure", "balance", "--optimizers", "sgd", "--steps", "4", "--output", "figures")
    assert list((work / "figures").rglob("*.svg"))


def test_wheels_are_made_with_the_oldest_torch_that_is_supported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheels = project["tool"]["cibuildwheel"]
    [oldest] = re.findall(r"torch>=([\d.]+)", " ".join(project["project"]["dependencies"]))
    assert f"torch=={oldest}.*" in wheels["before-build"]
    assert (ROOT / wheels["test-command"].replace("python {project}/", "")).samefile(STEP)


def test_the_oldest_versions_are_the_lower_bounds():
    done = subprocess.run([sys.executable, ".ci/lower_bounds.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert {line.partition("==")[0] for line in lines} >= {"torch", "numpy", "timm", "scipy"}
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines)


def test_the_workflow_runs_what_there_is_from_pinned_actions():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    for step in steps:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+)*", step["uses"])
        elif step["run"] != "bash .ci/run":
            assert re.fullmatch(r"make [\w-]+", step["run"])
            assert step["run"].removeprefix("make ") in phony.split()
    assert (ROOT / ".ci" / "run").is_file()
    assert "secrets" not in str(workflow)
    assert {job["runs-on"] for job in workflow["jobs"].values()} >= {"ubuntu-latest", "macos-latest"}


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
