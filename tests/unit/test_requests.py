import json
from typing import get_args

import pytest
from fleet.errors import FleetError
from fleet.requests import ModelRequest, host_name_faults, parse_requests, relative_to
from pydantic import BaseModel


def entry(**changes):
    return {"name": "a", "source": "org/a", **changes}


def _documents(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _documents(argument)]


def parse(*entries):
    return parse_requests(json.dumps({"models": list(entries)}), where="models.yml")


def fault(*entries):
    with pytest.raises(FleetError) as caught:
        parse(*entries)
    return str(caught.value)


def test_only_name_and_source_are_required():
    (request,) = parse(entry())
    assert request.replicas.min == 1
    assert request.replicas.max is None
    assert request.quantization == "auto"
    assert request.speculative is None
    assert request.placement.spread_over_hosts


def test_every_key_and_every_default_is_described():
    def keys(document_type):
        for name, field in document_type.model_fields.items():
            yield f"{document_type.__name__}.{name}", field.description
            for inner in _documents(field.annotation):
                yield from keys(inner)

    described = dict(keys(ModelRequest))
    assert {"Demand.prompt_tokens", "Pin.gpus", "LoraAdapter.source", "Availability.hosts_lost"} <= set(described)
    assert [key for key, description in described.items() if not description] == []


def test_all_keys_of_the_design_are_understood():
    (request,) = parse(
        entry(
            config="c.json",
            aliases=["b", "Org/B:latest"],
            task="embed",
            demand={"requests_per_second": 2, "prompt_tokens": 10, "output_tokens": 5},
            objectives={"ttft_ms": 100, "tpot_ms": 9.5, "percentile": 99},
            max_model_len=100,
            quantization="fp8",
            kv_cache_dtype="fp8",
            replicas={"min": 1, "max": 3},
            availability={"hosts_lost": 1},
            engine="vllm",
            priority=-3,
            speculative={"method": "ngram", "num_speculative_tokens": 3},
            tensor_parallel=2,
            pipeline_parallel=2,
            placement={
                "hosts": ["h"],
                "labels": ["x"],
                "pins": [{"host": "h", "gpus": [0, "GPU-1", 2, 3]}],
                "spread_over_hosts": False,
                "allow_multi_node": True,
            },
            lora={"max_loras": 2, "max_rank": 8, "adapters": [{"name": "ad", "source": "org/ad"}]},
            limit_mm_per_prompt={"image": 2},
            engine_args={"seed": 3, "chat_template": "x", "block_size": 16},
            env={"A": "b"},
        )
    )
    assert request.forced_tensor_parallel == 2
    assert request.placement.pins[0].gpus == (0, "GPU-1", 2, 3)


def test_labels_may_be_a_mapping():
    (request,) = parse(entry(placement={"labels": {"rack": 3, "fast": True}}))
    assert request.placement.labels == ("rack=3", "fast=true")


@pytest.mark.parametrize(
    ("source", "path", "repository", "revision"),
    [
        ("org/name", None, "org/name", None),
        ("hf:org/name@v1", None, "org/name", "v1"),
        ("org/name@refs/pr/1", None, "org/name", "refs/pr/1"),
        ("file:models/x", "models/x", None, None),
        ("file:///srv/x", "/srv/x", None, None),
        ("/srv/x", "/srv/x", None, None),
        ("./x", "./x", None, None),
        ("../a/b/c", "../a/b/c", None, None),
        ("https://host/x.tar", None, None, None),
    ],
)
def test_sources(source, path, repository, revision):
    (request,) = parse(entry(source=source))
    assert (request.source_path, request.repository, request.revision) == (path, repository, revision)


def test_paths_are_relative_to_the_models_file():
    assert relative_to("inventory/lab/models.yml", "../x") == "inventory/lab/../x"
    assert relative_to("inventory/lab/models.yml", "/srv/x") == "/srv/x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"demand": {"requests_per_second": -3}}, "demand.requests_per_second: must be above 0, got -3"),
        ({"demand": {"requests_per_second": "3"}}, "demand.requests_per_second: must be a number, got '3'"),
        ({"demand": {"requests_per_second": True}}, "demand.requests_per_second: must be a number, got True"),
        ({"demand": {}}, "demand.requests_per_second: is required"),
        ({"max_model_len": "4096"}, "max_model_len: must be a whole number, got '4096'"),
        ({"max_model_len": 4096.0}, "max_model_len: must be a whole number, got 4096.0"),
        ({"max_model_len": 0}, "max_model_len: must be at least 1, got 0"),
        ({"tensor_paralel": 2}, "tensor_paralel: unknown key, did you mean 'tensor_parallel'?"),
        ({"placement": {"spread": True}}, "placement.spread: unknown key, did you mean 'spread_over_hosts'?"),
        (
            {"placement": {"pins": [{"hots": "h", "host": "h"}]}},
            "placement.pins[0].hots: unknown key, did you mean 'host'?",
        ),
        ({"quantization": "int3"}, "quantization: must be one of auto, none, fp8, int8, awq, gptq, mxfp4, got 'int3'"),
        ({"objectives": {"percentile": 100}}, "objectives.percentile: must be below 100, got 100"),
        ({"availability": {"hosts_lost": 2}}, "availability.hosts_lost: must be at most 1, got 2"),
        ({"aliases": "b"}, "aliases: must be a list, got 'b'"),
        ({"aliases": ["b", "b"]}, "aliases[1]: 'b' is a name of models[0] already"),
        ({"aliases": ["a"]}, "aliases[0]: 'a' is a name of models[0] already"),
        ({"replicas": {"min": 3, "max": 2}}, "replicas.max: must be at least replicas.min (3), got 2"),
        ({"replicas": {"min": 0}}, "replicas.min: must be at least 1, got 0"),
        (
            {"speculative": 5},
            "speculative: must be auto, none or a mapping with a method, got 5",
        ),
        ({"placement": {"hosts": []}}, "placement.hosts: must have at least 1 entry, got []"),
        (
            {"placement": {"pins": [{"host": "h", "gpus": [1.5]}]}},
            "placement.pins[0].gpus[0]: must be the index or the UUID",
        ),
        ({"placement": {"pins": [{"host": "h", "gpus": [1, 1]}]}}, "placement.pins[0].gpus: names a GPU twice"),
        (
            {"placement": {"hosts": ["g"], "pins": [{"host": "h"}]}},
            "placement.pins[0].host: 'h' is not among placement.hosts",
        ),
        ({"source": "s3://x"}, "source: s3: is no kind of source, known are hf:, file: and https:"),
        ({"source": "hf:name"}, "source: must be hf:org/name or hf:org/name@revision, got 'hf:name'"),
        ({"source": "file:"}, "source: file: needs a path"),
        ({"env": {"A": 3}}, "env.A: must be a string, got 3"),
        ({"env": {"A": "x\ny"}}, "env.A: must match"),
        ({"env": {"CUDA_VISIBLE_DEVICES": "0"}}, "env.CUDA_VISIBLE_DEVICES: the plan sets it; use placement.pins"),
        ({"env": {"VLLM_API_KEY": "0"}}, "env.VLLM_API_KEY: a secret does not belong into a plan"),
        (
            {"engine_args": {"max_num_seq": 3}},
            "engine_args.max_num_seq: no argument of vLLM, did you mean 'max_num_seqs'?",
        ),
        ({"engine_args": {"max-num-seqs": 3}}, "engine_args.max-num-seqs: is written with underscores"),
        ({"engine_args": {"max_num_seqs": "3"}}, "engine_args.max_num_seqs: must be a whole number above 0, got '3'"),
        ({"engine_args": {"model": "x"}}, "engine_args.model: contradicts the plan: set source instead"),
        ({"engine_args": {"port": 1}}, "engine_args.port: contradicts the plan"),
        ({"engine_args": {"api_key": "k"}}, "engine_args.api_key: contradicts the plan"),
        (
            {"tensor_parallel": 4, "engine_args": {"tensor_parallel_size": 2}},
            "engine_args.tensor_parallel_size: 2 contradicts tensor_parallel: 4 of the same model",
        ),
        ({"name": "A"}, "name: must match"),
        ({"name": "a" * 49}, "name: "),
        ({"priority": 1.5}, "priority: must be a whole number, got 1.5"),
        ({"placement": None}, "placement: must be a mapping, got None"),
    ],
)
def test_faults_are_one_line_with_the_path(changes, message):
    text = fault(entry(**changes))
    assert text.startswith(f"models.yml: models[0].{message}")
    assert "\n" not in text


def test_a_name_may_not_be_used_twice():
    assert fault(entry(), entry()) == "models.yml: models[1].name: 'a' is the name of models[0] already"
    assert fault(entry(aliases=["b"]), entry(name="b")) == (
        "models.yml: models[0].aliases[0]: 'b' is a name of models[1] already"
    )


def test_equal_twins_agree():
    (request,) = parse(entry(tensor_parallel=2, engine_args={"tensor_parallel_size": 2, "pipeline_parallel_size": 3}))
    assert (request.forced_tensor_parallel, request.forced_pipeline_parallel) == (2, 3)


def test_one_parallel_size_alone_makes_the_other_one():
    (request,) = parse(entry(tensor_parallel=2))
    assert (request.forced_tensor_parallel, request.forced_pipeline_parallel) == (2, 1)
    (request,) = parse(entry(pipeline_parallel=2))
    assert (request.forced_tensor_parallel, request.forced_pipeline_parallel) == (1, 2)
    (request,) = parse(entry())
    assert (request.forced_tensor_parallel, request.forced_pipeline_parallel) == (None, None)


def test_several_faults_are_told_at_once():
    text = fault({"name": "a"}, entry(name="b", engine="vlm"), entry(name="c", task="chat"))
    assert [line.split(": ")[1] for line in text.splitlines()] == [
        "models[0].source",
        "models[1].engine",
        "models[2].task",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "models.yml: is empty; write `models: []` for a fleet without models"),
        ("- a", "models.yml: must be a mapping, got ['a']"),
        ("models: {}", "models.yml: models: must be a list, got {}"),
        ("modles: []", "models.yml: models: is required\nmodels.yml: modles: unknown key, did you mean 'models'?"),
        ("models: [3]", "models.yml: models[0]: must be a mapping, got 3"),
    ],
)
def test_faults_of_the_whole_file(text, message):
    with pytest.raises(FleetError) as caught:
        parse_requests(text, where="models.yml")
    assert str(caught.value) == message


def test_hosts_that_the_inventory_lacks_are_found():
    requests = parse(entry(placement={"hosts": ["l40s-1", "l40s-01"], "pins": [{"host": "l40s-01"}]}))
    assert host_name_faults(requests, frozenset({"l40s-01"}), where="m") == [
        ("m: models[0].placement.hosts[0]", "no host 'l40s-1', did you mean 'l40s-01'?")
    ]
