#!/usr/bin/env bash
# transformers 5.23.0: the answer to a short prompt of a model with longrope (Phi-3.5, Phi-4-mini) depends on what else is
# in the batch. Which of the two sets of factors turns the positions is chosen for a whole forward pass, by its largest
# position: as soon as one sequence is beyond original_max_position_embeddings, the short ones beside it get the factors
# of long ones. And an answer that itself grows beyond it changes factors in the middle, over keys that were cached with
# the others. A prompt of 30 tokens and an answer of 12, where the limit is 64, beside others, left-padded, greedy, float32:
# Output seen: the same answer beside one of 20 tokens: True, of 80 tokens: False; an 80-token one beside it: True
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" transformers==5.23.0 torch==2.13.0 numpy 2>"$folder/pip.log" || exit 2
output=$(PYTHONPATH=$folder TRANSFORMERS_VERBOSITY=error python3 -W ignore 2>"$folder/errors" -c '
import torch
from transformers import Phi3Config, Phi3ForCausalLM

factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [8.0] * 8}
config = Phi3Config(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    max_position_embeddings=512, original_max_position_embeddings=64,
    rope_parameters={**factors, "original_max_position_embeddings": 64},
)
torch.manual_seed(0)
model = Phi3ForCausalLM(config).eval()
one, other, long = ([step * place % 299 + 1 for place in range(length)] for step, length in ((7, 30), (13, 20), (11, 80)))


def answers(*prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12)[:, width:].tolist()


alone = answers(one)[0]
print("the same answer beside one of 20 tokens: ", answers(one, other)[0] == alone, ", of 80 tokens: ",
      answers(one, long)[0] == alone, "; an 80-token one beside it: ", answers(one, long)[1] == answers(long)[0], sep="")
') || { cat "$folder/errors"; exit 2; }
echo "$output"
expected="the same answer beside one of 20 tokens: True, of 80 tokens: False; an 80-token one beside it: True"
[[ $output == "$expected" ]] || { echo "changed: see above"; exit 1; }
