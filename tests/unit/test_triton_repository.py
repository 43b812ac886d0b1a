"""Model repositories as Triton's own message types read them."""

import json

import pytest
from fleet.errors import FleetError
from fleet.triton_models import Model
from fleet.triton_releases import ASYNC_ENGINE_ARGUMENTS, VLLM_OF_RELEASE, vllm_of_release
from fleet.triton_repository import ARGUMENTS, CONFIG, model_files, triton_servers
from google.protobuf import text_format
from triton_samples import HOSTS, seed_plan, servers_of
from tritonclient.grpc import model_config_pb2

KIND = model_config_pb2.ModelInstanceGroup


def parsed(files):
    return text_format.Parse(files[CONFIG], model_config_pb2.ModelConfig())


def instance(**changes):
    known = {"id": "m-1", "model": "m", "engine": "triton", "port": 8000, "env": {}}
    known["shards"] = [{"host": "h", "gpus": ["GPU-1"], "rank": 0}]
    return known | {"engine_args": {"model": "/models/m", "served_model_name": ["m"]}} | changes


def test_a_config_word_by_word():
    files = model_files(instance(), 3)
    text, digest = files[CONFIG].rsplit("parameters {", 1)
    assert text == (
        "# Managed by l40s-fleet: the next run overwrites changes.\n"
        'name: "m"\n'
        'backend: "vllm"\n'
        "instance_group [\n  {\n    count: 1\n    kind: KIND_GPU\n    gpus: [ 3 ]\n  }\n]\n"
        'parameters {\n  key: "REPORT_CUSTOM_METRICS"\n  value { string_value: "true" }\n}\n'
        'parameters {\n  key: "ENABLE_VLLM_HEALTH_CHECK"\n  value { string_value: "true" }\n}\n'
    )
    assert 'key: "l40s_fleet_digest"' in digest
    assert json.loads(files[ARGUMENTS]) == {
        "disable_log_stats": False,
        "model": "/models/m",
        "served_model_name": ["m"],
    }


def test_the_digest_tells_every_change_and_is_read_back():
    one = model_files(instance(), None)
    others = [model_files(instance(), 0), model_files(instance(engine_args={"model": "/models/n"}), None)]
    digests = [Model("m", files).digest for files in (one, *others)]
    assert len(set(digests)) == 3
    assert all(len(digest) == 64 for digest in digests)
    assert parsed(one).parameters["l40s_fleet_digest"].string_value == digests[0]


def test_an_argument_that_the_containers_vllm_lacks_is_named():
    with pytest.raises(FleetError, match=r"m-1: engine_args.monokernel: no argument of the vLLM in Triton's container"):
        model_files(instance(engine_args={"model": "x", "monokernel": True}), None)


def test_releases():
    assert vllm_of_release("26.07") == "0.24.0"
    with pytest.raises(FleetError, match=r"triton_release: no release '26\.70', did you mean '26\.07'"):
        vllm_of_release("26.70")
    assert VLLM_OF_RELEASE["26.06"] == "0.22.1"


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return seed_plan(tmp_path_factory.mktemp("seed"))


class TestTwelveGpusOverThreeHosts:
    """Seed, section 8."""

    def test_all_twelve_are_used(self, plan):
        assert plan.refused == ()
        assert sorted(gpu for one in plan.instances for gpu in one.gpus) == sorted(
            (host, f"GPU-{host}-{index}") for host in HOSTS for index in range(4)
        )

    @pytest.mark.parametrize("host", HOSTS)
    def test_each_host_has_its_whole_repository(self, plan, host):
        servers = servers_of(plan, host)
        names = [[model["name"] for model in server["models"]] for server in servers]
        # Replicas of one model on a host are in two servers; the large model has one of its own.
        assert sorted(names) == [["llama-3-70b-awq"], ["llama-3-8b"], ["llama-3-8b"]]
        assert len({server["port"] for server in servers}) == 3
        held = [gpu for server in servers for gpu in server["gpus"]]
        assert sorted(held) == [f"GPU-{host}-{index}" for index in range(4)]
        for server in servers:
            assert server["gpus"] == sorted(server["gpus"]), "in the order of the bus"
            for one in server["models"]:
                self._check(server, one)

    def _check(self, server, one):
        config = parsed(one["files"])
        assert (config.name, config.backend) == (one["name"], "vllm")
        # The backend completes these, and takes no other values.
        assert (config.max_batch_size, config.HasField("model_transaction_policy")) == (0, False)
        (group,) = config.instance_group
        arguments = json.loads(one["files"][ARGUMENTS])
        assert arguments.keys() <= ASYNC_ENGINE_ARGUMENTS
        if one["name"] == "llama-3-8b":
            assert (group.kind, list(group.gpus)) == (KIND.KIND_GPU, [0])
            assert len(server["gpus"]) == 1
        else:
            assert (group.kind, list(group.gpus)) == (KIND.KIND_MODEL, [])
            assert arguments["tensor_parallel_size"] == len(server["gpus"]) == 2
            assert "quantization" not in arguments, "the checkpoint says it"
        assert arguments["max_model_len"] == 8192
        assert config.parameters["REPORT_CUSTOM_METRICS"].string_value == "true"
        assert config.parameters["ENABLE_VLLM_HEALTH_CHECK"].string_value == "true"

    def test_without_gpus_nothing_is_assigned(self, plan):
        for server in servers_of(plan, HOSTS[0], accelerator="cpu"):
            for one in server["models"]:
                (group,) = parsed(one["files"]).instance_group
                assert group.kind == KIND.KIND_MODEL


def test_models_that_share_a_server_count_its_gpus():
    shards = {name: [{"host": "h", "gpus": [f"GPU-{gpu}"], "rank": 0}] for name, gpu in (("a", 5), ("b", 2))}
    both = [instance(id=f"{name}-1", model=name, shards=where) for name, where in shards.items()]
    order = [f"GPU-{index}" for index in range(8)]
    (server,) = triton_servers(both, this_host="h", gpu_order=order, accelerator="cuda")
    assert server["gpus"] == ["GPU-2", "GPU-5"]
    gpus = {one["name"]: list(parsed(one["files"]).instance_group[0].gpus) for one in server["models"]}
    assert gpus == {"a": [1], "b": [0]}
