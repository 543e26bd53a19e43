"""Grids along the axes of a plan, and what is chosen from them."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.planning.fingerprint import CaseStatistics, ChannelStatistics, Fingerprint
from medseg.planning.grids import Grids, oriented, plan_orders, plan_spacing


def cases_of(*rows: tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]) -> Fingerprint:
    """Cases of shape and spacing along right, front and up, and of the order in which the files store these."""
    cases = [CaseStatistics(f"c{n}", *row[:2], "mm", row[0], row[2], {}) for n, row in enumerate(rows)]
    return Fingerprint(tuple(cases), (ChannelStatistics("", 0, 1, 0, 0, 1, 0, 1),))


def test_the_axis_from_left_to_right_is_found_where_most_files_store_it() -> None:
    sagittal = ((10, 20, 30), (1.0, 2.0, 3.0), (2, 0, 1))
    grids = oriented(cases_of(sagittal, sagittal, ((10, 20, 30), (1.0, 2.0, 3.0), (0, 1, 2))), "stored", {})
    order = np.argsort(sagittal[2])
    assert grids.shapes[0].tolist() == np.array(sagittal[0])[order].tolist()
    assert grids.shapes[0][grids.side] == 10
    assert oriented(cases_of(sagittal), None, {}).shapes.tolist() == [[10, 20, 30]]
    with pytest.raises(MedsegError, match="expected RAS or stored"):
        oriented(cases_of(sagittal), "LPS", {})


def test_few_thick_slices_are_an_axis_of_their_own() -> None:
    why: dict[str, str] = {}
    shapes = np.array([[200.0, 200, 20]] * 3)
    grids = Grids("RAS", shapes, shapes, np.array([[1.0, 1, 5], [1, 1, 6], [1, 1, 7]]), 0)
    assert plan_spacing(grids, None, "mm", why) == ((1.0, 1.0, 5.2), 2)
    assert "along axis 2 slices lie more than 3× further apart" in why["spacing"]
    assert plan_orders(3, 2, why) == ((3, 3, 0), (1, 1, 0))
    assert plan_spacing(grids, (1, 1, 2), "mm", why)[0] == (1, 1, 2)
