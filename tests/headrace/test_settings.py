from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.settings import Settings, load_settings, settings_table
from headrace.settings_sources import PEER_NAMES, notes_on_environment
from stream.errors import InvalidInput

RUNNING = Path(__file__).parents[2] / "docs" / "running.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    """Without what the machine that runs the tests has set."""
    for name in [
        *(f"HEADRACE_{name.upper()}" for name in Settings.model_fields),
        *sum(PEER_NAMES.values(), ()),
    ]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def config(tmp_path):
    """Writes a configuration file and returns its path."""

    def write(text):
        path = tmp_path / "headrace.toml"
        path.write_text(text)
        return path

    return write


def test_the_table_in_the_docs_is_that_of_the_code():
    text = RUNNING.read_text()
    documented = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert documented == settings_table(), "paste headrace.settings.settings_table() between the marks"


def test_flags_win_over_the_environment_over_peers_names_over_the_file_over_defaults(monkeypatch, config):
    path = config("port = 9001\ncapacity = 2\nmodel_id = 'file'\nwidth = 640\nworkflow = 'mirror'\n")
    monkeypatch.setenv("HEADRACE_PORT", "9002")
    monkeypatch.setenv("HEADRACE_CAPACITY", "3")
    monkeypatch.setenv("CAPABILITY_CAPACITY", "7")
    monkeypatch.setenv("MODEL_ID", "peer")
    settings = load_settings({"config": path, "port": 9003, "width": None})
    assert (settings.port, settings.capacity, settings.model_id, settings.width) == (9003, 3, "peer", 640)
    assert (settings.workflow, settings.height) == ("mirror", 512)


def test_the_file_can_be_named_by_the_environment(monkeypatch, config):
    monkeypatch.setenv("HEADRACE_CONFIG", str(config("port = 9001\nallowed_hosts = ['a', '10.0.0.0/8']\n")))
    assert load_settings({}).port == 9001
    assert load_settings({}).allowed_hosts == ("a", "10.0.0.0/8")


def test_lists_in_the_environment_have_commas(monkeypatch):
    monkeypatch.setenv("HEADRACE_ALLOWED_HOSTS", " a.example, *.b.example ,,")
    assert load_settings({}).allowed_hosts == ("a.example", "*.b.example")


def test_the_names_of_peers_are_taken(monkeypatch):
    for name, value in {
        "AUTH_TOKEN": "secret",
        "PIPELINE": "byoc",
        "CAPABILITY_NAME": "mine",
        "MODEL_ID": "no",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings({})
    assert settings.token is not None
    assert settings.token.get_secret_value() == "secret"
    assert (settings.pipeline, settings.model_id) == ("byoc", "mine")


@pytest.mark.parametrize("name", ["HEADRACE_TOKEN", "AUTH_TOKEN"])
def test_an_empty_token_is_none(monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert load_settings({}).token is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "'prot' is no setting; did you mean port"),
        ("zzzzzzz = 1", "'zzzzzzz' is no setting$"),
        ("config = 'other.toml'", "'config' is no setting"),
        ("port = ", "is not TOML"),
        ("port = 'many'", "port: Input should be a valid integer"),
        ("token = ''", "token: .*at least 1"),
        ("tls_key = 'key.pem'", "tls_certificate and tls_key are given together"),
        ("self_signed = true\ntls_key = 'a'\ntls_certificate = 'b'", "not both"),
        ("log_format = 'xml'", "log_format"),
    ],
)
def test_what_a_file_gets_wrong_is_said(config, text, message):
    with pytest.raises(InvalidInput, match=message):
        load_settings({"config": config(text)})


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_settings({"config": tmp_path / "none.toml"})


def test_every_unknown_key_is_named(config):
    with pytest.raises(InvalidInput) as raised:
        load_settings({"config": config("a = 1\nport = 2\nb = 3\n")})
    assert [detail["field"] for detail in raised.value.details] == ["a", "b"]


def test_secrets_are_not_in_error_messages(config):
    with pytest.raises(InvalidInput) as raised:
        load_settings({"config": config("token = ['hunter2']\n")})
    assert "hunter2" not in str(raised.value.as_dict())


@pytest.mark.parametrize("token", [None, "same"])
def test_a_token_for_viewers_stands_beside_another_one(token):
    with pytest.raises(InvalidInput, match="view_token"):
        load_settings({"token": token, "view_token": "same"})
    assert load_settings({"token": "other", "view_token": "same"}).view_token is not None


def test_variables_without_effect_are_named():
    known = list(Settings.model_fields)
    environment = {
        "ORCH_URL": "https://o",
        "ORCH_SECRET": "",
        "HEADRACE_PROT": "1",
        "HEADRACE_PORT": "1",
        "PATH": "/",
    }
    notes = notes_on_environment(environment, known)
    assert notes == [
        "ORCH_URL is set without ORCH_SECRET: the worker registers with no orchestrator",
        "HEADRACE_PROT is no setting; did you mean HEADRACE_PORT?",
    ]


@given(st.dictionaries(st.text(), st.text()))
def test_any_environment_can_be_looked_at(environment):
    for note in notes_on_environment(environment, Settings.model_fields):
        assert note


def test_encryption_follows_from_certificates():
    assert not Settings().encrypted
    assert Settings(self_signed=True).encrypted
    assert Settings(tls_certificate=Path("a"), tls_key=Path("b")).encrypted
