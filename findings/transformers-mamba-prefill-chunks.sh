#!/usr/bin/env bash
# transformers 5.23.0: generate(prefill_chunk_size=…), which reads a prompt in pieces to save memory, gives other tokens
# for Jamba (Zamba, too), without a word: its Mamba mixers begin every piece longer than one token from an empty state, as
# if the pieces before had not been. Bamba, whose Mamba-2 mixers carry the state over, and Llama give the same tokens.
# Six random prompts of 100 tokens to tiny random models, whole and in pieces of 40, greedy, float32, on a CPU.
# Output seen: the same of 6 answers: llama 6, bamba 6, jamba 2
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" transformers==5.23.0 torch==2.13.0 numpy 2>"$folder/pip.log" || exit 2
output=$(PYTHONPATH=$folder TRANSFORMERS_VERBOSITY=error python3 -W ignore 2>"$folder/errors" -c '
import torch
from transformers import AutoConfig, AutoModelForCausalLM

common = dict(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
              num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=None)
kinds = {
    "llama": {},
    "bamba": dict(attn_layer_indices=[1, 3], mamba_n_heads=8, mamba_d_state=16, mamba_d_head=16),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, mamba_d_state=16, mamba_dt_rank=8, num_experts=2),
}
parts = []
for name, changes in kinds.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **common, **changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    same = 0
    for seed in range(6):
        torch.manual_seed(seed)
        prompt = torch.randint(1, 300, (1, 100))
        options = dict(attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12)
        same += model.generate(prompt, **options).equal(model.generate(prompt, **options, prefill_chunk_size=40))
    parts.append(f"{name} {same}")
print("the same of 6 answers:", ", ".join(parts))') || { cat "$folder/errors"; exit 2; }
echo "$output"
[[ $output == "the same of 6 answers: llama 6, bamba 6, jamba "[0-5] ]] || { echo "changed: see above"; exit 1; }
