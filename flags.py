"""Every flag of the programs, with the paper's values as defaults, and the checks of their values."""

import os
import shlex
from collections.abc import Callable

from absl import flags

import models
from tiny_imagenet.input_pipeline import AUGMENTATIONS, DATASETS

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # The flags belong to the program that defines them, whose --help lists them.

INT32_MAX, FLOAT32_MAX = 2**31 - 1, 3.4e38


def define_data_flags() -> None:
    """Defines the flags of every program that reads the dataset."""
    _define_path(
        "data_dir", "Folder for the prepared data. Default: that of TFDS, $TFDS_DATA_DIR or ~/tensorflow_datasets."
    )
    _define_path("archive", "tiny-imagenet-200.zip or its folder, read to prepare the data. Default: download it.")


def data_arguments() -> str:
    """Returns the flags of `define_data_flags` that were given, to add to a command that is printed."""
    given = {name: FLAGS[name].value for name in ("data_dir", "archive") if FLAGS[name].value}
    return "".join(f" --{name}={shlex.quote(value)}" for name, value in given.items())


def define_train_flags() -> None:
    """Defines the flags of train.py."""
    define_data_flags()
    _define_recipe_flags()
    _define_run_flags()
    _check_train_flags()


def _define_recipe_flags() -> None:
    """Defines what a run trains, by the paper's settings."""
    flags.DEFINE_enum(
        "dataset", "full", DATASETS, "Data to train on: full is Tiny ImageNet, synthetic is shapes drawn by code."
    )
    flags.DEFINE_enum("model", None, list(models.REGISTRY), "Network to train.")
    flags.DEFINE_float("learning_rate", 0.1, "Learning rate at the start of each cycle.")
    flags.DEFINE_integer("batch_size", 256, "Images per step.", lower_bound=1, upper_bound=INT32_MAX)
    flags.DEFINE_integer("num_epochs", 10, "Passes over the training images.", lower_bound=1, upper_bound=10**6)
    cycles = "Cosine cycles of the learning rate over the whole run."
    flags.DEFINE_integer("num_cycles", 5, cycles, lower_bound=1, upper_bound=10**6)
    without = ", ".join(name for name, network in models.REGISTRY.items() if not network.momentum)
    flags.DEFINE_float("momentum", None, f"Momentum of SGD. Default: 0.9, or 0 for {without}.")
    flags.DEFINE_bool("nesterov", True, "Use Nesterov momentum, as the paper's reference [11] does.")
    flags.DEFINE_enum(
        "augmentation",
        "ten_crop",
        AUGMENTATIONS,
        "Crops to train on. ten_crop: one of the paper's ten of each image in every step, at random; uniform: one of "
        "those at all 81 offsets, mirrored or not, as in the paper's reference [11]; all_crops: all ten, which takes "
        "ten times the time and memory.",
    )
    _define_path(
        "exclude",
        "Text file with the ids of training images to leave out, such as n01443537_0.JPEG, one per line. They still "
        "count in the mean image and in the score of the training images.",
    )
    flags.DEFINE_float("dropout", 0.0, "Dropout rate, for the networks that have a place for it.")
    flags.DEFINE_float("weight_decay", 1e-4, "Factor of the L2 loss, sum(w^2)/2 over the kernels.")
    flags.DEFINE_float(
        "clip_norm", 10.0, "Largest global norm of the gradients; larger gradients are scaled down to it."
    )
    flags.DEFINE_enum(
        "precision",
        "auto",
        ["auto", "float32", "mixed_float16", "mixed_bfloat16"],
        "Keras' dtype policy. auto is mixed_float16 on a GPU, mixed_bfloat16 on an x86 CPU with instructions for "
        "it (on Linux), else float32; a resumed run keeps its own.",
    )
    seeded = "Seed of the weights, the order of the images, the crops and dropout."
    flags.DEFINE_integer("seed", 0, seeded, lower_bound=0, upper_bound=2**32 - 1)
    flags.DEFINE_bool(
        "sync_batch_norm",
        False,
        "On several devices, batch normalization uses the statistics of the whole batch, as on a single device, not "
        "those of each device's part. Slower.",
    )


def _define_run_flags() -> None:
    """Defines where and how a run trains, and what it keeps."""
    _define_path("run_dir", "Folder for the run's checkpoints and results. Default: runs/MODEL.")
    flags.DEFINE_bool(
        "resume", True, "Resume the run in run_dir; --noresume stops with an error if run_dir holds a run."
    )
    flags.DEFINE_bool("overwrite", False, "Delete the run in run_dir, and start a new one.")
    rows = "Steps between the rows of metrics.csv and the points in TensorBoard."
    flags.DEFINE_integer("log_every", 10, rows, lower_bound=1, upper_bound=INT32_MAX)
    flags.DEFINE_float("checkpoint_minutes", 5.0, "Minutes between checkpoints. Each epoch ends with one, too.")
    flags.DEFINE_enum(
        "distribute",
        "auto",
        ["auto", "none", "mirrored", "multi_worker"],
        "none: one device; mirrored: all GPUs of this machine; multi_worker: the machines in TF_CONFIG; auto: all "
        "available.",
    )
    flags.DEFINE_bool("jit_compile", False, "Compile the loss and its gradients with XLA.")
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Use only deterministic kernels: meant to make resumed runs bit-identical on a GPU too, not tested. Slower.",
    )
    flags.DEFINE_bool("keep_snapshots", True, "Keep the weights at the end of each cycle, for evaluate.py --snapshots.")
    flags.DEFINE_bool(
        "final_scores",
        True,
        "Score the trained network by ten crops too, on the validation images and on 10,000 training images.",
    )
    flags.DEFINE_bool("export", True, "Export the trained network as a SavedModel and as a Keras model.")
    flags.DEFINE_bool("tflite", False, "Also export TFLite files, in float32 and in 8 bits.")


def _check_train_flags() -> None:
    _check_all(["tflite", "export"], lambda v: not v["tflite"] or v["export"], "needs --export")
    _check("model", lambda value: value is not None, f"is required: one of {', '.join(models.REGISTRY)}")
    _check_no_pattern("run_dir")
    _check_all(
        ["jit_compile", "deterministic"],
        lambda v: not (v["jit_compile"] and v["deterministic"]),
        "XLA has no deterministic kernel for the gradient of max pooling: drop --deterministic or --jit_compile",
    )
    _check("learning_rate", lambda value: 0 < value < FLOAT32_MAX, "must be positive and finite in float32")
    _check("momentum", lambda value: value is None or 0 <= value < 1, "must be at least 0 and less than 1")
    _check("dropout", lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
    places = [name for name, network in models.REGISTRY.items() if "dropout" in network.arguments()]
    _check_all(
        ["dropout", "model"],
        lambda v: not v["dropout"] or v["model"] in (None, *places),
        f"{', '.join(places)} have a place for it",
    )
    _check("weight_decay", lambda value: 0 <= value < FLOAT32_MAX, "must be at least 0 and finite in float32")
    _check("clip_norm", lambda value: 0 < value < FLOAT32_MAX, "must be positive and finite in float32")
    _check("checkpoint_minutes", lambda value: 0 <= value < float("inf"), "must be at least 0 and finite")


def define_evaluate_flags() -> None:
    """Defines the flags of evaluate.py."""
    define_data_flags()
    flags.DEFINE_enum(
        "dataset",
        None,
        DATASETS,
        "Dataset to score a file on; a run has its own. Default: that of the file's run, or full.",
    )
    _define_path("run_dir", "Run to evaluate, by its newest checkpoint.")
    _define_path("weights", "A .weights.h5 file, or tiny_imagenet for weights/, instead of a run. Needs --model.")
    flags.DEFINE_enum("model", None, list(models.REGISTRY), "Network that --weights belongs to.")
    _define_path("saved_model", "SavedModel to evaluate, instead of a run.")
    _define_path("tflite", "TFLite file to evaluate, instead of a run.")
    flags.DEFINE_enum(
        "split", "validation", ["validation", "test", "train"], "Images to evaluate; those of test have no labels."
    )
    images = "Score this many images, drawn at random. Needs --split=train. By default, all."
    flags.DEFINE_integer("images", None, images, lower_bound=1, upper_bound=INT32_MAX)
    flags.DEFINE_bool("ten_crop", False, "Average the softmax over the ten crops. Needs --run_dir or --weights.")
    flags.DEFINE_integer(
        "snapshots",
        1,
        "Average the softmax of the last N cycles' snapshots; 1 uses the newest checkpoint.",
        lower_bound=1,
        upper_bound=INT32_MAX,
    )
    _define_path("predictions", "File for predictions in the format of the challenge, or - for standard output.")
    images = "Images per batch. It does not change the result."
    flags.DEFINE_integer("batch_size", 250, images, lower_bound=1, upper_bound=INT32_MAX)
    _define_path(
        "output",
        "File for the result. Default: evaluation.json in a run, evaluation_NAME.json beside a SavedModel or a file, "
        "or in the working directory for --weights=tiny_imagenet. "
        "The default name includes each setting (split, images, snapshots, crops) that differs from train.py's "
        "own scoring.",
    )

    _check_one_of("run_dir", "weights", "saved_model", "tflite")
    _check_all(["weights", "model"], lambda v: not v["weights"] or v["model"], "needs --model")
    _check_all(["model", "weights"], lambda v: not v["model"] or v["weights"], "needs --weights")
    _check_all(["split", "predictions"], lambda v: v["split"] != "test" or v["predictions"], "test needs --predictions")
    _check_all(["output", "split"], lambda v: not v["output"] or v["split"] != "test", "test has no scores to write")
    _check_all(["images", "split"], lambda v: v["images"] is None or v["split"] == "train", "needs --split=train")
    crops = ["ten_crop", "run_dir", "weights"]
    _check_all(crops, lambda v: not v["ten_crop"] or v["run_dir"] or v["weights"], "needs --run_dir or --weights")
    _check_all(["dataset", "run_dir"], lambda v: not (v["dataset"] and v["run_dir"]), "a run has its own")
    _check_all(["snapshots", "run_dir"], lambda v: v["snapshots"] == 1 or v["run_dir"], "needs --run_dir")
    _check_no_pattern("run_dir")
    _check_no_pattern("saved_model")


def define_export_flags() -> None:
    """Defines the flags of deployment/export.py."""
    define_data_flags()
    _define_path("run_dir", "Run whose newest checkpoint to export.", required=True)
    flags.DEFINE_bool("tflite", False, "Also export TFLite files, in float32 and in 8 bits.")
    _check_no_pattern("run_dir")


def define_compress_flags() -> None:
    """Defines the flags of deployment/compress.py."""
    define_data_flags()
    _define_path("run_dir", "Run whose network to compress.", required=True)
    flags.DEFINE_integer("num_epochs", 1, "Epochs of fine-tuning.", lower_bound=0, upper_bound=10**6)
    flags.DEFINE_float("learning_rate", 0.01, "Learning rate at the start of fine-tuning.")

    _check("learning_rate", lambda value: 0 < value < FLOAT32_MAX, "must be positive and finite in float32")
    _check_no_pattern("run_dir")


def define_ship_flags() -> None:
    """Defines the flags of deployment/ship.py."""
    _define_path("run_dir", "Run whose weights to add.", required=True)
    _check_no_pattern("run_dir")


def define_predict_flags() -> None:
    """Defines the flags of predict.py."""
    flags.DEFINE_list("pictures", [], "Pictures and folders of pictures; --pictures= may be omitted.")
    default = "Network to use, with its weights from weights/. Default: the one that scores best."
    flags.DEFINE_enum("model", None, list(models.REGISTRY), default)
    _define_path("weights", "A .weights.h5 file of the model to use. Default: the one in weights/.")
    _define_path("run_dir", "Run to use, by its model.keras, instead of a model.")
    _define_path("saved_model", "SavedModel to use, instead of a model.")
    _define_path("tflite", "TFLite file to use, instead of a model.")
    _define_path("csv", "File for the results, a row for each picture. By default, they are printed.")
    images = "Pictures per batch. It does not change the result."
    flags.DEFINE_integer("batch_size", 250, images, lower_bound=1, upper_bound=INT32_MAX)

    flags.mark_flags_as_mutual_exclusive(["model", "run_dir", "saved_model", "tflite"])
    _check_all(["weights", "model"], lambda v: not v["weights"] or v["model"], "needs --model")
    _check_no_pattern("saved_model")


def define_report_flags() -> None:
    """Defines the flags of report.py."""
    define_data_flags()
    flags.DEFINE_list("runs", None, "Run directories to compare, as paths or patterns, separated by commas or spaces.")
    _define_path(
        "mistakes",
        "A run whose mistakes on the validation images to analyse, instead of --runs, or the name of a network with "
        "trained weights in weights/.",
    )
    _define_path(
        "out",
        "Folder to write to. Default: report beside the runs, or mistakes in the run that --mistakes names (for a "
        "network: in the working directory).",
    )

    flags.mark_flags_as_mutual_exclusive(["runs", "mistakes"], required=True)
    _check_no_pattern("mistakes")


def define_exclusion_flags() -> None:
    """Defines the flags of reporting/exclusion.py."""
    define_data_flags()
    flags.DEFINE_enum("dataset", "full", DATASETS, "Data whose training images to choose from.")
    _define_path("out", "Folder of the files, and of the two runs.", required=True)
    flags.DEFINE_float("percent", 5.0, "Percentage of the training images to choose.")

    _check("percent", lambda value: 0.1 <= value <= 50, "must be from 0.1 to 50")  # Unlike a bound, refuses NaN.


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        if not argument or "\0" in argument:
            raise ValueError("must be a path, without NUL characters")
        try:
            argument.encode()
        except UnicodeEncodeError:  # TensorFlow takes no other.
            raise ValueError("must be a path in UTF-8: rename it") from None
        path = os.path.expanduser(argument)
        if path.startswith("~"):
            raise ValueError("names a home folder that is not known: pass a whole path")
        return path


def _define_path(name: str, text: str, **options) -> None:
    flags.DEFINE(_PathParser(), name, None, text, serializer=flags.ArgumentSerializer(), **options)


def _check(name: str, valid: Callable[[object], bool], message: str) -> None:
    flags.register_validator(name, valid, f"--{name} {message}")


def _check_no_pattern(name: str) -> None:
    message = "must not contain *, ? or [: TensorFlow treats the names of checkpoints as patterns"
    _check(name, lambda value: not set("*?[") & set(value or ""), message)


def _check_all(names: list[str], valid: Callable[[dict], bool], message: str) -> None:
    flags.register_multi_flags_validator(names, valid, f"--{names[0]}: {message}")


def _check_one_of(*names: str) -> None:
    message = f"give exactly one of {', '.join(f'--{name}' for name in names)}"
    flags.register_multi_flags_validator(names, lambda v: sum(v[name] is not None for name in names) == 1, message)
