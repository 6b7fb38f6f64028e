import os
import tempfile
from typing import Any

os.environ.setdefault("DECOUPLE_GCLOUD", "TRUE")  # read at import: no Google Cloud client is needed

from worker import Run, Task, serve

SETTINGS: dict[str, Any] = {
    "hardware": "cpu",
    "dtype": "float32",
    "weight_dtype": "float32",
    "attention": "dot_product",
    "remat_policy": "none",
    "scan_layers": False,
    "megablox": False,
    "sparse_matmul": True,
}

PRESETS = {
    "llama": "llama3-8b",
    "olmo2": "olmo3-7b",
    "gemma3_text": "gemma3-4b",
    "deepseek_v3": "deepseek3-tiny",
    "qwen3_moe": "qwen3-30b-a3b",
}


def geometry(config: dict[str, Any]) -> dict[str, Any]:
    family = config["model_type"]
    fields = {
        "model_name": PRESETS[family],
        "override_model_config": True,
        "base_emb_dim": config["hidden_size"],
        "base_mlp_dim": config["intermediate_size"],
        "base_num_decoder_layers": config["num_hidden_layers"],
        "base_num_query_heads": config["num_attention_heads"],
        "base_num_kv_heads": config["num_key_value_heads"],
        "vocab_size": config["vocab_size"],
        "logits_via_embedding": config["tie_word_embeddings"],
        "normalization_layer_epsilon": config["rms_norm_eps"],
        "max_position_embeddings": config["max_position_embeddings"],
        "rope_max_timescale": int(config["rope_theta"]),
        "rope_type": "default",
    }
    if family != "deepseek_v3":
        fields["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if family == "gemma3_text":
        fields |= {
            "sliding_window_size": config["sliding_window"],
            "local_rope_max_timescale": int(config["rope_local_base_freq"]),
            "rope_linear_scaling_factor": 1.0,
        }
    if family == "qwen3_moe":
        fields |= {
            "num_experts": config["num_experts"],
            "num_experts_per_tok": config["num_experts_per_tok"],
            "base_moe_mlp_dim": config["moe_intermediate_size"],
            "base_mlp_dim": config["moe_intermediate_size"],
            "norm_topk_prob": config["norm_topk_prob"],
        }
    if family == "deepseek_v3":
        fields |= {
            "first_num_dense_layers": config["first_k_dense_replace"],
            "num_experts": config["n_routed_experts"],
            "num_experts_per_tok": config["num_experts_per_tok"],
            "base_moe_mlp_dim": config["moe_intermediate_size"],
            "shared_experts": config["n_shared_experts"],
            "routed_scaling_factor": config["routed_scaling_factor"],
            "routed_score_func": config["scoring_func"],
            "q_lora_rank": config["q_lora_rank"],
            "kv_lora_rank": config["kv_lora_rank"],
            "qk_nope_head_dim": config["qk_nope_head_dim"],
            "qk_rope_head_dim": config["qk_rope_head_dim"],
            "v_head_dim": config["v_head_dim"],
        }
    return fields


def build(task: Task) -> tuple[Run, dict[str, Any]]:
    # Here, not above: importing MaxText prints, and serve() keeps what is printed out of the answers.
    import jax
    import maxtext
    import numpy as np
    from flax import nnx
    from flax.linen import logical_axis_rules
    from maxtext.common.goodput import create_goodput_recorder
    from maxtext.configs import pyconfig
    from maxtext.trainers.pre_train import train as pretrain
    from maxtext.utils import sharding, train_utils

    batch, length = task["batch"], task["length"]
    if task["config"]["model_type"] not in PRESETS:
        raise ValueError(f"MaxText {maxtext.__version__} has no {task['config']['model_type']}")
    argv = ["", os.path.join(os.path.dirname(maxtext.__file__), "configs", "base.yml")]
    folder = tempfile.mkdtemp()
    config = pyconfig.initialize(
        argv,
        **(
            geometry(task["config"])
            | SETTINGS
            | {
                "run_name": "side",
                "base_output_directory": folder,
                "per_device_batch_size": batch,
                "max_target_length": length,
                "steps": 10_000,
                "learning_rate": 1e-4,
                "warmup_steps_fraction": 0.0,
                "dataset_type": "synthetic",
                "enable_checkpointing": False,
                "skip_jax_distributed_system": True,
                "enable_tensorboard": False,
                "log_config": False,
                "jax_cache_dir": "",
                "sharding_tolerance": 1.0,
            }
            | task.get("settings", {})
        ),
    )
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    jax.config.update("jax_use_shardy_partitioner", config.shardy)
    jax.config.update("jax_remove_size_one_mesh_axis_from_type", config.remove_size_one_mesh_axis_from_type)
    setup = train_utils.setup_train_loop(config, create_goodput_recorder(config))
    _, _, shardings, model, mesh, _, _, loader, _, _, whole = setup
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    graph, state = nnx.split(whole)
    params_shardings, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    step, _ = train_utils.jit_train_and_eval_step(
        config, graph, mesh, state, shardings, pretrain.train_step, pretrain.eval_step, None, params_shardings
    )
    with jax.set_mesh(mesh), logical_axis_rules(config.logical_axis_rules):
        rows = loader.load_next_batch()
    print({k: (v.shape, v.dtype) for k, v in rows.items()}, flush=True)
    held = [state]

    def run() -> None:
        with jax.set_mesh(mesh), logical_axis_rules(config.logical_axis_rules):
            for _ in range(task["steps"]):
                held[0], metrics = step(held[0], dict(rows))
        assert np.isfinite(metrics["scalar"]["learning/loss"])
        print(float(metrics["scalar"]["learning/loss"]), flush=True)
        jax.block_until_ready(held[0])

    return run, {
        "tokens": task["steps"] * batch * length,
        "parameters": parameters,
        "versions": f"maxtext {maxtext.__version__}, jax {jax.__version__}",
    }


serve(build)
