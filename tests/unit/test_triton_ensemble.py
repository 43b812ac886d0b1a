"""The ensemble that takes chat messages."""

import json

import pytest
from fleet.errors import FleetError
from fleet.plan_document import instance_document, parse_instance
from fleet.requests import parse_requests
from fleet.triton_repository import triton_servers
from google.protobuf import text_format
from plan_samples import facts, model, models_text, plan
from tritonclient.grpc import model_config_pb2

ASKED = {"engine": "triton", "triton": {"chat_ensemble": True}}


def models_of(*entries):
    found = [instance_document(one) for one in plan(facts("h"), entries).instances]
    (server,) = triton_servers(
        found, this_host="h", gpu_order=["GPU-h-0"], accelerator="cuda", chat_program="program\n"
    )
    return {one["name"]: one for one in server["models"]}


def config(one):
    return text_format.Parse(one["files"]["config.pbtxt"], model_config_pb2.ModelConfig())


def test_step_and_ensemble_come_after_their_model():
    models = models_of(model("m", **ASKED))
    assert list(models) == ["m", "m-chat-template", "m-chat"]
    assert models["m"]["record"]["ensemble"] == "m-chat"
    assert models["m-chat-template"]["files"]["1/model.py"] == "program\n"
    step = config(models["m-chat-template"])
    assert step.parameters["MODEL"].string_value == json.loads(models["m"]["files"]["1/model.json"])["model"]
    assert models_of(model("m", engine="triton")).keys() == {"m"}


def test_every_tensor_of_the_ensemble_has_a_source():
    models = models_of(model("m", **ASKED))
    ensemble, step = config(models["m-chat"]), config(models["m-chat-template"])
    known = {tensor.name for tensor in ensemble.input}
    for part in ensemble.ensemble_scheduling.step:
        assert set(part.input_map.values()) <= known
        known |= set(part.output_map.values())
    assert {tensor.name for tensor in ensemble.output} <= known
    first, last = ensemble.ensemble_scheduling.step
    assert (first.model_name, last.model_name) == ("m-chat-template", "m")
    assert set(first.output_map) == {tensor.name for tensor in step.output}
    assert set(last.input_map) == {"text_input", "exclude_input_in_output", "stream", "sampling_parameters"}


def test_an_ensemble_is_loaded_anew_with_its_model():
    before, after = (models_of(model("m", **ASKED, max_model_len=length)) for length in (1024, 2048))
    assert before["m-chat"]["files"] != after["m-chat"]["files"]
    assert before["m-chat-template"]["files"] == after["m-chat-template"]["files"]


def test_an_instance_with_an_ensemble_reads_back():
    (one,) = plan(facts("h"), [model("m", **ASKED)]).instances
    assert parse_instance(instance_document(one), where="x") == one


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([model("m", triton={"chat_ensemble": True})], r"models\[0\].triton.chat_ensemble: is for engine: triton"),
        ([model("m", **ASKED), model("m-chat")], r"'m-chat' is a name of models\[1\] already"),
    ],
)
def test_faults(entries, problem):
    with pytest.raises(FleetError, match=problem):
        parse_requests(models_text(*entries), where="models.yml")
