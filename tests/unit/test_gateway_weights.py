from fleet.gateway_weights import gateway_weights, weights_of_instances


def instance(name, sequences):
    return {"id": name, "speed": {} if sequences is None else {"running_sequences_at_capacity": sequences}}


def test_weights_are_in_proportion_to_the_sequences_at_capacity():
    assert gateway_weights({"a": 200.0, "b": 50.0, "c": 0.1}) == {"a": 100, "b": 25, "c": 1}


def test_equal_instances_need_no_weights():
    assert gateway_weights({"a": 12.5, "b": 12.5}) == {}
    assert gateway_weights({}) == {}


def test_one_unknown_instance_makes_all_equal():
    assert weights_of_instances([instance("a", 10.0), instance("b", None)]) == {}
    assert weights_of_instances([instance("a", 10.0), instance("b", 20.0)]) == {"a": 50, "b": 100}
