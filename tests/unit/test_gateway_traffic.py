"""Servers taken out of traffic and put back. HAProxy answers as 2.6.12 does; molecule/rolling has a real one."""

from __future__ import annotations

import pytest
from fleet.errors import FleetError
from fleet.gateway_traffic import Server, Traffic, parse_open_requests, parse_servers

STATE = """\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr \
srv_agent_port
{rows}
"""
STAT = """\
# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout
model_a,a-1,0,0,{open},1,,2,3,4,
model_a,a-2,0,0,0,1,,2,3,4,

"""


class SimulatedGateway:
    """Answers as HAProxy's admin socket; drained servers lose one open request with each look."""

    def __init__(self, **operational: int) -> None:
        self.servers = {name.replace("_", "-"): [state, 0] for name, state in operational.items()}
        self.open = 2
        self.asked: list[str] = []
        self.refuses = ""

    def __call__(self, _path, command: str) -> str:
        if command == "show servers state":
            rows = [
                f"4 model_{name[0]} {number} {name} 10.0.0.1 {state} {admin} 1 1 9 6 3 4 6 0 0 0 - 8100 - 0 0 - - 0"
                for number, (name, (state, admin)) in enumerate(self.servers.items(), start=1)
            ]
            return STATE.format(rows="\n".join(rows))
        if command.startswith("show stat"):
            self.open -= 1
            return STAT.format(open=max(self.open, 0))
        self.asked.append(command)
        _, _, server, _, state = command.split()
        self.servers[server.split("/")[1]][1] = 8 if state == "drain" else 0
        return self.refuses


def traffic(tmp_path, gateway, waits=None) -> Traffic:
    return Traffic(tmp_path / "admin.sock", gateway, (waits if waits is not None else []).append)


def test_answers_of_haproxy():
    rows = "4 model_a 1 a-1 10.89.1.11 2 8 1 1 9 6 3 4 6 0 0 0 - 8100 - 0 0 - - 0"
    assert parse_servers(STATE.format(rows=rows)) == (Server("model_a", "a-1", 8100, up=True, in_traffic=False),)
    assert parse_open_requests(STAT.format(open=3)) == {"a-1": 3, "a-2": 0}


def test_a_server_is_drained_once_its_requests_are_answered_and_put_back(tmp_path):
    gateway, waits = SimulatedGateway(a_1=2, a_2=2), []
    outcome = traffic(tmp_path, gateway, waits).drain(["a-1"], 10)
    assert (outcome.changed, outcome.last, outcome.waiting) == (("a-1",), (), ())
    assert gateway.asked == ["set server model_a/a-1 state drain"]
    assert len(waits) == 1, "one look saw a request that was open"
    back = traffic(tmp_path, gateway).restore({"a-1": 8100}, 10)
    assert (back.changed, back.waiting) == (("a-1",), ())
    assert gateway.servers["a-1"] == [2, 0]
    assert list(tmp_path.iterdir()) == []


def test_requests_that_take_longer_are_told(tmp_path):
    gateway = SimulatedGateway(a_1=2, a_2=2)
    gateway.open = 100
    assert traffic(tmp_path, gateway).drain(["a-1"], 1).waiting == ("a-1",)


@pytest.mark.parametrize("other", [{}, {"a_2": 0}, {"b_1": 2}], ids=["alone", "other is down", "other model"])
def test_the_last_of_a_model_stays_in_traffic(tmp_path, other):
    gateway = SimulatedGateway(a_1=2, **other)
    outcome = traffic(tmp_path, gateway).drain(["a-1"], 10)
    assert (outcome.changed, outcome.last) == ((), ("a-1",))
    assert gateway.asked == []


def test_all_servers_of_a_model_at_once_stay_in_traffic(tmp_path):
    gateway = SimulatedGateway(a_1=2, a_2=2)
    assert traffic(tmp_path, gateway).drain(["a-1", "a-2"], 10).last == ("a-1", "a-2")


def test_a_server_that_is_not_up_again_is_told(tmp_path):
    gateway = SimulatedGateway(a_1=2, a_2=2)
    traffic(tmp_path, gateway).drain(["a-1"], 10)
    gateway.servers["a-1"][0] = 0
    assert traffic(tmp_path, gateway).restore({"a-1": 8100}, 1).waiting == ("a-1",)


def test_a_server_that_has_moved_to_another_port_is_not_waited_for(tmp_path):
    gateway = SimulatedGateway(a_1=0, a_2=2)
    assert traffic(tmp_path, gateway).restore({"a-1": 8107}, 1).waiting == ()


def test_what_an_interrupted_run_left_out_is_put_back_and_what_an_operator_took_out_is_not(tmp_path):
    gateway = SimulatedGateway(a_1=2, a_2=2, a_3=2)
    traffic(tmp_path, gateway).drain(["a-1"], 10)
    gateway.servers["a-2"][1] = 8
    outcome = traffic(tmp_path, gateway).restore(None, 10)
    assert outcome.changed == ("a-1",)
    assert [admin for _, admin in gateway.servers.values()] == [0, 8, 0]
    assert traffic(tmp_path, gateway).restore(None, 10).changed == ()


def test_check_mode_asks_only(tmp_path):
    gateway = SimulatedGateway(a_1=2, a_2=2)
    assert traffic(tmp_path, gateway).drain(["a-1"], 10, dry=True).changed == ("a-1",)
    traffic(tmp_path, gateway).drain(["a-1"], 10)
    assert traffic(tmp_path, gateway).restore(None, 10, dry=True).changed == ("a-1",)
    assert gateway.asked == ["set server model_a/a-1 state drain"]


def test_a_host_without_a_gateway_is_left_alone(tmp_path):
    absent = Traffic(tmp_path / "admin.sock")
    assert absent.servers() is None
    assert absent.drain(["a-1"], 10).changed == ()
    assert absent.restore({"a-1": 8100}, 10).changed == ()


def test_a_refusal_is_one_line(tmp_path):
    gateway = SimulatedGateway(a_1=2, a_2=2)
    gateway.refuses = "No such server.\n"
    with pytest.raises(FleetError, match=r"set server model_a/a-1 state drain: No such server\.$"):
        traffic(tmp_path, gateway).drain(["a-1"], 10)
