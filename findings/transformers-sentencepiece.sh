#!/usr/bin/env bash
# transformers 5.23.0: AutoTokenizer on a folder with nothing but a config.json and sentencepiece's tokenizer.model (that
# of Mistral 7B, from mistral-common 1.13.1, is used) gives other tokens than sentencepiece, without a word. For model
# types whose class is TokenizersBackend (mistral, phi3, llama without a tokenizer_config.json) no text gets the space
# before it; as LlamaTokenizer two spaces become one token, as the merges are ordered by the pieces' ids instead of their
# scores. Version 4 gave sentencepiece's tokens. A served model then answers prompts that it was not trained on.
# Output seen:
#   sentencepiece  ▁one ▁ ▁two
#   mistral        one ▁▁ two
#   LlamaTokenizer ▁one ▁▁ two
set -uo pipefail
folder=$(mktemp -d) || exit 2
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder/lib" transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2 || exit 2
python3 -m pip install --quiet --target "$folder/data" --no-deps mistral-common==1.13.1 || exit 2
mkdir "$folder/mistral" "$folder/llama"
for type in mistral llama; do
    cp "$folder/data/mistral_common/data/tokenizer.model.v1" "$folder/$type/tokenizer.model" || exit 2
    printf '{"model_type": "%s"}' "$type" > "$folder/$type/config.json"
done
echo '{"tokenizer_class": "LlamaTokenizer"}' > "$folder/llama/tokenizer_config.json"
output=$(cd "$folder" && PYTHONPATH=$folder/lib TRANSFORMERS_VERBOSITY=error python3 2> errors -c '
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer
model = SentencePieceProcessor(model_file="llama/tokenizer.model")
print("sentencepiece ", *model.encode("one  two", out_type=str))
for name, folder in (("mistral       ", "mistral"), ("LlamaTokenizer", "llama")):
    print(name, *AutoTokenizer.from_pretrained(folder).tokenize("one  two"))
') || { cat "$folder/errors"; exit 2; }
echo "$output"
expected='sentencepiece  ▁one ▁ ▁two
mistral        one ▁▁ two
LlamaTokenizer ▁one ▁▁ two'
[[ $output == "$expected" ]] || { echo "changed: see above"; exit 1; }
