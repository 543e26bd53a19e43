from __future__ import annotations

import numpy as np

from medseg.evaluation.detection import DetectedCase
from medseg.evaluation.detection_summary import detection_metrics
from medseg.evaluation.detection_table import format_detection
from medseg.evaluation.summary import Summary
from medseg.structures import Boxes, LabelTable
from medseg.volume import Geometry

TWO = LabelTable({1: "mass", 2: "cyst"})


def summary(scans: int, *, finds: float = 0.7, labels: LabelTable = TWO, **more: float) -> Summary:
    """Scans with one mass each, found in a share of them, and a false box of lower score in every second."""
    grid = Geometry.from_spacing((64, 64), (1.0, 1.0))
    made = []
    for number in range(scans):
        true = np.array([[5.0, 5, 15, 15 + number]])
        boxes = [*(true if number < finds * scans else []), *([[40.0, 40, 50, 50]] if number % 2 else [])]
        scores = np.linspace(0.9, 0.5, len(boxes)) - number / 100
        found = Boxes(np.array(boxes).reshape(-1, 4), np.ones(len(boxes), int), scores)
        made.append(DetectedCase(str(number), found, Boxes(true, np.array([1])), grid, thresholds=more))
    return detection_metrics(made, labels, samples=100).summary


def blocks(text: str) -> list[list[list[str]]]:
    """The words of every line of every block."""
    return [[line.split() for line in block.splitlines()] for block in text.split("\n\n")]


def test_a_table_has_precision_froc_and_the_working_point_of_every_label() -> None:
    precision, froc, point, _ = blocks(format_detection({"": summary(20)}))
    assert precision[0] == ["label", "AP@0.1", "AP@0.2", "AP@0.3", "AP@0.4", "AP@0.5", "CPM", "lesions", "scans"]
    assert [row[0] for row in precision[1:]] == ["mass", "cyst", "mean"]
    assert precision[1][-2:] == ["20", "20"] and "[" in precision[1][2]
    assert precision[2] == ["cyst", *["–"] * 6, "0", "20"]
    assert froc[1] == ["label", "1/8", "1/4", "1/2", "1", "2", "4", "8"]
    assert froc[2][1:4] == ["0.700", "0.700", "0.700"] and froc[2][5].startswith("[")  # of 1 a scan, with its interval
    assert point[0] == ["at", "the", "working", "point"] and point[1][-3:] == ["small", "medium", "large"]


def test_coco_precision_is_shown_when_it_is_asked_for() -> None:
    assert "COCO AP" in format_detection({"": summary(10)}, coco=True).splitlines()[0]
    assert "COCO AP" not in format_detection({"": summary(10)})


def test_detectors_stand_below_each_other_label_by_label() -> None:
    both = {"this": summary(20), "brightest components": summary(20, finds=0.3)}
    rows = blocks(format_detection(both))[1][2:]
    assert [row[0] for row in rows] == ["mass", "mass", "cyst", "cyst", "mean", "mean"]
    assert rows[0][1:3] == ["this", "0.700"] and rows[1][1:4] == ["brightest", "components", "0.300"]


def test_one_label_needs_no_mean() -> None:
    rows = blocks(format_detection({"": summary(20, labels=LabelTable({1: "mass"}))}))[0]
    assert [row[0] for row in rows] == ["label", "mass"]


def test_notes_say_once_why_a_figure_is_blank_and_which_working_point_was_taken() -> None:
    notes = format_detection({"": summary(6)}).split("\n\n")[-1].splitlines()
    assert sum("0.125 false positives a scan cannot be measured with 6 scans" in note for note in notes) == 1
    assert notes[0].startswith("sensitivity_at_0.125_fp, cpm: ")
    (own,) = [note for note in notes if "no working point was given" in note]
    assert own.startswith("sensitivity, precision, f1, fp_per_scan, clean_scans, sensitivity_small")
    (small,) = [note for note in notes if note.startswith("sensitivity_small (mass): ")]
    assert "longest edge below" in small
    given = format_detection({"": summary(20, mass=0.5, cyst=0.5)})
    assert "no working point" not in given and "cannot be measured" not in given


def test_a_note_says_of_whom_it_is_where_it_is_not_of_all() -> None:
    text = format_detection({"this": summary(6, mass=0.5, cyst=0.5), "other": summary(6)})
    notes = text.split("\n\n")[-1].splitlines()
    assert sum("cannot be measured" in note and "(" not in note.partition(":")[0] for note in notes) == 1
    (own,) = [note for note in notes if "no working point was given" in note]
    assert " (other): " in own


def test_notes_are_counted_where_there_are_too_many() -> None:
    many = LabelTable({n: f"kind {n}" for n in range(1, 9)})
    made = summary(20, labels=many)
    for label, entry in made["precision"].items():
        made["precision"][label] = {**entry, "note": f"a note of {label} of its own; and another of {label}"}
    lines = format_detection({"": made}).split("\n\n")[-1].splitlines()
    assert len(lines) == 13 and lines[-1].endswith("more notes in summary.json")
