"""Train a decoder to generate, encode and infill at once."""

from .corruption import CorruptionSettings
from .data_collator import DataCollatorForMagnet
from .datasets import load_texts, texts_to_blocks
from .lora import LoraArguments, apply_lora
from .magnet_trainer import MagnetTrainer
from .pairs import dropout_pairs, load_pairs, paraphrase_pairs
from .training_args import MagnetTrainingArguments

__all__ = [
    "CorruptionSettings",
    "DataCollatorForMagnet",
    "LoraArguments",
    "MagnetTrainer",
    "MagnetTrainingArguments",
    "apply_lora",
    "dropout_pairs",
    "load_pairs",
    "load_texts",
    "paraphrase_pairs",
    "texts_to_blocks",
]
