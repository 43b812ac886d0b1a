"""The arguments of ``vllm serve``: which exist, which the plan decides, and those of one instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .document_checks import nearest
from .engine_options import engine_args_document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .engine_options import EngineOptions
    from .requests import ModelRequest


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# EngineArgs and AsyncEngineArgs of vLLM 0.33.0 (vllm/engine/arg_utils.py). 0.32.0 lacks monokernel, sleep_mode_backend
# and watchdog_config.
ENGINE_ARGUMENTS = _names(
    "additional_config aggregate_engine_logging all2all_backend allow_deprecated_quantization "
    "allowed_local_media_path allowed_media_domains async_scheduling attention_backend attention_config "
    "aux_output_config block_size code_revision collect_detailed_traces compilation_config config_format convert "
    "cp_kv_cache_interleave_size cpu_distributed_timeout_seconds cpu_offload_gb cpu_offload_params "
    "cudagraph_capture_sizes cudagraph_metrics custom_histogram_buckets data_parallel_address "
    "data_parallel_backend data_parallel_external_lb data_parallel_hybrid_lb data_parallel_multi_port_external_lb "
    "data_parallel_rank data_parallel_rpc_port data_parallel_size data_parallel_size_local "
    "data_parallel_start_rank dbo_decode_token_threshold dbo_prefill_token_threshold dcp_comm_backend "
    "dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size default_mm_loras device_ids "
    "diffusion_config disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce "
    "disable_hybrid_kv_cache_manager disable_log_stats disable_nccl_for_dp_synchronization disable_sliding_window "
    "distributed_executor_backend distributed_timeout_seconds download_dir dp_sync_interval dtype "
    "ec_manager_config ec_transfer_config elastic_ep_max_dp_size enable_batch_sharded_sampling "
    "enable_chunked_prefill enable_cumem_allocator enable_dbo enable_elastic_ep enable_ep_weight_filter "
    "enable_eplb enable_expert_parallel enable_fault_tolerance enable_flashinfer_autotune enable_hc_sp "
    "enable_layerwise_nvtx_tracing enable_log_requests enable_logging_iteration_details enable_lora "
    "enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint enable_mfu_metrics "
    "enable_mixed_moe_lora_format enable_mm_embeds enable_mm_processor_stats enable_moe_shared_loras "
    "enable_nccl_comm_suspend enable_prefix_caching enable_prompt_embeds enable_return_routed_experts "
    "enable_shm_tensor_arena enable_sleep_mode enable_tower_connector_lora enable_trace_replay enforce_eager "
    "engram_config eplb_config expert_placement_strategy fail_on_environ_validation fault_tolerance_config "
    "fully_sharded_loras gdn_prefill_backend generation_config gpu_memory_utilization hf_config_path hf_overrides "
    "hf_token ignore_patterns interleave_mm_strings io_processor_plugin ir_op_priority jit_monitor_mode "
    "jit_monitor_verbose kda_decode_backend kda_prefill_backend kernel_config kv_cache_dtype "
    "kv_cache_dtype_skip_layers kv_cache_memory_bytes kv_cache_metrics kv_cache_metrics_sample kv_events_config "
    "kv_offloading_backend kv_offloading_size kv_sharing_fast_prefill kv_transfer_config language_model_only "
    "limit_mm_per_prompt linear_backend load_format log_config_file log_level logging_config logits_processors "
    "logprobs_mode long_prefill_token_threshold long_prefill_token_threshold_adaptive lora_dtype "
    "lora_target_modules mamba_backend mamba_block_size mamba_cache_dtype mamba_cache_mode "
    "mamba_cache_philox_rounds mamba_config mamba_ssm_cache_dtype mamba_ssu_algorithm master_addr master_port "
    "max_cpu_loras max_cudagraph_capture_size max_logprobs max_lora_cls_labels max_lora_rank max_loras "
    "max_model_len max_num_active_seqs max_num_batched_tokens max_num_queued_reqs max_num_queued_tokens "
    "max_num_scheduled_tokens max_num_seqs max_parallel_loading_workers media_io_kwargs mm_device_do_normalize "
    "mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin "
    "mm_encoder_fp8_scale_save_path mm_encoder_only mm_encoder_tp_mode mm_hasher_algorithm mm_ipc_gpu_memory_gb "
    "mm_processor_cache_gb mm_processor_cache_type mm_processor_device mm_processor_kwargs "
    "mm_shm_cache_max_object_size_mb mm_tensor_ipc model model_class_overrides model_impl "
    "model_loader_extra_config model_weights moe_backend monokernel nnodes node_rank num_gpu_blocks_override "
    "numa_bind numa_bind_cpus numa_bind_nodes offload_backend offload_group_size offload_num_in_group "
    "offload_params offload_prefetch_step optimization_level otlp_traces_endpoint override_generation_config "
    "per_request_spec_decode_metrics performance_mode pipeline_parallel_size pooler_config "
    "prefill_context_parallel_size prefill_schedule_interval prefix_cache_retention_interval "
    "prefix_caching_hash_algo prefix_match_unit profiler_config pt_load_map_location quantization "
    "quantization_config ray_workers_use_nsight reasoning_config reasoning_parser reasoning_parser_plugin "
    "renderer_num_workers replayssm_buffer_len return_sampling_mask revision runner safetensors_load_strategy "
    "safetensors_prefetch_block_size safetensors_prefetch_num_threads scheduler_cls scheduler_reserve_full_isl "
    "scheduling_policy seed served_model_name show_hidden_metrics_for_version shutdown_timeout skip_mm_profiling "
    "skip_tokenizer_init sleep_mode_backend sleep_mode_offload_cudagraph sleep_preserve_parameter_names "
    "sparse_indexer_topk_backend spec_method spec_model spec_tokens specialize_active_lora speculative_config "
    "stream_interval structured_outputs_config swa_bounded_replay tensor_parallel_size tokenizer tokenizer_mode "
    "tokenizer_revision tokens_only trust_remote_code ubatch_size use_fp64_gumbel use_replayssm use_tqdm_on_load "
    "video_pruning_method video_pruning_rate watchdog_config watermark watermark_config weight_transfer_config "
    "worker_cls worker_extension_cls "
)
# BaseFrontendArgs and FrontendArgs of vLLM 0.33.0 (vllm/entrypoints/common/cli_args.py).
SERVER_ARGUMENTS = _names(
    "allow_credentials allowed_headers allowed_methods allowed_origins anthropic_disabled_thinking_effort api_key "
    "chat_template chat_template_content_format cohere_format cohere_is_reasoning_model "
    "data_parallel_supervisor_port default_chat_template_kwargs disable_access_log_for_endpoints "
    "disable_fastapi_docs disable_uvicorn_access_log dp_supervisor_probe_failure_threshold "
    "dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s enable_auto_tool_choice "
    "enable_flash_late_interaction enable_force_include_usage enable_log_deltas enable_log_outputs "
    "enable_offline_docs enable_per_request_metrics enable_prompt_tokens_details enable_request_id_headers "
    "enable_scale_out enable_server_load_tracking enable_ssl_refresh enable_tokenizer_info_endpoint "
    "exclude_tools_when_tool_choice_none fingerprint_mode fingerprint_value grpc_port h11_max_header_count "
    "h11_max_incomplete_event_size host log_error_stack lora_modules max_log_len middleware port "
    "reasoning_effort_map response_role return_tokens_as_token_ids root_path sse_keep_alive_interval ssl_ca_certs "
    "ssl_cert_reqs ssl_certfile ssl_ciphers ssl_keyfile tokens_only tool_call_parser tool_parser_plugin "
    "tool_server tool_strict_level trust_request_chat_template trust_request_mm_kwargs uds uvicorn_log_level "
)

# Arguments that only the plan or a role may set, and what a person writes instead.
DECIDED_ELSEWHERE = {
    "model": "set source instead",
    "model_weights": "set source instead",
    "served_model_name": "set name and aliases instead",
    "quantization": "set quantization instead",
    "speculative_config": "set speculative instead",
    "spec_method": "set speculative instead",
    "spec_model": "set speculative instead",
    "spec_tokens": "set speculative instead",
    "revision": "write the revision into source, as in hf:org/name@revision",
    "enable_lora": "set lora instead",
    "max_loras": "set lora.max_loras instead",
    "max_lora_rank": "set lora.max_rank instead",
    "host": "the serving role sets it",
    "port": "the plan counts ports from fleet_engine_port_base",
    "uds": "the gateway reaches engines by TCP",
    "api_key": "set fleet_engine_api_key instead, so that the key stays out of files and arguments",
    "hf_token": "a secret does not belong into a plan",
    "device_ids": "set placement.pins instead",
    "nnodes": "the plan decides it",
    "node_rank": "the plan decides it",
    "master_addr": "the plan decides it",
    "master_port": "the plan decides it",
    "prefill_context_parallel_size": "it multiplies the GPUs of an instance, which the plan does not do",
    "data_parallel_size": "set replicas instead",
    "data_parallel_size_local": "set replicas instead",
    "data_parallel_rank": "set replicas instead",
    "data_parallel_start_rank": "set replicas instead",
    "data_parallel_address": "set replicas instead",
    "data_parallel_rpc_port": "set replicas instead",
    "data_parallel_backend": "set replicas instead",
    "data_parallel_external_lb": "set replicas instead",
    "data_parallel_hybrid_lb": "set replicas instead",
    "data_parallel_multi_port_external_lb": "set replicas instead",
}
# Arguments that a request has a key of its own for: giving both is fine as long as they agree.
TWINS = {
    "tensor_parallel_size": "tensor_parallel",
    "pipeline_parallel_size": "pipeline_parallel",
    "max_model_len": "max_model_len",
    "kv_cache_dtype": "kv_cache_dtype",
    "limit_mm_per_prompt": "limit_mm_per_prompt",
}
RESERVED_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "the plan sets it; use placement.pins",
    "VLLM_API_KEY": "a secret does not belong into a plan; set fleet_engine_api_key instead",
}


def argument_faults(engine_args: Mapping[str, object], own: Mapping[str, object]) -> list[tuple[str, str]]:
    """Find pass-through arguments that vLLM does not know or that contradict the plan.

    Args:
        engine_args: the ``engine_args`` of a request.
        own: values of the request's own keys (``tensor_parallel`` ...) as far as they were given.

    Returns:
        (argument, problem) of each fault.
    """
    faults = []
    for name, value in engine_args.items():
        key = name.replace("-", "_")
        twin = TWINS.get(key)
        if key != name:
            faults.append((name, f"is written with underscores in engine_args: {key}"))
        elif key in DECIDED_ELSEWHERE:
            faults.append((name, f"contradicts the plan: {DECIDED_ELSEWHERE[key]}"))
        elif key not in ENGINE_ARGUMENTS | SERVER_ARGUMENTS:
            known = ENGINE_ARGUMENTS | SERVER_ARGUMENTS
            faults.append((name, f"no argument of vLLM, {nearest(key, known)}"))
        elif twin is not None and own.get(twin) is not None and own[twin] != value:
            faults.append((name, f"{value!r} contradicts {twin}: {own[twin]!r} of the same model"))
    return faults


def instance_engine_args(request: ModelRequest, options: EngineOptions, model: str) -> dict[str, object]:
    """The vLLM arguments of one instance.

    What memory and placement rely on is written out even where it equals vLLM's default, because those defaults depend
    on the GPU and on the version.

    Args:
        request: the model as asked for.
        options: the configuration that was found to fit.
        model: checkpoint directory on the host, or the name that vLLM downloads.
    """
    document: dict[str, object] = {
        **engine_args_document(options),
        **request.engine_args,
        "model": model,
        "served_model_name": [request.name, *request.aliases],
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
    }
    if options.max_model_len is not None:
        document["max_model_len"] = options.max_model_len
    if options.kv_cache_memory_bytes is None:
        document["gpu_memory_utilization"] = options.gpu_memory_utilization
    if request.task != "generate":
        document.setdefault("runner", "pooling")
    revision = request.revision
    if revision is not None and model == request.repository:
        document["revision"] = revision
    return dict(sorted(document.items()))
