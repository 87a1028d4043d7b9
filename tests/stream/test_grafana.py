"""The dashboard in the docs asks for nothing that is not told, and leaves nothing out."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from quiet_session import quiet_session

from stream.metrics import HELP, EngineFigures, Metrics
from stream.status import session_report
from stream.table import SessionTable

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"
BY_PROMETHEUS = {"job", "instance", "le"}


@pytest.fixture
def dashboard():
    return json.loads(DASHBOARD.read_text())


@pytest.fixture
def expressions(dashboard):
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.fixture
async def told():
    """Labels with their values, by the name of the sample."""
    table = SessionTable(8, session_report)
    engine = EngineFigures("live", "ready", 0, 0, 1)
    metrics = Metrics(table, version="1", engines=lambda: [engine])
    session = quiet_session("one")
    table.add(session)
    figures = session.pipeline.figures
    figures.video_out = figures.audio_out = 0
    for meter in (figures.output_rate, figures.audio_out_rate):
        meter.tick(10**18)
    page = metrics.text() + generate_latest(metrics.registry).decode()
    await table.close("the test is over")
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def names(expression):
    return set(re.findall(r"\b(?:headrace|process)_\w+", expression))


def test_every_metric_that_is_asked_for_is_told(expressions, told):
    assert expressions
    for expression in expressions:
        assert names(expression), expression
        assert names(expression) <= told.keys(), expression


def test_every_label_that_is_asked_for_is_there_with_that_value(expressions, told):
    for expression in expressions:
        known = {}
        for name in names(expression):
            known |= told[name]
        for label, operator, value in re.findall(r'(\w+)(=~?)"([^"]*)"', expression):
            assert label in known.keys() | BY_PROMETHEUS, expression
            if "$" not in value:
                wanted = value.split("|") if operator == "=~" else [value]
                assert known[label].issuperset(wanted), expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in labels.split(",")} <= known.keys() | BY_PROMETHEUS, expression


def test_every_metric_of_sessions_and_engines_is_shown(expressions):
    asked = {name.removesuffix("_bucket") for expression in expressions for name in names(expression)}
    assert set(HELP) <= asked


def test_variables_are_defined_and_panels_do_not_overlap(dashboard, expressions):
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    for expression in expressions:
        assert set(re.findall(r"\$(\w+)", expression)) <= defined | {"__rate_interval"}
    cells = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells
                cells.add((x, y))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
