"""Tokenizers by hand whose chat templates are of the kinds that are about: a token a byte."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Turns between markers, a line break after each; a system message of its own where none is given.
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe useful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The same, with the reasoning of a reply in a place of its own, and only after the last question.
REASONING = (
    "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{% set parts = m.content.split('</think>') %}"
    "{% if loop.index0 > last.user %}"
    "<think>\n{{ parts[0].split('<think>')[-1].strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
# The day in the system message, contents stripped, nothing after the end of a turn.
DATED = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}"
    "{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Brackets that are no tokens, the system message within the first question, blanks around a reply.
BRACKETS = (
    "{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first %}{{ system }}{% endif %}{{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
# No system message at all, and another name for the assistant.
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The system message wanders: it stands before the last question.
WANDERING = (
    "{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]"
    "{% if loop.last %}{{ system }}{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# The reply begins within <think>, which earlier replies do not show.
OPENED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
    "{% elif m.role == 'user' %}<|user|>{{ m.content }}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)

# Name -> template, its markers, and the end token of the tokenizer (a base model's is another).
FAMILIES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], "<|endoftext|>"),
    "reasoning": (REASONING, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], "<|im_end|>"),
    "dated": (
        DATED,
        ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|eot_id|>",
    ),
    "brackets": (BRACKETS, ["<s>", "</s>"], "</s>"),
    "no_system": (NO_SYSTEM, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<eos>"),
    "wandering": (WANDERING, ["<s>", "</s>", "[INST]", "[/INST]"], "</s>"),
    "opened": (OPENED, ["<bos>", "<eos>", "<|user|>", "<|assistant|>"], "<eos>"),
}


def byte_tokenizer(
    template: str | None, special: Sequence[str], eos: str, tags: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A token a byte, and one for each of `special` and `tags` (these as Qwen3 has `<think>`)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in tags])
    begins = [text for text in special if text in ("<s>", "<bos>", "<|begin|>")]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=begins[0] if begins else None,
        eos_token=eos,
        pad_token=eos,
        additional_special_tokens=list(special),
        chat_template=template,
    )


def family(name: str, **tokenizer) -> PreTrainedTokenizerFast:
    """One of FAMILIES."""
    return byte_tokenizer(*FAMILIES[name], **tokenizer)
