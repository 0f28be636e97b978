"""Share one model between eight threads: results equal those of one thread, and no call writes to the model."""

import copy
import random
import threading
from concurrent.futures import ThreadPoolExecutor

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
    ids, segments = prompt["input_ids"], torch.zeros_like(prompt["input_ids"])
    segments[:, 3:5] = 1
    return {
        "encode": lambda: model.encode(TEXTS),
        "words": lambda: model.encode_words(TEXTS[0].split()),
        "infill": lambda: model.infill("The king lived in", " with his daughter.", max_new_tokens=4),
        "infill, several": lambda: model.infill_blanks([BLANKS, BLANKS], max_new_tokens=3, num_return_sequences=2),
        "generate": lambda: model.generate(**prompt, max_new_tokens=6, do_sample=False, pad_token_id=0),
        "score": lambda: [one.logprobs for one in model.score_infill("The cat", [" sat", " ran"], " down.")],
        "causal": lambda: model(ids).logits,
        "bidirectional": lambda: model(ids, mode="bidirectional").logits,
        "infill, forward": lambda: model(ids, mode="infill", segment_ids=segments).logits,
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


def watch(model, monkeypatch):
    """Return a list in which every attribute that is set on the model or its configs is recorded."""
    written = []
    kept = {id(owner) for owner in (*model.modules(), model.config, model.generation_config)}

    def watched(change):
        def set_or_delete(owner, name, *value):
            if id(owner) in kept:
                written.append(f"{type(owner).__name__}.{name}")
            return change(owner, name, *value)

        return set_or_delete

    for owner in {nn.Module, type(model.config), type(model.generation_config)}:
        for name in ("__setattr__", "__delattr__"):
            monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    return written


def held(model):
    """Return what every module and its dictionaries hold, by identity, and what the configs say."""

    def ids(values):
        return {key: ids(value) if isinstance(value, dict) else id(value) for key, value in values.items()}

    modules = {name: ids(vars(module)) for name, module in model.named_modules()}
    return modules, copy.deepcopy([model.config.to_dict(), model.generation_config.to_dict()])


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
    ("name", "implementation", "adapted"),
    [
        ("checkpoint", "sdpa", True),
        ("stories260k", "sdpa", True),
        pytest.param("stories260k", "eager", False, marks=pytest.mark.long),
        pytest.param("stories260k", "sdpa", False, marks=pytest.mark.long),
        pytest.param("stories260k", "eager", True, marks=pytest.mark.long),
    ],
)
def test_threads_give_single_thread_results_and_write_nothing(request, name, adapted, implementation, monkeypatch):
    path = request.getfixturevalue(name)
    model = bound_to_modes(path) if adapted else MagnetLlamaForCausalLM.from_pretrained(path)
    model.set_attn_implementation(implementation)
    model.eval()
    calls = calls_of(model)
    expected = {name: call() for name, call in calls.items()}  # initializes the tokenizer and the mask check first
    written, before = watch(model, monkeypatch), held(model)
    begin = threading.Barrier(THREADS)

    def work(seed):
        names = random.Random(seed).choices(list(calls), k=CALLS)
        begin.wait()
        return [(name, same(calls[name](), expected[name])) for name in names]

    with ThreadPoolExecutor(THREADS) as threads:
        results = [result for done in threads.map(work, range(THREADS)) for result in done]
    assert [name for name, is_same in results if not is_same] == []
    assert {name for name, _ in results} == set(calls)
    assert written == [] and held(model) == before


def test_writes_are_detected(stories260k, monkeypatch):
    model = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    written, before = watch(model, monkeypatch), held(model)
    assert held(model) == before
    model.config.use_cache = model.config.use_cache
    assert written == ["LlamaConfig.use_cache"] and held(model) == before
    vars(model.model.layers[0])["note"] = 1
    assert held(model) != before
