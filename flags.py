"""Every flag of the programs, and how a user's mistake is told. The paper's values are the defaults."""

import errno
import os
import pathlib
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging

import models
from tiny_imagenet.errors import UserError

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # So that --help lists a flag with the program that defines it.

INT32_MAX, FLOAT32_MAX = 2**31 - 1, 3.4e38
DATASETS = ("full", "synthetic")
PATHS = ("archive", "csv", "data_dir", "mistakes", "out", "output", "predictions", "run_dir", "saved_model", "tflite")


def define_data_flags() -> None:
    """The flags of every program that reads the data set."""
    flags.DEFINE_string("data_dir", None, "Where to keep the prepared data; by default TFDS' ~/tensorflow_datasets.")
    flags.DEFINE_string("archive", None, "Your copy of tiny-imagenet-200.zip, or its unpacked folder; else downloaded.")


def define_train_flags() -> None:
    """The flags of train.py."""
    define_data_flags()
    flags.DEFINE_enum("dataset", "full", DATASETS, "Tiny ImageNet, or pictures drawn by code.")
    flags.DEFINE_enum("model", None, list(models.REGISTRY), "The network to train.", required=True)
    flags.DEFINE_float("learning_rate", 0.1, "L, the learning rate at the start of each cycle.")
    flags.DEFINE_integer("batch_size", 256, "Images a step.", lower_bound=1, upper_bound=INT32_MAX)
    flags.DEFINE_integer("num_epochs", 10, "Passes over the training images.", lower_bound=1, upper_bound=10**6)
    cycles = "Cosine cycles of the learning rate in the whole run."
    flags.DEFINE_integer("num_cycles", 5, cycles, lower_bound=1, upper_bound=10**6)
    flags.DEFINE_float("momentum", None, "By default the network's own: 0.9, and 0 for baseline and vgg16.")
    flags.DEFINE_bool("nesterov", True, "Nesterov's momentum, as in the paper's reference [11].")
    flags.DEFINE_float("weight_decay", 1e-4, "The L2 term of the loss is this times sum(w^2)/2, over the kernels.")
    flags.DEFINE_float("clip_norm", 10.0, "Gradients are scaled down to this global norm.")
    flags.DEFINE_enum(
        "precision",
        "auto",
        ["auto", "float32", "mixed_float16", "mixed_bfloat16"],
        "Keras' dtype policy. auto is mixed_float16 on a GPU, mixed_bfloat16 on a CPU with instructions for it, else "
        "float32; a resumed run keeps its own.",
    )
    seeded = "Of the weights, the order of the images, the crops and dropout."
    flags.DEFINE_integer("seed", 0, seeded, lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_string("run_dir", None, "Where the run is kept; by default runs/MODEL.")
    flags.DEFINE_bool("resume", True, "Resume the run that run_dir holds. --noresume refuses to, if it holds one.")
    flags.DEFINE_bool("overwrite", False, "Delete the run that run_dir holds, and start a new one.")
    rows = "Steps between rows of metrics.csv and TensorBoard."
    flags.DEFINE_integer("log_every", 10, rows, lower_bound=1, upper_bound=INT32_MAX)
    flags.DEFINE_float("checkpoint_minutes", 5.0, "Minutes between checkpoints; each epoch's end has one anyway.")
    flags.DEFINE_enum(
        "distribute",
        "auto",
        ["auto", "none", "mirrored", "multi_worker"],
        "Devices to train on: this machine's GPUs, or the machines that TF_CONFIG names; auto is all there are.",
    )
    flags.DEFINE_bool("sync_batch_norm", True, "Batch statistics over all devices' images, not over each one's.")
    flags.DEFINE_bool("jit_compile", False, "Compile the training step with XLA. For a single GPU.")
    flags.DEFINE_bool("keep_cycles", True, "Keep the weights at each cycle's end, for evaluate.py --snapshots.")
    flags.DEFINE_bool("export", True, "Export the trained network as a SavedModel and as a Keras model.")
    flags.DEFINE_bool("export_only", False, "Export the run's newest checkpoint, and do not train.")
    flags.DEFINE_bool("tflite", False, "Export TFLite files too, in float32 and in 8 bits; also with --export_only.")

    _check("learning_rate", lambda value: 0 < value < FLOAT32_MAX, "must be positive and finite in float32")
    _check("momentum", lambda value: value is None or 0 <= value < 1, "must be at least 0 and under 1")
    _check("weight_decay", lambda value: 0 <= value < FLOAT32_MAX, "must be finite in float32 and not negative")
    _check("clip_norm", lambda value: 0 < value < FLOAT32_MAX, "must be positive and finite in float32")
    _check("checkpoint_minutes", lambda value: 0 <= value < float("inf"), "must be finite and not negative")


def define_evaluate_flags() -> None:
    """The flags of evaluate.py."""
    define_data_flags()
    flags.DEFINE_enum("dataset", None, DATASETS, "By default the run's own, or full without a run.")
    flags.DEFINE_string("run_dir", None, "The run whose newest checkpoint to score.")
    flags.DEFINE_string("saved_model", None, "The SavedModel to score, instead of a run.")
    flags.DEFINE_string("tflite", None, "The TFLite file to score, instead of a run.")
    flags.DEFINE_enum(
        "split", "validation", ["validation", "test", "train"], "The images to score; test has no labels."
    )
    flags.DEFINE_bool("ten_crop", False, "Average the softmax over the ten crops; only with --run_dir.")
    flags.DEFINE_integer(
        "snapshots",
        1,
        "Average the softmax over the run's weights at the end of its last M cycles; 1 is the newest checkpoint.",
        lower_bound=1,
        upper_bound=INT32_MAX,
    )
    flags.DEFINE_string(
        "predictions", None, "File for the challenge's predictions, a line an image; - for the terminal."
    )
    images = "Images a batch; has no bearing on the result."
    flags.DEFINE_integer("batch_size", 250, images, lower_bound=1, upper_bound=INT32_MAX)
    result = "evaluation.json beside the weights, or evaluation_NAME.json beside a TFLite file NAME"
    flags.DEFINE_string("output", None, f"Where to write the result; by default {result}.")

    flags.mark_flags_as_mutual_exclusive(["run_dir", "saved_model", "tflite"], required=True)
    _check_all(["split", "predictions"], lambda v: v["split"] != "test" or v["predictions"], "test needs --predictions")
    _check_all(["ten_crop", "run_dir"], lambda v: not v["ten_crop"] or v["run_dir"], "needs --run_dir")
    _check_all(["snapshots", "run_dir"], lambda v: v["snapshots"] == 1 or v["run_dir"], "needs --run_dir")


def define_predict_flags() -> None:
    """Defines the flags of predict.py."""
    flags.DEFINE_list(
        "pictures", [], "Pictures and folders of pictures; they may also follow the flags without a name."
    )
    flags.DEFINE_enum("model", "resnet20", list(models.REGISTRY), "Network to use, by the weights in weights/.")
    flags.DEFINE_string("run_dir", None, "Run to use, by its model.keras, instead of a model.")
    flags.DEFINE_string("saved_model", None, "SavedModel to use, instead of a model.")
    flags.DEFINE_string("tflite", None, "TFLite file to use, instead of a model.")
    flags.DEFINE_string("csv", None, "File for the results, a row for each picture. By default, they are printed.")
    images = "Pictures per batch. It does not change the result."
    flags.DEFINE_integer("batch_size", 250, images, lower_bound=1, upper_bound=INT32_MAX)

    flags.mark_flags_as_mutual_exclusive(["run_dir", "saved_model", "tflite"])


def define_report_flags() -> None:
    """The flags of report.py."""
    define_data_flags()
    flags.DEFINE_list("runs", None, "The run directories to compare: patterns, separated by commas or spaces.")
    flags.DEFINE_string("mistakes", None, "The run whose mistakes on validation to analyse, instead of a comparison.")
    flags.DEFINE_string("out", None, "Folder to write to; by default results, or mistakes in the run's own.")

    flags.mark_flags_as_mutual_exclusive(["runs", "mistakes"], required=True)


def _check(name: str, valid: Callable[[float], bool], message: str) -> None:
    flags.register_validator(name, valid, f"--{name} {message}")


def _check_all(names: list[str], valid: Callable[[dict], bool], message: str) -> None:
    flags.register_multi_flags_validator(names, valid, f"--{names[0]}: {message}")


def _parse(argv: list[str]) -> list[str]:
    program = pathlib.Path(argv[0]).name
    try:
        FLAGS.set_gnu_getopt(True)  # Where the shell has expanded --runs, flags may follow its directories.
        extra = FLAGS(argv)[1:]
    except flags.Error as error:
        message = " ".join(str(error).split())
        print(f"{program}: {message} (see --help)", file=sys.stderr)
        sys.exit(2)
    if extra and "runs" in FLAGS and FLAGS.runs:
        FLAGS.runs += extra
    elif extra and "pictures" in FLAGS:
        FLAGS.pictures += extra
    elif extra:
        print(f"{program}: {extra[0]!r} is not a flag (see --help)", file=sys.stderr)
        sys.exit(2)
    for name in filter(FLAGS.__contains__, PATHS):
        if FLAGS[name].value == "" or "\0" in str(FLAGS[name].value):
            print(f"{program}: --{name} must be a path, without a NUL (see --help)", file=sys.stderr)
            sys.exit(2)
    for name in PATHS:
        if name in FLAGS and isinstance(FLAGS[name].value, str):  # train.py's --tflite is no path.
            FLAGS[name].value = os.path.expanduser(FLAGS[name].value)
    return argv[:1]


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Runs a program as absl does, but tells what a user can mend in one line, with exit status 1, or 2 for a flag."""

    def guarded(argv):
        import tensorflow as tf

        if not FLAGS["verbosity"].present:  # absl's own default would let through every note of TFDS'.
            logging.set_verbosity(logging.WARNING)
        try:
            main(argv)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except tf.errors.ResourceExhaustedError as error:  # TensorFlow's for a full disk too.
            full = os.strerror(errno.ENOSPC) in str(error)
            fail(argv, error if full else "out of memory: try a smaller --batch_size")
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
            fail(argv, "another worker was lost: start all of them again, and the run goes on from its last checkpoint")
        except (UserError, OSError, ValueError, ArithmeticError, RuntimeError, tf.errors.OpError) as error:
            fail(argv, error)

    def fail(argv, error):
        start = "\n" if sys.stdout.isatty() else ""  # The progress line has no end.
        print(f"{start}{pathlib.Path(argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)

    app.run(guarded, argv, flags_parser=_parse)
