"""The page in a browser without a window: what it lists, what it draws where, and that it complains of nothing."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from medseg.commands.report import report
from tests.report.conftest import TRUST, Look


@pytest.fixture
def page(results: Path) -> Path:
    return report(results, progress=False)


def of(dom: str, pattern: str) -> list[str]:
    return re.findall(pattern, dom)


def stage(dom: str) -> dict[str, str]:
    (tag,) = of(dom, r'<div class="stage"[^>]*>')
    return dict(re.findall(r'data-(\w+)="([^"]*)"', tag))


def near(picture: np.ndarray, colour: tuple[int, ...], tolerance: int = 12) -> int:
    """How many pixels have a colour."""
    return int((np.abs(picture.astype(int) - colour).max(axis=-1) <= tolerance).sum())


def complaints(dom: str) -> str:
    """What the page says of its own script, and what no page should say."""
    (found,) = of(dom, r'<p id="errors"[^>]*>(.*?)</p>')
    return found + "".join(of(dom, r"\[object \w+\]|undefined|NaN"))


def test_every_case_is_listed_and_nothing_of_the_data_runs(page: Path, look: Look) -> None:
    dom = look.dom(page)
    assert complaints(dom) == ""
    listed = of(dom, r'<a href="#case=(\w+)"[^>]*><(?:img|span)')
    assert listed == ["a", "broken", "damaged", "gone", "halfway", "picture"]
    assert "&lt;img src=x&gt;" in dom and "<img src=x>" not in dom and "<b>t" not in dom
    assert sorted(of(dom, r'<span class="badge (\w+)">\1</span></a>')) == sorted(
        ["done", "failed", "damaged", "unfinished", "unfinished", "done"]
    )


def test_the_address_chooses_case_and_slice(page: Path, look: Look) -> None:
    dom = look.dom(page, case="a", slice="3")
    assert stage(dom) == {"slice": "3", "drawn": "true", "boxes": "0"} and complaints(dom) == ""
    assert "Slice 3 of 20 · voxel 2 · S 8.0 mm" in dom
    assert of(dom, r'class="mark \w+" aria-hidden="true">(\w)<') == ["R", "L", "A", "P"]
    assert stage(look.dom(page, case="a"))["slice"] == "8"  # where the finding is
    assert stage(look.dom(page, case="a", slice="99"))["slice"] == "20"
    assert "There is no case nobody" in look.dom(page, case="nobody")


def test_boxes_are_on_the_slices_that_they_cross_and_can_be_switched_off(page: Path, look: Look) -> None:
    dom = look.dom(page, case="a", slice="8")
    assert stage(dom)["boxes"] == "1" and "1 · 0.90" in dom
    assert stage(look.dom(page, case="a", slice="13"))["boxes"] == "0"
    below = look.dom(page, case="a", slice="13", below="1")
    assert stage(below)["boxes"] == "1" and 'class="box below' in below and "1 below the working point" in below
    assert stage(look.dom(page, case="a", slice="8", boxes="0"))["boxes"] == "0"


def said(dom: str) -> object:
    """What a driven page says at its end."""
    (text,) = of(dom, r'<pre id="said">(.*?)</pre>')
    return json.loads(html.unescape(text))


INK = """
    const ink = (canvas) => {  // how much of a layer is not transparent, and between which columns, as shares
        const { width, height } = canvas;
        const alpha = canvas.getContext('2d').getImageData(0, 0, width, height).data.filter((_, n) => n % 4 === 3);
        const columns = [...alpha.keys()].filter((n) => alpha[n] > 40).map((n) => (n % width) / width);
        return columns.length ? [columns.length / alpha.length, Math.min(...columns), Math.max(...columns)] : [0];
    };
    const layers = () => [...document.querySelectorAll('.stage canvas')];
"""


def test_layers_are_drawn_where_they_lie(page: Path, look: Look) -> None:
    script = INK + "return layers().filter((one) => !one.hidden).map(ink);"
    dom = look.driven(page, script, case="a", slice="8", heat="lesion 1")
    scan, heat, mask = said(dom)  # type: ignore[misc]
    assert scan[0] == 1.0
    # Columns run from the patient's right: the lesion lies around 39 − 31 = 8 of 40 and its map within 5 of that.
    assert 0 < heat[0] < 0.2 and heat[1] >= 3 / 40 and heat[2] <= 13 / 40
    assert mask[1] == 6 / 40 and 31 / 40 < mask[2] < 33 / 40  # from the lesion to the organ
    assert complaints(dom) == ""


def test_slices_differ_as_one_scrolls(page: Path, look: Look) -> None:
    script = (
        INK
        + """
        const grey = () => layers()[0].getContext('2d').getImageData(0, 0, 40, 32).data.filter((_, n) => n % 4 === 0);
        const found = [];
        for (const at of ['2', '11']) {
            tell(find('input[aria-label=Slice]'), 'input', at);
            found.push([grey().reduce((a, b) => a + b, 0), ink(layers().at(-1))[0]]);
        }
        return found;
    """
    )
    (dark, none), (bright, some) = said(look.driven(page, script, case="a"))  # type: ignore[misc]
    assert bright > 1.1 * dark and none == 0 and some > 0.05


def test_slider_keys_and_wheel_go_through_the_slices(page: Path, look: Look) -> None:
    script = """
        const stage = find('.stage'), seen = [], at = () => seen.push(stage.dataset.slice);
        const press = (key) => { stage.dispatchEvent(new KeyboardEvent('keydown', { key })); at(); };
        const turn = (deltaY) => {
            const event = new WheelEvent('wheel', { deltaY, cancelable: true });
            stage.dispatchEvent(event);
            at();
            return event.defaultPrevented;
        };
        ['End', 'ArrowDown', 'ArrowUp', 'PageUp', 'Home'].forEach(press);
        const held = [turn(100), turn(-100), turn(-100)];
        tell(find('input[aria-label=Slice]'), 'input', '12');
        at();
        return [seen, held, location.hash];
    """
    dom = look.driven(page, script, case="a")
    seen, held, address = said(dom)  # type: ignore[misc]
    assert seen == ["20", "20", "19", "14", "1", "2", "1", "1", "12"]
    assert held == [True, True, False]  # where the slices end the page scrolls on
    assert address == "#case=a&slice=12" and "Slice 12 of 20" in dom and complaints(dom) == ""


def test_switches_stand_in_the_address_and_hold_for_the_next_case(page: Path, look: Look) -> None:
    script = """
        const rows = [...document.querySelectorAll('.panel .row label')];
        for (const name of ['Labels', 'Findings', 'lesion 1']) {
            rows.find((one) => one.textContent.trim() === name).firstChild.click();
        }
        const address = location.hash;
        const shown = () => [...document.querySelectorAll('.stage canvas')].map((one) => !one.hidden);
        const here = shown();
        location.hash = '#case=damaged';
        await wait(50);
        await drawn();
        return [address, here, shown(), find('.stage').dataset.boxes];
    """
    dom = look.driven(page, script, case="a", slice="8")
    # The scan, two heat maps and the mask; the damaged case has no mask.
    assert said(dom) == [
        "#case=a&slice=8&mask=0&boxes=0&heat=lesion+1",
        [True, True, False, False],
        [True, True, False],
        "0",
    ]
    assert complaints(dom) == ""


def test_a_click_on_a_finding_goes_to_its_slice_and_marks_it(page: Path, look: Look) -> None:
    script = """
        const before = find('.findings tr.goes').className;
        find('.findings tr.goes').click();
        return [before, find('.findings tr.goes').className, find('.stage').dataset.slice, find('.box').className];
    """
    assert said(look.driven(page, script, case="a", slice="1")) == ["goes", "goes here", "8", "box chosen"]


def test_single_labels_can_be_hidden(page: Path, look: Look) -> None:
    script = """
        const mask = find('.stage canvas:last-of-type');
        const pixels = () => mask.getContext('2d').getImageData(0, 0, mask.width, mask.height).data;
        const count = () => pixels().filter((value, n) => n % 4 === 3 && value).length;
        const all = count();
        find('.labels input').click();
        return [all, count()];
    """
    every, without = said(look.driven(page, script, case="a"))  # type: ignore[misc]
    assert 0 < without < 0.5 * every


def test_the_list_is_searched_filtered_and_sorted(page: Path, look: Look) -> None:
    script = """
        const names = () => [...document.querySelectorAll('.list .name')].map((one) => one.textContent);
        const seen = [];
        tell(find('input[type=search]'), 'input', 'A');
        seen.push(names());
        tell(find('input[type=search]'), 'input', '');
        tell(find('[aria-label=Status]'), 'change', 'unfinished');
        seen.push(names());
        tell(find('[aria-label=Status]'), 'change', '');
        tell(find('[aria-label=Sort]'), 'change', 'figure:malignant');
        seen.push(names()[0]);
        return seen;
    """
    dom = look.driven(page, script, case="a")
    assert said(dom) == [["a", "damaged", "halfway"], ["gone", "halfway"], "picture"] and "malignant 0.750" in dom


def test_maps_of_a_flagged_method_say_so_at_the_case(results: Path, look: Look) -> None:
    (results / "trust.json").write_text(json.dumps(TRUST))
    index = {"made": {"method": "guided_backprop"}, "default": True, "targets": {}}
    (results / "a" / "heatmaps.json").write_text(json.dumps(index))
    dom = look.dom(report(results, progress=False), case="a")
    assert "<b>Do not trust: </b>does not depend on the weights" in dom and "Heat maps, Guided backprop" in dom
    assert complaints(dom) == ""


def test_failed_damaged_and_unfinished_cases_say_why(page: Path, look: Look) -> None:
    for case, words in (
        ("broken", "This case failed. </b>broken.nii.gz: cut short"),
        ("damaged", "Not all of this case can be shown. </b>mask.nii.gz"),
        ("gone", "This case is not finished. </b>the manifest says"),
        ("halfway", "the run ended in between"),
    ):
        dom = look.dom(page, case=case)
        assert words in dom and complaints(dom) == ""


def test_a_picture_shows_classes_as_bars_the_surest_first(page: Path, look: Look) -> None:
    dom = look.dom(page, case="picture")
    assert of(dom, r'<li><span class="name">(\w+)</span><span class="bar"') == ["malignant", "benign"]
    assert 'style="width: 75%;"' in dom and complaints(dom) == ""
    assert of(dom, r'<input type="checkbox" checked="">[^<]*class malignant')  # alone, it is on


def test_a_phone_shows_the_list_first_and_then_the_case(page: Path, look: Look) -> None:
    size = {"width": 500, "height": 900}  # the narrowest window of a browser
    assert not of(look.dom(page, **size), "<body data-open")
    dom = look.dom(page, **size, case="a")
    assert of(dom, "<body data-open") and "all cases" in dom and complaints(dom) == ""
    widths = "const page = document.documentElement; return [page.scrollWidth, innerWidth, find('.side').offsetWidth];"
    assert said(look.driven(page, widths, **size, case="a")) == [500, 500, 0]  # nothing sticks out, the list gives way


def test_a_screenshot_shows_the_list_beside_the_slices(page: Path, look: Look, tmp_path: Path) -> None:
    picture = look.picture(page, tmp_path / "page.png", case="a")
    assert picture.shape == (900, 1280, 3)
    assert near(picture[:, :310], (255, 255, 255)) > 40_000 and near(picture[:, 330:960], (5, 7, 10)) > 10_000


def test_an_evaluation_shows_its_parts_and_leads_to_its_worst_cases(evaluation: Path, look: Look) -> None:
    page = report(evaluation, progress=False)
    dom = look.dom(page)
    assert complaints(dom) == "" and "Not to be reported" in dom and "This evaluation is not finished" in dom
    sections = of(dom, r'<a href="#section=(\w+)"')
    assert sections[:5] == ["cases", "evaluation", "trust", "audit", "about"]
    worst = re.search(r"Worst cases first.*?</section>", dom, re.DOTALL)
    assert worst is not None and of(worst[0], r'<a href="#case=(\w+)"') == ["a", "damaged"]
    trust = look.dom(page, section="trust")
    assert (
        "Do not trust" in trust
        and "Guided backprop: does not depend on the weights" in trust
        and complaints(trust) == ""
    )
    audit = look.dom(page, section="audit")
    assert "Dice differs by site." in audit and "too small" in audit and complaints(audit) == ""
    about = look.dom(page, section="about")
    assert "ab" * 32 in about and "overlap" in about and complaints(about) == ""
