"""The part of the trainer that writes for others: adapters with their settings, and the model card of the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers.trainer_utils import unwrap_peft_model

from modeling_magnet.publishing.adapters import sets_in_order, write_adapter_settings
from modeling_magnet.publishing.card import CARD, write_card

from .evaluating_trainer import EvaluatingTrainer
from .model_card import run_facts

# What of the arguments a reader of the card wants to know.
RECIPE = (
    "loss_phases",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "mask_ratio",
    "span_ratio",
    "seed",
)


class PublishingTrainer(EvaluatingTrainer):
    """Saves adapters as our models do, and tells the run's facts to the model card."""

    def card_text(self, name: str, *, merged: bool = False, **facts: Any) -> str:
        """The model card of this run.

        Args:
            name (`str`): Directory or Hub id that its code examples name.
            merged (`bool`, defaults to `False`): Whether adapters are merged in what the card is for.
            facts: What the trainer does not know: those of `run_facts`, from `train_texts` on; `recipe` (`dict`) adds
                to the arguments of training.
        """
        model = unwrap_peft_model(self.accelerator.unwrap_model(self.model))
        arguments = {key: getattr(self.args, key) for key in RECIPE if hasattr(self.args, key)}
        for adapter, config in (getattr(model, "peft_config", None) or {}).items():
            told = f"rank {getattr(config, 'r', None)}, alpha {getattr(config, 'lora_alpha', None)}"
            arguments[f"adapter {adapter}"] = f"{config.peft_type.value}, {told}"
        arguments |= facts.pop("recipe", {})
        base = facts.pop("base_model", None) or model.config._name_or_path
        known = run_facts(self.state.log_history, base_model=base, arguments=arguments, **facts)
        return write_card(model, name, known, merged=merged)

    def create_model_card(  # type: ignore[override]
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the card of this run into `output_dir`, as the parent does before it pushes.

        Args:
            language (`str` or list of `str`, *optional*): Codes of the languages.
            license (`str`, *optional*): The Hub's identifier; by default that of the base model's card.
            model_name (`str`, *optional*): What the card calls the model; by default `hub_model_id` or the directory.
            finetuned_from (`str`, *optional*): The base; by default where the model was loaded from.
            dataset (`str` or list of `str`, *optional*): Training data.
            kwargs: What else the parent's method takes is not part of our card.
        """
        if not self.is_world_process_zero():
            return
        directory = Path(str(self.args.output_dir))
        text = self.card_text(
            self.args.hub_model_id or model_name or directory.name,
            base_model=finetuned_from,
            train_texts=_list(dataset),
            language=_list(language),
            license=license,
        )
        (directory / CARD).write_text(text, encoding="utf-8")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as the parent does, with the card of this run; beside an adapter of a `PeftModel`, our settings."""
        model = self.accelerator.unwrap_model(self.model)
        with self._own_card(), _targets_in_order(model):
            super()._save(output_dir, state_dict)
        if self.args.should_save and isinstance(model, PeftModel):
            inner: Any = model.get_base_model()
            write_adapter_settings(inner, Path(str(output_dir or self.args.output_dir)))

    @contextmanager
    def _own_card(self) -> Iterator[None]:
        """The block in which the model has the card of this run; by itself it carries that of where it came from."""
        model: Any = unwrap_peft_model(self.accelerator.unwrap_model(self.model))
        # A card that was set by hand stays.
        if not self.args.should_save or getattr(model, "_card", "") is not None:
            yield
            return
        model.card = self.card_text(self.args.hub_model_id or Path(str(self.args.output_dir)).name)
        try:
            yield
        finally:
            model.card = None


@contextmanager
def _targets_in_order(model: Any) -> Iterator[None]:
    """The block in which a `PeftModel` is written alike by every process: what it adapts is a list and no set."""
    configs = list(model.peft_config.values()) if isinstance(model, PeftModel) else []
    before = [dict(vars(config)) for config in configs]
    for config in configs:
        vars(config).update(sets_in_order(config))
    try:
        yield
    finally:
        for config, values in zip(configs, before, strict=True):
            vars(config).update(values)


def _list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


__all__ = ["PublishingTrainer"]
