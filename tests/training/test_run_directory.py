import json

import pytest

import small
from tiny_imagenet.errors import UserError
from training import run_directory
from training.files import write_json

CONFIG = {"model": "small", "dataset": "synthetic", "learning_rate": 0.1, "num_epochs": 2, "num_cycles": 1}


@pytest.fixture(scope="module", autouse=True)
def registered():
    with small.registered():
        yield


def test_lock(tmp_path):
    with run_directory.lock(tmp_path / "run"):
        with pytest.raises(UserError, match="another process"):
            with run_directory.lock(tmp_path / "run"):
                pass
    with run_directory.lock(tmp_path / "run"):
        pass


def test_a_run_from_before_images_could_be_excluded_goes_on(tmp_path):
    old = CONFIG | {"augmentation": "ten_crop"}
    write_json(tmp_path / "config.json", old)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/ckpt-1.index").touch()
    run_directory.check_config(tmp_path, old | {"exclude": ""})
    with pytest.raises(UserError, match="exclude=, not 5 images 0a1b2c3d"):
        run_directory.check_config(tmp_path, old | {"exclude": "5 images 0a1b2c3d"})


OF_NO_EPOCHS = json.dumps(CONFIG | {"num_epochs": 0}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"{}",
        b'{"model": "lenet", "dataset": "full"}',
        b'{"model": "small", "dataset": "cifar"}',
        b"\xff",
        OF_NO_EPOCHS,
    ],
)
def test_damaged_configuration(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="config.json"):
        run_directory.read_config(tmp_path)


def test_check_config(tmp_path):
    run_dir = tmp_path / "run"
    run_directory.check_config(run_dir, CONFIG, resume=False)
    run_dir.mkdir()
    write_json(run_dir / "config.json", CONFIG)
    run_directory.check_config(run_dir, CONFIG | {"learning_rate": 0.2}, resume=False)  # It has no checkpoint yet.
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints/ckpt-1.index").touch()
    run_directory.check_config(run_dir, CONFIG, resume=True)
    with pytest.raises(UserError, match="learning_rate=0.1, not 0.2"):
        run_directory.check_config(run_dir, CONFIG | {"learning_rate": 0.2}, resume=True)
    with pytest.raises(UserError, match="--noresume"):
        run_directory.check_config(run_dir, CONFIG, resume=False)
    with pytest.raises(UserError, match="of an older version.*another --run_dir"):
        run_directory.check_config(run_dir, CONFIG | {"dropout": 0.0}, resume=True)
    with pytest.raises(UserError, match="is a file"):
        run_directory.check_config(run_dir / "config.json", CONFIG, resume=True)
