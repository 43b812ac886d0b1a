"""One model of each kind through the gateway, asked as clients of OpenAI's API and of rerankers ask."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any

import pytest
from fleet.engine_reports import cache_config, kv_cache_tokens
from fleet.model_work import image_uri
from lab_support import CHECKOUT, LAB

testinfra_hosts = ["ansible://gpu_hosts"]

LAB_DIRECTORY = CHECKOUT / "build" / "lab" / LAB
GATEWAY = json.loads((LAB_DIRECTORY / "addresses.json").read_text())["gw-01"]
CLIENT_KEY = (LAB_DIRECTORY / "secrets" / "client_key").read_text()
CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        # The engine holds the arguments to the schema, so that a model of random weights makes a right call too.
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Berlin", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ALL_NAMES = {"assistant", "tiny-embedder", "tiny-qwen", "tiny-qwen-tuned", "tiny-reranker", "tiny-vision"}


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {CLIENT_KEY}"}
    with closing(http.client.HTTPConnection(GATEWAY, 8080, timeout=60)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None


def answered(path: str, body: dict[str, Any]) -> Any:
    status, document = ask("POST", path, body)
    assert status == 200, document
    return document


def chat(model: str, content: Any = "Hello", **more: Any) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 32, "temperature": 0}
    return answered(CHAT, {**body, **more})


def said(answer: Any) -> Any:
    return answer["choices"][0]["message"]


def to_the_point() -> dict[str, float]:
    """Biases for one call in as few tokens as the grammar allows, where random weights would go on for ever.

    Against tokens of nothing but whitespace, which JSON allows anywhere, and for the end once the grammar allows it.
    """
    checkpoint = CHECKOUT / "build/lab/checkpoints/tiny-qwen"
    tokens = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"]
    end = json.loads((checkpoint / "config.json").read_text())["eos_token_id"]
    # How a byte-level tokenizer writes a space, a line feed, a tab and a carriage return.
    blank = {str(number): -100.0 for token, number in tokens.items() if set(token) <= set("ĠĊĉč")}
    return {**blank, str(end): 100.0}


def image(*color: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image_uri(color)}}  # type: ignore[arg-type]


class TestChat:
    def test_what_is_thought_is_told_apart_from_what_is_said(self) -> None:
        thinking = said(chat("tiny-qwen"))
        assert thinking["reasoning"]
        assert not thinking["content"]
        plain = said(chat("tiny-qwen", chat_template_kwargs={"enable_thinking": False}))
        assert plain["content"]
        assert not plain["reasoning"]

    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
    def test_a_call_of_a_tool_is_parsed(self, choice: Any) -> None:
        asked = {"tools": [WEATHER], "tool_choice": choice, "chat_template_kwargs": {"enable_thinking": False}}
        message = said(chat("tiny-qwen", max_tokens=128, logit_bias=to_the_point(), **asked))
        call = message["tool_calls"][0]
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Berlin", "Oslo")

    def test_the_model_may_choose_to_call(self) -> None:
        """Without a parser the engine refuses this; the template tells the model of the tool."""
        with_tool = chat("tiny-qwen", tools=[WEATHER], tool_choice="auto")["usage"]["prompt_tokens"]
        assert with_tool > chat("tiny-qwen")["usage"]["prompt_tokens"] + 50

    def test_other_apis_lead_to_the_same_model(self) -> None:
        response = answered("/v1/responses", {"model": "assistant", "input": "Hello", "max_output_tokens": 8})
        assert response["usage"]["output_tokens"] >= 1
        message = {"model": "assistant", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
        assert answered("/v1/messages", message)["usage"]["output_tokens"] >= 1
        assert answered("/v1/messages/count_tokens", message)["input_tokens"] >= 1


def test_an_adapter_answers_under_its_own_name_and_otherwise_than_its_model() -> None:
    prompt = {"prompt": "Once more", "max_tokens": 16, "temperature": 0}
    texts = {
        name: answered("/v1/completions", {"model": name, **prompt})["choices"][0]["text"]
        for name in ("tiny-qwen", "assistant", "tiny-qwen-tuned")
    }
    assert texts["tiny-qwen"] == texts["assistant"] != texts["tiny-qwen-tuned"]


def test_the_gateway_lists_every_name_and_the_model_of_an_adapter() -> None:
    _, listed = ask("GET", "/v1/models")
    parents = {entry["id"]: entry["parent"] for entry in listed["data"]}
    assert set(parents) == ALL_NAMES
    assert {name: parent for name, parent in parents.items() if parent} == {"tiny-qwen-tuned": "tiny-qwen"}


class TestVision:
    def test_an_image_is_seen(self) -> None:
        question = {"type": "text", "text": "What is this?"}
        red, again, blue = (
            chat("tiny-vision", [image(*color), question], max_tokens=16)
            for color in ((255, 0, 0), (255, 0, 0), (0, 0, 255))
        )
        assert said(red)["content"] == said(again)["content"] != said(blue)["content"]
        text_only = chat("tiny-vision", [question])["usage"]["prompt_tokens"]
        # Four tokens of the image, and what stands around them.
        assert red["usage"]["prompt_tokens"] >= text_only + 4

    def test_more_images_than_the_limit_are_refused(self) -> None:
        body = {"model": "tiny-vision", "messages": [{"role": "user", "content": [image(0, 0, 0)] * 3}]}
        status, answer = ask("POST", CHAT, body)
        assert status == 400
        assert "At most 2 image" in answer["error"]["message"]


class TestEmbedder:
    def test_an_embedding_has_the_planned_size_and_length_one(self) -> None:
        answer = answered("/v1/embeddings", {"model": "tiny-embedder", "input": ["Hello", "Hello", "Good morning"]})
        first, same, other = (entry["embedding"] for entry in answer["data"])
        assert len(first) == 128
        assert sum(number * number for number in first) == pytest.approx(1.0, rel=0.02)
        assert first == pytest.approx(same, abs=1e-3)
        assert first != pytest.approx(other, abs=1e-3)

    def test_cohere_s_api_leads_to_the_same_model(self) -> None:
        answer = answered("/v2/embed", {"model": "tiny-embedder", "texts": ["Hello"], "embedding_types": ["float"]})
        assert len(answer["embeddings"]["float"][0]) == 128

    def test_a_text_longer_than_the_model_takes_is_refused(self) -> None:
        status, _ = ask("POST", "/v1/embeddings", {"model": "tiny-embedder", "input": "GPU " * 2000})
        assert status == 400


class TestReranker:
    documents = ("Good morning", "The licence of the work", "It rains in Oslo")

    @pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
    def test_documents_are_put_in_the_order_of_their_scores(self, path: str) -> None:
        scores = answered("/v1/score", {"model": "tiny-reranker", "text_1": "Hello", "text_2": list(self.documents)})
        by_index = {entry["index"]: entry["score"] for entry in scores["data"]}
        ranked = answered(path, {"model": "tiny-reranker", "query": "Hello", "documents": list(self.documents)})
        order = [entry["relevance_score"] for entry in ranked["results"]]
        assert order == sorted(order, reverse=True)
        assert {entry["index"] for entry in ranked["results"]} == {0, 1, 2}
        for entry in ranked["results"]:
            assert entry["relevance_score"] == pytest.approx(by_index[entry["index"]], abs=1e-3)

    def test_as_many_as_are_asked_for(self) -> None:
        body = {"model": "tiny-reranker", "query": "Hello", "documents": list(self.documents), "top_n": 1}
        assert len(answered("/v1/rerank", body)["results"]) == 1


def records(host: Any) -> list[dict[str, Any]]:
    paths = host.check_output("ls /etc/l40s-fleet/instances/*/instance.json").split()
    return [json.loads(host.file(path).content_string) for path in paths]


def test_planned_kv_tokens_are_those_that_engines_report(host: Any) -> None:
    for record in records(host):
        look = (
            f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{record['port']}/metrics').read().decode())"
        )
        reported = cache_config(host.check_output("python3 -c %s", look))
        planned = record["memory"]["kv_cache_tokens"]
        if record["task"] == "generate":
            assert kv_cache_tokens(reported) == planned > 0
        else:
            assert (planned, reported["kv_cache_size_tokens"], reported["num_gpu_blocks"]) == (0, "None", "1")


def test_every_checkpoint_of_a_model_lies_beside_it(host: Any) -> None:
    for record in records(host):
        for adapter in record["engine_args"].get("lora_modules", []):
            assert host.file(f"{adapter['path']}/adapter_config.json").exists
            assert "_lora-" in adapter["path"]
