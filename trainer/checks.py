"""Check that model, arguments, tokenizer, rows and pairs fit together before a run starts."""

import inspect
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow.compute
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_magnet import MagnetSettings
from modeling_magnet.tokenization_magnet import check_tokenizer_fits, tokenize_texts

from .corruption import CorruptionSettings
from .data_collator import DataCollatorForMagnet
from .sources import RowSource, row_source_complaint
from .training_args import MagnetTrainingArguments

logger = logging.get_logger(__name__)

_FORWARD_ARGUMENTS = ("mode", "segment_ids", "target_ids", "logits_to_keep")


def check_run(
    model: nn.Module,
    *,
    args: MagnetTrainingArguments,
    train_dataset: RowSource | None,
    pair_dataset: RowSource | None,
    tokenizer: PreTrainedTokenizerBase | None,
    data_collator: DataCollatorForMagnet | None = None,
    eval_dataset: RowSource | dict[str, RowSource] | None = None,
    eval_pair_dataset: RowSource | None = None,
) -> None:
    """Raise for a run that cannot work, before anything is written or trained.

    The arguments are those of `MagnetTrainer`, with the model unwrapped from peft.

    Raises:
        ValueError: If the run cannot work; the message lists all problems.
    """
    evals = eval_dataset if isinstance(eval_dataset, dict) else {None: eval_dataset}
    rows: dict[str, Any] = {"train_dataset": train_dataset}
    rows |= {"eval_dataset" if key is None else f"eval_dataset[{key!r}]": given for key, given in evals.items()}
    rows = {name: given for name, given in rows.items() if given is not None}
    pairs: dict[str, Any] = {"pair_dataset": pair_dataset, "eval_pair_dataset": eval_pair_dataset}
    pairs = {name: given for name, given in pairs.items() if given is not None}
    complaints = list(filter(None, (row_source_complaint(given, name=name) for name, given in (rows | pairs).items())))
    if not complaints:  # otherwise the rows cannot be read
        settings = args.corruption_settings if data_collator is None else data_collator.settings
        complaints += _model_complaints(model, args=args, tokenizer=tokenizer, needs_mask_token=data_collator is None)
        complaints += _weights_complaints(model, trains=train_dataset is not None)
        for name, given in rows.items():
            missing = list(_columns_complaints(given, name=name, columns=("input_ids",)))
            complaints += missing or _lengths_complaints(given, name=name, model=model, args=args, settings=settings)
        if args.uses_contrastive_loss or eval_pair_dataset is not None:
            complaints += _pair_length_complaints(model, args=args, tokenizer=tokenizer)
        for name, given in pairs.items():
            complaints += _columns_complaints(given, name=name, columns=("anchor", "positive"))
        if args.uses_contrastive_loss:
            complaints += _pairs_complaints(pair_dataset, args=args)
        elif pair_dataset is not None:
            logger.warning(f"`pair_dataset` is not used: no phase of `loss_phases` {args.loss_phases} weights sscl.")
    if complaints:
        raise ValueError("\n- ".join(["This run cannot work:", *complaints]))


def _model_complaints(
    model: nn.Module,
    *,
    args: MagnetTrainingArguments,
    tokenizer: PreTrainedTokenizerBase | None,
    needs_mask_token: bool,
) -> Iterator[str]:
    """Yield complaints about the model, the tokenizer and the devices."""
    missing = [name for name in _FORWARD_ARGUMENTS if name not in inspect.signature(model.forward).parameters]
    if missing:
        yield (
            f"The objectives need {', '.join(missing)}, which the forward of {type(model).__name__} does not accept. "
            "Load the model with `AutoMagnetForCausalLM.from_pretrained`."
        )
        return
    config: Any = model.config
    if tokenizer is None and (needs_mask_token or args.uses_contrastive_loss):
        yield "`processing_class` is missing; pass the tokenizer."
    if needs_mask_token and MagnetSettings.from_config(config).mask_token_id is None:
        yield (
            "The model's config has no mask token. Load the model with `AutoMagnetForCausalLM.from_pretrained` "
            "from a folder with its tokenizer, or set `model.tokenizer`."
        )
    head = MagnetSettings.from_config(config).contrastive_head
    if head is not None and args.uses_contrastive_loss and args.contrastive_head == "none":
        yield (
            f"The model was saved with the head {head!r}, but `contrastive_head` is 'none'. Train with the same head, "
            "or remove it first: `MagnetSettings.update_config(model.config, contrastive_head=None)`."
        )
    if tokenizer is not None:
        try:
            check_tokenizer_fits(tokenizer, config.vocab_size)
        except ValueError as error:
            yield str(error)
    if args.n_gpu > 1:
        yield (
            f"One process sees {args.n_gpu} GPUs, and `nn.DataParallel` is not supported. Launch one process per GPU "
            "with `torchrun`, or set CUDA_VISIBLE_DEVICES to one GPU."
        )
    if args.view_dropout and config._attn_implementation == "flex_attention":
        yield (
            f"`view_dropout` is {args.view_dropout}, but flex_attention has no dropout. Load the model with "
            "attn_implementation='sdpa', or set `view_dropout` to 0."
        )


def _weights_complaints(model: Any, *, trains: bool) -> Iterator[str]:
    """Yield complaints about adapters and quantized base weights that cannot be trained."""
    # transformers sets this for adapters that it added itself, but resumes a run only from a `PeftModel`.
    if trains and getattr(model, "_hf_peft_config_loaded", False):
        yield (
            "The model's adapter was added by `model.add_adapter` or loaded with the model, so the run could not be "
            "resumed. Load the model without it, and use peft's `get_peft_model` or `trainer.lora.apply_lora`."
        )
    if getattr(model, "is_quantized", False) and not _passes_gradient(model):
        yield (
            "The layers of the quantized base pass no gradient on, so adapters would learn nothing. Quantize only the "
            "weights (8-bit weight-only), or nothing."
        )


def _passes_gradient(model: Any) -> bool:
    """Return whether the first quantized linear layer passes a gradient on to its input.

    The layer is run, because the flags of quantizers are not reliable (torchao 0.18, 8-bit dynamic activations).
    """
    layers = [getattr(module, "base_layer", module) for module in model.base_model.modules()]
    linear = next((layer for layer in layers if isinstance(layer, nn.Linear)), None)
    if linear is None:
        return True
    dtype = model.dtype if model.dtype.is_floating_point else torch.float32
    inputs = torch.ones(1, linear.in_features, device=model.device, dtype=dtype, requires_grad=True)
    try:
        (gradient,) = torch.autograd.grad(linear(inputs).sum(), inputs, allow_unused=True)
    except RuntimeError:  # also raised if the output requires no gradient
        return False
    return gradient is not None and bool(gradient.any())


def _row_lengths(rows: RowSource) -> Iterator[int]:
    """Yield the number of tokens of each row, or of the first 100,000 if access to a row may tokenize it."""
    # A dataset with a transform, format "custom", computes its columns on access.
    if isinstance(rows, Dataset) and "input_ids" in rows.column_names and rows.format["type"] != "custom":
        for table in rows.select_columns(["input_ids"]).with_format("arrow").iter(10_000):
            yield from pyarrow.compute.list_value_length(table["input_ids"]).to_pylist()
        return
    limit = None if isinstance(rows, (list, tuple)) else 100_000
    yield from (len(rows[index]["input_ids"]) for index in islice(range(len(rows)), limit))


def _columns_complaints(rows: RowSource, *, name: str, columns: tuple[str, ...]) -> Iterator[str]:
    """Yield a complaint if there are no rows, or they lack a column."""
    if not len(rows):
        yield f"`{name}` has no rows; check its source and its filters."
    elif missing := [column for column in columns if column not in rows[0]]:
        yield f"`{name}` has the columns {sorted(rows[0])} but no {' and no '.join(missing)}; add or rename them."


def _lengths_complaints(
    rows: RowSource, *, name: str, model: nn.Module, args: MagnetTrainingArguments, settings: CorruptionSettings
) -> Iterator[str]:
    """Yield complaints if no row can have a span, or rows and what spans reserve exceed the model's positions."""
    longest, row = max((length, -index) for index, length in enumerate(_row_lengths(rows)))
    needs_spans = any("msg" in phase.weights for phase in args.phases) and settings.causal_ratio == 0
    needed = settings.min_span_tokens + 2  # a context token on each side
    if name == "train_dataset" and needs_spans and settings.max_spans and longest < needed:
        yield (
            f"`min_span_tokens` is {settings.min_span_tokens}, which needs rows of {needed} tokens, with context on "
            f"both sides; the longest row of `train_dataset` has {longest}. Lower it, or make longer rows."
        )
    max_positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    reserved = longest + settings.max_spans * (settings.end_of_span - 1) if settings.end_of_span else longest
    if longest > max_positions:
        yield (
            f"Row {-row} of `{name}` has {longest} tokens, but the model has {max_positions} positions. Make shorter "
            "rows: `texts_to_blocks` cuts texts to its `max_length`."
        )
    elif reserved > max_positions:
        yield (
            f"`end_of_span` is {settings.end_of_span}: rows of {longest} tokens with up to {settings.max_spans} spans "
            f"need {reserved} positions, but the model has {max_positions}. Make shorter rows, or lower `end_of_span` "
            "or `max_spans`."
        )


def _pair_length_complaints(
    model: nn.Module, *, args: MagnetTrainingArguments, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[str]:
    """Yield complaints about the lengths and the tokenizer of pairs."""
    max_positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if max_positions is not None and args.contrastive_max_length > max_positions:
        yield (
            f"`contrastive_max_length` is {args.contrastive_max_length}, but the model has {max_positions} positions. "
            "Lower it."
        )
    if tokenizer is None:
        return
    if tokenizer.eos_token_id is None:
        yield "The tokenizer has no EOS token, whose state embeds a sentence. Set `tokenizer.eos_token`."
    else:
        prompt = args.contrastive_prompt or None
        length = len(tokenize_texts(tokenizer, [""], prompt=prompt, max_length=2**31).input_ids[0])
        if length >= args.contrastive_max_length:
            yield (
                f"`contrastive_max_length` is {args.contrastive_max_length}, but prompt, BOS and EOS take {length} "
                "tokens, which leaves none for the sentence. Raise it, or shorten `contrastive_prompt`."
            )


def _pairs_complaints(pairs: RowSource | None, *, args: MagnetTrainingArguments) -> Iterator[str]:
    """Yield complaints about the number of pairs to train on."""
    batch_size = args.contrastive_batch_size * args.world_size
    if pairs is None:
        yield f"`loss_phases` {args.loss_phases} weight sscl, but `pair_dataset` is missing. Pass pairs, or drop sscl."
    elif len(pairs) < batch_size:
        yield (
            f"`pair_dataset` has {len(pairs)} pairs, but one contrastive batch takes {batch_size} "
            f"({args.contrastive_batch_size} on each of {args.world_size} processes). Pass more pairs or lower "
            "`contrastive_batch_size`."
        )
    if batch_size < 2:
        yield f"`contrastive_batch_size` is {args.contrastive_batch_size}: a single pair has no negatives. Raise it."
