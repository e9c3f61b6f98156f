"""The report page: self-contained, accessible, and deaf to markup in what a model says."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError, Reason
from limbeck.report import Report, read_figures, write_report

HOSTILE_TAGS = {"script", "img", "b", "iframe", "object", "link"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and whether every element is closed where it should be."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def html(run_folder: Path) -> str:
    page = write_report(run_folder)
    assert page == run_folder / "report" / "index.html"
    return page.read_text("utf-8")


def test_markup_in_samples_recipes_and_warnings_stays_text(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert HOSTILE_TAGS.isdisjoint(tag for tag, _ in page.elements)
    text = "".join(page.texts)
    assert '<script>alert("x")</script><img src=x onerror=alert(1)>&amp; ]]>' in text
    assert "observer <b>pager</b> raised KeyError" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)
    assert "␛[31m␀" in text


def test_page_loads_nothing_from_elsewhere(html: str) -> None:
    for tag, attributes in Page(html).elements:
        assert tag not in {"link", "script", "img", "iframe", "base"}
        for name, value in attributes.items():
            assert name not in {"src", "href", "srcset", "style", "xlink:href"}, (tag, name, value)
            assert not name.startswith("on")
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_every_loss_term_and_every_knob_has_a_curve(html: str, run_folder: Path) -> None:
    titles = re.findall(r"<figcaption>([^<]*)</figcaption>", html)
    for name in ("losses.forward_kl", "losses.cross_entropy", "loss", "learning_rate", "grad_norm"):
        assert name in titles
    for knob in ("losses.forward_kl.temperature", "losses.forward_kl.weight"):
        assert knob in titles
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        drawing = ET.fromstring(svg)
        ids = (drawing.get("aria-labelledby") or "").split()
        assert [child.get("id") for child in list(drawing)[:2]] == ids
        shapes = [e for e in drawing.iter() if e.tag in ("path", "rect")]
        assert shapes
        assert all("nan" not in (e.get("d") or "").lower() for e in shapes)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_the_four_models_stand_side_by_side(html: str) -> None:
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    rows = re.findall(r"<tr class=\"(\w+)\">(.*?)</tr>", body, re.S)
    assert [name for name, _ in rows] == ["teacher", "untrained", "twin", "student"]
    cells = {name: [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for name, row in rows}
    assert cells["teacher"] == ["268.1 M", "1022.7 MiB", "820", "9.10", "0", "100.0\u00a0%"]
    assert cells["student"] == ["218.0 M 0.81×", "831.6 MiB 0.81×", "1,208 1.5×", "27.4", "1.13", "52.3\u00a0%"]
    assert dict(rows)["student"].count("<strong>") == 3
    assert dict(rows)["twin"].count("<strong>") == 0


def test_stage_times_count_every_attempt_and_skipped_stages_nothing(run_folder: Path) -> None:
    history = read_figures(run_folder).history
    stages = {stage.name: stage for stage in history.stages}
    assert stages["label"].seconds == 57
    assert stages["label"].attempts == 1
    assert stages["train"].attempts == 2
    assert stages["train"].seconds == 34 + 40  # the second attempt's own word, and the first's from event to event
    assert history.attempts == 2
    assert [(w.reason, w.times) for w in history.warnings] == [("OBSERVER_DISABLED", 3)]
    assert history.rewinds[0].to_step == 20


def test_rewound_steps_are_drawn_once_with_their_last_values(run_folder: Path) -> None:
    curve = read_figures(run_folder).history.series["train"]["losses.forward_kl"]
    assert curve.steps == list(range(1, 55))
    assert max(curve.values) < 10  # the steps that were thrown away stood above 50


def test_report_json_reads_back_with_values_that_are_not_finite(run_folder: Path, html: str) -> None:
    raw = (run_folder / "report" / "report.json").read_text()
    value = json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert "NaN" in value["history"]["series"]["train"]["grad_norm"]["values"]
    report = Report.model_validate_json(raw)
    assert math.isnan(report.history.series["train"]["grad_norm"].values[32])
    assert report.verdict.outcome == "better"


def test_a_run_without_evaluation_or_twin_still_has_a_page(run_folder: Path) -> None:
    (run_folder / "evaluation" / "evaluation.json").unlink()
    page = write_report(run_folder).read_text("utf-8")
    assert "there is no verdict" in page
    assert Page(page).open == []


def test_a_second_report_is_the_same_bytes(run_folder: Path) -> None:
    first = write_report(run_folder).read_bytes()
    assert write_report(run_folder).read_bytes() == first


def test_a_damaged_history_is_an_error_not_a_wrong_curve(run_folder: Path) -> None:
    events = run_folder / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join([*lines[:3], b"\0" * 20 + b"\n", *lines[3:]]))
    with pytest.raises(LimbeckError) as caught:
        write_report(run_folder)
    assert caught.value.reason == Reason.LOG_DAMAGED
    assert not (run_folder / "report").exists()
