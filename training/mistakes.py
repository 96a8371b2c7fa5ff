"""How a network fails on labelled images: which classes it confuses, which labels may be ambiguous, and lost detail.

The paper leaves as future work to "look closely into the dataset to see which images have lost details and may cause
ambiguity" (section 6). In what follows, probabilities are a network's softmax, (N, C) floats, of images that it was not
trained on, and labels are (N,) ints.
"""

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG.
MARGIN = -0.5
CHUNK = 500


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of each class, a row, got each answer, a column: (C, C) int64."""
    return np.bincount(labels * num_classes + answers, minlength=num_classes**2).reshape(num_classes, num_classes)


def confused_pairs(confusion: np.ndarray) -> np.ndarray:
    """The pairs of classes taken for each other, either way, most often first: (P, 2) int64, the lower class first."""
    both_ways = np.triu(confusion + confusion.T, k=1)
    pairs = np.argwhere(both_ways)
    return pairs[np.argsort(-both_ways[tuple(pairs.T)], kind="stable")]


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """The share of each class's images that got it as their answer: (C,) float64, NaN for a class with no image."""
    number = confusion.sum(axis=1)
    return np.divide(confusion.diagonal(), number, out=np.full(len(number), np.nan), where=number > 0)


def confident_mistakes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The images whose most probable class is not their label, the most confident first: indices, int64."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]


def margins(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label's probability less the best other class's: (N,) from -1, surely another class, to 1, surely its own.

    It is the normalised margin of confident learning (Northcutt et al., arXiv:1911.00068, section 3.2).
    """
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    return probabilities[rows, labels] - others.max(axis=1)


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that each image is confidently of, by confident learning (Northcutt et al., arXiv:1911.00068, eq. 1).

    An image is confidently of a class if it is given at least the mean probability that the images labelled so are
    given; of several such classes, of the most probable. The threshold is a class's own, so that neither a class that
    the network knows well nor one that it hardly knows takes more than its part.

    Returns:
      (N,) int64, -1 where there is no such class.
    """
    number = np.bincount(labels, minlength=probabilities.shape[1])
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    total = np.bincount(labels, weights=own, minlength=len(number))
    thresholds = np.divide(total, number, out=np.full(len(number), np.inf), where=number > 0)
    confident = np.where(probabilities >= thresholds, probabilities, -1)
    return np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), -1)


def ambiguous(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The images confidently of a class other than their label, the lowest margin first: indices, int64.

    Their labels may be wrong, or one of several that would do, or the network is misled: someone has to look. Confident
    learning alone expects a network that is mostly right. The thresholds of one that is right on a quarter of images
    are so low that it finds most labels wanting, so the margin must also be below -0.5: over half of the probability is
    on another class.
    """
    confident, margin = confident_classes(probabilities, labels), margins(probabilities, labels)
    found = np.flatnonzero((confident >= 0) & (confident != labels) & (margin < MARGIN))
    return found[np.argsort(margin[found], kind="stable")]


def detail(images: np.ndarray) -> np.ndarray:
    """How much fine detail images have: the variance of the Laplacian of their luma, (N,) float32.

    It is low in a blurred image (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000), and
    in one of large even surfaces.

    Args:
      images: (N, H, W, 3) uint8.
    """

    def of_chunk(chunk):
        luma = chunk @ LUMA
        neighbours = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
        return (neighbours - 4 * luma[:, 1:-1, 1:-1]).var(axis=(1, 2))

    return np.concatenate([of_chunk(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)])


def quintiles(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The fifth of its group that each value is in, from 0, the lowest, to 4: (N,) int64.

    Args:
      values: (N,).
      groups: (N,) ints; with all alike, the fifths are those of all values.
    """
    order = np.lexsort((values, groups))
    sizes = np.bincount(groups)
    rank = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    fifths = np.empty(len(values), np.int64)
    fifths[order] = 5 * rank // sizes[groups[order]]
    return fifths
