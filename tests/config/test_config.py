"""Settings: every source in its order, every mistake with its place, no comment lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outrider.config import edit
from outrider.config.keys import FLAGS, SECTIONS, Key, keys
from outrider.config.layers import Layers
from outrider.config.schema import schema
from outrider.config.template import template, toml
from outrider.config.values import plain
from outrider.errors import ConfigError, NotFound
from outrider.options import Address, CloudOptions, EdgeOptions, WorkerOptions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def load(file: Path, text: str = "", **variables: str) -> Layers:
    if text:
        file.write_text(text)
    return Layers.load(file, variables)


# --- order -------------------------------------------------------------------------------------


def test_without_any_source_the_options_are_their_defaults(file: Path) -> None:
    layers = load(file)
    assert layers.settle(EdgeOptions, "edge", {}, ()) == EdgeOptions()
    assert layers.settle(CloudOptions, "cloud", {}, ()) == CloudOptions()
    assert layers.settle(WorkerOptions, "worker", {}, ()) == WorkerOptions()


def test_flag_before_environment_before_file_before_default(file: Path) -> None:
    text = "schema = 1\n[edge]\npatience_s = 1\nmax_queue = 1\nmax_running = 1\n"
    variables = {"OUTRIDER_EDGE__PATIENCE_S": "2", "OUTRIDER_EDGE__MAX_QUEUE": "2"}
    layers = load(file, text, **variables)
    made = layers.settle(EdgeOptions, "edge", {"patience_s": 3.0, "max_queue": 9}, {"patience"})
    assert (made.patience_s, made.max_queue, made.max_running) == (3.0, 2, 1)
    assert made.hint_depth is None
    found = layers.section("edge")
    assert found["max_queue"].origin == "OUTRIDER_EDGE__MAX_QUEUE"
    assert found["max_running"].origin == f"{file}:5"
    assert found["hint_depth"].origin == "default"


def test_a_flag_that_says_the_default_still_wins(file: Path) -> None:
    layers = load(file, "[edge]\npatience_s = 1\n")
    made = layers.settle(EdgeOptions, "edge", {"patience_s": 10.0}, {"patience"})
    assert made.patience_s == 10.0


def test_values_of_every_kind(file: Path) -> None:
    text = """
    [edge]
    clouds = ["127.0.0.1:1", "[::1]"]
    journal_dir = "journals"
    watt_cap = 15
    [cloud]
    models = ["a=/m/a", "/m/b.gguf"]
    [worker]
    memory_bytes = "1.5G"
    mdns = false
    """
    layers = load(file, text)
    edge = layers.settle(EdgeOptions, "edge", {}, ())
    assert edge.clouds == (Address("127.0.0.1", 1), Address("::1", 11712))
    assert (edge.journal_dir, edge.watt_cap) == (file.parent / "journals", 15.0)
    cloud = layers.settle(CloudOptions, "cloud", {}, ())
    assert [(m.name, m.path) for m in cloud.models] == [("a", "/m/a"), ("b", "/m/b.gguf")]
    worker = layers.settle(WorkerOptions, "worker", {}, ())
    assert worker.memory_bytes == 3 << 29
    listed = load(file, OUTRIDER_EDGE__ALLOWED_HOSTS="a.lan, b.lan")
    assert listed.section("edge")["allowed_hosts"].value == ("a.lan", "b.lan")


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "said", "todo"),
    [
        ("[edge]\nlisen = 'a'\n", 2, "there is no key 'edge.lisen'", "'listen'"),
        ("[egde]\n", 1, "there is no key 'egde'", "'edge'"),
        ("x = 1\n\n[edge]\n", 1, "there is no key 'x'", "schema"),
        ("[edge]\n\nmax_queue = 'many'\n", 3, "edge.max_queue is 'many', not a whole number", ""),
        ("[edge]\nlisten = 4\n", 2, "not an address, HOST:PORT", ""),
        ("[edge]\nclouds = 'a:1'\n", 2, "not a list, each an address", ""),
        ("[edge]\nfallback = 'maybe'\n", 2, "not one of wait, local, error", ""),
        ("[worker]\nmdns = 1\n", 2, "not true or false", ""),
        ("[edge]\nmax_queue = true\n", 2, "not a whole number", ""),
        ("[edge]\ncloud_api_key = 'k'\n", 2, "is a secret", "OUTRIDER_CLOUD_API_KEY"),
        ("[link.home]\nurl = '127.0.0.1:1'\nurll = 2\n", 3, "'link.home.urll'", "'url'"),
        ("edge = 3\n", 1, "edge is no section", "[edge]"),
    ],
)
def test_a_mistake_names_its_line_and_the_nearest(
    file: Path, text: str, line: int, said: str, todo: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    assert said in caught.value.what
    assert f"{file}:{line}" in caught.value.what
    assert todo in caught.value.todo


def test_a_newer_format_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="has format 2") as caught:
        load(file, "schema = 2\n")
    assert "update outrider" in caught.value.todo


def test_what_is_no_toml_names_the_line(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(file, "[edge]\nlisten = \n")
    assert "line 2" in caught.value.why


@pytest.mark.parametrize(
    ("name", "todo"),
    [("OUTRIDER_EDGE__LISTN", "OUTRIDER_EDGE__LISTEN"), ("OUTRIDER_EGDE__LISTEN", "OUTRIDER_EDGE")],
)
def test_a_variable_that_sets_nothing_is_a_mistake_too(file: Path, name: str, todo: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        load(file, **{name: "1"})
    assert todo in caught.value.todo


def test_a_contradiction_names_where_it_is_from(file: Path) -> None:
    layers = load(file, "[edge]\nlisten = '0.0.0.0:1'\n")
    with pytest.raises(ConfigError) as caught:
        layers.settle(EdgeOptions, "edge", {}, ())
    assert f"listen is from {file}:2" in caught.value.why


# --- links -------------------------------------------------------------------------------------


def test_links_take_the_place_of_the_usual_cloud_best_first(file: Path) -> None:
    text = """
    [link.far]
    url = "grpc://127.0.0.1:7"
    [link.near]
    url = "127.0.0.1"
    priority = 1
    api_key_ref = "env:NEAR_KEY"
    """
    made = load(file, text).settle(EdgeOptions, "edge", {}, ())
    assert made.clouds == ()
    assert [(link.name, link.url.port) for link in made.links] == [("near", 11712), ("far", 7)]


def test_keys_of_links_are_found_where_they_are_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = file.with_name("key")
    secret.write_text("from-file\n")
    text = f"""
    [link.a]
    url = "127.0.0.1:1"
    api_key_ref = "env:NEAR_KEY"
    [link.b]
    url = "127.0.0.1:2"
    api_key_ref = "file:{secret}"
    """
    monkeypatch.setenv("NEAR_KEY", "from-variable")
    first, second = load(file, text).links()
    assert (first.api_key(), second.api_key()) == ("from-variable", "from-file")
    secret.unlink()
    with pytest.raises(ConfigError, match="can not be read"):
        second.api_key()


@pytest.mark.parametrize("url", ["cloud.example:1", "10.0.0.1"])
def test_a_link_beyond_loopback_needs_tls(file: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="needs TLS"):
        load(file, f"[link.home]\nurl = '{url}'\n")


def test_a_key_itself_is_no_reference(file: Path) -> None:
    with pytest.raises(ConfigError, match="names no place of a key"):
        load(file, "[link.home]\nurl = '127.0.0.1:1'\napi_key_ref = 'sk-secret'\n")


# --- the file that is written ------------------------------------------------------------------


def every() -> list[Key]:
    return [key for section in SECTIONS for key in keys(section).values()]


def test_the_template_says_what_each_key_means_and_its_default(file: Path) -> None:
    layers = load(file, template())
    assert layers.settle(EdgeOptions, "edge", {}, ()) == EdgeOptions()
    for key in every():
        assert f"\n# {key.name} =" in template(), key.dotted
        assert key.help, f"{key.dotted} has no words in outrider/options.py"


def test_defaults_of_the_template_are_the_defaults(file: Path) -> None:
    known = {f"# {key.name} = {toml(plain(key.default))}" for key in every()}
    lines = [
        line.removeprefix("# ")
        for line in template().partition("# Clouds by name")[0].splitlines()
        if line.startswith("[") or line in known
    ]
    layers = load(file, "\n".join(lines))
    assert layers.settle(EdgeOptions, "edge", {}, ()) == EdgeOptions()
    assert layers.section("edge")["patience_s"].origin != "default"


def test_setting_keeps_comments_and_stands_at_its_default(file: Path) -> None:
    file.write_text(template())
    before = template().splitlines()
    edit.put(file, "edge.patience_s", "3")
    edit.put(file, "edge.patience_s", "4.5")
    edit.put(file, "edge.clouds", "127.0.0.1:1,127.0.0.1:2")
    after = file.read_text().splitlines()
    assert [line for line in after if line not in before] == [
        'clouds = ["127.0.0.1:1", "127.0.0.1:2"]',
        "patience_s = 4.5",
    ]
    assert after[after.index("patience_s = 4.5") - 1] == "# patience_s = 10.0"
    assert file.stat().st_mode & 0o077 == 0
    assert edit.take_away(file, "edge.patience_s")
    assert not edit.take_away(file, "edge.patience_s")
    assert load(file).section("edge")["patience_s"].origin == "default"


def test_setting_where_no_file_is(file: Path) -> None:
    edit.put(file, "worker.speed", "0.5")
    assert load(file).settle(WorkerOptions, "worker", {}, ()).speed == 0.5


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("edge.patience", "3", "there is no key"),
        ("edge.patience_s", "soon", "not a number"),
        ("patience_s", "3", "there is no key"),
        ("edge.links", "x", "there is no key"),
    ],
)
def test_a_mistake_writes_nothing(file: Path, key: str, value: str, said: str) -> None:
    file.write_text("schema = 1  # mine\n")
    with pytest.raises(ConfigError, match=said):
        edit.put(file, key, value)
    assert file.read_text() == "schema = 1  # mine\n"


def test_links_come_and_go(file: Path) -> None:
    file.write_text("# mine\nschema = 1\n")
    edit.add_link(file, "home", {"url": "127.0.0.1:5", "priority": 3})
    assert [link.name for link in load(file).links()] == ["home"]
    with pytest.raises(ConfigError, match="already"):
        edit.add_link(file, "home", {"url": "127.0.0.1:6"})
    with pytest.raises(ConfigError, match="can not name"):
        edit.add_link(file, "a.b", {"url": "127.0.0.1:6"})
    edit.remove_link(file, "home")
    assert load(file).links() == () and file.read_text().startswith("# mine")
    with pytest.raises(NotFound):
        edit.remove_link(file, "home")


def test_the_schema_knows_every_key_and_no_other() -> None:
    made = schema()
    json.dumps(made)
    assert made["properties"]["schema"] == {"const": 1}
    for section in SECTIONS:
        table = made["properties"][section]
        assert set(table["properties"]) == set(keys(section))
        assert table["additionalProperties"] is False
    assert made["properties"]["edge"]["properties"]["fallback"]["enum"] == [
        "wait",
        "local",
        "error",
    ]


def test_every_key_has_its_flag() -> None:
    import inspect

    from outrider.cli import servers, worker

    verbs: dict[str, Any] = {"edge": servers.edge, "cloud": servers.cloud, "worker": worker.worker}
    for section, verb in verbs.items():
        flags = set(inspect.signature(verb).parameters)
        lacking = {key.flag for key in keys(section).values()} - flags
        assert lacking == set(), section
        assert set(FLAGS[section]) <= set(keys(section))
