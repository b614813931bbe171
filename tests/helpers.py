"""Tiny pairs of the three supported families: random weights, real tokenizer kinds, the families' chat formats."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

FAMILIES = ("gemma2", "llama3", "qwen2")

SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the quiet river.",
    "Please tell me how the weather is today, and what I should wear.",
    "I am sorry, but I cannot help with that request. Is there anything else?",
    "Numbers such as 12, 345 and 6789 are split into digits or groups.",
    "A model user system assistant may write several lines.\nLike this one.\n\nOr this one.",
    "Naïve café owners in Zürich pay 5 € for 日本 tea 🙂 and smile.",
)

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA_TEMPLATE = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Cutting Knowledge Date: December 2023\n' }}"
    "{{- 'Today Date: ' + date_string + '\n\n' }}{{- system_message }}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
# Qwen 2.5's format, with the {% generation %} marks that transformers reads for `return_assistant_tokens_mask`.
QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message['role'] == 'assistant' %}{{- '<|im_start|>assistant\n' }}"
    "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}{{- '\n' }}"
    "{%- elif message['role'] == 'user' or not loop.first %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE with byte fallback and spaces written as ▁, as Gemma's; adds <bos>."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")])
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials + [f"<0x{i:02X}>" for i in range(256)], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", specials.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        chat_template=GEMMA_TEMPLATE,
    )


def _byte_level(specials: list[str], pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, *SENTENCES, "a\n\nb.\n\nc!\n\nd"], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE as Llama 3's; adds <|begin_of_text|>. White space is trimmed from offsets: the harder case."""
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _byte_level(specials, CL100K)
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=LLAMA_TEMPLATE,
    )


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE as Qwen 2.5's; it has no BOS."""
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CL100K.replace("{1,3}", ""))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=QWEN_TEMPLATE,
    )


TOKENIZERS = {"gemma2": gemma_tokenizer, "llama3": llama_tokenizer, "qwen2": qwen_tokenizer}


def tiny_model(family: str, vocab_size: int, seed: int, d_model: int = 32, layers: int = 4) -> PreTrainedModel:
    """A random model of a family, with weights large enough that every block matters."""
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    if family == "gemma2":
        model: PreTrainedModel = Gemma2ForCausalLM(
            Gemma2Config(**shape, head_dim=8, query_pre_attn_scalar=8, sliding_window=16, final_logit_softcapping=5.0)
        )
    elif family == "llama3":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    return model.eval()


@dataclass(frozen=True)
class TinyPair:
    """A saved pair: directories base/ and chat/."""

    family: str
    base: Path
    chat: Path
    tokenizer: PreTrainedTokenizerFast


def save_pair(directory: Path, family: str, d_model: int = 32, layers: int = 4) -> TinyPair:
    """Save a random pair: the chat model is the base model with small changes, so that the two differ everywhere."""
    tokenizer = TOKENIZERS[family]()
    base = tiny_model(family, len(tokenizer), 0, d_model, layers)
    chat = tiny_model(family, len(tokenizer), 0, d_model, layers)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in chat.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    for name, model in (("base", base), ("chat", chat)):
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    (directory / "report.json").write_text("{}")  # as beside the shipped demo pair
    return TinyPair(family, directory / "base", directory / "chat", tokenizer)
