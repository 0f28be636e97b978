"""Write GGUF files of tiny models like llama.cpp's converter, in F32 or Q8_0."""

from pathlib import Path

import gguf
import numpy as np
import torch

ARCHITECTURES = {"llama": "llama", "gemma3_text": "gemma3", "qwen2": "qwen2", "qwen3": "qwen3", "mistral": "llama"}
NORMAL, CONTROL = 1, 3  # token types
Q8_BLOCK = 32
# A config of a model that can be written: matrix rows are whole blocks, and heads share keys.
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2}
SHAPE |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def write_gguf(model, tokenizer, file: Path, *, quantized: bool = False, tokens: bool = True) -> Path:
    """Write a decoder and its byte-level tokenizer.

    Args:
        model: A `...ForCausalLM` of transformers or of this library.
        tokenizer: Its tokenizer, of byte-level BPE.
        file: Where to.
        quantized: Whether matrices are stored as Q8_0 where their rows have whole blocks.
        tokens: Whether the tokenizer is written, too.
    """
    config = model.config
    name = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(str(file), name)
    writer.add_name("mistral tiny" if config.model_type == "mistral" else "tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config.vocab_size)
    if name == "gemma3":
        writer.add_key_length(head_dim)
        writer.add_sliding_window(config.sliding_window)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if tokens:
        _add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name), config.num_hidden_layers
    )
    for key, tensor in model.state_dict().items():
        if config.tie_word_embeddings and key == "lm_head.weight":
            continue
        stem, _, leaf = key.rpartition(".")
        array = _as_llama_cpp(key, tensor.float(), config, name).numpy()
        if quantized and array.ndim == 2 and array.shape[1] % Q8_BLOCK == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{names.get_name(stem)}.{leaf}", gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{names.get_name(stem)}.{leaf}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _as_llama_cpp(key: str, tensor: torch.Tensor, config, name: str) -> torch.Tensor:
    """Convert a tensor to llama.cpp's layout: interleaved rotary halves of Llama, and Gemma's norms plus one."""
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    count = next((number for ending, number in heads.items() if key.endswith(ending)), None)
    if name == "llama" and count is not None:
        halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, tensor.shape[1])
        return halves.transpose(1, 2).reshape(tensor.shape)
    return tensor + 1 if name == "gemma3" and key.endswith("norm.weight") else tensor


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer) -> None:
    import json

    stored = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in stored["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
