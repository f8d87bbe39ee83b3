"""Loading of a model for continuous batching, or its refusal with the reason.

This knows weights, device, dtype and which architectures give right results, but no requests.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel

from container.engine.messages import EngineConfig
from container.engine.worker import attention, packed_linear
from container.engine.worker.context_length import context_length
from container.engine.worker.flash_attention import describe_attention
from container.engine.worker.layout import Layout
from container.engine.worker.memory import cpu_count
from container.engine.worker.model_table import model_table
from container.engine.worker.probe import probe
from container.engine.worker.refusal import ModelRefused
from container.engine.worker.text_model import check_kind, load_text_model

logger = logging.getLogger(__name__)

SUPPORTED = model_table().equal
"""Model types whose results under continuous batching equal those of `model.generate`. Others fail, or worse, differ in
silence, so they are refused unless unverified models are allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    model: PreTrainedModel
    config: PretrainedConfig  # the text model's
    device: torch.device
    dtype: torch.dtype
    layout: Layout
    attention: str
    max_model_len: int
    length_reason: str
    threads: int
    is_measured: bool
    """Whether the table has the model: if not, it has to pass a check of its own."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all attention calls."""
        return self.layout.elements_per_token * self.dtype.itemsize


def load(settings: EngineConfig) -> LoadedModel:
    """Load the model's weights onto the device. Raises ModelRefused when no restart would help."""
    _check_weights(Path(settings.model_dir), settings.allow_pickle)
    whole, own_code = _read_config(settings)
    config = whole.get_text_config()
    max_model_len, length_reason = _max_model_len(config, settings.max_model_len)
    device, threads = _device(settings.device, settings.needs_gpu), settings.threads or cpu_count()
    torch.set_num_threads(threads)
    dtype = _dtype(settings.dtype, device, config)
    attention.register()
    model = _load_weights(settings, whole, device, dtype, own_code=own_code)
    with packed_linear.watched_weights(model) as read:
        layout = probe(model)
    if packed_linear.can_pack(device, dtype):
        packed_linear.pack_linears(model, except_for=read)
    return LoadedModel(
        model=model,
        config=config,
        device=device,
        dtype=dtype,
        layout=layout,
        attention=describe_attention(layout, device, dtype),
        max_model_len=max_model_len,
        length_reason=length_reason,
        threads=threads,
        is_measured=config.model_type in SUPPORTED and not own_code,
    )


def _check_weights(directory: Path, allow_pickle: bool) -> None:
    if not (directory / "config.json").is_file():
        raise ModelRefused(f"{directory} has no config.json: it is not a transformers model directory")
    if (directory / "model.safetensors").is_file():
        return
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelRefused(f"{index} is not an index of weights: {type(error).__name__}: {error}") from error
        missing = sorted(name for name in shards if not (directory / name).is_file())
        if missing:
            raise ModelRefused(
                f"{directory}: {len(missing)} of {len(shards)} weight files are missing, the first is {missing[0]}"
            )
        return
    if not any(directory.glob("pytorch_model*.bin*")):
        raise ModelRefused(f"{directory} has no weights: expected model.safetensors or its shards with an index")
    if not allow_pickle:
        raise ModelRefused(
            f"{directory} has only pickle weights (pytorch_model*.bin), which can run code when they are loaded: "
            "convert them to safetensors, or set LONGHAUL_ALLOW_PICKLE=1 if you trust their source"
        )


def _read_config(settings: EngineConfig) -> tuple[PretrainedConfig, bool]:
    """Return the whole model's configuration and whether the model's own code runs.

    It runs only if it is trusted, and only for a model type that transformers lacks: some repositories still
    carry code for a type that transformers has learned since. Raises ModelRefused.
    """
    directory = settings.model_dir
    path = Path(directory) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} is not JSON: {error}") from error
    try:
        own_code = "auto_map" in raw and raw.get("model_type") not in CONFIG_MAPPING
        if own_code and not settings.trust_remote_code:
            whole = None
        else:
            whole = AutoConfig.from_pretrained(directory, trust_remote_code=own_code, local_files_only=True)
    except Exception as error:  # of many kinds, none of which a restart would mend
        if not isinstance(raw, dict) or "model_type" not in raw:
            raise ModelRefused(f"{path} is not a transformers model's: it has no model_type") from error
        raise ModelRefused(f"{directory}: the model's configuration can't be read: {error}") from error
    if whole is None:
        raise ModelRefused(
            f"model type {raw.get('model_type')} brings its own Python code: "
            "set LONGHAUL_TRUST_REMOTE_CODE=1 if you trust its source"
        )
    check_kind(whole, own_code=own_code)
    if not own_code and not settings.unverified_models:
        _check_type(whole.get_text_config().model_type)
    return whole, own_code


def _check_type(model_type: str) -> None:
    """Raise ModelRefused for a type that the table doesn't have as equal."""
    verdict = model_table().types.get(model_type)
    if verdict is None:
        raise ModelRefused(
            f"nobody has measured whether model type {model_type} gives right results in continuous batches: "
            "LONGHAUL_UNVERIFIED_MODELS=1 lets it run if it passes a check at the start"
        )
    if not verdict.is_equal:
        raise ModelRefused(f"model type {model_type} is not supported: {verdict.reason}")


def _device(name: str | None, needs_gpu: bool) -> torch.device:
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        if not needs_gpu:
            return torch.device("cpu")
        reason = "it sees no CUDA device"
        try:  # `is_available` does not say why not, but the initialization that it has tried does
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except Exception as error:
            reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise ModelRefused(
            f"this machine has an NVIDIA GPU that PyTorch {torch.__version__} can't use: {reason}. "
            "Set LONGHAUL_DEVICE=cpu to do without it"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelRefused(f"LONGHAUL_DEVICE is {name}: expected cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ModelRefused(f"LONGHAUL_DEVICE is {name}: expected cpu, cuda or cuda:N")
    index, devices = device.index or 0, torch.cuda.device_count()
    if index >= devices:
        raise ModelRefused(f"LONGHAUL_DEVICE is {name}, but PyTorch {torch.__version__} sees {devices} CUDA devices")
    return torch.device("cuda", index)


def _dtype(name: str | None, device: torch.device, config: PretrainedConfig) -> torch.dtype:
    """Return the type that the settings name, or else the best one.

    On a CPU that is float32 (bfloat16 is several times slower in batches there), on a GPU the checkpoint's own half
    precision, or for a checkpoint in float32 the best half precision that the GPU has.
    """
    if name is not None:
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]
    if device.type != "cuda":
        return torch.float32
    stored = getattr(config, "dtype", None)
    has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    if stored == torch.float16 or not has_bfloat16:
        return torch.float16
    return torch.bfloat16


def _max_model_len(config: PretrainedConfig, wanted: int | None) -> tuple[int, str]:
    """Return the longest sequence, and what makes it so long. Raises ModelRefused if the model can't hold `wanted`."""
    own = context_length(config)
    if own.tokens is None:
        if wanted is None:
            raise ModelRefused(
                f"model type {config.model_type} doesn't tell its context length: set LONGHAUL_MAX_MODEL_LEN"
            )
        return wanted, "LONGHAUL_MAX_MODEL_LEN"
    if own.is_cut:
        logger.warning("the model holds %d tokens in batches: %s", own.tokens, own.reason)
    reason = own.reason or "its max_position_embeddings"
    if wanted is None:
        return own.tokens, reason
    if wanted > own.tokens:
        why = f" in batches: {reason}" if own.is_cut else f" ({reason})"
        raise ModelRefused(f"LONGHAUL_MAX_MODEL_LEN is {wanted}; the model holds {own.tokens} tokens{why}")
    return wanted, f"LONGHAUL_MAX_MODEL_LEN, of the model's {own.tokens}"


def _load_weights(
    settings: EngineConfig, config: PretrainedConfig, device: torch.device, dtype: torch.dtype, *, own_code: bool
) -> PreTrainedModel:
    kwargs: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attention.NAME,
        "use_safetensors": None if settings.allow_pickle else True,
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are refused below, in a sentence
    }
    if device.type == "cuda":
        kwargs["device_map"] = {"": device}  # accelerate: straight to the GPU, no second copy in host memory
    try:
        loaded: Any = load_text_model(settings.model_dir, config, own_code=own_code, **kwargs)
    except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # these may pass: a restart is worth trying
    except Exception as error:
        if isinstance(error, KeyError) and error.args == (attention.NAME,):  # it looks among classes of its own
            raise ModelRefused(
                "the code of this model fixes its attention function: it can't run in continuous batches"
            ) from error
        cause = f"{type(error).__name__}: {error}"
        raise ModelRefused(f"{settings.model_dir}: the weights can't be loaded: {cause}") from error
    model: PreTrainedModel = loaded[0]
    # The library would make up random weights for these, and only warn.
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ModelRefused(f"{settings.model_dir}: {len(missing)} weights are missing, the first is {missing[0]}")
    if mismatched := sorted(loaded[1]["mismatched_keys"]):
        name, found, expected = mismatched[0]
        what = f"{settings.model_dir}: {len(mismatched)} weights have another shape than config.json says"
        raise ModelRefused(f"{what}; the first is {name}, {list(found)} instead of {list(expected)}")
    model.train(False)
    return model
