"""Train the models of the quickstart: a tiny Llama, the same trained for longer, and the same adapted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from examples.toy.exam import Exam
from examples.toy.language import THINGS, Story, read_rows, write_corpus
from examples.toy.table import Models
from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.configuration_magnet import DEFAULT_PROMPT
from modeling_magnet.tokenization_magnet import tokenize_texts
from trainer import MagnetTrainer, MagnetTrainingArguments

MAX_LENGTH = 128
BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The sizes of corpus and training."""

    stories: int = 16_000
    pairs: int = 8_000
    tests: int = 256
    hidden_size: int = 128
    causal_steps: int = 200
    infill_steps: int = 350  # steps with MNTP and MSG
    contrastive_steps: int = 150  # steps with MNTP, MSG and SSCL

    @property
    def adaptation_steps(self) -> int:
        """Return the steps of the adaptation, and of the control."""
        return self.infill_steps + self.contrastive_steps


SMOKE = Budget(stories=300, pairs=200, tests=16, hidden_size=32, causal_steps=4, infill_steps=3, contrastive_steps=2)


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE that prepends BOS; it has EOS, PAD, and the mask token `_`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        [*texts, *[DEFAULT_PROMPT] * 100],
        trainers.BpeTrainer(
            vocab_size=1000,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    split = [thing for thing in THINGS if len(fast.tokenize(" " + thing)) != 1]
    if split:
        raise ValueError(f"{split} are more than one token each; train the tokenizer on more texts than {len(texts)}.")
    return fast


@dataclass(frozen=True)
class Material:
    """The training data and the questions."""

    tokenizer: PreTrainedTokenizerFast
    exam: Exam
    stories: Dataset
    everything: Dataset
    pairs: Dataset


def prepare(folder: Path, *, budget: Budget, seed: int) -> Material:
    """Write the corpus and train its tokenizer."""
    paths = write_corpus(folder, seed=seed, stories=budget.stories, pairs=budget.pairs, tests=budget.tests)
    texts = {name: read_rows(path) for name, path in paths.items()}
    story_texts = [row["text"] for row in texts["stories_train"]]
    pair_texts = [f"{row['anchor']} {row['positive']}" for row in texts["pairs_train"]]
    tokenizer = build_tokenizer(story_texts + pair_texts)
    exam = Exam(
        tokenizer=tokenizer,
        stories=[
            Story(prefix=row["prefix"], missing=row["missing"], suffix=row["suffix"], answer=row["answer"])
            for row in texts["stories_test"]
        ],
        pairs=texts["pairs_test"],
        max_length=MAX_LENGTH,
    )
    stories, everything = (
        Dataset.from_dict(
            {"input_ids": tokenize_texts(tokenizer, chosen, prompt=None, max_length=MAX_LENGTH).input_ids}
        )
        for chosen in (story_texts, story_texts + pair_texts)
    )
    pairs = Dataset.from_list(texts["pairs_train"])
    return Material(tokenizer=tokenizer, exam=exam, stories=stories, everything=everything, pairs=pairs)


class LossProgress(ProgressCallback):
    """Show the losses in a progress bar instead of printing them line by line."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show the losses after the bar."""
        shown = {key: f"{float(value):.2f}" for key, value in (logs or {}).items() if key.startswith("loss")}
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Show no second bar, because two bars on one line garble each other."""


def _train_causally(
    model: LlamaForCausalLM, rows: Dataset, tokenizer: PreTrainedTokenizerFast, *, steps: int, seed: int, folder: Path
) -> None:
    """Train a model in place from left to right with the plain Trainer."""
    args = TrainingArguments(output_dir=str(folder), max_steps=steps, **_common(seed, steps))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collator)
    show_losses(trainer)
    trainer.train()


def _common(seed: int, steps: int) -> dict[str, Any]:
    """Return the arguments that all three trainings share."""
    return {
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": 4e-3,
        "warmup_steps": min(30, steps // 2),
        "weight_decay": 0.01,
        "logging_steps": max(1, steps // 25),
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": seed,
    }


def show_losses(trainer: Trainer) -> None:
    """Give a trainer a quiet progress bar; a text bar in a notebook as well."""
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
    trainer.add_callback(LossProgress)


def train_magnet(output_dir: Path, *, budget: Budget, seed: int) -> Path:
    """Train only the adapted model, to the same weights in two thirds of the time, and return its folder."""
    set_seed(seed)
    print("1/3 corpus and tokenizer")
    material = prepare(output_dir / "corpus", budget=budget, seed=seed)
    print(f"2/3 base: a Llama trained left to right, {budget.causal_steps} steps")
    _train_base(material, output_dir / "base", budget=budget, seed=seed)
    print(f"3/3 MAGNET: the base adapted with three objectives, {budget.adaptation_steps} steps")
    _adapt_base(material, output_dir, budget=budget, seed=seed)
    return output_dir / "magnet"


def train_models(output_dir: Path, *, budget: Budget, seed: int) -> tuple[Exam, Models, list[dict[str, Any]]]:
    """Train base, control and adaptation, load the saved model as a user would, and return the adaptation's log."""
    set_seed(seed)
    print("1/6 corpus and tokenizer")
    material = prepare(output_dir / "corpus", budget=budget, seed=seed)
    print(f"2/6 base: a Llama trained left to right, {budget.causal_steps} steps")
    base = _train_base(material, output_dir / "base", budget=budget, seed=seed)
    extra = budget.adaptation_steps
    print(f"3/6 control: the base trained left to right for {extra} steps more")
    control = LlamaForCausalLM.from_pretrained(output_dir / "base")
    _train_causally(
        control, material.stories, material.tokenizer, steps=extra, seed=seed, folder=output_dir / "control"
    )
    print(f"4/6 MAGNET: the base adapted with three objectives, {extra} steps")
    log = _adapt_base(material, output_dir, budget=budget, seed=seed)
    models = Models(
        base=base.eval(),
        control=control.eval(),
        not_adapted=MagnetLlamaForCausalLM.from_pretrained(output_dir / "base").eval(),
        magnet=AutoModel.from_pretrained(output_dir / "magnet", trust_remote_code=True).eval(),
    )
    return material.exam, models, log


def _train_base(material: Material, folder: Path, *, budget: Budget, seed: int) -> LlamaForCausalLM:
    """Return a plain Llama, after saving it with its tokenizer."""
    tokenizer = material.tokenizer
    base = LlamaForCausalLM(_llama_config(tokenizer, hidden_size=budget.hidden_size))
    _train_causally(base, material.everything, tokenizer, steps=budget.causal_steps, seed=seed, folder=folder)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return base


def _adapt_base(material: Material, output_dir: Path, *, budget: Budget, seed: int) -> list[dict[str, Any]]:
    """Adapt the saved base with MNTP and MSG, then also with SSCL; save it, and return the log history."""
    tokenizer, folder = material.tokenizer, output_dir / "magnet"
    adapted = MagnetLlamaForCausalLM.from_pretrained(output_dir / "base")
    # The paper adapts seven billion parameters by LoRA (3e-5, 4200 steps); these few train in full, and faster.
    args = MagnetTrainingArguments(
        output_dir=str(folder),
        loss_phases=[f"{budget.infill_steps}: mntp=1 msg=1", f"{budget.contrastive_steps}: mntp=1 sscl=5 msg=1"],
        max_span_tokens=10,  # a missing sentence has 8 tokens
        causal_ratio=0.05,  # three rows of two batches; without MSG this base forgets to continue from the left
        contrastive_batch_size=BATCH_SIZE,
        **_common(seed, budget.adaptation_steps),
    )
    trainer = MagnetTrainer(
        model=adapted,
        args=args,
        train_dataset=material.stories,
        pair_dataset=material.pairs,
        processing_class=tokenizer,
    )
    show_losses(trainer)
    trainer.train()
    adapted.save_pretrained(folder, tokenizer=tokenizer)
    return trainer.state.log_history


def _llama_config(tokenizer: PreTrainedTokenizerFast, *, hidden_size: int) -> LlamaConfig:
    """Return the config of a Llama of two layers; four layers learn these stories no better and take twice as long."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
