import collections
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import small
from tiny_imagenet import crops, input_pipeline
from tiny_imagenet.errors import UserError


def split(size):
    """Images that tell which they are: the first two bytes of every pixel hold the number, the third one is random."""
    number = np.arange(size)
    images = np.random.default_rng(size).integers(0, 256, (size, 64, 64, 3), np.uint8)
    images[..., 0] = (number % 256)[:, None, None]
    images[..., 1] = (number // 256)[:, None, None]
    return input_pipeline.Split(images, number % 7, np.array([f"{n}.JPEG" for n in number]))


def numbers(images):
    return images[:, 0, 0, 0].astype(int) + 256 * images[:, 0, 0, 1].astype(int)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 16, 25])
def test_every_image_once_an_epoch(batch_size):
    """Also where a batch holds the end of an epoch and the beginning of the next, or is larger than an epoch."""
    size, epochs = 10, 10
    steps = size * epochs // batch_size
    seen = np.concatenate([input_pipeline.shuffled_indices(step, size, batch_size, seed=3) for step in range(steps)])
    for epoch in range(len(seen) // size):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_order_depends_on_seed_and_epoch():
    def epoch(number, seed):
        return input_pipeline.shuffled_indices(number, 1000, 1000, seed).numpy().tolist()

    orders = [epoch(0, 0), epoch(1, 0), epoch(0, 1), list(range(1000))]
    assert len({tuple(order) for order in orders}) == 4
    assert epoch(1, 0) == orders[1]


@pytest.mark.parametrize("augmentation", ["ten_crop", "uniform"])
def test_batches_hold_the_images_the_crops_and_the_labels(augmentation):
    data = split(300)
    batches = input_pipeline.train_batches(data, 32, seed=5, start=0, stop=3, augmentation=augmentation)
    for step, batch in enumerate(batches):
        images, crop_index, labels = (part.numpy() for part in batch)
        index = input_pipeline.shuffled_indices(step, 300, 32, seed=5).numpy()
        assert images.shape == (32, 56, 56, 3) and images.dtype == np.uint8
        assert crop_index.dtype == np.int64  # int32 would stay on the host.
        np.testing.assert_array_equal(numbers(images), index)
        np.testing.assert_array_equal(labels, data.labels[index])
        expected = [crops.slice_crop(data.images[i], crop) for i, crop in zip(index, crop_index, strict=True)]
        np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("replicas", [1, 2])
def test_all_crops_of_each_image(replicas):
    """The images of each step are those of the default."""
    data = split(300)
    context = tf.distribute.InputContext(num_input_pipelines=1, num_replicas_in_sync=replicas)
    batches = input_pipeline.train_batches(data, 32, 5, 1, 3, context, augmentation="all_crops")
    for count, batch in enumerate(batches):
        images, crop_index, labels = (part.numpy() for part in batch)
        step, replica = 1 + count // replicas, count % replicas
        index = input_pipeline.shuffled_indices(step, 300, 32, seed=5).numpy()
        mine = index[replica * 32 // replicas :][: 32 // replicas]
        assert images.dtype == np.uint8 and crop_index.dtype == labels.dtype == np.int64
        ten = crops.ten_crops(data.images[mine])  # (10, n, 56, 56, 3)
        np.testing.assert_array_equal(images, ten.swapaxes(0, 1).reshape(-1, 56, 56, 3))
        np.testing.assert_array_equal(crop_index, np.tile(crops.TEN_CROPS, len(mine)))
        np.testing.assert_array_equal(labels, np.repeat(data.labels[mine], 10))


def test_a_batch_is_a_function_of_seed_and_step():
    data = split(100)

    def batches(first, last, seed=1):
        return [[part.numpy() for part in batch] for batch in input_pipeline.train_batches(data, 16, seed, first, last)]

    whole = batches(0, 8)
    for early, late in zip(whole[5:], batches(5, 8), strict=True):
        for part, again in zip(early, late, strict=True):
            np.testing.assert_array_equal(part, again)
    assert (whole[0][1] != batches(0, 1, seed=2)[0][1]).any()


@pytest.mark.parametrize("pipelines, replicas", [(1, 2), (2, 2), (2, 4)])
def test_replicas_share_the_very_batch_of_one(pipelines, replicas):
    data = split(100)
    local = replicas // pipelines

    def steps(context=None):
        batches = input_pipeline.train_batches(data, 16, 1, 3, 6, context)
        return [[part.numpy() for part in batch] for batch in batches]

    shares = [steps(tf.distribute.InputContext(pipelines, pipeline, replicas)) for pipeline in range(pipelines)]
    for step, batch in enumerate(steps()):
        parts = [each for share in shares for each in share[step * local : step * local + local]]
        assert {len(part[0]) for part in parts} == {16 // replicas}
        for whole, *pieces in zip(batch, *parts, strict=True):
            np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("augmentation, numbers", [("ten_crop", crops.TEN_CROPS), ("uniform", range(162))])
def test_crops_are_drawn_uniformly_for_each_image(augmentation, numbers):
    batches = input_pipeline.train_batches(split(64), 500, 0, 0, 20, augmentation=augmentation)
    drawn = np.concatenate([crop_index for _, crop_index, _ in batches.as_numpy_iterator()])
    counts = collections.Counter(drawn.tolist())
    assert sorted(counts) == sorted(numbers)
    expected = 10_000 / len(numbers)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())  # Five standard deviations.


def test_evaluation_has_every_image_once_in_order():
    data = split(103)
    batches = list(input_pipeline.evaluation_batches(data, 25).as_numpy_iterator())
    assert [len(labels) for _, labels in batches] == [25, 25, 25, 25, 3]
    np.testing.assert_array_equal(numbers(np.concatenate([images for images, _ in batches])), range(103))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), data.labels)


def test_load_decodes_what_tfds_holds(synthetic_data_dir):
    data = input_pipeline.load("synthetic", str(synthetic_data_dir))
    assert {name: len(each) for name, each in data.splits.items()} == {"train": 4000, "validation": 1000, "test": 500}
    for name, each in data.splits.items():
        examples = tfds.load("tiny_imagenet/synthetic", split=name, data_dir=str(synthetic_data_dir))
        by_id = {id: row for row, id in enumerate(each.ids)}
        assert len(by_id) == len(each)
        for example in examples.take(50).as_numpy_iterator():
            row = by_id[example["id"].decode()]
            np.testing.assert_array_equal(each.images[row], example["image"])
            assert each.labels[row] == example["label"]
    assert isinstance(data.splits["train"].images, np.memmap)
    assert (data.splits["test"].labels == -1).all()
    assert len(data.wnids) == len(data.words) == 200


def test_boxes_are_in_the_order_of_the_images(small_data_dir, tmp_path):
    with small.registered():
        split = input_pipeline.load("synthetic", str(small_data_dir)).splits["train"]
        boxes = input_pipeline.load_boxes("train", "synthetic", str(small_data_dir))
        examples = tfds.load("tiny_imagenet/synthetic", split="train", data_dir=str(small_data_dir))
        expected = {example["id"].decode(): example["bbox"] for example in examples.as_numpy_iterator()}
        assert len({tuple(box) for box in boxes.tolist()}) > 50 and boxes.shape == (400, 4)
        np.testing.assert_array_equal(boxes, [expected[id] for id in split.ids])

        shutil.copytree(small_data_dir, tmp_path / "data")
        for shard in (tmp_path / "data").rglob("*-train.tfrecord*"):
            shard.unlink()
        with pytest.raises(UserError, match="is damaged .*: delete it, and it is prepared again"):
            input_pipeline.load_boxes("train", "synthetic", str(tmp_path / "data"))


def test_mean_image_is_of_the_training_images(synthetic_data_dir):
    data = input_pipeline.load("synthetic", str(synthetic_data_dir))
    expected = data.splits["train"].images.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(data.mean_image, expected, rtol=1e-6)
    assert data.mean_image.dtype == np.float32


def test_classes_in_the_order_of_a_network():
    images = split(4)
    labelled = {"train": input_pipeline.Split(images.images, np.array([0, 1, 2, 0]), images.ids)}
    labelled["test"] = input_pipeline.Split(images.images, np.full(4, -1), images.ids)
    data = input_pipeline.TinyImageNet(labelled, np.zeros((64, 64, 3)), ["n1", "n2", "n3"], ["cat", "dog", "cup"])
    ordered = data.in_order_of(["n3", "n1", "n2"])
    assert (ordered.wnids, ordered.words) == (["n3", "n1", "n2"], ["cup", "cat", "dog"])
    assert ordered.splits["train"].labels.tolist() == [1, 2, 0, 1]
    assert ordered.splits["test"].labels.tolist() == [-1] * 4
    assert ordered.splits["train"].images is images.images and ordered.splits["train"].ids is images.ids
    assert data.in_order_of(["n1", "n2", "n3"]) is data and data.in_order_of(None) is data
    for others in (["n1", "n2"], ["n1", "n2", "n4"], ["n1", "n2", "n3", "n4"]):
        with pytest.raises(UserError, match="different classes .only one of them has n[34].*: pass the data"):
            data.in_order_of(others)
