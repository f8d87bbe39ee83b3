#!/usr/bin/env bash
# torch 2.13.0: on a CPU, scaled_dot_product_attention answers a query that is NaN with NaN where there are 64 keys, and
# with zeros where there is one: an overflow in one layer vanishes, and whoever looks for NaN at the end finds none. The
# plain formula (softmax of the product) gives NaN for both.
# Output seen: 1 key: 0.0, plain nan; 64 keys: nan, plain nan
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder" torch==2.13.0 numpy 2>"$folder/pip.log" || exit 2
output=$(PYTHONPATH=$folder python3 -W ignore -c '
import torch
from torch.nn.functional import scaled_dot_product_attention

parts = []
for keys in (1, 64):
    query, key = torch.full((1, 1, 1, 16), torch.nan), torch.ones(1, 1, keys, 16)
    kernel = scaled_dot_product_attention(query, key, key)[0, 0, 0, 0].item()
    plain = (torch.softmax(query @ key.mT / 4, dim=-1) @ key)[0, 0, 0, 0].item()
    parts.append(f"{keys} key{str() if keys == 1 else chr(115)}: {kernel}, plain {plain}")
print("; ".join(parts))') || exit 2
echo "$output"
[[ $output == "1 key: 0.0, plain nan; 64 keys: nan, plain nan" ]] || { echo "changed: a NaN query is answered alike"; exit 1; }
