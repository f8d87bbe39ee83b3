"""The README's table of models, from the engine's."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

import msgspec

from container.engine.worker.model_table import PATH, ModelTable
from testing import ROOT

README = ROOT / "README.md"
_BEGIN, _END = "<!-- models -->", "<!-- /models -->"

FAMILIES: dict[str, str] = {
    "Qwen": "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next qwen3_5 qwen3_5_moe qwen2_vl_text qwen2_5_vl_text "
    "qwen3_vl_text qwen3_vl_moe_text",
    "Llama, and what is built like it (Yi, Vicuna, SmolLM2, R1 distils)": "llama llama4 llama4_text smollm3",
    "Mistral, Ministral, Mixtral": "mistral ministral ministral3 mixtral mistral4",
    "Gemma": "gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text vaultgemma",
    "gpt-oss": "gpt_oss",
    "DeepSeek, Kimi": "deepseek_v2 deepseek_v3 deepseek_v32 kimi_linear",
    "Phi": "phi phi3 phimoe",
    "Granite": "granite granitemoe granitemoeshared granitemoehybrid granite_swa granitemoe_swa",
    "Nemotron": "nemotron nemotron_h",
    "GLM": "glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa glm4v_text glm4v_moe_text",
    "MiniMax, Hunyuan, ERNIE, Seed": "minimax_m2 hunyuan_v1_dense hunyuan_v1_moe hy_v3 ernie4_5 ernie4_5_moe seed_oss",
    "LFM": "lfm2 lfm2_moe lfm3",
    "Command, Aya": "cohere cohere2 cohere2_moe",
    "OLMo, Apertus": "olmo olmo2 olmo3 olmoe olmo_hybrid flex_olmo apertus",
    "EXAONE, Solar": "exaone4 exaone_moe solar_open",
    "Falcon H1, Bamba, Jamba, Zamba, Mamba": "falcon_h1 falcon_mamba bamba jamba zamba zamba2 mamba mamba2",
    "StarCoder, StableLM, GPT-2, NeoX, OPT": "gpt_bigcode starcoder2 stablelm gpt2 gpt_neox opt",
}
"""Families that people know, with their types as far as these may be equal."""


def render(table: ModelTable) -> str:
    """Render the families, all types that are equal, and those that are refused with the reasons."""
    lines = ["| family | `model_type` |", "|---|---|"]
    for family, names in FAMILIES.items():
        if equal := [name for name in names.split() if name in table.equal]:
            lines.append(f"| {family} | {_listed(equal)} |")
    refused: dict[str, list[str]] = {}
    for name, verdict in table.types.items():
        if not verdict.is_equal:
            refused.setdefault(_general(verdict.reason), []).append(name)
    lines += ["", f"<details><summary>All {len(table.equal)} types</summary>", ""]
    lines += [*_wrapped(_listed(sorted(table.equal))), "", "</details>", ""]
    lines += [f"<details><summary>{sum(map(len, refused.values()))} types are refused</summary>", ""]
    lines += ["| why | types |", "|---|---|"]
    lines += [f"| {reason} | {_listed(names)} |" for reason, names in sorted(refused.items(), key=_by_number)]
    return "\n".join([*lines, "", "</details>"])


def write(path: Path = README) -> None:
    """Write the table, as it is in the engine's file, between its markers."""
    table = msgspec.json.decode(PATH.read_bytes(), type=ModelTable)
    before, rest = path.read_text().split(f"{_BEGIN}\n")
    after = rest.partition(_END)[2]
    path.write_text(f"{before}{_BEGIN}\n{render(table)}\n{_END}{after}")


def _general(reason: str) -> str:
    """Leave out the names of classes, so that one reason has one row."""
    return re.sub(r"the code of (this model|\w+)", "its code", reason).replace("this model ", "it ").replace("|", "/")


def _by_number(entry: tuple[str, list[str]]) -> tuple[int, str]:
    return -len(entry[1]), entry[0]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118, break_on_hyphens=False)
