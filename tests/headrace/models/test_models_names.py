"""Names of models: what is one, and that none leads out of the models' folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headrace.models.errors import ModelNotFound, UnsafeFile
from headrace.models.refs import ModelKey, ModelRef
from headrace.models.roots import Roots
from headrace.models.store import ModelStore
from stream.errors import InvalidInput

SECRET = "secret.safetensors"
HOSTILE = [
    "..", "../secret", "../../secret.safetensors", "/etc/passwd", "//etc", "~root", "a/../../b", "a/./b",
    "a//b", "a/", "\\\\host\\share", "C:\\x", "a\x00b", "a\nb", "-rf", "x--y/../z", "demo:", "demo:../x",
    "demo:Tiny", "a@", "a@..", "a@x..y", "a@../../x", "a@/x", "a@x.lock", "", " a", "a ", "." * 300,
    "a/" * 20 + "a", "x" * 5000, "\ud800",
]  # fmt: skip
names = st.one_of(
    st.sampled_from([*HOSTILE, "out", "out/secret.safetensors", "out.safetensors", "models--x--y"]),
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["..", ".", "a", "out", SECRET, "/", "@", "main", "~", "\\", "demo:", "\0"]),
        max_size=8,
    ).map("/".join),
)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    """Folders with a secret beside them, and links inside that lead to it."""
    top = tmp_path_factory.mktemp("names")
    for name in ("models", "hub", "cache", "outside"):
        (top / name).mkdir()
    (top / SECRET).write_bytes(b"\0" * 64)
    (top / "outside" / SECRET).write_bytes(b"\0" * 64)
    (top / "outside" / "config.json").write_text("{}")
    (top / "outside" / "model.safetensors").write_bytes(b"\0" * 64)
    (top / "models" / "a").mkdir()
    (top / "models" / "out").symlink_to(top / "outside")
    (top / "models" / "out.safetensors").symlink_to(top / SECRET)
    inner = top / "models" / "inner"
    inner.mkdir()
    (inner / "config.json").write_text("{}")
    (inner / "model.safetensors").symlink_to(top / SECRET)
    return Roots(top / "models", top / "hub", top / "cache")


@given(name=names)
@example(name="inner")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leads_out_of_the_folders(roots: Roots, name: str) -> None:
    store = ModelStore(roots)
    top = os.path.realpath(roots.models.parent)
    for use in (store.find, store.remove):
        try:
            found = use(name)
        except (InvalidInput, ModelNotFound, UnsafeFile):
            continue
        if use == store.find:
            assert not isinstance(found, int)
            files = [found.path, *(found.path / file for file in found.files)]
            inside = [os.path.realpath(root) for root in (roots.models, roots.hub, roots.cache)]
            for file in map(os.path.realpath, files):
                assert any(file.startswith(root + "/") for root in inside) or not file.startswith(top)
    # Links may go; what they lead to stays.
    assert (roots.models.parent / SECRET).exists()
    assert (roots.models.parent / "outside" / SECRET).exists()
    assert (roots.models.parent / "outside" / "model.safetensors").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_name_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InvalidInput, match="names no model") as refused:
        ModelRef.parse(name)
    assert refused.value.field == "model_id"


def test_a_folders_name_that_the_hubs_cache_would_misread_is_no_repository() -> None:
    assert ModelRef.parse("models--x--y").repository is None
    assert ModelRef.parse("a/b..c").repository is None


@pytest.mark.parametrize("name", ["out", "out.safetensors", "inner"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "models" / "inner").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "models" / "inner" / "config.json").write_text("{}")
    (tmp_path / "models" / "inner" / "model.safetensors").symlink_to(
        tmp_path / "outside" / "model.safetensors"
    )
    (tmp_path / "models" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "models" / "out.safetensors").symlink_to(tmp_path / "outside" / "model.safetensors")
    store = ModelStore(Roots(tmp_path / "models", tmp_path / "hub", tmp_path / "cache"))
    with pytest.raises(InvalidInput, match="leads out"):
        store.find(name)


@pytest.mark.parametrize(
    ("text", "kind", "repository", "revision"),
    [
        ("owner/name", "repo", "owner/name", None),
        ("owner/name@refs/pr/1", "repo", "owner/name", "refs/pr/1"),
        ("gpt2", "repo", "gpt2", None),
        ("my models/a (v2)", "repo", None, None),
        ("a/b/c/d", "repo", None, None),
        ("x.safetensors", "file", None, None),
        ("owner/name/unet/x.safetensors@main", "file", "owner/name", "main"),
        ("demo:tiny-sd", "demo", None, None),
    ],
)
def test_names_are_taken_apart(text: str, kind: str, repository: str | None, revision: str | None) -> None:
    ref = ModelRef.parse(text)
    assert (ref.kind, ref.repository, ref.revision) == (kind, repository, revision)


@given(text=names)
def test_a_name_is_the_same_after_a_round_trip(text: str) -> None:
    try:
        ref = ModelRef.parse(text)
    except InvalidInput:
        return
    assert ModelRef.parse(str(ref)) == ref


def test_a_key_crosses_as_data() -> None:
    key = ModelKey("a/b", "1" * 40, "float16", "cuda:0", "llm")
    assert ModelKey.from_dict(key.as_dict()) == key


def test_folders_follow_the_hubs_variables(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert Roots.from_environment(environ=home).hub == tmp_path / ".cache/huggingface/hub"
    assert Roots.from_environment(environ={**home, "HF_HOME": "/h"}).hub == Path("/h/hub")
    assert Roots.from_environment(environ={**home, "MODEL_DIR": "/m", "HF_HOME": "/h"}).hub == Path("/m")
    named = {**home, "HUGGINGFACE_HUB_CACHE": "/u", "MODEL_DIR": "/m"}
    assert Roots.from_environment(environ=named).hub == Path("/u")
    assert Roots.from_environment(Path("/own"), environ=home).models == Path("/own")
