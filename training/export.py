"""The exported model: a SavedModel that is whole, Keras' own file of the network, and TFLite's."""

import os
import pathlib
import shutil

import keras
import tensorflow as tf

import models
from models.layers import to_plain_keras
from tiny_imagenet import crops
from tiny_imagenet.input_pipeline import TinyImageNet
from training import evaluation, tflite

TOP_K = 5


def inference_model(model: keras.Model) -> keras.Model:
    """Copies a trained network into a float32 one of Keras' own layers, without its auxiliary classifiers."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = models.build(model.name, training=True)
    finally:
        keras.config.set_dtype_policy(policy)
    copy.set_weights(model.get_weights())
    return to_plain_keras(keras.Model(copy.input, copy.outputs[0], name=copy.name))


def export(model: keras.Model, data: TinyImageNet, run_dir: pathlib.Path, with_tflite: bool = False) -> None:
    """Writes a network as `saved_model/` and `model.keras` to the run directory, replacing older ones.

    The SavedModel takes raw images, and does its own crop, mean and scale. Its signatures are `serving_default`, from
    `images` (N, 64, 64, 3) uint8, and `serve_jpeg`, from `jpegs` (N,) encoded images of 64x64 pixels. Both return
    `probabilities` (N, 200) float32, in the order of wnids.txt, and of the five most probable classes, the best first,
    `wnids` and `words`, (N, 5) strings.

    `model.keras` is the network alone: normalised (N, 56, 56, 3) crops to logits.

    Args:
      model: The network in float32; see `inference_model`.
      data: For the mean image and the classes.
      run_dir: The folder to write to.
      with_tflite: Whether to write the two files of `tflite.export` too.
    """
    classify = evaluation.classifier(model, data.mean_image)
    wnids, words = tf.constant(data.wnids), tf.constant(data.words)

    def serve(images):
        probabilities = classify(images)
        best = tf.math.top_k(probabilities, TOP_K).indices
        return {"probabilities": probabilities, "wnids": tf.gather(wnids, best), "words": tf.gather(words, best)}

    def decode(jpeg):
        return tf.ensure_shape(tf.io.decode_jpeg(jpeg, channels=3), (crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3))

    images = tf.TensorSpec((None, crops.IMAGE_SIZE, crops.IMAGE_SIZE, 3), tf.uint8, name="images")
    jpegs = tf.TensorSpec((None,), tf.string, name="jpegs")
    module = tf.Module()  # Not keras.export.ExportArchive, which writes every weight twice.
    module.weights = [variable.value for variable in model.weights]
    module.serve = tf.function(serve, input_signature=[images])
    module.serve_jpeg = tf.function(
        lambda jpegs: serve(tf.map_fn(decode, jpegs, fn_output_signature=tf.uint8)), input_signature=[jpegs]
    )
    signatures = {"serving_default": module.serve, "serve_jpeg": module.serve_jpeg}
    partial = run_dir / "saved_model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tf.saved_model.save(module, str(partial), signatures)
    shutil.rmtree(run_dir / "saved_model", ignore_errors=True)
    partial.rename(run_dir / "saved_model")

    partial = run_dir / "partial.keras"
    model.save(partial)
    os.replace(partial, run_dir / "model.keras")

    if with_tflite:
        tflite.export(model, data, run_dir)
