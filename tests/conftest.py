"""What the tests share: the project's programs run as a user runs them, prepared synthetic data, and a finished run."""

import os

os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # On a GPU too, float32 is float32.
USERS_ENVIRONMENT = dict(os.environ)  # As it is before `training` sets TensorFlow's.

from training import stderr  # noqa: E402, I001  # `training` sets TensorFlow's environment, so it comes first.

with stderr.quiet():  # What TensorFlow's libraries log while they load.
    import tensorflow as tf

    tf.config.list_physical_devices()

import concurrent.futures  # noqa: E402
import importlib  # noqa: E402
import pathlib  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402

import keras  # noqa: E402
import pytest  # noqa: E402

import command_line  # noqa: E402
import small  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SLOWEST = "test_train test_distribution test_notebooks test_evaluate test_real_data test_weights test_predict".split()

tf.get_logger().setLevel("ERROR")  # As the programs do.
for gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(gpu, True)  # The programs under test need the rest.


def pytest_collection_modifyitems(items):
    """Runs the slowest files first, so that at the end no process waits for another."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session")
def start_script(tmp_path_factory):
    """Starts `script` with flags and additions to the environment, in a folder that is not the repository's.

    The caller ends it.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def start(script, *flags, **environment):
        command = [sys.executable, str(REPOSITORY / script), *map(str, flags)]
        pipe = subprocess.PIPE
        environment = USERS_ENVIRONMENT | environment
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=elsewhere, env=environment)

    return start


@pytest.fixture(scope="session")
def run_script(start_script):
    """Runs `script` with flags to its end: its returncode, stdout and stderr."""

    def run(script, *flags, timeout=300, **environment):
        with start_script(script, *flags, **environment) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture(scope="session")
def run_scripts(run_script):
    """Runs several (script, *flags), two at a time: most of a short one is one core's work."""

    def run(commands):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda command: run_script(*command), commands))

    return run


@pytest.fixture(scope="session")
def run_main():
    """Runs a program's main in this process, which has imported TensorFlow: its returncode, stdout and stderr.

    With `terminal`, a text file, the program's output goes there. The flags, the dtype policy and the signal handlers
    are left as they were.
    """

    def run(script, *arguments, terminal=None):
        name = script.removesuffix(".py")
        main = importlib.import_module(name).main
        policy = keras.config.dtype_policy()
        signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGCONT") if hasattr(signal, name)]
        handlers = {signum: signal.getsignal(signum) for signum in signals}
        try:
            with command_line.defined(name.rpartition(".")[2]):
                return command_line.run(main, [script, *map(str, arguments)], terminal)
        finally:
            keras.config.set_dtype_policy(policy)
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    return run


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """Makes a folder once: of pytest's processes, the first to ask for it does, and the others wait."""
    from tiny_imagenet import locks

    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent

    def make_once(name, make):
        path, done = shared / name, shared / f"{name}.done"
        with locks.lock(shared / f"{name}.lock", when_taken=lambda: None):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)  # Half made, if there is one.
                make(path)
                done.touch()
        return path

    return make_once


@pytest.fixture(scope="session")
def synthetic_data_dir(made_once):
    """A --data_dir in which --dataset=synthetic has been prepared."""
    from tiny_imagenet import input_pipeline

    return made_once("synthetic_data", lambda path: input_pipeline.load("synthetic", str(path)))


@pytest.fixture(scope="session")
def small_data_dir(made_once):
    """A --data_dir in which the --dataset=synthetic of tests/small.py has been prepared."""
    from tiny_imagenet import input_pipeline

    with small.registered():
        return made_once("small_data", lambda path: input_pipeline.load("synthetic", str(path)))


@pytest.fixture(scope="session")
def synthetic_flags(synthetic_data_dir):
    """The flags of `synthetic_run`, but for --run_dir."""
    flags = "--model=baseline --dataset=synthetic --num_epochs=1 --num_cycles=1 --batch_size=400 --log_every=1"
    flags += " --nofinal_scores --precision=float32"  # The default precision depends on the machine.
    return [*flags.split(), f"--data_dir={synthetic_data_dir}"]


@pytest.fixture(scope="session")
def synthetic_run(made_once, run_main, synthetic_flags):
    """The directory of a finished run of the baseline, ten steps long. Tests only read it."""

    def train(path):
        result = run_main("train.py", *synthetic_flags, f"--run_dir={path}")
        assert (result.returncode, result.stderr) == (0, "")

    return made_once("synthetic_run", train)


@pytest.fixture(scope="session")
def small_run(made_once, run_main, small_data_dir):
    """The directory of a finished run of the small network of tests/small.py, eight steps long. Tests only read it."""
    flags = "--model=small --dataset=synthetic --num_epochs=1 --num_cycles=1 --batch_size=50 --log_every=1"
    flags += " --nofinal_scores --precision=float32"

    def train(path):
        with small.registered():
            result = run_main("train.py", *flags.split(), f"--data_dir={small_data_dir}", f"--run_dir={path}")
        assert (result.returncode, result.stderr) == (0, "")

    return made_once("small_run", train)


@pytest.fixture(scope="session")
def assert_one_line():
    """Checks that a program ended with `status` and said why in one line on standard error, with all of `words`."""

    def check(result, status, *words):
        assert result.returncode == status, (result.args, result.stdout, result.stderr)
        assert result.stderr.endswith("\n") and result.stderr.count("\n") == 1, (result.args, result.stderr)
        assert "Traceback" not in result.stdout + result.stderr
        for word in words:
            assert word in result.stderr, (result.args, result.stderr)

    return check


@pytest.fixture
def write_run(tmp_path):
    """Writes a run directory by hand: config.json, metrics.csv up to `rows` of training, and other JSON files.

    The run has two epochs of 12 steps, and the paper's settings but for `differing`.
    """
    from training import summaries
    from training.files import write_json

    config = {"model": "baseline", "dataset": "full", "learning_rate": 0.1, "batch_size": 256}
    config |= {"num_epochs": 2, "num_cycles": 5, "nesterov": True, "seed": 0, "log_every": 5, "precision": "float32"}
    logged = ((5, 1, 0.1), (10, 1, 0.2), (12, 1, 0.3), (17, 2, 0.4), (22, 2, 0.5), (24, 2, 0.2))  # Step, epoch, top-1.

    def write(name="run", rows=6, files=None, **differing):
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "config.json", config | differing)
        metrics = summaries.Metrics(folder / "metrics.csv", 0)
        for step, epoch, top_1 in logged[:rows]:
            metrics.append(step=step, epoch=epoch, learning_rate=0.1, loss=6, cross_entropy=5 - step / 10, top_1=top_1)
            if step % 12 == 0:
                metrics.append(step=step, epoch=epoch, validation_top_1=0.1 * epoch, validation_top_5=0.2 * epoch)
        for file, content in (files or {}).items():
            write_json(folder / file, content)
        return folder

    return write


@pytest.fixture
def write_object_size():
    """Writes the table of a run's accuracy by the object's size, of a single row, into the run."""

    def write(run, top_1):
        (run / "mistakes").mkdir()
        header = "quintile by area,area (% of the picture),images,top-1,95% interval"
        row = f"1 (smallest),0.1 to 20.0,2000,{top_1},"
        (run / "mistakes" / "object_size.csv").write_text(f"{header}\n{row}\n")

    return write
