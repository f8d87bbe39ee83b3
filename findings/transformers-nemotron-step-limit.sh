#!/usr/bin/env bash
# transformers 5.23.0: in Nemotron-H (Zamba2, too) what a token gets depends on whether it came with the prompt or by
# decoding. While prefilling, the Mamba-2 step size is clamped from below at the config's time_step_min, which only says
# how weights are initialized; the config's own time_step_limit, (0, inf) by default, is not used, and while decoding
# nothing is clamped. So the same 32 tokens have other scores by decoding, and a text that is continued after its tokens
# were prefilled again can go on otherwise. With the config's limit in place the scores are the same but for rounding.
# The largest difference of a score, as a share of the scores' spread, float32, a tiny random model, on a CPU.
# Output seen: as it is 3e-03, with the limit of the config itself 8e-07
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" transformers==5.23.0 torch==2.13.0 numpy 2>"$folder/pip.log" || exit 2
PYTHONPATH=$folder TRANSFORMERS_VERBOSITY=error python3 -W ignore 2>"$folder/errors" -c '
import sys

import torch
from transformers import NemotronHConfig, NemotronHForCausalLM


def difference(model):
    ids = torch.arange(1, 33)[None] * 7 % 300
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits[0]
        cache, apart = model(ids[:, :8], use_cache=True).past_key_values, 0.0
        for place in range(8, 32):
            one = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True).logits[0, -1]
            apart = max(apart, (one - whole[place]).abs().max().item())
    return apart / (whole.max() - whole.min()).item()


config = NemotronHConfig(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    layers_block_type=["mamba", "attention"], mamba_num_heads=8, mamba_head_dim=16, ssm_state_size=16, n_groups=2,
    chunk_size=16, initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=None,
)
torch.manual_seed(0)
model = NemotronHForCausalLM(config).eval()
for key, weight in model.state_dict().items():
    if key.endswith("dt_bias"):
        weight.fill_(-9.0)  # steps of about 1e-4
before = difference(model)
for module in model.modules():
    if hasattr(module, "time_step_limit"):
        module.time_step_limit = config.time_step_limit
after = difference(model)
print(f"as it is {before:.0e}, with the limit of the config itself {after:.0e}")
sys.exit(0 if before > 1e-3 and after < 1e-5 else 1)'
case $? in
    0) ;;
    1) [[ -s $folder/errors ]] && { cat "$folder/errors"; exit 2; }; echo "changed: see above"; exit 1 ;;
    *) exit 2 ;;
esac
