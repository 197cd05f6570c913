"""Make the word-level tokenizer and the architecture of the small policy.

python examples/small_policy/tokenizer.py --demonstrations demonstrations.jsonl --output blank

Writes a model folder without weights. A word of the demonstrations, and a name that the
environment's renaming may put in its place, is one token; any other word is spelled with pieces of
one character, so that every printable ASCII text can be read, copied and written back.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Split
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from agent_system.environments.env_package.sciworld.rename import ANIMALS, BOX_COLOURS, ROOMS
from verl.utils.json_lines import lines_of

PAD, UNKNOWN, USER, ASSISTANT, END = "<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL = (PAD, UNKNOWN, USER, ASSISTANT, END)
# A word keeps its inner hyphens, dots and apostrophes ("self-watering"); other signs stand alone.
WORD = r"[A-Za-z0-9]+(?:[-.'][A-Za-z0-9]+)*|[^\sA-Za-z0-9]"
INSIDE = "##"  # marks a piece that continues a word
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ '{ASSISTANT}' if message['role'] == 'assistant' else '{USER}' }}}}"
    f"{{{{ message['content'] }}}}{END}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)
MAX_TOKENS = 1024


def words_of(texts: Iterable[str]) -> list[str]:
    """The distinct words and signs, sorted."""
    return sorted({word for text in texts for word in re.findall(WORD, text)})


def vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Special tokens, then single characters, then the words of `texts`."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    inside = [INSIDE + c for c in characters if re.fullmatch(r"[A-Za-z0-9.'-]", c)]
    return {
        token: index
        for index, token in enumerate(
            dict.fromkeys([*SPECIAL, *characters, *inside, *words_of(texts)])
        )
    }


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Decoding an encoded text gives it back with one space between words and signs."""
    tokenizer = Tokenizer(WordPiece(vocabulary(texts), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(WORD), "removed", invert=True)
    tokenizer.decoder = WordPieceDecoder(prefix=INSIDE, cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """About 0.7 million parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        initializer_range=0.05,  # the default 0.02 is for wide models; copying is learned sooner
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["LlamaForCausalLM"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demonstrations", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args()
    lines = lines_of(arguments.demonstrations.read_text(encoding="utf-8"))
    messages = (message for line in lines for message in json.loads(line)["messages"])
    texts = [message["content"] for message in messages]
    tokenizer = build_tokenizer([*texts, *ANIMALS, *ROOMS, *BOX_COLOURS])
    tokenizer.save_pretrained(arguments.output)
    build_config(tokenizer).save_pretrained(arguments.output)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
