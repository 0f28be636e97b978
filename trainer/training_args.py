"""Define the arguments of a training run, with the paper's values as defaults."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_xla_available

from modeling_magnet.tokenization_magnet import DEFAULT_PROMPT

from .corruption import CorruptionSettings, MntpShift
from .objectives import OBJECTIVES, LossPhase, MntpNormalization, MsgNormalization, parse_phases

Similarity = Literal["cosine", "dot"]
HeadKind = Literal["tanh", "none"]

_CHOICES: dict[str, Any] = {
    "mntp_normalization": MntpNormalization,
    "msg_normalization": MsgNormalization,
    "similarity": Similarity,
    "contrastive_head": HeadKind,
}
_CORRUPTION_FIELDS = tuple(CorruptionSettings.__dataclass_fields__)


@dataclass
class MagnetTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the objectives, their schedule and the corruption; every field has its help text.

    Changed defaults of the parent: `per_device_train_batch_size` and `learning_rate` (the paper's),
    `logging_nan_inf_filter` (the NaN guard ends the run instead), `remove_unused_columns` (the collator needs every
    column), `ddp_find_unused_parameters` (the search breaks with two forwards in one step), `use_cache` (the trained
    model generates).

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
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows per device and micro-batch."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate of AdamW."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the collators need every column."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Must stay false: the search breaks with two forwards in one step."}
    )

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Must stay false: it synchronises in every step, to log a mean instead of NaN."},
    )
    use_cache: bool = field(
        default=True, metadata={"help": "Written to the saved config; training never uses a cache."}
    )

    # Until 5.22 the parent knows these as `gradient_checkpointing` and `gradient_checkpointing_kwargs` only.
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass: memory for time."}
    )
    activation_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Passed on to the model's `activation_checkpointing_enable()`."}
    )

    # Objectives.
    loss_phases: list[str] = field(
        default_factory=lambda: ["3400: mntp=1 msg=1", "800: mntp=1 sscl=9 msg=1"],
        metadata={
            "help": "Phases of training in order, each with its steps and the weights of its objectives, such as "
            "`800: mntp=1 sscl=9 msg=1`, or in short `800:1,9,1` for MNTP, SSCL and MSG. Objectives left out weigh 0."
        },
    )
    mntp_normalization: MntpNormalization = field(
        default="selected", metadata={"help": "MNTP is a mean over `selected` tokens, or over all `tokens` (Eq. 2)."}
    )
    msg_normalization: MsgNormalization = field(
        default="token",
        metadata={"help": "MSG is a mean over span tokens, or over rows with spans (`sequence`, Eq. 4)."},
    )

    split_special_tokens: bool = field(
        default=True,
        metadata={
            "help": "Read what looks like a control token in a text, such as `</s>`, as text; false reads the token."
        },
    )
    memory_trial: bool = field(
        default=True,
        metadata={
            "help": "Run the heaviest micro-batch of each phase before the first step, to find out at once where "
            "memory runs out. The run stays the same bit for bit."
        },
    )

    # Corruption.
    mask_ratio: float = field(
        default=CorruptionSettings.mask_ratio,
        metadata={"help": "Chance of a context token to be selected for MNTP, in [0, 1]."},
    )
    mask_token_share: float = field(
        default=CorruptionSettings.mask_token_share,
        metadata={"help": "Share of the selected tokens that become the mask token, in [0, 1]."},
    )
    random_token_share: float = field(
        default=CorruptionSettings.random_token_share,
        metadata={"help": "Share of the selected tokens that become a random one, in [0, 1]."},
    )
    max_spans: int = field(
        default=CorruptionSettings.max_spans, metadata={"help": "Upper limit of the missing spans of a row; 0: none."}
    )
    min_span_tokens: int = field(
        default=CorruptionSettings.min_span_tokens, metadata={"help": "Lower limit of the length of a span."}
    )
    max_span_tokens: int = field(
        default=CorruptionSettings.max_span_tokens, metadata={"help": "Upper limit of the length of a span."}
    )
    causal_ratio: float = field(
        default=CorruptionSettings.causal_ratio,
        metadata={"help": "Chance of a row to be one span from its second token on, in [0, 1]."},
    )
    mntp_shift: MntpShift = field(
        default=CorruptionSettings.mntp_shift,
        metadata={"help": "A masked token is predicted by the output before it (`next`), or its own (`same`: MTP)."},
    )
    end_of_span: int = field(
        default=CorruptionSettings.end_of_span,
        metadata={
            "help": "Teach the model to end a span: each span reserves the next multiple of this many positions. 0: "
            "exactly its own, as in the paper."
        },
    )

    # Contrastive objective.
    contrastive_batch_size: int = field(
        default=64, metadata={"help": "Pairs per device and micro-batch; the pairs of all devices are negatives."}
    )
    contrastive_max_length: int = field(
        default=128, metadata={"help": "Tokens of one side of a pair, prompt and special tokens included."}
    )
    contrastive_mini_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Read a contrastive batch in mini-batches of similar lengths, of at most this many tokens. "
            "Default: all at once."
        },
    )
    contrastive_recompute: bool = field(
        default=False,
        metadata={
            "help": "Run each mini-batch again for its gradient instead of keeping activations (GradCache): memory of "
            "one mini-batch for any number of negatives."
        },
    )
    contrastive_prompt: str = field(
        default=DEFAULT_PROMPT, metadata={"help": "Prompt before both sides of a pair; empty for none."}
    )
    temperature: float = field(default=0.1, metadata={"help": "Divides the similarity in InfoNCE, > 0."})
    similarity: Similarity = field(
        default="cosine", metadata={"help": "Similarity in InfoNCE: `cosine`, or `dot` product (Eq. 3 as printed)."}
    )
    contrastive_head: HeadKind = field(
        default="tanh", metadata={"help": "Projection of the embeddings: linear layer and `tanh`, or `none`."}
    )
    keep_contrastive_head: bool = field(
        default=False, metadata={"help": "Keep the trained projection in the model, for `encode` to apply."}
    )
    view_dropout: float = field(
        default=0.0,
        metadata={"help": "Attention dropout of the contrastive forward only, in [0, 1); for pairs of equal texts."},
    )

    # Evaluation.
    eval_corruption_seed: int = field(
        default=0, metadata={"help": "Seed of the masks and spans of evaluation, the same in every evaluation."}
    )
    eval_max_spans: int = field(
        default=3, metadata={"help": "Upper limit of the spans of a row for the infilling perplexity, >= 1."}
    )
    eval_min_span_tokens: int = field(
        default=8, metadata={"help": "Lower limit of the length of a span for the infilling perplexity."}
    )
    eval_max_span_tokens: int = field(
        default=32, metadata={"help": "Upper limit of the length of a span for the infilling perplexity."}
    )

    def __post_init__(self) -> None:
        complaints = [
            *self._complaints_about_phases(),
            *self._complaints_about_values(),
            *self._complaints_about_contrastive(),
            *self._complaints_about_parent(),
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
        return CorruptionSettings(**{name: getattr(self, name) for name in _CORRUPTION_FIELDS})

    @property
    def infilling_settings(self) -> CorruptionSettings:
        """How spans of evaluation rows are removed for the infilling perplexity, without masking."""
        return CorruptionSettings(
            mask_ratio=0.0,
            max_spans=self.eval_max_spans,
            min_span_tokens=self.eval_min_span_tokens,
            max_span_tokens=self.eval_max_span_tokens,
        )

    @property
    def normalization(self) -> dict[str, str]:
        """What the losses are means over, by objective."""
        return {"mntp": self.mntp_normalization, "msg": self.msg_normalization}

    @property
    def order_seed(self) -> int:
        """The seed of the order of rows and pairs."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def uses_contrastive_loss(self) -> bool:
        """Whether an objective of pairs has a weight in any phase."""
        return any(phase.uses_pairs for phase in self.phases)

    def _complaints_about_phases(self) -> list[str]:
        """List mistakes of the schedule, and weights of objectives for which the corruption makes no labels."""
        try:
            phases = self.phases
        except ValueError as error:
            return [str(error).replace("\n- ", " ")]
        complaints = []
        total = sum(phase.steps for phase in phases)
        if self.max_steps > 0 and self.max_steps != total:
            complaints.append(
                f"`max_steps` is {self.max_steps}, but `loss_phases` {self.loss_phases} add up to {total} steps. "
                "Leave `max_steps` at -1, or change the phases."
            )
        if self.keep_contrastive_head and not self.uses_contrastive_loss:
            complaints.append(
                f"`keep_contrastive_head` is true, but `loss_phases` {self.loss_phases} never train it. Give sscl a "
                "weight in some phase, or set `keep_contrastive_head` to false."
            )
        for name in OBJECTIVES:
            # `self` has the fields of `CorruptionSettings`, which may be invalid here.
            remedy = OBJECTIVES[name].remedy(self)
            if remedy is not None and any(name in phase.weights for phase in phases):
                complaints.append(
                    f"`loss_phases` {self.loss_phases} weigh {name}, but with `mask_ratio` {self.mask_ratio}, "
                    f"`max_spans` {self.max_spans} and `causal_ratio` {self.causal_ratio} no token is ever predicted "
                    f"for it. {remedy}, or set its weight to 0."
                )
        return complaints

    def _complaints_about_values(self) -> list[str]:
        """List the fields of this class that are out of their range."""
        complaints = [
            f"`{name}` is {getattr(self, name)!r}; pass one of {list(get_args(choices))}."
            for name, choices in _CHOICES.items()
            if getattr(self, name) not in get_args(choices)
        ]
        for settings in ("corruption_settings", "infilling_settings"):
            try:
                getattr(self, settings)
            except ValueError as error:
                complaints.append(str(error).replace("\n- ", " "))
        if self.eval_max_spans < 1:
            complaints.append(f"`eval_max_spans` is {self.eval_max_spans}; evaluation needs spans, pass 1 or more.")
        if not self.temperature > 0:
            complaints.append(
                f"`temperature` is {self.temperature}; it divides the similarity, pass a number above 0."
            )
        if self.contrastive_batch_size < 1:
            complaints.append(f"`contrastive_batch_size` is {self.contrastive_batch_size}; pass 1 or more.")
        if self.contrastive_max_length < 3:
            complaints.append(
                f"`contrastive_max_length` is {self.contrastive_max_length}; BOS, a token and EOS take 3, pass more."
            )
        limit = self.contrastive_mini_batch_tokens
        if limit is not None and limit < self.contrastive_max_length:
            complaints.append(
                f"`contrastive_mini_batch_tokens` is {limit}, less than a text of `contrastive_max_length` "
                f"{self.contrastive_max_length}. Raise it."
            )
        if not 0 <= self.view_dropout < 1:
            complaints.append(f"`view_dropout` is {self.view_dropout}; pass a number from 0 to below 1.")
        return complaints

    def _complaints_about_contrastive(self) -> list[str]:
        """List the arguments of the contrastive objective that contradict another one."""
        complaints = []
        if self.view_dropout and (self.activation_checkpointing or self.gradient_checkpointing):
            complaints.append(
                f"`view_dropout` is {self.view_dropout} and activation checkpointing is on: layers would be "
                "recomputed with a different dropout. Turn one of them off."
            )
        if self.contrastive_recompute and self.contrastive_mini_batch_tokens is None:
            complaints.append(
                "`contrastive_recompute` is true, but the batch is not read in mini-batches. Pass "
                "`contrastive_mini_batch_tokens`."
            )
        if self.keep_contrastive_head and self.contrastive_head == "none":
            complaints.append("`keep_contrastive_head` is true, but `contrastive_head` is 'none': nothing to keep.")
        return complaints

    def _complaints_about_parent(self) -> list[str]:
        """List the parent's arguments that would be ignored or break the objectives."""
        complaints = []
        for name, wanted, reason in (
            ("remove_unused_columns", False, "the collators need every column"),
            ("ddp_find_unused_parameters", False, "its search breaks with two forwards in one step"),
            ("logging_nan_inf_filter", False, "the NaN guard ends the run, without waiting in every step"),
            ("ddp_static_graph", None, "the graph changes from phase to phase"),
            ("label_smoothing_factor", 0, "the objectives do not smooth labels"),
            ("use_liger_kernel", False, "it replaces the forward with the attention modes"),
            ("train_sampling_strategy", "random", "rows are shuffled by seed and epoch"),
            ("num_train_epochs", 3, "`loss_phases` say how long to train"),
            ("batch_eval_metrics", False, "`compute_metrics` gets all rows at once: two integers a token"),
            ("parallelism_config", None, "only data parallelism is supported"),
        ):
            value = getattr(self, name)
            if value != wanted and not (wanted is None and value is False):
                complaints.append(f"`{name}` is {value!r}, but {reason}. Leave it at {wanted!r}.")
        return complaints


__all__ = ["MagnetTrainingArguments"]
