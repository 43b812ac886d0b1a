import importlib.util

import yaml
from fleet.plan_document import plan_to_document
from plan_samples import ROOT, facts, model, plan

SPEC = importlib.util.spec_from_file_location("fleet_filters", ROOT / "filter_plugins" / "fleet.py")
filters = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(filters)

ADDRESSES = {"a": "192.0.2.1"}


def routes(*arguments, **options):
    return filters.fleet_routes(plan_to_document(plan(*arguments, **options)), ADDRESSES)


def test_routes_by_model():
    entries = [model("m", replicas={"min": 2}, aliases=["z", "y"]), model("e", task="embed")]
    assert routes(facts("a", "b"), entries) == [
        {
            "model": "e",
            "engine": "vllm",
            "aliases": [],
            "task": "embed",
            "embedding_size": 4096,
            "servers": [{"id": "e-1", "host": "a", "address": "192.0.2.1", "port": 8100}],
        },
        {
            "model": "m",
            "engine": "vllm",
            "aliases": ["y", "z"],
            "task": "generate",
            "servers": [
                {"id": "m-1", "host": "a", "address": "192.0.2.1", "port": 8101},
                {"id": "m-2", "host": "b", "address": "b", "port": 8100},
            ],
        },
    ]


def test_a_refused_model_has_no_servers():
    (route,) = routes(facts("a"), [model("m", tensor_parallel=8)])
    assert route == {"model": "m", "engine": "vllm", "aliases": [], "task": "generate", "servers": []}


def test_an_adapter_is_routed_when_every_instance_serves_it(tmp_path):
    config = tmp_path / "adapter_config.json"
    config.write_text('{"peft_type": "LORA", "r": 8}')

    def entry(*names):
        adapters = [{"name": name, "source": "org/ad", "config": str(config)} for name in names]
        return model("m", replicas={"min": 2}, lora={"adapters": adapters})

    document = facts("a", "b")
    first = plan(document, [entry("old", "kept")])
    (route,) = routes(document, [entry("kept", "new")], first.instances, frozen=["b"])
    assert route["adapters"] == ["kept"]
    (route,) = routes(document, [entry("kept", "new")], first.instances)
    assert route["adapters"] == ["kept", "new"]


def test_what_verify_asks_for_goes_with_the_route():
    entries = [model("e", "bge-m3", task="embed"), model("v", "qwen2.5-vl-7b", limit_mm_per_prompt={"video": 0})]
    embedder, vision = routes(facts("a"), entries)
    assert (embedder["task"], embedder["embedding_size"]) == ("embed", 1024)
    assert vision["takes"] == ["image"]
    assert "embedding_size" not in vision


def test_a_model_on_triton_has_a_route_of_its_own_kind():
    (route,) = routes(facts("a"), [model("m", engine="triton", aliases=["old"])])
    assert route["engine"] == "triton"
    assert route["aliases"] == ["old"]
    assert route["servers"] == [{"id": "m-1", "host": "a", "address": "192.0.2.1", "port": 8000}]


def test_an_ensemble_has_a_route_and_the_gateway_takes_every_key_of_routes():
    asked = {"engine": "triton", "triton": {"chat_ensemble": True}}
    found = routes(facts("a", "b"), [model("m", **asked, demand={"requests_per_second": 30}), model("n")])
    assert [(one["model"], one["engine"]) for one in found] == [("m", "triton"), ("m-chat", "triton"), ("n", "vllm")]
    assert found[1]["servers"] == found[0]["servers"]
    specification = yaml.safe_load((ROOT / "roles" / "gateway" / "meta" / "argument_specs.yml").read_text())
    options = specification["argument_specs"]["main"]["options"]["gateway_routes"]["options"]
    assert {key for one in found for key in one} <= options.keys()
    assert {key for one in found for server in one["servers"] for key in server} <= options["servers"]["options"].keys()


def test_an_alias_is_routed_when_every_instance_answers_to_it():
    document = facts("a", "b")
    first = plan(document, [model("m", replicas={"min": 2}, aliases=["old"])])
    edited = [model("m", replicas={"min": 2}, aliases=["new"])]
    (route,) = routes(document, edited, first.instances, frozen=["b"])
    assert route["aliases"] == []
    (route,) = routes(document, edited, first.instances)
    assert route["aliases"] == ["new"]


def test_an_alias_that_moved_to_another_model_goes_with_it():
    document = facts("a", "b")
    first = plan(document, [model("m", aliases=["chat"], placement={"hosts": ["b"]})])
    by_name = {
        route["model"]: route
        for route in routes(document, [model("n", aliases=["chat"])], first.instances, frozen=["b"])
    }
    assert by_name["m"]["aliases"] == []
    assert by_name["m"]["servers"][0]["host"] == "b"
    assert by_name["n"]["aliases"] == ["chat"]


def test_instances_that_differ_are_weighed():
    document = plan_to_document(plan(facts("a", "b"), [model("m", replicas={"min": 2})]))
    for one, sequences in zip(document["instances"], (30.0, 60.0), strict=True):
        one["speed"] = {"running_sequences_at_capacity": sequences}
    (route,) = filters.fleet_routes(document, ADDRESSES)
    assert [server["weight"] for server in route["servers"]] == [50, 100]
