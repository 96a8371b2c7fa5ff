"""The exported model: a SavedModel that is whole, and Keras' own file of the network."""

import os
import pathlib
import shutil

import keras
import tensorflow as tf

from tiny_imagenet import crops
from tiny_imagenet.input_pipeline import TinyImageNet
from training import evaluation

TOP_K = 5


def inference_model(model: keras.Model) -> keras.Model:
    """The network without its auxiliary heads, sharing its weights; the model itself if it has none."""
    return keras.Model(model.input, model.outputs[0], name=model.name) if len(model.outputs) > 1 else model


def export(model: keras.Model, data: TinyImageNet, run_dir: pathlib.Path) -> None:
    """Writes `saved_model/` and `model.keras` to the run directory, replacing older ones.

    The SavedModel takes raw images, and does its own crop, mean and scale. Its signatures are `serving_default`, from
    `images` (N, 64, 64, 3) uint8, and `serve_jpeg`, from `jpegs` (N,) encoded images of 64x64 pixels. Both return
    `probabilities` (N, 200) float32, in the order of wnids.txt, and of the five most probable classes, the best first,
    `wnids` and `words`, (N, 5) strings.

    `model.keras` is the network alone: normalised (N, 56, 56, 3) crops to logits.
    """
    model = inference_model(model)
    classify = evaluation.classifier(model, data.mean_image)
    wnids, words = tf.constant(data.wnids), tf.constant(data.words)

    def serve(images):
        probabilities = classify(images)
        best = tf.math.top_k(probabilities, TOP_K).indices
        return {"probabilities": probabilities, "wnids": tf.gather(wnids, best), "words": tf.gather(words, best)}

    def decode(jpeg):
        return tf.ensure_shape(tf.io.decode_jpeg(jpeg, channels=3), (crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3))

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        serve,
        [tf.TensorSpec((None, crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3), tf.uint8, name="images")],
    )
    archive.add_endpoint(
        "serve_jpeg",
        lambda jpegs: serve(tf.map_fn(decode, jpegs, fn_output_signature=tf.uint8)),
        [tf.TensorSpec((None,), tf.string, name="jpegs")],
    )
    partial = run_dir / "saved_model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    archive.write_out(str(partial), verbose=False)
    shutil.rmtree(run_dir / "saved_model", ignore_errors=True)
    partial.rename(run_dir / "saved_model")

    partial = run_dir / "partial.keras"
    model.save(partial)
    os.replace(partial, run_dir / "model.keras")
