"""Loads a model for continuous batching, or refuses it with the reason.

Knows weights, device, dtype and which architectures give right results; nothing of requests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

from . import attention
from .memory import cpu_count
from .messages import EngineConfig

SUPPORTED = frozenset(
    {
        "cohere2",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "starcoder2",
    }
)
"""`model_type`s whose results under continuous batching equal `model.generate`'s. Others fail in the library, or
worse, differ in silence (bloom's position bias and gpt_oss's attention sinks are dropped), so they are refused."""


class ModelRefused(Exception):
    """This model, or a setting for it, can't be served. The message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    model: PreTrainedModel
    config: PretrainedConfig  # the text model's
    device: torch.device
    dtype: torch.dtype
    attention: str
    max_model_len: int
    threads: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        heads = find_num_key_value_heads(self.config)
        return int(2 * self.config.num_hidden_layers * heads * find_head_dim(self.config) * self.dtype.itemsize)


def load(settings: EngineConfig) -> LoadedModel:
    """Raises ModelRefused when no restart would help."""
    _check_weights(Path(settings.model_dir), settings.allow_pickle)
    try:
        whole = AutoConfig.from_pretrained(
            settings.model_dir, trust_remote_code=settings.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise ModelRefused(f"{settings.model_dir}: the model's configuration can't be read: {error}") from error
    config = whole.get_text_config()
    _check_architecture(config, settings)
    device, threads = _device(settings.device), settings.threads or cpu_count()
    torch.set_num_threads(threads)
    dtype = _dtype(settings.dtype, device, config)
    slow_because = attention.why_not_flash(device, dtype, find_head_dim(config), _softcap(config))
    attention.register(flash=slow_because is None)
    return LoadedModel(
        model=_load_weights(settings, device, dtype),
        config=config,
        device=device,
        dtype=dtype,
        attention="flash" if slow_because is None else f"padded ({slow_because})",
        max_model_len=_max_model_len(config, settings.max_model_len),
        threads=threads,
    )


def _check_weights(directory: Path, allow_pickle: bool) -> None:
    if not (directory / "config.json").is_file():
        raise ModelRefused(f"{directory} holds no config.json: it is not a transformers model directory")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(name for name in shards if not (directory / name).is_file())
        if missing:
            raise ModelRefused(f"{directory}: {len(missing)} of {len(shards)} weight files missing, first {missing[0]}")
    elif not (directory / "model.safetensors").is_file():
        if not any(directory.glob("pytorch_model*.bin*")):
            raise ModelRefused(f"{directory} holds no weights: expected model.safetensors or its shards with an index")
        if not allow_pickle:
            raise ModelRefused(
                f"{directory} holds only pickle weights (pytorch_model*.bin), which can run code when loaded: "
                "convert them to safetensors, or set LONGHAUL_ALLOW_PICKLE=1 if you trust their source"
            )


def _check_architecture(config: PretrainedConfig, settings: EngineConfig) -> None:
    name = config.model_type
    if getattr(config, "auto_map", None) and not settings.trust_remote_code:
        raise ModelRefused(
            f"model type {name} brings its own Python code: set LONGHAUL_TRUST_REMOTE_CODE=1 if you trust its source"
        )
    if name not in SUPPORTED:
        raise ModelRefused(
            f"model type {name} is not known to give right results under continuous batching; "
            f"supported are: {', '.join(sorted(SUPPORTED))}"
        )


def _softcap(config: PretrainedConfig) -> float | None:
    softcap: float | None = getattr(config, "attn_logit_softcapping", None)
    return softcap


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelRefused(f"LONGHAUL_DEVICE is {name}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ModelRefused(f"LONGHAUL_DEVICE is {name}, but PyTorch {torch.__version__} sees no CUDA device")
        return torch.device("cuda", device.index or 0)
    return device


def _dtype(name: str | None, device: torch.device, config: PretrainedConfig) -> torch.dtype:
    """As asked; else float32 on a CPU (bfloat16 is several times slower in batches there), and on a GPU the
    checkpoint's own half precision, or the best that the GPU has for one in float32."""
    if name is not None:
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]
    if device.type != "cuda":
        return torch.float32
    stored = getattr(config, "dtype", None)
    has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    if stored == torch.float16 or not has_bfloat16:
        return torch.float16
    return torch.bfloat16


def _max_model_len(config: PretrainedConfig, wanted: int | None) -> int:
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if wanted is None and limit is None:
        raise ModelRefused(f"model type {config.model_type} names no context length: set LONGHAUL_MAX_MODEL_LEN")
    if wanted is not None and limit is not None and wanted > limit:
        raise ModelRefused(f"LONGHAUL_MAX_MODEL_LEN is {wanted}; the model holds {limit} tokens")
    return int(wanted or limit or 0)


def _load_weights(settings: EngineConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    kwargs: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attention.NAME,
        "use_safetensors": None if settings.allow_pickle else True,
        "trust_remote_code": settings.trust_remote_code,
        "local_files_only": True,
        "output_loading_info": True,
    }
    if device.type == "cuda":
        kwargs["device_map"] = {"": device}  # accelerate: straight to the GPU, no second copy in host memory
    loaded: Any = AutoModelForCausalLM.from_pretrained(settings.model_dir, **kwargs)
    model: PreTrainedModel = loaded[0]
    # The library would make up random weights for these and only warn.
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelRefused(f"{settings.model_dir}: {len(missing)} weights are missing, first {missing[0]}")
    model.train(False)
    return model
