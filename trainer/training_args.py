"""Define the arguments of a training run, with the paper's values as defaults."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_xla_available

from modeling_magnet.configuration_magnet import DEFAULT_PROMPT, POOLINGS, Pooling

from .corruption import CorruptionSettings, MntpShift
from .loss_phases import LossPhase, parse_phases
from .objectives import ContrastiveSettings

HeadKind = Literal["tanh", "keep", "none"]

# Arguments of the parent that must keep a value, and the reasons.
_FIXED: dict[str, tuple[Any, str]] = {
    "remove_unused_columns": (False, "the collators need every column"),
    "ddp_find_unused_parameters": (False, "the search fails with two forwards in one step"),
    "logging_nan_inf_filter": (False, "it synchronizes in every step; the NaN guard stops the run instead"),
    "ddp_static_graph": (None, "the graph changes from phase to phase"),
    "label_smoothing_factor": (0, "the objectives do not smooth labels"),
    "use_liger_kernel": (False, "it replaces the forward with the attention modes"),
    "train_sampling_strategy": ("random", "rows are shuffled by seed and epoch"),
    "num_train_epochs": (3, "`loss_phases` determine the number of steps"),
    "batch_eval_metrics": (False, "`compute_metrics` gets all rows at once: two integers a token"),
    "parallelism_config": (None, "only data parallelism is supported"),
}


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Return a dataclass field with a default and the help text of its command-line option."""
    return field(default=default, metadata={"help": help, **metadata})


def _fixed(name: str) -> Any:
    """Return a field for an argument of `_FIXED`."""
    value, reason = _FIXED[name]
    return option(value, f"Must stay {str(value).lower()}: {reason}.")


@dataclass
class MagnetTrainingArguments(TrainingArguments):
    """Extends `TrainingArguments` by the objectives, their schedule and the corruption; fields have help texts.

    Some defaults of the parent are changed to the paper's values, or to values that the objectives require.

    Raises:
        ValueError: If fields are out of range or contradict each other; the message lists all of them.

    Source: MAGNET (Khosla et al. 2025), section 4 and appendix.

    Example:
        >>> phases = ["30: mntp=1 msg=1", "10: sscl=9"]
        >>> args = MagnetTrainingArguments(output_dir="run", use_cpu=True, loss_phases=phases)
        >>> args.max_steps, args.phases[1].weights
        (40, {'sscl': 9.0})
    """

    # Changed defaults of the parent.
    per_device_train_batch_size: int = option(32, "Rows per device and micro-batch.")
    learning_rate: float = option(3e-5, "Peak learning rate of AdamW.")
    remove_unused_columns: bool = _fixed("remove_unused_columns")
    ddp_find_unused_parameters: bool | None = _fixed("ddp_find_unused_parameters")
    logging_nan_inf_filter: bool = _fixed("logging_nan_inf_filter")
    use_cache: bool = option(True, "Saved in the config; training itself never uses a cache.")

    # Before transformers 5.22 the parent only has `gradient_checkpointing` and `gradient_checkpointing_kwargs`.
    activation_checkpointing: bool | None = option(None, "Recompute activations in the backward pass to save memory.")
    activation_checkpointing_kwargs: dict[str, Any] | str | None = option(
        None, "Passed to the model's `activation_checkpointing_enable()`."
    )

    # Objectives.
    loss_phases: list[str] = field(
        default_factory=lambda: ["3400: mntp=1 msg=1", "800: mntp=1 sscl=9 msg=1"],
        metadata={
            "help": "Phases of training in order, each with its steps and the weights of its objectives, such as "
            "`800: mntp=1 sscl=9 msg=1`, or in short `800:1,9,1` for MNTP, SSCL and MSG. The weight of others is 0."
        },
    )
    losses_as_printed: bool = option(
        False,
        "Compute the losses as the paper prints Eq. 2 to 4: MNTP divided by all tokens, SSCL on dot "
        "products, MSG divided by the rows with spans. By default MNTP and MSG are means over the tokens they "
        "predict, and SSCL compares by cosine.",
    )
    split_special_tokens: bool = option(
        True, "Read control tokens in a text, such as `</s>`, as text; false reads them as tokens."
    )

    # Corruption.
    mask_ratio: float = option(
        CorruptionSettings.mask_ratio, "Chance of a context token to be selected for MNTP, in [0, 1]."
    )
    mask_token_share: float = option(
        CorruptionSettings.mask_token_share, "Share of the selected tokens that become the mask token, in [0, 1]."
    )
    random_token_share: float = option(
        CorruptionSettings.random_token_share, "Share of the selected tokens that become a random token, in [0, 1]."
    )
    max_spans: int = option(CorruptionSettings.max_spans, "Upper limit of the missing spans of a row; 0: none.")
    min_span_tokens: int = option(CorruptionSettings.min_span_tokens, "Lower limit of the length of a span.")
    max_span_tokens: int = option(CorruptionSettings.max_span_tokens, "Upper limit of the length of a span.")
    causal_ratio: float = option(
        CorruptionSettings.causal_ratio, "Chance of a row to be one span from its second token on, in [0, 1]."
    )
    mntp_shift: MntpShift = option(
        CorruptionSettings.mntp_shift,
        "A masked token is predicted by the output before it (`next`) or at its position (`same`: MTP).",
    )
    end_of_span: int = option(
        CorruptionSettings.end_of_span,
        "Train the model to end spans: each span reserves the next multiple of this number of positions. 0: "
        "one position per token, as in the paper.",
    )

    # Contrastive objective.
    contrastive_batch_size: int = option(
        64, "Pairs per device and micro-batch; the pairs of all devices are negatives."
    )
    contrastive_max_length: int = option(128, "Tokens of one side of a pair, prompt and special tokens included.")
    contrastive_mini_batch_tokens: int | None = option(
        None,
        "Read a contrastive batch in mini-batches of similar lengths, of at most this many tokens. "
        "Default: all at once.",
    )
    contrastive_recompute: bool = option(
        False,
        "Run each mini-batch again for its gradient instead of keeping activations (GradCache), which needs "
        "the memory of one mini-batch for any number of negatives.",
    )
    contrastive_prompt: str = option(DEFAULT_PROMPT, "Prompt before both sides of a pair; empty for none.")
    contrastive_pooling: Pooling = option(
        "last",
        "Pooling of the contrastive forward: `last`, the EOS; `mean` or `weighted_mean`, without the prompt. `encode` "
        "of the trained model uses the same.",
    )
    temperature: float = option(0.1, "Divides the similarity in InfoNCE, > 0.")
    contrastive_head: HeadKind = option(
        "tanh",
        "Projection of the embeddings in training: a linear layer with `tanh`, or `none`. `keep` also "
        "saves the `tanh` head with the model, and `encode` applies it.",
    )
    view_dropout: float = option(
        0.0, "Attention dropout of only the contrastive forward, in [0, 1); for pairs of equal texts."
    )

    def __post_init__(self) -> None:
        complaints = [*self._about_phases(), *self._about_values()]
        complaints += [
            f"`{name}` is {getattr(self, name)!r}, but {reason}. Leave it at {wanted!r}."
            for name, (wanted, reason) in _FIXED.items()
            if getattr(self, name) not in (wanted, False if wanted is None else wanted)
        ]
        if complaints:
            raise ValueError("\n- ".join(["The training arguments cannot be used:", *complaints]))
        self.max_steps = sum(phase.steps for phase in self.phases)
        if self.activation_checkpointing is not None:
            self.gradient_checkpointing = self.activation_checkpointing
            self.gradient_checkpointing_kwargs = self.activation_checkpointing_kwargs
        if not (torch.accelerator.is_available() or is_torch_xla_available()):
            self.use_cpu = True  # otherwise the parent rejects `bf16`, which CPUs support
        super().__post_init__()
        # The parent's default is true, for which torch warns if there is no accelerator.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()

    @property
    def phases(self) -> tuple[LossPhase, ...]:
        """The parsed `loss_phases`."""
        return parse_phases(self.loss_phases)

    @property
    def corruption_settings(self) -> CorruptionSettings:
        """The corruption of training rows."""
        return CorruptionSettings(**{name: getattr(self, name) for name in CorruptionSettings.__dataclass_fields__})

    @property
    def contrastive_settings(self) -> ContrastiveSettings:
        """The settings of the contrastive forward and of its loss."""
        return ContrastiveSettings(
            temperature=self.temperature,
            similarity="dot" if self.losses_as_printed else "cosine",
            dropout=self.view_dropout,
            recompute=self.contrastive_recompute,
            pooling=self.contrastive_pooling,
        )

    @property
    def order_seed(self) -> int:
        """The seed of the order of rows and pairs."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def uses_contrastive_loss(self) -> bool:
        """Whether an objective of pairs has a weight in any phase."""
        return any(phase.uses_pairs for phase in self.phases)

    def _about_phases(self) -> Iterator[str]:
        """Yield complaints about the schedule, and about objectives that never have a label."""
        try:
            phases = self.phases
        except ValueError as error:
            yield str(error).replace("\n- ", " ")
            return
        total = sum(phase.steps for phase in phases)
        if self.max_steps > 0 and self.max_steps != total:
            yield (
                f"`max_steps` is {self.max_steps}, but `loss_phases` {self.loss_phases} add up to {total} steps. "
                "Omit `max_steps`, or change the phases."
            )
        never = {
            "mntp": self.mask_ratio == 0 or self.causal_ratio == 1,
            "msg": self.max_spans == self.causal_ratio == 0,
        }
        for name, has_no_label in never.items():
            if has_no_label and any(name in phase.weights for phase in phases):
                yield (
                    f"`loss_phases` {self.loss_phases} weight {name}, but with `mask_ratio` {self.mask_ratio}, "
                    f"`max_spans` {self.max_spans} and `causal_ratio` {self.causal_ratio} it never has a label."
                )
        if self.contrastive_head == "keep" and not any(phase.uses_pairs for phase in phases):
            yield f"`contrastive_head` is 'keep', but `loss_phases` {self.loss_phases} never train it. Weight sscl."

    def _about_values(self) -> Iterator[str]:
        """Yield complaints about the other fields of this class."""
        try:
            self.corruption_settings  # noqa: B018, for its errors
        except ValueError as error:
            yield str(error).replace("\n- ", " ")
        if self.contrastive_pooling not in POOLINGS:
            yield f"`contrastive_pooling` is {self.contrastive_pooling!r}; pass one of {POOLINGS}."
        if self.contrastive_head not in get_args(HeadKind):
            yield f"`contrastive_head` is {self.contrastive_head!r}; pass one of {get_args(HeadKind)}."
        if not self.temperature > 0:
            yield f"`temperature` is {self.temperature}; pass a number above 0, by which similarities are divided."
        limit = self.contrastive_mini_batch_tokens
        if limit is None and self.contrastive_recompute:
            yield "`contrastive_recompute` requires mini-batches. Pass `contrastive_mini_batch_tokens`."
        if limit is not None and limit < self.contrastive_max_length:
            yield (
                f"`contrastive_mini_batch_tokens` is {limit}, less than a text of `contrastive_max_length` "
                f"{self.contrastive_max_length}. Raise it."
            )
        if not 0 <= self.view_dropout < 1:
            yield f"`view_dropout` is {self.view_dropout}; pass a number from 0 to below 1."
        if self.view_dropout and (self.activation_checkpointing or self.gradient_checkpointing):
            yield (
                f"`view_dropout` is {self.view_dropout} and activation checkpointing is on: layers would be "
                "recomputed with a different dropout. Turn one of them off."
            )
