"""What the gateway role renders, by Ansible's own templating. The molecule scenario runs it."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).parents[2] / "roles" / "gateway"
NAMES = (
    "haproxy.cfg",
    "routes.map",
    "triton_routes.map",
    "models.json",
    "model_objects.map",
    "clients.map",
    "engine_key.map",
)
ROUTES = [
    {
        "model": "chat",
        "aliases": ["org/chat", "gpt"],
        "task": "generate",
        "servers": [
            {"id": "chat-1", "host": "a", "address": "192.0.2.1", "port": 8100},
            {"id": "chat-2", "host": "b", "address": "192.0.2.2", "port": 8100},
        ],
    },
    {"model": "waits", "aliases": [], "task": "generate", "servers": []},
]


def render(name: str, **variables: Any) -> str:
    loader = DataLoader()
    loader.set_basedir(str(ROLE))
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    private = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
    known = {key: trust_as_template(value) if isinstance(value, str) else value for key, value in private.items()}
    given = {"gateway_routes": ROUTES, "gateway_client_keys": [], "gateway_engine_api_key": "engine-key"}
    everything = {**defaults, **known, "ansible_managed": "managed", **given, **variables}
    text = (ROLE / "templates" / f"{name}.j2").read_text()
    return str(Templar(loader, variables=everything).template(trust_as_template(text)))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_plan_does_not_change_a_byte(name: str) -> None:
    shuffled = copy.deepcopy(ROUTES[::-1])
    for route in shuffled:
        route["aliases"].reverse()
        route["servers"].reverse()
    assert render(name, gateway_routes=shuffled) == render(name)


def test_models_without_instances_have_a_route_and_are_not_listed() -> None:
    assert "waits model_waits" in render("routes.map").splitlines()
    listed = json.loads(render("models.json"))
    assert [entry["id"] for entry in listed["data"]] == ["chat", "gpt", "org/chat"]
    assert {entry["root"] for entry in listed["data"]} == {"chat"}


def test_models_on_triton_have_routes_of_their_own_and_are_not_listed() -> None:
    server = {"id": "t-1", "host": "a", "address": "192.0.2.1", "port": 8000}
    triton = {"model": "t", "engine": "triton", "aliases": ["org/t"], "task": "generate", "servers": [server]}
    given = [*ROUTES, triton]
    assert render("triton_routes.map", gateway_routes=given).splitlines()[-2:] == ["t triton_t", "org/t triton_t"]
    for name in ("routes.map", "models.json", "model_objects.map"):
        assert render(name, gateway_routes=given) == render(name)
    backend = render("haproxy.cfg", gateway_routes=given).split("backend triton_t\n")[1].split("\nbackend ")[0]
    assert "uri /v2/models/t/ready" in backend
    assert "server t-1 192.0.2.1:8000" in backend
    assert "engine_key" not in backend


def test_no_regular_expression_is_compiled() -> None:
    """HAProxy would run what it compiled; its unit (MemoryDenyWriteExecute) forbids it, `haproxy -c` does not."""
    triton = {"model": "t", "engine": "triton", "aliases": [], "task": "generate", "servers": []}
    lines = render("haproxy.cfg", gateway_routes=[*ROUTES, triton]).splitlines()
    assert "MemoryDenyWriteExecute=true" in (ROLE / "templates" / "haproxy.service.conf.j2").read_text().splitlines()
    compiled = re.compile(r"_reg\b|-m reg\b|regsub|map_reg|replace-(path|uri|header|value)")
    assert [line for line in lines if compiled.search(line)] == []


def test_an_adapter_has_the_route_of_its_model_and_names_it() -> None:
    routes = [{**ROUTES[0], "adapters": ["tuned"]}, ROUTES[1]]
    assert "tuned model_chat" in render("routes.map", gateway_routes=routes).splitlines()
    listed = {one["id"]: one for one in json.loads(render("models.json", gateway_routes=routes))["data"]}
    assert (listed["tuned"]["root"], listed["tuned"]["parent"]) == ("tuned", "chat")
    assert listed["gpt"]["parent"] is None


def test_each_listed_model_has_an_answer_of_its_own() -> None:
    lines = [line for line in render("model_objects.map").splitlines() if not line.startswith("#")]
    assert [json.loads(line.partition(" ")[2]) for line in lines] == json.loads(render("models.json"))["data"]


def test_only_hashes_of_client_keys_are_rendered() -> None:
    digest = hashlib.sha256(b"sk-one").hexdigest()
    keys = [{"name": "one", "key": "sk-one"}, {"name": "two", "sha256": digest.upper(), "key": None}]
    assert render("clients.map", gateway_client_keys=keys).splitlines()[2:] == [f"{digest} one", f"{digest} two"]


def test_secrets_stay_out_of_the_configuration() -> None:
    assert "engine-key" not in render("haproxy.cfg")
    assert render("engine_key.map").splitlines()[-1] == "engine Bearer engine-key"


def test_an_empty_plan_renders() -> None:
    assert json.loads(render("models.json", gateway_routes=[])) == {"object": "list", "data": []}
    assert "backend model_" not in render("haproxy.cfg", gateway_routes=[])


def test_no_file_is_empty() -> None:
    """An empty rendering would reach the module as nothing at all."""
    assert all(render(name, gateway_routes=[], gateway_client_keys=[]) for name in NAMES)


def test_instances_that_carry_more_are_given_more() -> None:
    routes = copy.deepcopy(ROUTES)
    assert " weight " not in render("haproxy.cfg")
    for server, weight in zip(routes[0]["servers"], (100, 37), strict=True):
        server["weight"] = weight
    lines = [line.strip() for line in render("haproxy.cfg", gateway_routes=routes).splitlines()]
    assert "server chat-1 192.0.2.1:8100 weight 100" in lines
    assert "server chat-2 192.0.2.2:8100 weight 37" in lines
