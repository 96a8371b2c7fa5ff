"""The analysis of mistakes, against counting one by one and against cases that can be worked out by hand."""

import numpy as np
import pytest

from reporting import mistakes

# Three classes, two images each, and then one more of class 0. The mean probabilities of their own labels are
# (0.8 + 0.6 + 0.1) / 3 = 0.5, (0.7 + 0.3) / 2 = 0.5 and (0.4 + 0.2) / 2 = 0.3.
PROBABILITIES = np.array(
    [
        [0.80, 0.10, 0.10],  # 0, and surely so.
        [0.60, 0.05, 0.35],  # 0; over the thresholds of both 0 and 2.
        [0.20, 0.70, 0.10],  # 1.
        [0.55, 0.30, 0.15],  # 1, confidently 0.
        [0.45, 0.15, 0.40],  # 2; most probably 0, but under its threshold.
        [0.40, 0.40, 0.20],  # 2; of no class.
        [0.10, 0.85, 0.05],  # 0, confidently 1.
    ],
    np.float32,
)
LABELS = np.array([0, 0, 1, 1, 2, 2, 0])


def test_confusion_is_counted():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 5, (2, 200))
    expected = np.zeros((6, 6), int)  # No image is of class 5.
    for label, answer in zip(labels, answers, strict=True):
        expected[label, answer] += 1
    confusion = mistakes.confusion_matrix(labels, answers, 6)
    np.testing.assert_array_equal(confusion, expected)
    accuracy = mistakes.class_accuracy(confusion)
    assert accuracy[:5].tolist() == [np.mean(answers[labels == label] == label) for label in range(5)]
    assert np.isnan(accuracy[5])


def test_confused_pairs_count_both_ways():
    confusion = np.array([[9, 1, 2, 0], [1, 9, 4, 0], [3, 0, 9, 0], [0, 0, 0, 9]])
    assert mistakes.confused_pairs(confusion).tolist() == [[0, 2], [1, 2], [0, 1]]
    assert mistakes.confused_pairs(np.eye(3, dtype=int)).tolist() == []


def test_detail_of_all_images_and_within_a_class():
    """Ten images by their detail: the first five are of class 0, of which none is right and two are ambiguous."""
    labels = np.repeat([0, 1], 5)
    rows = mistakes.detail_table(np.arange(10.0), labels == 1, np.arange(10) < 2, labels)
    expected = {"images, {}": [2] * 5, "top-1, {}": [0, 0, 50, 100, 100], "ambiguous, {}": [100, 0, 0, 0, 0]}
    for name, values in expected.items():
        assert [row[name.format("of all")] for row in rows] == values
    expected = {"images, {}": [2] * 5, "top-1, {}": [50] * 5, "ambiguous, {}": [50, 50, 0, 0, 0]}
    for name, values in expected.items():
        assert [row[name.format("of each class")] for row in rows] == values


def test_accuracy_by_the_area_of_the_box():
    """Ten images, whose boxes have areas of 1%, 2%... of the picture."""
    areas = np.random.default_rng(0).permutation(10) + 1
    boxes = np.stack([np.full(10, 0.5), np.full(10, 0.25), np.full(10, 0.6), 0.25 + areas / 10], axis=1)
    rows = mistakes.object_size_rows(boxes, areas % 2 == 0)
    assert [row["quintile by area"] for row in rows] == ["1 (smallest)", "2", "3", "4", "5 (largest)"]
    assert [row["area (% of the picture)"] for row in rows] == [f"{area}.0 to {area + 1}.0" for area in range(1, 11, 2)]
    assert [(row["images"], row["top-1"], row["95% interval"]) for row in rows] == [(2, 50, "9.45 to 90.55")] * 5
    rows = mistakes.object_size_rows(boxes, areas > 3)
    assert [row["top-1"] for row in rows] == [0, 50, 100, 100, 100]
    assert [row["images"] for row in mistakes.object_size_rows(boxes[:3], areas[:3] > 0)] == [1, 1, 1]


def test_mistakes_are_ranked_by_confidence():
    assert mistakes.confident_mistakes(PROBABILITIES, LABELS).tolist() == [6, 3, 4, 5]


def test_margins():
    expected = [0.7, 0.25, 0.5, -0.25, -0.05, -0.2, -0.75]
    kept = PROBABILITIES.copy()
    assert mistakes.margins(PROBABILITIES, LABELS) == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(PROBABILITIES, kept)


def test_confident_classes_are_over_their_thresholds():
    assert mistakes.confident_classes(PROBABILITIES, LABELS).tolist() == [0, 0, 1, 0, 2, -1, 1]


def test_ambiguous_labels_have_a_low_margin_too(monkeypatch):
    assert mistakes.ambiguous(PROBABILITIES, LABELS).tolist() == [6]
    monkeypatch.setattr(mistakes, "MARGIN", 0)
    assert mistakes.ambiguous(PROBABILITIES, LABELS).tolist() == [6, 3]


def test_no_image_is_confidently_of_a_class_without_images():
    probabilities, labels = np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([0, 0])
    assert mistakes.confident_classes(probabilities, labels).tolist() == [-1, 0]


def test_detail_is_the_variance_of_the_laplacian():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 9, 3), np.uint8)
    luma = images @ np.array([0.299, 0.587, 0.114])
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    expected = [
        np.var([(image[y : y + 3, x : x + 3] * kernel).sum() for y in range(6) for x in range(7)]) for image in luma
    ]
    assert mistakes.detail(images) == pytest.approx(expected, rel=1e-4)


def test_detail_falls_with_blur():
    y, x = np.mgrid[:64, :64]
    ramp = np.stack([np.stack([2 * x + y] * 3, axis=-1)] * 501).astype(np.uint8)  # More than a chunk.
    assert mistakes.detail(ramp) == pytest.approx(np.zeros(501), abs=1e-4)
    sharp = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    blurred = ((sharp[:, :, :-1].astype(int) + sharp[:, :, 1:]) // 2).astype(np.uint8)
    assert mistakes.detail(blurred)[0] < mistakes.detail(sharp)[0]


def test_quintiles():
    values = np.array([9, 0, 8, 1, 7, 2, 6, 3, 5, 4])
    assert mistakes.quintiles(values, np.zeros(10, int)).tolist() == [4, 0, 4, 0, 3, 1, 3, 1, 2, 2]
    assert mistakes.quintiles(values, np.array([0, 1] * 5)).tolist() == [4, 0, 3, 1, 2, 2, 1, 3, 0, 4]
