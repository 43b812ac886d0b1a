"""Every malformed document ends in exit code 1 and a few clear lines with the path, never in a traceback."""

import copy
import json

import pytest
from fleet.cli import main
from plan_samples import ROOT, facts, host, model, models_text

# Values of every type that JSON and YAML have; each is put in the place of each value below.
JUNK = (None, True, -1, 1.5, "", "junk", [], {}, [None], {"junk": 1})


def base_facts():
    return facts(
        "b",
        a=host("a")
        | {
            "links": [{"a": "GPU-a-0", "b": "GPU-a-1", "path": "PIX", "p2p": "verified"}],
            "policy": {"exclude_gpus": [3], "labels": ["fast"]},
            "driver_version": "580.1",
            "cuda_driver_version": 13000,
            "provisional": False,
            "memory_total_bytes": 512 * 1024**3,
            "disk": [{"path": "/var/lib/l40s-fleet", "free_bytes": 1024**4}],
            "instances": [
                {
                    "id": "m-1",
                    "model": "m",
                    "shards": [{"host": "a", "gpus": ["GPU-a-0"], "rank": 0}],
                    "engine_args": {},
                    "env": {},
                    "port": 8100,
                    "reasons": ["x"],
                    "sharing": {"ways": 2, "seat": 0, "starts_after": []},
                }
            ],
        },
    )


def base_models():
    full = model(
        "m",
        aliases=["chat"],
        task="generate",
        demand={"requests_per_second": 1, "prompt_tokens": 10, "output_tokens": 10},
        objectives={"ttft_ms": 1000, "tpot_ms": 100, "percentile": 95},
        quantization="auto",
        kv_cache_dtype="auto",
        replicas={"min": 1, "max": 2},
        availability={"hosts_lost": 0},
        engine="vllm",
        priority=1,
        speculative="none",
        tensor_parallel=1,
        pipeline_parallel=1,
        placement={
            "hosts": ["a", "b"],
            "labels": ["fast"],
            "pins": [{"host": "a", "gpus": [1]}],
            "spread_over_hosts": True,
            "allow_multi_node": True,
            "share_gpus": "auto",
        },
        lora={"max_loras": 1, "max_rank": 8},
        limit_mm_per_prompt={"image": 1},
        engine_args={"max_num_seqs": 8, "enforce_eager": True},
        env={"A": "b"},
    )
    return {"models": [full]}


def paths(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths(child, (*path, key))


def mutated(document, path, value):
    if not path:
        return value
    changed = copy.deepcopy(document)
    target = changed
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return changed


def misspelt(document, path):
    changed = copy.deepcopy(document)
    target = changed
    for part in path[:-1]:
        target = target[part]
    target[f"{path[-1]}x"] = target.pop(path[-1])
    return changed


def run(tmp_path, capsys, fact_document, models_document):
    (tmp_path / "facts.json").write_text(json.dumps(fact_document))
    (tmp_path / "models.yml").write_text(json.dumps(models_document))
    code = main(["plan", "--facts", str(tmp_path / "facts.json"), "--models", str(tmp_path / "models.yml")])
    return code, capsys.readouterr().err


def check(code, error, file, path):
    """Some values are valid where they stand; all that are refused are refused well."""
    assert code in (0, 1, 2)
    if code != 1:
        return False
    lines = error.splitlines()
    assert 1 <= len(lines) <= 5, error
    assert all(file in line for line in lines), error
    assert "Traceback" not in error
    first = next((part for part in path if isinstance(part, str)), "")
    assert first in error
    return True


def test_the_unchanged_documents_are_planned(tmp_path, capsys):
    code, error = run(tmp_path, capsys, base_facts(), base_models())
    assert (code, error) == (0, "")


def test_junk_anywhere_in_the_models(tmp_path, capsys):
    document = base_models()
    refused = 0
    for path in paths(document):
        for junk in JUNK:
            code, error = run(tmp_path, capsys, base_facts(), mutated(document, path, junk))
            refused += check(code, error, "models.yml", path)
    assert refused > 300


def test_junk_anywhere_in_the_facts(tmp_path, capsys):
    document = base_facts()
    refused = 0
    for path in paths(document):
        if "b" in path:
            continue
        for junk in JUNK:
            code, error = run(tmp_path, capsys, mutated(document, path, junk), base_models())
            refused += check(code, error, "facts.json", path) if code != 1 or "models.yml" not in error else 0
    assert refused > 150


def test_every_misspelt_key_of_the_models_is_told_with_the_right_one(tmp_path, capsys):
    document = base_models()
    told = 0
    for path in paths(document):
        free = {"labels", "limit_mm_per_prompt", "env"} & {part for part in path[:-1] if isinstance(part, str)}
        if not path or not isinstance(path[-1], str) or free:
            continue
        code, error = run(tmp_path, capsys, base_facts(), misspelt(document, path))
        assert code == 1, path
        assert f"did you mean '{path[-1]}'?" in error
        told += 1
    assert told > 40


@pytest.mark.parametrize("cut", range(0, 2000, 97))
def test_a_truncated_file_is_told(tmp_path, capsys, cut):
    text = json.dumps(base_facts(), indent=1)[:cut]
    (tmp_path / "facts.json").write_text(text)
    (tmp_path / "models.yml").write_text(models_text(model("m")))
    assert main(["plan", "--facts", str(tmp_path / "facts.json"), "--models", str(tmp_path / "models.yml")]) == 1
    error = capsys.readouterr().err
    assert "facts.json: line" in error
    assert error.count("\n") == 1


def test_the_example_models_survive_truncation(tmp_path, capsys):
    example = ROOT / "inventory" / "example"
    text = (example / "models.yml").read_text()
    (tmp_path / "configs").symlink_to(example / "configs")
    for cut in range(0, len(text), 61):
        (tmp_path / "models.yml").write_text(text[:cut])
        code = main(["plan", "--facts", str(example / "facts.json"), "--models", str(tmp_path / "models.yml")])
        error = capsys.readouterr().err
        assert code in (0, 1), (cut, error)
        assert (code == 0) == (error == "")
        assert error.count("\n") <= 5
