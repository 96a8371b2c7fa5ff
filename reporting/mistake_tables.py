"""Writes a network's mistakes as tables and figures; see `reporting.mistakes`."""

import csv
import pathlib

import numpy as np

from reporting import figures, mistakes
from reporting.runs import OBJECT_SIZE_COLUMNS
from reporting.writing import Row, Table, terminal, write
from tiny_imagenet.input_pipeline import Split, TinyImageNet

SHOWN = 24  # Images in a contact sheet.
LISTED = 50  # Rows of a long table in its .md file; its .csv file has all.
PRINTED = 10


def pair_rows(confusion: np.ndarray, wnids: list[str], words: list[str]) -> list[Row]:
    """The confused pairs of classes, most frequent first."""
    return [
        {
            "class": words[a],
            "wnid": wnids[a],
            "predicted as": words[b],
            "its wnid": wnids[b],
            "times": int(confusion[a, b]),
            "and the other way": int(confusion[b, a]),
            "both": int(confusion[a, b] + confusion[b, a]),
        }
        for a, b in mistakes.confused_pairs(confusion).tolist()
    ]


def class_rows(confusion: np.ndarray, wnids: list[str], words: list[str]) -> list[Row]:
    """The classes by accuracy, the best first."""
    accuracy, wrong = mistakes.class_accuracy(confusion), confusion - np.diag(confusion.diagonal())
    return [
        {
            "wnid": wnids[label],
            "class": words[label],
            "images": int(confusion[label].sum()),
            "top-1": 100 * float(accuracy[label]),
            "most often predicted as": words[wrong[label].argmax()] if wrong[label].any() else None,
            "times": int(wrong[label].max()),
        }
        for label in np.argsort(-accuracy, kind="stable").tolist()
    ]


def image_rows(
    data: TinyImageNet,
    split: Split,
    details: np.ndarray,
    chosen: np.ndarray,
    probabilities: np.ndarray,
    others: np.ndarray,
) -> list[Row]:
    """The chosen images, each with the probabilities of its label and of another class.

    Args:
      data: The dataset.
      split: The images.
      details: (N,) floats; see `mistakes.detail`.
      chosen: (M,) ints, the indices of the chosen images.
      probabilities: (N, C) floats.
      others: (N,) ints, the other class of each image.
    """
    rows = []
    for i in chosen.tolist():
        label, other = split.labels[i], others[i]
        rows.append(
            {
                "image": str(split.ids[i]),
                "label": data.wnids[label],
                "its words": first_word(data.words[label]),
                "probability": float(probabilities[i, label]),
                "other": data.wnids[other],
                "the other's words": first_word(data.words[other]),
                "the other's probability": float(probabilities[i, other]),
                "detail": float(details[i]),
            }
        )
    return rows


def first_word(words: str) -> str:
    """The first of a class's synonyms."""
    return words.split(",")[0]


def write_sheet(images: np.ndarray, rows: list[Row], path: pathlib.Path) -> None:
    """Writes a contact sheet of the first images, or removes it if there are none; see `image_rows`."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    columns = ("its words", "the other's words", "the other's probability")
    shown = [[row[column] for column in columns] for row in rows[:SHOWN]]
    titles = [f"{words[:20]}\n{other[:20]} {probability:.0%}" for words, other, probability in shown]
    figures.contact_sheet(list(images[:SHOWN]), titles).savefig(path)


def write_confusion(confusion: np.ndarray, wnids: list[str], words: list[str], out: pathlib.Path) -> None:
    """Writes the confusion matrix and the tables of pairs and of classes, and prints the first pairs."""
    with (out / "confusion.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", *wnids])
        writer.writerows([wnid, *row] for wnid, row in zip(wnids, confusion.tolist(), strict=True))
    figures.confusion_figure(confusion, wnids).savefig(out / "confusion.png")
    pairs = Table("confused_pairs", "Classes most often confused with each other", pair_rows(confusion, wnids, words))
    write(pairs, out, LISTED)
    if pairs.rows:
        print(terminal(pairs, PRINTED), end="\n\n")
    write(Table("classes", "Classes", class_rows(confusion, wnids, words), "Top-1 in percent."), out)


def write_object_size(network: str, boxes: np.ndarray, right: np.ndarray, out: pathlib.Path) -> None:
    """Writes and prints the table of `mistakes.object_size_rows`, and writes its figure."""
    rows = mistakes.object_size_rows(boxes, right)
    note = "Top-1 in percent, by the centre crop; the area is that of the object's bounding box."
    table = Table("object_size", "Accuracy by the object's size", rows, note)
    write(table, out)
    print(terminal(table), end="\n\n")
    *fifth, top_1 = OBJECT_SIZE_COLUMNS
    curve = [{key: row[key] for key in fifth} | {network: row[top_1]} for row in rows]
    figures.write(figures.object_size(curve), "object_size", out)


def write_all(
    network: str,
    data: TinyImageNet,
    boxes: np.ndarray,
    centre_crop: np.ndarray,
    ten_crop: np.ndarray,
    out: pathlib.Path,
) -> None:
    """Writes tables and figures of a network's mistakes on the validation images, and prints the short ones.

    Args:
      network: The network's name.
      data: The dataset.
      boxes: The boxes of the objects in the validation images, (N, 4); see `input_pipeline.load_boxes`.
      centre_crop: The probabilities by the centre crop, (N, C): they decide what is a mistake.
      ten_crop: The probabilities by ten crops, (N, C): they decide what is ambiguous, as they depend less on the crop.
      out: The folder.
    """
    split = data.splits["validation"]
    labels, predictions = split.labels, centre_crop.argmax(axis=1)
    right, details = predictions == labels, mistakes.detail(split.images)
    confusion = mistakes.confusion_matrix(labels, predictions, len(data.wnids))
    write_confusion(confusion, data.wnids, [first_word(words) for words in data.words], out)
    wrong, unclear = mistakes.confident_mistakes(centre_crop, labels), mistakes.ambiguous(ten_crop, labels)
    for name, sheet, chosen, probabilities, others in (
        ("mistakes", "figure_8", wrong, centre_crop, predictions),
        ("ambiguous", "ambiguous", unclear, ten_crop, mistakes.confident_classes(ten_crop, labels)),
    ):
        rows = image_rows(data, split, details, chosen, probabilities, others)
        write(Table(name, name, rows), out, LISTED)
        write_sheet(split.images[chosen[:SHOWN]], rows, out / f"{sheet}.png")
    note = "Top-1 and possibly ambiguous labels in percent; detail is the variance of the Laplacian."
    rows = mistakes.detail_table(details, right, np.isin(np.arange(len(labels)), unclear), labels)
    by_detail = Table("detail", "Accuracy by detail", rows, note)
    write(by_detail, out)
    print(terminal(by_detail), end="\n\n")
    write_object_size(network, boxes, right, out)
    print(f"{len(wrong):,} of {len(labels):,} predictions are wrong; {len(unclear):,} labels are possibly ambiguous")
