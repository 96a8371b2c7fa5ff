"""Trains one of the paper's networks on Tiny ImageNet: python train.py --model=googlenet --learning_rate=0.1"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

import bisect
import datetime
import pathlib
import signal
import sys

import keras
import tensorflow as tf

import flags
import models
from flags import FLAGS
from tiny_imagenet import input_pipeline
from training import checkpoints, evaluation, export, schedule, summaries
from training.step import Trainer, resolve_precision


flags.define_train_flags()


def configuration() -> dict:
    """What decides a run's course: what config.json holds, and a resumed run must agree on."""
    keys = "model dataset learning_rate batch_size num_epochs num_cycles weight_decay clip_norm seed log_every"
    momentum = flags.MOMENTUM[FLAGS.model] if FLAGS.momentum is None else FLAGS.momentum
    precision = resolve_precision(FLAGS.precision)
    return {key: FLAGS[key].value for key in keys.split()} | {"momentum": momentum, "precision": precision}


def main(_) -> None:
    run_dir = pathlib.Path(FLAGS.run_dir or f"runs/{FLAGS.model}")
    if FLAGS.export_only:
        checkpoints.check_config(run_dir, {"model": FLAGS.model}, resume=True)
        model = checkpoints.load_model(run_dir)
        print(f"exporting to {run_dir}", flush=True)
        dataset = checkpoints.read_config(run_dir)["dataset"]
        export.export(model, input_pipeline.load(dataset, FLAGS.data_dir, FLAGS.archive), run_dir, FLAGS.tflite)
        return
    config = configuration()
    checkpoints.check_config(run_dir, config, FLAGS.resume)

    data = input_pipeline.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.archive)
    train, validation = data.splits["train"], data.splits["validation"]
    length = (FLAGS.num_epochs, len(train), FLAGS.batch_size)
    num_steps = schedule.num_steps(*length)
    epoch_ends = schedule.epoch_ends(*length)
    cycle_ends = schedule.cycle_ends(*length, FLAGS.num_cycles)
    if FLAGS.batch_size > len(train):
        raise ValueError(f"--batch_size={FLAGS.batch_size} is more than the {len(train)} training images")
    if FLAGS.num_cycles > num_steps:
        raise ValueError(f"--num_cycles={FLAGS.num_cycles} is more than the run's {num_steps} steps")

    keras.utils.set_random_seed(FLAGS.seed)
    keras.config.set_dtype_policy(config["precision"])
    model = models.build(FLAGS.model, **models.FOR_TRAINING.get(FLAGS.model, {}))
    trainer = Trainer(
        model,
        data.mean_image,
        learning_rate=FLAGS.learning_rate,
        cycle_steps=schedule.cycle_steps(*length, FLAGS.num_cycles),
        momentum=config["momentum"],
        weight_decay=FLAGS.weight_decay,
        clip_norm=FLAGS.clip_norm,
    )
    saved = checkpoints.Checkpoints(run_dir, trainer)
    saved.restore()
    done = int(trainer.step)
    parameters = sum(weight.shape.num_elements() for weight in model.trainable_weights)
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    device = gpus[0].get("device_name", "a GPU") if gpus else "the CPU"
    print(f"{FLAGS.model}: {parameters:,} parameters, in {config['precision']} on {device}, to {run_dir}")
    print(f"{done} of {num_steps} steps done", flush=True)

    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoints.write_json(run_dir / "config.json", config)
    classify = evaluation.classifier(model, data.mean_image)
    metrics = summaries.Metrics(run_dir / "metrics.csv", done)
    board = summaries.TensorBoard(run_dir)
    progress = summaries.Progress(done, num_steps, FLAGS.batch_size)
    scores = None
    stop = []

    def ask_to_stop(signum, frame):
        stop.append(signum)
        signal.signal(signum, signal.SIG_DFL)  # The second one does not ask.

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, ask_to_stop)

    for images, which, labels in input_pipeline.train_batches(train, FLAGS.batch_size, FLAGS.seed, done, num_steps):
        if done == 0:
            board.start(config, images.numpy())
        trainer.train_step(images, which, labels)
        done += 1
        epoch = 1 + bisect.bisect_left(epoch_ends, done)
        epoch_ended = done in epoch_ends
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
                board.scalars("train", done, loss_scale=trainer.loss_scale, skipped_steps=trainer.skipped)
            trainer.reset_means()
            progress.restart(done)
        if epoch_ended:
            scores = evaluation.score(classify, validation)
            metrics.append(step=done, epoch=epoch, **{f"validation_{name}": value for name, value in scores.items()})
            board.scalars("validation", done, **scores)
            progress.say(f"epoch {epoch}: validation top-1 {scores['top_1']:.2%}, top-5 {scores['top_5']:.2%}")
            progress.restart(done)
        cycle_ended = done in cycle_ends
        if epoch_ended or cycle_ended or stop or saved.minutes_since_save() >= FLAGS.checkpoint_minutes:
            trainer.means()  # Nothing that has diverged is saved.
            if cycle_ended:
                saved.save_cycle(1 + cycle_ends.index(done))
            board.flush()
            saved.save()
        if stop:
            progress.say(f"stopped after step {done}: the same command goes on from there")
            sys.exit(128 + stop[0])

    if scores is None:  # The run had ended before, perhaps just short of what follows.
        scores = evaluation.score(classify, validation)
    progress.say(f"trained for {datetime.timedelta(seconds=round(float(saved.seconds)))}; exporting to {run_dir}")
    checkpoints.write_json(run_dir / "evaluation.json", evaluation.result(scores, "validation", validation))
    export.export(model, data, run_dir, FLAGS.tflite)


if __name__ == "__main__":
    flags.run(main)
