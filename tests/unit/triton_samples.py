"""The seed's section 8: twelve L40S, here three hosts of four, with its two models on Triton."""

import json

from fleet.host_document import parse_hosts
from fleet.plan_document import instance_document
from fleet.planning import make_plan
from fleet.triton_repository import triton_servers
from plan_samples import CONFIGS, ENGINE, facts, model, resolved

HOSTS = ("l40s-a", "l40s-b", "l40s-c")
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def seed_plan(directory):
    """The plan of twelve GPUs; the 70B's config.json is written into the directory."""
    config = json.loads((CONFIGS / "llama-3-70b.json").read_text()) | {"quantization_config": AWQ}
    path = directory / "llama-3-70b-awq.json"
    path.write_text(json.dumps(config))
    small = model("llama-3-8b", engine="triton", max_model_len=8192, replicas={"min": 6}, aliases=["llama"])
    large = model("llama-3-70b-awq", engine="triton", config=None, replicas={"min": 3}, tensor_parallel=2)
    large |= {"config": str(path), "max_model_len": 8192}
    return make_plan(parse_hosts(facts(*HOSTS), where="facts"), resolved(small, large), [], engine_version=ENGINE)


def servers_of(plan, host, accelerator="cuda"):
    """What the role triton makes of a host's part of the plan."""
    own = [instance_document(one) for one in plan.instances if host in one.hosts]
    order = [f"GPU-{host}-{index}" for index in range(4)]
    return triton_servers(own, this_host=host, gpu_order=order, accelerator=accelerator)
