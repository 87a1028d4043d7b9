from pathlib import Path

from headrace.settings import Settings, settings_table

RUNNING = Path(__file__).parents[2] / "docs" / "running.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->"


def test_the_table_in_the_docs_is_that_of_the_code():
    text = RUNNING.read_text()
    documented = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert documented == settings_table(), "paste headrace.settings.settings_table() between the marks"


def test_flags_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("HEADRACE_PORT", "9001")
    assert Settings().port == 9001
    assert Settings(port=9002).port == 9002
