"""How a network fails on labelled images: confused classes, labels that may be ambiguous, lost detail, small objects.

The paper leaves as future work to "look closely into the dataset to see which images have lost details and may cause
ambiguity" (section 6). Below, probabilities are a network's softmax, (N, C) floats, of images that it was not trained
on, and labels are (N,) ints.
"""

import numpy as np

from reporting.runs import OBJECT_SIZE_COLUMNS
from reporting.writing import Row, interval

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG.
MARGIN = -0.5
CHUNK = 500


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the images of each class, a row, predicted as each class, a column: (C, C) int64."""
    return np.bincount(labels * num_classes + predictions, minlength=num_classes**2).reshape(num_classes, num_classes)


def confused_pairs(confusion: np.ndarray) -> np.ndarray:
    """The pairs of classes confused in either direction, most frequent first: (P, 2) int64, the lower class first."""
    both_ways = np.triu(confusion + confusion.T, k=1)
    pairs = np.argwhere(both_ways)
    return pairs[np.argsort(-both_ways[tuple(pairs.T)], kind="stable")]


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """The top-1 accuracy of each class, as a fraction: (C,) float64, NaN for a class without images."""
    number = confusion.sum(axis=1)
    return np.divide(confusion.diagonal(), number, out=np.full(len(number), np.nan), where=number > 0)


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The indices of the misclassified images, the most confident predictions first: (M,) int64."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]


def margins(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label's probability minus the highest of the other classes: (N,) floats from -1 to 1.

    This is the normalized margin of confident learning (Northcutt et al., arXiv:1911.00068, section 3.2).
    """
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    return probabilities[rows, labels] - others.max(axis=1)


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class to which confident learning assigns each image (Northcutt et al., arXiv:1911.00068, eq. 1).

    The threshold of a class is the mean probability of that class over the images with its label. An image belongs to
    the most probable of the classes whose thresholds it reaches. As each class has its own threshold, classes that the
    network finds easy do not attract the images of hard ones.

    Returns:
      (N,) int64, -1 where the image reaches no threshold.
    """
    number = np.bincount(labels, minlength=probabilities.shape[1])
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    total = np.bincount(labels, weights=own, minlength=len(number))
    thresholds = np.divide(total, number, out=np.full(len(number), np.inf), where=number > 0)
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    return np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), -1)


def ambiguous(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The indices of the images whose label may be ambiguous, the lowest margin first: (M,) int64.

    Confident learning assigns them to another class than their label. The label may be wrong or one of several that
    fit, or the network may be wrong: a person has to look. Confident learning expects an accurate network. If only a
    quarter of the predictions are right, the thresholds are so low that most labels look wrong. The margin must
    therefore also be below -0.5: another class has more than half of the probability.
    """
    confident, margin = confident_classes(probabilities, labels), margins(probabilities, labels)
    found = np.flatnonzero((confident >= 0) & (confident != labels) & (margin < MARGIN))
    return found[np.argsort(margin[found], kind="stable")]


def detail(images: np.ndarray) -> np.ndarray:
    """The amount of fine detail in images: the variance of the Laplacian of their luma, (N,) float32.

    It is low in blurred images (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000) and in
    images of large even surfaces.

    Args:
      images: (N, H, W, 3) uint8.
    """

    def of_chunk(chunk):
        luma = chunk @ LUMA
        neighbours = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
        return (neighbours - 4 * luma[:, 1:-1, 1:-1]).var(axis=(1, 2))

    return np.concatenate([of_chunk(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)])


def quintiles(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The quintile of each value within its group, from 0, the lowest, to 4: (N,) int64.

    Args:
      values: (N,) numbers.
      groups: (N,) ints from 0.
    """
    order = np.lexsort((values, groups))
    sizes = np.bincount(groups)
    rank = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    result = np.empty(len(values), np.int64)
    result[order] = 5 * rank // sizes[groups[order]]
    return result


def detail_table(detail: np.ndarray, right: np.ndarray, ambiguous: np.ndarray, labels: np.ndarray) -> list[Row]:
    """Accuracy by the images' amount of detail, in quintiles of all images and in quintiles of each class.

    Classes differ both in detail and in difficulty. The quintiles of each class all hold the same classes, which
    separates the two.

    Args:
      detail: (N,) floats; see `detail`.
      right: (N,) bools, whether the prediction is the label.
      ambiguous: (N,) bools, whether the label may be ambiguous.
      labels: (N,) ints.
    """

    def percent(of, chosen):
        return 100 * float(of[chosen].mean()) if chosen.any() else None

    rows = []
    of_all, of_class = quintiles(detail, np.zeros_like(labels)), quintiles(detail, labels)
    for number in range(5):
        row = {"quintile by detail": f"{number + 1}{' (least)' if number == 0 else ' (most)' if number == 4 else ''}"}
        for name, quintile in (("of all", of_all), ("of each class", of_class)):
            chosen = quintile == number
            row |= {f"images, {name}": int(chosen.sum()), f"top-1, {name}": percent(right, chosen)}
            row |= {f"ambiguous, {name}": percent(ambiguous, chosen)}
        rows.append(row)
    return rows


def object_size_rows(boxes: np.ndarray, right: np.ndarray) -> list[Row]:
    """Accuracy by the area of the object's bounding box, in quintiles of the images.

    Args:
      boxes: (N, 4) floats; see `input_pipeline.load_boxes`.
      right: (N,) bools, whether the prediction is the label.
    """
    rows = []
    areas = 100 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    quintile = quintiles(areas, np.zeros(len(areas), np.int64))
    for number in np.unique(quintile).tolist():
        chosen = quintile == number
        images, top_1 = int(chosen.sum()), 100 * float(right[chosen].mean())
        name = f"{number + 1}{' (smallest)' if number == 0 else ' (largest)' if number == 4 else ''}"
        area = f"{areas[chosen].min():.1f} to {areas[chosen].max():.1f}"
        values = dict(zip(OBJECT_SIZE_COLUMNS, (name, area, images, top_1), strict=True))
        rows.append(values | {"95% interval": interval(top_1, images)})
    return rows
