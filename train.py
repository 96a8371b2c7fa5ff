"""Trains a network on Tiny ImageNet: python train.py --model=googlenet --learning_rate=0.1"""

import training  # noqa: F401, I001  # It sets TensorFlow's environment, so it comes before TensorFlow.

import bisect
import pathlib
import signal
import sys
import tempfile

import keras
import tensorflow as tf

import flags
import models
from flags import FLAGS
from models import cost
from tiny_imagenet import input_pipeline
from tiny_imagenet.errors import UserError
from training import checkpoints, distribution, evaluation, export, provenance, schedule, summaries
from training.step import Trainer, default_precision


def configuration(run_dir: pathlib.Path) -> dict:
    """Returns the content of config.json: the settings that a resumed run must keep."""
    keys = "model dataset learning_rate batch_size num_epochs num_cycles nesterov all_crops weight_decay clip_norm seed"
    config = {key: FLAGS[key].value for key in [*keys.split(), "sync_batch_norm"]}
    config["momentum"] = models.REGISTRY[FLAGS.model].momentum if FLAGS.momentum is None else FLAGS.momentum
    config["precision"] = FLAGS.precision
    if FLAGS.precision == "auto":  # A resumed run keeps its precision, whatever machine it moves to.
        resumed = checkpoints.has_run(run_dir) and not FLAGS.overwrite
        kept = checkpoints.read_config(run_dir) if resumed else {}
        config["precision"] = kept.get("precision") or default_precision()
    return config


def main(_) -> None:
    run_dir = pathlib.Path(FLAGS.run_dir or f"runs/{FLAGS.model}")
    if FLAGS.export_only:
        checkpoints.check_config(run_dir, {"model": FLAGS.model})
        model, _ = checkpoints.load_model(run_dir)
        data = input_pipeline.load(checkpoints.read_config(run_dir)["dataset"], FLAGS.data_dir, FLAGS.archive)
        data = data.in_order_of(export.wnids_of(run_dir))
        with checkpoints.lock(run_dir):
            export.export(export.inference_model(model), data, run_dir, FLAGS.tflite)
        print(f"exported to {run_dir}")
        return
    strategy = distribution.get_strategy(FLAGS.distribute)  # Several workers meet here, before anything else.
    config = configuration(run_dir)
    if not FLAGS.overwrite:
        asked = FLAGS["num_cycles"].present > 0
        checkpoints.check_config(run_dir, config, resume=FLAGS.resume, may_change_cycles=asked)
        if is_finished(run_dir, config):
            print(f"{run_dir} is finished: {config['num_epochs']} epochs are done. Raise --num_epochs to train on.")
            print_next_steps(run_dir)
            return
    # Of several workers only the first keeps what it writes. The others write to a temporary folder.
    chief = distribution.is_chief(strategy)
    scratch = None if chief else tempfile.TemporaryDirectory()
    out_dir = run_dir if chief else pathlib.Path(scratch.name)
    with checkpoints.lock(out_dir), distribution.report_lost_workers(strategy):
        train(config, strategy, run_dir, out_dir)


def is_finished(run_dir: pathlib.Path, config: dict) -> bool:
    """Returns whether the run has done all of its steps, and is scored and exported as the flags ask."""
    size = input_pipeline.train_size(config["dataset"])
    num_steps = schedule.num_steps(config["num_epochs"], size, config["batch_size"])
    if checkpoints.read_json(run_dir / "time.json").get("finished_step") != num_steps:
        return False
    if FLAGS.export:
        names = ["saved_model", "model.keras", "classes.json", *(["model_int8.tflite"] if FLAGS.tflite else [])]
        if not all((run_dir / name).exists() for name in names):
            return False
    scores = ["evaluation_ten_crop.json", "evaluation_train_ten_crop.json"] if FLAGS.final_scores else []
    return all(checkpoints.read_json(run_dir / name).get("step") == num_steps for name in scores)


def print_next_steps(run_dir: pathlib.Path) -> None:
    print(f"Look at the curves:   tensorboard --logdir {run_dir}")
    if not FLAGS.final_scores:
        print(f"Score the ten crops:  python evaluate.py --run_dir={run_dir} --ten_crop")
    print(f"Write the report:     python report.py --runs={run_dir}")


def train(config: dict, strategy: tf.distribute.Strategy, run_dir: pathlib.Path, out_dir: pathlib.Path) -> None:
    """Trains from the last checkpoint in run_dir, if any, to the end of the run, and writes to out_dir."""
    replicas = strategy.num_replicas_in_sync
    if FLAGS.batch_size % replicas:
        raise UserError(f"--batch_size={FLAGS.batch_size} must be a multiple of the {replicas} devices")
    if FLAGS.jit_compile and replicas > 1:
        raise UserError(f"--jit_compile trains on one device, not on {replicas}: add --distribute=none")
    data = input_pipeline.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.archive)
    if checkpoints.has_run(run_dir) and not FLAGS.overwrite:
        data = data.in_order_of(export.wnids_of(run_dir))
    training_split, validation = data.splits["train"], data.splits["validation"]
    length = (FLAGS.num_epochs, len(training_split), FLAGS.batch_size)
    num_steps = schedule.num_steps(*length)
    epoch_ends = schedule.epoch_ends(*length)
    cycle_ends = schedule.cycle_ends(*length, FLAGS.num_cycles)
    if FLAGS.batch_size > len(training_split):
        raise UserError(f"--batch_size={FLAGS.batch_size} is more than the {len(training_split)} training images")
    if FLAGS.num_cycles > num_steps:
        raise UserError(f"--num_cycles={FLAGS.num_cycles} is more than the run's {num_steps} steps")
    if FLAGS.overwrite and out_dir == run_dir:
        checkpoints.remove_run(run_dir)

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
            jit_compile=FLAGS.jit_compile,
        )
    saved = checkpoints.Checkpoints(out_dir, trainer)
    if not FLAGS.overwrite:  # Another worker may still be removing the run.
        saved.restore(run_dir)
    done = int(trainer.step.numpy())
    if done + 1 in cycle_ends and done not in cycle_ends:
        saved.remove_snapshot(done)  # The run's length cut its last cycle, which now ends a step later.
    if 0 < done < num_steps:
        checkpoints.remove_outdated(out_dir)
    device = distribution.describe_devices(strategy)
    parameters = cost.parameters(model)
    print(f"{FLAGS.model}: {parameters:,} parameters, in {config['precision']} on {device}, to {run_dir}")
    print(f"{done} of {num_steps} steps done", flush=True)

    if not done:  # A resumed run may have changed its length, which counts from its next checkpoint on.
        checkpoints.write_json(out_dir / "config.json", config)
    export.write_classes(out_dir, data)
    devices = provenance.record(out_dir, done, device)
    classify = evaluation.classifier(model, data.mean_image)
    metrics = summaries.Metrics(out_dir / "metrics.csv", done)
    board = summaries.TensorBoard(out_dir, done)
    progress = summaries.Progress(done, num_steps, FLAGS.batch_size)
    any_worker = distribution.any_worker(strategy)
    others_wait = distribution.has_several_workers(strategy)  # They must hear of a signal before this worker leaves.
    stop = []

    def ask_to_stop(signum, frame):
        stop.append(signum)
        signal.signal(signum, signal.SIG_DFL)  # A second signal ends the process at once.
        if saved.step == done and not others_wait:  # There is nothing to save.
            leave()

    def leave():
        again = "again without --overwrite" if FLAGS.overwrite else "the same command again"
        progress.say(f"stopped after step {done}: start {again} to resume")
        sys.exit(128 + (stop or [signal.SIGTERM])[0])

    def time_of_steps():
        return {"seconds": saved.seconds, "steps": done, "device": ", then ".join(devices)}

    def validate():
        scores = evaluation.score(classify, validation, show_bar=False)  # The training's own bar is there.
        epoch = 1 + epoch_ends.index(done)
        means = metrics.epoch_means(epoch)
        metrics.append(step=done, epoch=epoch, **{f"validation_{name}": value for name, value in scores.items()})
        board.scalars("validation", done, **scores)
        board.flush()
        progress.say(
            f"epoch {epoch}/{FLAGS.num_epochs}: loss {means['loss']:.4f}, top-1 {means['top_1']:.2%}, validation top-1 "
            f"{scores['top_1']:.2%}, top-5 {scores['top_5']:.2%}, {saved.training_time()} of training"
        )
        progress.restart(done)
        saved.restart_clock()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, ask_to_stop)
    if hasattr(signal, "SIGCONT"):  # It comes after a pause. Windows has none.
        signal.signal(signal.SIGCONT, lambda *_: saved.restart_clock())

    if done in epoch_ends:  # The checkpoint of an epoch's end is written before the epoch's validation.
        validate()
    batches = strategy.distribute_datasets_from_function(
        lambda context: input_pipeline.train_batches(
            training_split, FLAGS.batch_size, FLAGS.seed, done, num_steps, context, FLAGS.all_crops
        )
    )
    saved.restart_clock()
    for images, crop_index, labels in distribution.on_device(batches, strategy):
        if done == 0:
            board.start(run_dir.resolve().name, config, strategy.experimental_local_results(images)[0].numpy())
        trainer.train_step(images, crop_index, labels)
        saved.count_time()
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
        # Several workers ask each other, which takes an exchange, so they do not at every step.
        stopped = any_worker(stop) if logged or cycle_ended or not others_wait else False
        if epoch_ended or cycle_ended or stopped or saved.minutes_since_save() >= FLAGS.checkpoint_minutes:
            trainer.check()  # No diverged state is saved.
            saved.count_time()
            if cycle_ended and FLAGS.keep_snapshots:
                saved.save_snapshot()
            board.flush()
            checkpoints.write_json(out_dir / "config.json", config)
            saved.save()
            checkpoints.write_json(out_dir / "time.json", time_of_steps())
            progress.restart(done)
        if stopped:
            leave()
        if epoch_ended:
            validate()

    others_wait = False
    if stop:
        leave()
    if out_dir == run_dir:
        progress.close()
        progress.say(f"trained for {saved.training_time()}; exporting and scoring")
        if checkpoints.read_json(run_dir / "time.json").get("steps") != done:  # A kill may have come before it.
            checkpoints.write_json(run_dir / "time.json", time_of_steps())
        finish(model, data, run_dir, done)


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
        if checkpoints.read_json(run_dir / f"{name}.json").get("step") == step:
            continue  # An earlier start was stopped while it scored.
        scores = evaluation.score(evaluation.classifier(model, data.mean_image, ten_crop), split)
        result = evaluation.result(scores, FLAGS.dataset, split_name, split, step, ten_crop)
        checkpoints.write_json(run_dir / f"{name}.json", result)
        how = "ten crops" if ten_crop else "centre crop"
        print(f"{split_name}, {how}: top-1 {scores['top_1']:.2%}, top-5 {scores['top_5']:.2%}", flush=True)
    time = checkpoints.read_json(run_dir / "time.json")
    checkpoints.write_json(run_dir / "time.json", time | {"finished_step": step})
    print_next_steps(run_dir)


if __name__ == "__main__":
    flags.define_train_flags()
    flags.run(main)
