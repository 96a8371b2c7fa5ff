"""Trains a network on Tiny ImageNet: python train.py --model=googlenet --learning_rate=0.1"""

from training import cli  # noqa: I001  # It loads TensorFlow, so it comes first.

import pathlib
import shlex
import tempfile

import keras
import tensorflow as tf

import flags
import models
from deployment import export
from flags import FLAGS
from models import cost
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import checkpoints, distribution, evaluation, provenance, run_directory
from training.files import read_json, write_json
from training.reporter import Reporter
from training.schedule import Schedule
from training.step import create_trainer, default_precision
from training.stop_request import StopRequest
from training.stopwatch import Stopwatch


# The flags that config.json holds as they are.
RECORDED = (
    "model",
    "dataset",
    "learning_rate",
    "batch_size",
    "num_epochs",
    "num_cycles",
    "nesterov",
    "augmentation",
    "dropout",
    "weight_decay",
    "clip_norm",
    "seed",
    "sync_batch_norm",
)


def configuration(run_dir: pathlib.Path, excluded: set[str]) -> dict:
    """Returns the content of config.json: the settings that a resumed run must keep."""
    config = {key: FLAGS[key].value for key in RECORDED}
    config["exclude"] = run_directory.describe_exclusion(FLAGS.exclude, excluded) if excluded else ""
    config["momentum"] = models.REGISTRY[FLAGS.model].momentum if FLAGS.momentum is None else FLAGS.momentum
    config["precision"] = FLAGS.precision
    if FLAGS.precision == "auto":  # A resumed run keeps its precision, whatever machine it moves to.
        resumed = run_directory.has_run(run_dir) and not FLAGS.overwrite
        kept = run_directory.read_config(run_dir) if resumed else {}
        config["precision"] = kept.get("precision") or default_precision()
    return config


def excluded_ids() -> set[str]:
    """Returns the ids of the training images that the file of --exclude names; none without the flag.

    Raises:
      UserError: if it names none.
    """
    if not FLAGS.exclude:
        return set()
    ids = set(pathlib.Path(FLAGS.exclude).read_text(errors="replace").split())
    if not ids:
        raise UserError(f"{FLAGS.exclude} is empty: drop --exclude")
    return ids


def main(_) -> None:
    run_dir = pathlib.Path(FLAGS.run_dir or f"runs/{FLAGS.model}")
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = distribution.get_strategy(FLAGS.distribute)  # Several workers meet here, before anything else.
    excluded = excluded_ids()
    config = configuration(run_dir, excluded)
    if not FLAGS.overwrite:
        asked = FLAGS["num_cycles"].present > 0
        run_directory.check_config(run_dir, config, resume=FLAGS.resume, may_change_cycles=asked)
        if is_finished(run_dir, config, len(excluded)):
            print(f"{run_dir} is finished: {config['num_epochs']} epochs are done. Raise --num_epochs to train on.")
            print_next_steps(run_dir)
            return
    # With several workers, only the chief writes to run_dir. The others write to a temporary folder.
    chief = distribution.is_chief(strategy)
    scratch = None if chief else tempfile.TemporaryDirectory()
    out_dir = run_dir if chief else pathlib.Path(scratch.name)
    with run_directory.lock(out_dir), distribution.report_lost_workers(strategy):
        train(config, excluded, strategy, run_dir, out_dir)


def is_finished(run_dir: pathlib.Path, config: dict, num_excluded: int) -> bool:
    """Returns whether the run has done all of its steps, and is scored and exported as the flags ask."""
    size = input_pipeline.train_size(config["dataset"]) - num_excluded
    num_steps = Schedule(config["num_epochs"], size, config["batch_size"], config["num_cycles"]).num_steps
    if read_json(run_dir / "time.json").get("finished_step") != num_steps:
        return False
    if FLAGS.export:
        names = ["saved_model", "model.keras", "classes.json", *(["model_int8.tflite"] if FLAGS.tflite else [])]
        if not all((run_dir / name).exists() for name in names):
            return False
    scores = ["evaluation.json"]
    if FLAGS.final_scores:
        scores += ["evaluation_ten_crop.json", "evaluation_train_ten_crop.json"]
    return all(read_json(run_dir / name).get("step") == num_steps for name in scores)


def print_next_steps(run_dir: pathlib.Path) -> None:
    quoted = shlex.quote(str(run_dir))
    print(f"Look at the curves:   tensorboard --logdir {quoted}")
    if not FLAGS.final_scores:
        print(f"Score the ten crops:  python evaluate.py --run_dir={quoted} --ten_crop{flags.data_arguments()}")
    print(f"Write the report:     python report.py --runs={quoted}")


def load_data(run_dir: pathlib.Path) -> input_pipeline.TinyImageNet:
    """Loads the data, its classes in the order that the run in run_dir has them in, if any."""
    data = input_pipeline.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.archive)
    resumed = run_directory.has_run(run_dir) and not FLAGS.overwrite
    return data.in_order_of(export.wnids_of(run_dir)) if resumed else data


def train(
    config: dict, excluded: set[str], strategy: tf.distribute.Strategy, run_dir: pathlib.Path, out_dir: pathlib.Path
) -> None:
    """Trains from the newest checkpoint in run_dir, if any, to the end of the run, and writes to out_dir."""
    data = load_data(run_dir)
    train_split = data.splits["train"].without(excluded) if excluded else data.splits["train"]
    schedule = Schedule(FLAGS.num_epochs, len(train_split), FLAGS.batch_size, FLAGS.num_cycles)
    check_schedule(schedule, strategy.num_replicas_in_sync)
    if FLAGS.overwrite and out_dir == run_dir:
        run_directory.remove_run(run_dir)
    with strategy.scope():
        trainer = create_trainer(config, data.mean_image, schedule.cycle_steps, FLAGS.jit_compile)
    saved = checkpoints.Checkpoints(out_dir, trainer)
    if not FLAGS.overwrite:  # Another worker may still be removing the run.
        saved.restore(run_dir)
    devices = start_run(config, trainer.model, distribution.describe_devices(strategy), out_dir, saved, schedule)
    export.write_classes(out_dir, data)
    stopwatch = Stopwatch(saved.seconds)
    reporter = Reporter(out_dir, saved.step, schedule, stopwatch)
    stop = StopRequest(strategy, reporter.say, FLAGS.overwrite)
    classify = distribution.on_every_device(evaluation.classifier(trainer.model, data.mean_image), strategy)

    def validate(step):
        with stop.at_once(step):
            reporter.validation(step, evaluation.score(classify, data.splits["validation"], show_bar=False))

    step = saved.step
    if step in schedule.epoch_ends:  # The run was stopped between the epoch's last checkpoint and its validation.
        validate(step)
    stopwatch.restart()
    for images, crop_index, labels in training_batches(strategy, train_split, step, schedule.num_steps):
        if step == 0:
            reporter.start(run_dir.resolve().name, config, strategy.experimental_local_results(images)[0].numpy())
        trainer.train_step(images, crop_index, labels)
        stopwatch.count()
        step += 1
        epoch_ended, cycle_ended = step in schedule.epoch_ends, step in schedule.cycle_ends
        logged = epoch_ended or step % FLAGS.log_every == 0
        reporter.training(step, trainer, logged)
        stopping = stop.received(exchange=logged or cycle_ended)
        if epoch_ended or cycle_ended or stopping or saved.minutes_since_save() >= FLAGS.checkpoint_minutes:
            trainer.check()  # No diverged state is saved.
            stopwatch.count()
            if cycle_ended and FLAGS.keep_snapshots:
                saved.save_snapshot()
            reporter.flush()
            write_json(out_dir / "config.json", config)
            saved.save(stopwatch.seconds)
            write_time(out_dir, saved, devices)
        if stopping:
            stop.leave(step)
        if epoch_ended:
            validate(step)
        stopwatch.restart()
    with stop.at_once(step, others_wait=False):
        reporter.close()
        if out_dir == run_dir:
            reporter.say(f"trained for {stopwatch}; {'exporting and ' if FLAGS.export else ''}scoring")
            finish(trainer.model, data, run_dir, step)


def check_schedule(schedule: Schedule, replicas: int) -> None:
    """Raises UserError if the flags do not fit the data, the devices or each other."""
    if schedule.batch_size % replicas:
        raise UserError(f"--batch_size={schedule.batch_size} must be a multiple of the {replicas} devices")
    if schedule.batch_size > schedule.data_size:
        raise UserError(f"--batch_size={schedule.batch_size} is more than the {schedule.data_size} training images")
    if schedule.num_cycles > schedule.num_steps:
        raise UserError(f"--num_cycles={schedule.num_cycles} is more than the run's {schedule.num_steps} steps")
    if FLAGS.jit_compile and FLAGS.sync_batch_norm and replicas > 1:
        raise UserError("--jit_compile cannot compile --sync_batch_norm on several devices: drop one of the two")


def start_run(
    config: dict,
    model: keras.Model,
    device: str,
    out_dir: pathlib.Path,
    saved: checkpoints.Checkpoints,
    schedule: Schedule,
) -> list[str]:
    """Says what is trained, and makes the run directory ready for the steps after the newest checkpoint.

    Returns:
      The devices of all training.
    """
    size = cost.parameters(model)
    print(f"{FLAGS.model}: {size:,} parameters, in {config['precision']} on {device}, to {out_dir}")
    print(f"{saved.step} of {schedule.num_steps} steps done", flush=True)
    starts = provenance.record(out_dir, saved.step, device)
    # A start after the last step only exports and scores.
    devices = list(dict.fromkeys(start["device"] for start in starts if start["step"] < schedule.num_steps))
    if saved.step == 0:  # A resumed run may have changed its length, which counts from its next checkpoint on.
        write_json(out_dir / "config.json", config)
        return devices
    if saved.step + 1 in schedule.cycle_ends and saved.step not in schedule.cycle_ends:
        saved.remove_snapshot(saved.step)  # The run's length cut its last cycle, which now ends a step later.
    if saved.step < schedule.num_steps:
        run_directory.remove_outdated(out_dir)
    write_time(out_dir, saved, devices)  # The run may have been killed between its checkpoint and this file.
    return devices


def write_time(out_dir: pathlib.Path, saved: checkpoints.Checkpoints, devices: list[str]) -> None:
    time = {"seconds": saved.seconds, "steps": saved.step, "device": ", then ".join(devices)}
    write_json(out_dir / "time.json", time)


def training_batches(strategy: tf.distribute.Strategy, split: input_pipeline.Split, start: int, stop: int):
    """Returns the batches of the steps range(start, stop), counted from 0, on the strategy's devices."""

    def batches(context):
        return input_pipeline.train_batches(
            split, FLAGS.batch_size, FLAGS.seed, start, stop, context, FLAGS.augmentation
        )

    return distribution.on_device(strategy.distribute_datasets_from_function(batches), strategy)


def finish(model: keras.Model, data: input_pipeline.TinyImageNet, run_dir: pathlib.Path, step: int) -> None:
    """Exports and scores a trained network, and records in time.json that its run is finished."""
    model = export.inference_model(model)
    if FLAGS.export:
        export.export(model, data, run_dir, FLAGS.tflite)
    finals = [("evaluation", "validation", data.splits["validation"], False)]
    if FLAGS.final_scores:  # The paper's Table 3.
        sample = data.splits["train"].sample(evaluation.TRAINING_SAMPLE, evaluation.SAMPLE_SEED)
        finals.append(("evaluation_ten_crop", "validation", data.splits["validation"], True))
        finals.append(("evaluation_train_ten_crop", "train", sample, True))
    for name, split_name, split, ten_crop in finals:
        if read_json(run_dir / f"{name}.json").get("step") == step:
            continue  # An earlier start was stopped while it scored.
        scores = evaluation.score(evaluation.classifier(model, data.mean_image, ten_crop), split)
        result = evaluation.result(scores, FLAGS.dataset, split_name, split, step, ten_crop)
        write_json(run_dir / f"{name}.json", result)
        how = "ten crops" if ten_crop else "centre crop"
        print(f"{split_name}, {how}: top-1 {scores['top_1']:.2%}, top-5 {scores['top_5']:.2%}", flush=True)
    time = read_json(run_dir / "time.json")
    write_json(run_dir / "time.json", time | {"finished_step": step})
    print_next_steps(run_dir)


if __name__ == "__main__":
    flags.define_train_flags()
    cli.run(main)
