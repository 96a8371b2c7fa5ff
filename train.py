"""Trains one of the paper's networks on Tiny ImageNet: python train.py --model=googlenet --learning_rate=0.1"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

import bisect
import datetime
import pathlib
import signal
import sys
import tempfile

import keras
import tensorflow as tf

import flags
import models
from flags import FLAGS
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import checkpoints, distribution, evaluation, export, schedule, summaries
from training.step import Trainer, resolve_precision


def configuration() -> dict:
    """What decides a run's course: what config.json holds, and a resumed run must agree on."""
    keys = "model dataset learning_rate batch_size num_epochs num_cycles nesterov weight_decay clip_norm seed log_every"
    momentum = models.REGISTRY[FLAGS.model].momentum if FLAGS.momentum is None else FLAGS.momentum
    precision = resolve_precision(FLAGS.precision)
    return {key: FLAGS[key].value for key in keys.split()} | {"momentum": momentum, "precision": precision}


def main(_) -> None:
    run_dir = pathlib.Path(FLAGS.run_dir or f"runs/{FLAGS.model}")
    if FLAGS.export_only:
        checkpoints.check_config(run_dir, {"model": FLAGS.model}, resume=True)
        model = checkpoints.load_model(run_dir)
        print(f"exporting to {run_dir}", flush=True)
        dataset = checkpoints.read_config(run_dir)["dataset"]
        with checkpoints.lock(run_dir):
            export.export(model, input_pipeline.load(dataset, FLAGS.data_dir, FLAGS.archive), run_dir, FLAGS.tflite)
        return
    strategy = distribution.get_strategy(FLAGS.distribute)  # Several workers meet here, before anything else.
    config = configuration()
    checkpoints.check_config(run_dir, config, FLAGS.resume)
    # Of several workers the first keeps what it writes; the others write to a folder that ends with them.
    chief = distribution.is_chief(strategy)
    scratch = None if chief else tempfile.TemporaryDirectory()
    out_dir = run_dir if chief else pathlib.Path(scratch.name)
    with checkpoints.lock(out_dir):
        train(config, strategy, run_dir, out_dir)


def train(config: dict, strategy: tf.distribute.Strategy, run_dir: pathlib.Path, out_dir: pathlib.Path) -> None:
    """Goes on with the run in run_dir from its last checkpoint, to its end; what it writes goes to out_dir."""
    data = input_pipeline.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.archive)
    training_split, validation = data.splits["train"], data.splits["validation"]
    length = (FLAGS.num_epochs, len(training_split), FLAGS.batch_size)
    num_steps = schedule.num_steps(*length)
    epoch_ends = schedule.epoch_ends(*length)
    cycle_ends = schedule.cycle_ends(*length, FLAGS.num_cycles)
    replicas = strategy.num_replicas_in_sync
    if FLAGS.batch_size > len(training_split):
        raise UserError(f"--batch_size={FLAGS.batch_size} is more than the {len(training_split)} training images")
    if FLAGS.batch_size % replicas:
        raise UserError(f"--batch_size={FLAGS.batch_size} cannot be shared evenly by {replicas} devices")
    if FLAGS.num_cycles > num_steps:
        raise UserError(f"--num_cycles={FLAGS.num_cycles} is more than the run's {num_steps} steps")

    keras.utils.set_random_seed(FLAGS.seed)
    keras.config.set_dtype_policy(config["precision"])
    with strategy.scope():
        model = models.build(FLAGS.model, training=True)
        trainer = Trainer(
            model,
            data.mean_image,
            learning_rate=FLAGS.learning_rate,
            cycle_steps=schedule.cycle_steps(*length, FLAGS.num_cycles),
            momentum=config["momentum"],
            nesterov=FLAGS.nesterov,
            weight_decay=FLAGS.weight_decay,
            clip_norm=FLAGS.clip_norm,
            sync_batch_norm=FLAGS.sync_batch_norm,
        )
    saved = checkpoints.Checkpoints(out_dir, trainer)
    saved.restore(run_dir)
    done = int(trainer.step.numpy())
    parameters = sum(weight.shape.num_elements() for weight in model.trainable_weights)
    device = distribution.describe_devices(strategy)
    print(f"{FLAGS.model}: {parameters:,} parameters, in {config['precision']} on {device}, to {run_dir}")
    print(f"{done} of {num_steps} steps done", flush=True)

    checkpoints.write_json(out_dir / "config.json", config)
    classify = evaluation.classifier(model, data.mean_image)
    metrics = summaries.Metrics(out_dir / "metrics.csv", done)
    board = summaries.TensorBoard(out_dir, done)
    progress = summaries.Progress(done, num_steps, FLAGS.batch_size)
    any_worker = distribution.any_worker(strategy)
    stop = []

    def ask_to_stop(signum, frame):
        stop.append(signum)
        signal.signal(signum, signal.SIG_DFL)  # The second one does not ask.
        if saved.step == done and any_worker is bool:  # There is nothing to save.
            leave()

    def leave():
        progress.say(f"stopped after step {done}: the same command goes on from there")
        sys.exit(128 + (stop or [signal.SIGTERM])[0])

    def validate():
        scores = evaluation.score(classify, validation)
        epoch = 1 + epoch_ends.index(done)
        metrics.append(step=done, epoch=epoch, **{f"validation_{name}": value for name, value in scores.items()})
        board.scalars("validation", done, **scores)
        board.flush()
        progress.say(f"epoch {epoch}: validation top-1 {scores['top_1']:.2%}, top-5 {scores['top_5']:.2%}")
        progress.restart(done)
        return scores

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, ask_to_stop)

    if done in epoch_ends:  # The checkpoint of an epoch's end is from before its validation.
        scores = validate()
    batches = strategy.distribute_datasets_from_function(
        lambda context: input_pipeline.train_batches(
            training_split, FLAGS.batch_size, FLAGS.seed, done, num_steps, context
        )
    )
    for images, which, labels in batches:
        if done == 0:
            board.start(config, strategy.experimental_local_results(images)[0].numpy())
        trainer.train_step(images, which, labels)
        done += 1
        epoch = 1 + bisect.bisect_left(epoch_ends, done)
        epoch_ended, cycle_ended = done in epoch_ends, done in cycle_ends
        logged = epoch_ended or done % FLAGS.log_every == 0

        if logged or progress.due():
            means = trainer.means()
            rate = float(trainer.learning_rate(done))
            progress.draw(done, epoch, rate, means["loss"], means["top_1"])
        if logged:
            metrics.append(step=done, epoch=epoch, learning_rate=rate, **means)
            speed = progress.images_per_second(done)
            board.scalars("train", done, learning_rate=rate, images_per_second=speed, **means)
            if config["precision"] == "mixed_float16":
                board.scalars("train", done, loss_scale=trainer.loss_scale, skipped_steps=trainer.skipped.numpy())
            trainer.reset_means()
            progress.restart(done)
        stopped = any_worker(stop)
        if epoch_ended or cycle_ended or stopped or saved.minutes_since_save() >= FLAGS.checkpoint_minutes:
            trainer.means()  # Nothing that has diverged is saved.
            if cycle_ended:
                saved.save_cycle(1 + cycle_ends.index(done))
            board.flush()
            saved.save()
            checkpoints.write_json(
                out_dir / "time.json", {"seconds": float(saved.seconds), "steps": done, "device": device}
            )
        if stopped:
            leave()
        if epoch_ended:
            scores = validate()

    if out_dir == run_dir:
        progress.say(f"trained for {datetime.timedelta(seconds=round(float(saved.seconds)))}; exporting to {run_dir}")
        checkpoints.write_json(run_dir / "evaluation.json", evaluation.result(scores, "validation", validation))
        export.export(model, data, run_dir, FLAGS.tflite)


if __name__ == "__main__":
    flags.define_train_flags()
    flags.run(main)
