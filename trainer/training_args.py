"""Define the arguments of a training run, with the paper's values as defaults."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_xla_available

from modeling_magnet.tokenization_magnet import DEFAULT_PROMPT

from .corruption import CorruptionSettings, MntpShift
from .objectives import OBJECTIVES, LossPhase, parse_phases

# Values of the parent's arguments that the objectives need, and the reasons.
_NEEDED: dict[str, tuple[Any, str]] = {
    "remove_unused_columns": (False, "the collators need every column"),
    "ddp_find_unused_parameters": (False, "its search breaks with two forwards in one step"),
    "logging_nan_inf_filter": (False, "the NaN guard ends the run, without waiting in every step"),
    "ddp_static_graph": (None, "the graph changes from phase to phase"),
    "label_smoothing_factor": (0, "the objectives do not smooth labels"),
    "use_liger_kernel": (False, "it replaces the forward with the attention modes"),
    "train_sampling_strategy": ("random", "rows are shuffled by seed and epoch"),
    "num_train_epochs": (3, "`loss_phases` say how long to train"),
    "batch_eval_metrics": (False, "`compute_metrics` gets all rows at once: two integers a token"),
    "parallelism_config": (None, "only data parallelism is supported"),
}


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Return a field of arguments with its default and the text that `--help` prints."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class MagnetTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the objectives, their schedule and the corruption; every field has its help text.

    Some defaults of the parent are changed: to the paper's values, or to what the objectives need.

    Raises:
        ValueError: listing every field that is out of its range and all contradictions.

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
    remove_unused_columns: bool = option(False, "Must stay false: the collators need every column.")
    ddp_find_unused_parameters: bool | None = option(
        False, "Must stay false: the search breaks with two forwards in one step."
    )
    logging_nan_inf_filter: bool = option(
        False, "Must stay false: it synchronises in every step, to log a mean for NaN."
    )
    use_cache: bool = option(True, "Written to the saved config; training never uses a cache.")

    # Until 5.22 the parent knows these as `gradient_checkpointing` and `gradient_checkpointing_kwargs` only.
    activation_checkpointing: bool | None = option(
        None, "Recompute activations in the backward pass: memory for time."
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = option(
        None, "Passed on to the model's `activation_checkpointing_enable()`."
    )

    # Objectives.
    loss_phases: list[str] = field(
        default_factory=lambda: ["3400: mntp=1 msg=1", "800: mntp=1 sscl=9 msg=1"],
        metadata={
            "help": "Phases of training in order, each with its steps and the weights of its objectives, such as "
            "`800: mntp=1 sscl=9 msg=1`, or in short `800:1,9,1` for MNTP, SSCL and MSG. Objectives left out weigh 0."
        },
    )
    losses_as_printed: bool = option(
        False,
        "Compute the losses as the paper prints Eq. 2 to 4: MNTP divided by all tokens, SSCL on dot "
        "products, MSG divided by the rows with spans. By default MNTP and MSG are means over the tokens they "
        "predict, and SSCL compares by cosine.",
    )
    split_special_tokens: bool = option(
        True, "Read what looks like a control token in a text, such as `</s>`, as text; false reads the token."
    )
    memory_trial: bool = option(
        True,
        "Run the heaviest micro-batch of each phase before the first step, to find out at once where "
        "memory runs out. The run stays the same bit for bit.",
    )

    # Corruption.
    mask_ratio: float = option(
        CorruptionSettings.mask_ratio, "Chance of a context token to be selected for MNTP, in [0, 1]."
    )
    mask_token_share: float = option(
        CorruptionSettings.mask_token_share, "Share of the selected tokens that become the mask token, in [0, 1]."
    )
    random_token_share: float = option(
        CorruptionSettings.random_token_share, "Share of the selected tokens that become a random one, in [0, 1]."
    )
    max_spans: int = option(CorruptionSettings.max_spans, "Upper limit of the missing spans of a row; 0: none.")
    min_span_tokens: int = option(CorruptionSettings.min_span_tokens, "Lower limit of the length of a span.")
    max_span_tokens: int = option(CorruptionSettings.max_span_tokens, "Upper limit of the length of a span.")
    causal_ratio: float = option(
        CorruptionSettings.causal_ratio, "Chance of a row to be one span from its second token on, in [0, 1]."
    )
    mntp_shift: MntpShift = option(
        CorruptionSettings.mntp_shift,
        "A masked token is predicted by the output before it (`next`), or its own (`same`: MTP).",
    )
    end_of_span: int = option(
        CorruptionSettings.end_of_span,
        "Teach the model to end a span: each span reserves the next multiple of this many positions. 0: "
        "exactly its own, as in the paper.",
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
        "Run each mini-batch again for its gradient instead of keeping activations (GradCache): memory of "
        "one mini-batch for any number of negatives.",
    )
    contrastive_prompt: str = option(DEFAULT_PROMPT, "Prompt before both sides of a pair; empty for none.")
    temperature: float = option(0.1, "Divides the similarity in InfoNCE, > 0.")
    contrastive_head: Literal["tanh", "keep", "none"] = option(
        "tanh",
        "Projection of the embeddings in training: linear layer and `tanh`, or `none`. `keep` also "
        "leaves the `tanh` head in the model, for `encode` to apply.",
    )
    view_dropout: float = option(
        0.0, "Attention dropout of the contrastive forward only, in [0, 1); for pairs of equal texts."
    )

    def __post_init__(self) -> None:
        complaints = [*self._about_phases(), *self._about_values()]
        complaints += [
            f"`{name}` is {getattr(self, name)!r}, but {reason}. Leave it at {wanted!r}."
            for name, (wanted, reason) in _NEEDED.items()
            if getattr(self, name) not in (wanted, False if wanted is None else wanted)
        ]
        if complaints:
            raise ValueError("\n- ".join(["The training arguments cannot be used:", *complaints]))
        self.max_steps = sum(phase.steps for phase in self.phases)
        if self.activation_checkpointing is not None:
            self.gradient_checkpointing = self.activation_checkpointing
            self.gradient_checkpointing_kwargs = self.activation_checkpointing_kwargs
        if not (torch.accelerator.is_available() or is_torch_xla_available()):
            self.use_cpu = True  # else the parent refuses `bf16`, which a CPU computes too
        super().__post_init__()
        # The parent's default is true, and torch warns without a device to pin memory for.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()

    @property
    def phases(self) -> tuple[LossPhase, ...]:
        """The parsed `loss_phases`."""
        return parse_phases(self.loss_phases)

    @property
    def corruption_settings(self) -> CorruptionSettings:
        """How training rows are corrupted."""
        return CorruptionSettings(**{name: getattr(self, name) for name in CorruptionSettings.__dataclass_fields__})

    @property
    def infilling_settings(self) -> CorruptionSettings:
        """How spans of evaluation rows are removed for the infilling perplexity, without masking."""
        return CorruptionSettings(mask_ratio=0.0, max_spans=3, min_span_tokens=8, max_span_tokens=32)

    @property
    def normalization(self) -> dict[str, str]:
        """What the losses are divided by, by objective."""
        return {"mntp": "tokens", "msg": "sequence"} if self.losses_as_printed else {}

    @property
    def order_seed(self) -> int:
        """The seed of the order of rows and pairs."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def uses_contrastive_loss(self) -> bool:
        """Whether an objective of pairs has a weight in any phase."""
        return any(phase.uses_pairs for phase in self.phases)

    def _about_phases(self) -> Iterator[str]:
        """Yield mistakes of the schedule, and weights of objectives for which the corruption makes no labels."""
        try:
            phases = self.phases
        except ValueError as error:
            yield str(error).replace("\n- ", " ")
            return
        total = sum(phase.steps for phase in phases)
        if self.max_steps > 0 and self.max_steps != total:
            yield (
                f"`max_steps` is {self.max_steps}, but `loss_phases` {self.loss_phases} add up to {total} steps. "
                "Leave `max_steps` at -1, or change the phases."
            )
        for name in OBJECTIVES:
            # `self` has the fields of `CorruptionSettings`, which may be invalid here.
            remedy = OBJECTIVES[name].remedy(self)
            if remedy is not None and any(name in phase.weights for phase in phases):
                yield (
                    f"`loss_phases` {self.loss_phases} weigh {name}, but with `mask_ratio` {self.mask_ratio}, "
                    f"`max_spans` {self.max_spans} and `causal_ratio` {self.causal_ratio} no token is ever predicted "
                    f"for it. {remedy}, or set its weight to 0."
                )
        if self.contrastive_head == "keep" and not any(phase.uses_pairs for phase in phases):
            yield f"`contrastive_head` is 'keep', but `loss_phases` {self.loss_phases} never train it. Weigh sscl."

    def _about_values(self) -> Iterator[str]:
        """Yield what is wrong with the other fields of this class."""
        try:
            self.corruption_settings  # noqa: B018, for its errors
        except ValueError as error:
            yield str(error).replace("\n- ", " ")
        if self.contrastive_head not in (kinds := ("tanh", "keep", "none")):
            yield f"`contrastive_head` is {self.contrastive_head!r}; pass one of {kinds}."
        if not self.temperature > 0:
            yield f"`temperature` is {self.temperature}; it divides the similarity, pass a number above 0."
        if self.contrastive_batch_size < 1:
            yield f"`contrastive_batch_size` is {self.contrastive_batch_size}; pass 1 or more."
        if self.contrastive_max_length < 3:
            yield f"`contrastive_max_length` is {self.contrastive_max_length}; BOS, a token and EOS take 3, pass more."
        limit = self.contrastive_mini_batch_tokens
        if limit is None and self.contrastive_recompute:
            yield "`contrastive_recompute` is true without mini-batches. Pass `contrastive_mini_batch_tokens`."
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
