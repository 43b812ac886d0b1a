import json

import pytest
from fleet.cli import main
from plan_samples import model, models_text


def size(tmp_path, capsys, entries, host="8xL40S"):
    path = tmp_path / "models.yml"
    path.write_text(models_text(*entries))
    code = main(["size", "--models", str(path), "--host", host, "--json"])
    output = capsys.readouterr()
    return code, json.loads(output.out) if output.out else output.err


def test_the_fewest_hosts_carry_the_demand(tmp_path, capsys):
    entry = model("m", demand={"requests_per_second": 60}, objectives={"tpot_ms": 60})
    code, answer = size(tmp_path, capsys, [entry], "4xL40S")
    assert code == 0
    count = answer["hosts"]["count"]
    assert count > 1
    assert 4 * (count - 1) < answer["hosts"]["gpus_used"] <= 4 * count
    assert answer["hosts_with_one_lost"]["count"] > count


def test_names_of_hosts_do_not_count(tmp_path, capsys):
    entry = model("m", placement={"hosts": ["a"], "labels": ["x"]})
    code, answer = size(tmp_path, capsys, [entry])
    assert (code, answer["hosts"]["count"], answer["hosts_with_one_lost"]["count"]) == (0, 1, 2)


def test_a_model_that_fits_no_host_is_a_no(tmp_path, capsys):
    code, answer = size(tmp_path, capsys, [model("m", "llama-3-70b", quantization="none")], "2xL40S")
    assert code == 2
    assert answer["hosts"]["count"] is None
    assert answer["hosts"]["refused"][0]["model"] == "m"


@pytest.mark.parametrize("host", ["L40S", "0xL40S", "8xL99", "8 x L40S", "99xL40S"])
def test_a_host_that_makes_no_sense(tmp_path, capsys, host):
    code, error = size(tmp_path, capsys, [model("m")], host)
    assert code == 1
    assert error.startswith("fleet size: --host: ")
