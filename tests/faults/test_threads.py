"""Share one model between eight threads: results equal those of one thread, and no call writes to the model."""

import copy
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from modeling_magnet import MagnetLlamaForCausalLM
from trainer.lora import LoraArguments, apply_lora

THREADS, CALLS = 8, 40
TEXTS = ["The river runs through the old town.", "A girl sat by the tree and ate.", "In 1986 he was born."]
BLANKS = "The king lived in [blank] with his daughter, and [blank] died there."


def calls_of(model):
    """Return every kind of call that users mix, by name; `same` compares the results."""
    prompt = model.tokenizer(TEXTS[:1], return_tensors="pt")
    return {
        "encode": lambda: model.encode(TEXTS),
        "encode one": lambda: model.encode(TEXTS[1], normalize_embeddings=True, convert_to_tensor=True),
        "words": lambda: model.encode_words(TEXTS[0].split()),
        "infill": lambda: model.infill("The king lived in", " with his daughter.", max_new_tokens=4),
        "infill, several": lambda: model.infill_blanks([BLANKS, BLANKS], max_new_tokens=3, num_return_sequences=2),
        "generate": lambda: model.generate(**prompt, max_new_tokens=6, do_sample=False, pad_token_id=0),
        "score": lambda: [one.logprobs for one in model.score_infill("The cat", [" sat", " ran"], " down.")],
        "forward": lambda: model(prompt["input_ids"], mode="bidirectional").logits,
    }


def same(one, other):
    """Return whether two results are equal to the last bit."""
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class Watch:
    """Record what is set on a model or its configs, and compare what they hold with what they held."""

    def __init__(self, model, monkeypatch):
        self.model, self.written = model, []
        self.configs = [model.config, model.generation_config]
        kept = {id(owner) for owner in (*model.modules(), *self.configs)}
        for owner in {nn.Module, *map(type, self.configs)}:
            for name in ("__setattr__", "__delattr__"):
                monkeypatch.setattr(owner, name, self._watched(getattr(owner, name), kept))
        self.before = self._state()

    def _watched(self, change, kept):
        def watched(owner, name, *value):
            if id(owner) in kept:
                self.written.append(f"{type(owner).__name__}.{name}")
            return change(owner, name, *value)

        return watched

    def _state(self):
        """Return what every module and its dictionaries hold, by identity, and what the configs say."""

        def held(values):
            return {key: held(value) if isinstance(value, dict) else id(value) for key, value in values.items()}

        modules = {name: held(vars(module)) for name, module in self.model.named_modules()}
        return modules, [copy.deepcopy(config.to_dict()) for config in self.configs]

    def is_untouched(self):
        return self.written == [] and self._state() == self.before


def bound_to_modes(path):
    """Return a model whose adapter is limited to encoding and infilling."""
    torch.manual_seed(0)
    model = MagnetLlamaForCausalLM.from_pretrained(path)
    adapted = apply_lora(model, LoraArguments(lora_r=2, lora_alpha=4))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    model = adapted.get_base_model()
    model.set_adapter_modes(["bidirectional", "infill"])
    return model


@pytest.mark.parametrize(
    ("implementation", "adapted"),
    [
        ("sdpa", True),
        pytest.param("eager", False, marks=pytest.mark.long),
        pytest.param("sdpa", False, marks=pytest.mark.long),
        pytest.param("eager", True, marks=pytest.mark.long),
    ],
)
def test_threads_give_single_thread_results_and_write_nothing(stories260k, adapted, implementation, monkeypatch):
    model = bound_to_modes(stories260k) if adapted else MagnetLlamaForCausalLM.from_pretrained(stories260k)
    model.set_attn_implementation(implementation)
    model.eval()
    calls = calls_of(model)
    expected = {name: call() for name, call in calls.items()}  # initializes the tokenizer and the mask check first
    watch = Watch(model, monkeypatch)
    wrong, done, failed = [], [], []
    begin = threading.Barrier(THREADS)

    def work(seed):
        order = random.Random(seed)
        begin.wait()
        for _ in range(CALLS):
            name = order.choice(list(calls))
            try:
                is_same = same(calls[name](), expected[name])
            except Exception as error:
                failed.append(f"{name}: {error!r}")
                return
            done.append(name)
            if not is_same:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert wrong == []
    assert len(done) == THREADS * CALLS and set(done) == set(calls)
    assert watch.is_untouched(), watch.written


def test_watch_detects_writes(stories260k, monkeypatch):
    model = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    watch = Watch(model, monkeypatch)
    assert watch.is_untouched()
    model.config.use_cache = model.config.use_cache
    assert not watch.is_untouched()
    watch.written.clear()
    vars(model.model.layers[0])["note"] = 1
    assert not watch.is_untouched()
