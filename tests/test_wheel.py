"""The wheel: it installs the dataset alone, which other projects import."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Besides what is not in the repository, large folders that are never in the wheel.
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "runs", "results", "weights")

USE = f"""
import pathlib, sys

root = pathlib.Path({str(ROOT)!r})
# Without an editable installation of the checkout.
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
sys.path[:] = [path for path in sys.path if pathlib.Path(path).resolve() != root]

import tiny_imagenet
import tensorflow_datasets as tfds

examples, info = tfds.load("tiny_imagenet/synthetic", split="validation", data_dir="data", with_info=True)
print(tiny_imagenet.__file__)
print(len(examples), info.features["label"].num_classes, "CS231n" in info.description, bool(info.citation))
files = [pathlib.Path(module.__file__) for module in sys.modules.values() if getattr(module, "__file__", None)]
print([str(file) for file in files if root in file.parents and "site-packages" not in file.parts])
"""


def pip(*arguments):
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "--disable-pip-version-check"]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)  # The build writes into its source.
    pip("wheel", "--no-build-isolation", f"--wheel-dir={folder}", folder / "source")
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_dataset_and_its_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in names} == {"tiny_imagenet"}
    files = [path for path in ROOT.glob("tiny_imagenet/**/*") if path.is_file() and "__pycache__" not in path.parts]
    assert sorted(names) == sorted(str(path.relative_to(ROOT).as_posix()) for path in files)


def test_another_project_uses_the_dataset(wheel, tmp_path):
    installed = tmp_path / "installed"
    pip("install", f"--target={installed}", wheel)
    result = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": "", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3:] == [
        str(installed / "tiny_imagenet" / "__init__.py"),
        "1000 200 True True",
        "[]",
    ]
