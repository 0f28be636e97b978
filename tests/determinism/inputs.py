"""Write the inputs of the commands: tiny models, texts, and files in the format of the paper's corpora."""

import copy
import gzip
import json
import random
from pathlib import Path

import nbformat
from transformers import PreTrainedTokenizerFast

from modeling_magnet import MagnetLlamaForCausalLM

from ..examples.evaluation_files import write_rocstories, write_story_cloze, write_wikitext
from ..examples.test_mmlu import make_rows, write
from ..examples.test_sts import write_files
from ..examples.tiny_run import WORDS, save_plain_llama, write_corpus
from ..trainer.tiny_t5 import save_tiny_t5


def write_inputs(folder: Path, model: MagnetLlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write everything that any command reads.

    Args:
        folder (`Path`): Empty.
        model (`MagnetLlamaForCausalLM`): The tiny model.
        tokenizer (`PreTrainedTokenizerFast`): Its tokenizer; neither is changed.
    """
    save_plain_llama(folder / "plain", tokenizer)
    model = copy.deepcopy(model)
    model.tokenizer = copy.deepcopy(tokenizer)
    model.config.max_position_embeddings = model.tokenizer.model_max_length = 2048  # prompts are long in bytes
    for name in ("base", "magnet"):
        model.lm_head.weight.data = model.lm_head.weight.data.roll(1, 0)  # another token each time
        model.save_pretrained(folder / name)
    write_corpus(folder / "train.jsonl.xz", num_texts=40, seed=0)
    write_corpus(folder / "held_out.jsonl.xz", num_texts=6, seed=1)
    _write_texts(folder)
    (folder / "data").mkdir()
    _write_data(folder / "data")
    save_tiny_t5(folder / "t5")
    _write_plan(folder)
    _write_notebook(folder)
    return folder


def _write_plan(folder: Path) -> None:
    """Write a study of one run with two training steps and one driver call."""
    training = {
        **{"use_cpu": True, "train_texts": str(folder / "train.jsonl.xz"), "max_length": 64, "max_span_tokens": 8},
        **{"eval_texts": str(folder / "held_out.jsonl.xz"), "lora_r": 2},
        **{"loss_phases": ["2:1,0,1"], "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True},
        **{"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
    }
    call = {"driver": "repetition", "systems": ["b=base", "f=first"], "arguments": ["--limit", "2"]}
    plan = {
        **{"title": "A trial", "base": str(folder / "plain"), "data": str(folder / "data")},
        **{"training": training, "runs": {"first": {}}, "calls": [call], "presets": {"smoke": {}}},
    }
    (folder / "plan.json").write_text(json.dumps(plan))


def _write_notebook(folder: Path) -> None:
    """Write cells that open the model, fill a blank, and draw vectors; warnings and bars contain times."""
    cells = [
        "%%capture\nimport matplotlib.pyplot as plt\nfrom modeling_magnet import AutoMagnetForCausalLM\n"
        "model = AutoMagnetForCausalLM.from_pretrained('magnet')",
        "print(model.infill('the old dog', 'then', max_new_tokens=4))",
        "plt.imshow(model.encode(['the old dog', 'sat then'], convert_to_numpy=True));",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, folder / "notebook.ipynb")


def _write_texts(folder: Path) -> None:
    """Write long texts, and texts with blanks."""
    draw = random.Random(2)
    sentences = [" ".join(draw.choices([*WORDS, "breakfast", "yellow"], k=12)).capitalize() + "." for _ in range(600)]
    (folder / "long.txt").write_text("".join(" ".join(sentences[at : at + 75]) + "\n" for at in range(0, 600, 75)))
    blanks = [{"text": f"{first} [blank] {last}"} for first, last in zip(sentences[:6], sentences[6:12], strict=True)]
    (folder / "blanks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in blanks))


def _write_data(folder: Path) -> None:
    """Write the corpora of the tables under the names that the drivers look for."""
    draw = random.Random(3)
    write_rocstories(folder)
    write_story_cloze(folder)
    write_wikitext(folder)
    write_files(folder)  # of STS
    tags = {"the": "DT I-NP O", "cat": "NN I-NP I-PER", "sat": "VBD I-VP O", ".": ". O I-LOC"}
    for name, number in (("train", 40), ("testa", 12)):
        rows = [[draw.choice(list(tags)) for _ in range(draw.randint(2, 8))] for _ in range(number)]
        text = "\n\n".join("\n".join(f"{word} {tags[word]}" for word in row) for row in rows)
        (folder / f"eng.{name}.gz").write_bytes(gzip.compress(f"-DOCSTART- -X- O O\n\n{text}\n".encode()))
    topics = [
        {"label": draw.choice("abc"), "subject": " ".join(draw.choices(WORDS, k=6)), "text": "-"} for _ in range(60)
    ]
    write(folder / "20news_bydate_train.jsonl.xz", topics)
    write(folder / "mmlu_dev.jsonl.gz", make_rows(count=lambda place: 5))
    write(folder / "mmlu_test.jsonl.xz", make_rows(count=lambda place: 1))
