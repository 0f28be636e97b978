"""`SentenceTransformer(directory)` gives the vectors of `encode`, with our class and with the stock one."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from modeling_magnet import MagnetLlamaForCausalLM

from .test_checkpoint_magnet import variant

sentence_transformers = pytest.importorskip("sentence_transformers", reason="an optional extra: pip install .[eval]")

TEXTS = [
    "A cat.",
    "",
    "  spaces around  ",
    "The naïve king said: « 日本 » 🙂\nand left.",
    "She ate the apple.",
    "Typed: </s> and <s>, <unk><mask><eos> and <start_of_turn>user",
]
LONG = "the dog barked at the cat " * 200


@pytest.fixture(params=["tiny", "tied", "headed", "stories260K", "wiki-7m"])
def model(request, tiny_model):
    """Return models with different tokenizers, with and without padding token, tied weights and head."""
    if request.param == "stories260K":
        return MagnetLlamaForCausalLM.from_pretrained(request.getfixturevalue("stories260k"))
    if request.param == "wiki-7m":
        return MagnetLlamaForCausalLM.from_pretrained(request.getfixturevalue("wiki_7m"))
    if request.param == "tiny":
        return tiny_model
    return variant(tiny_model, tied=request.param == "tied", head="tanh" if request.param == "headed" else None)


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_vectors_are_those_of_encode(model, tmp_path, trust_remote_code):
    model.config.magnet["prompts"].update(query="Find the text: ", bare="Find the text")
    model.save_pretrained(tmp_path)
    embedder = sentence_transformers.SentenceTransformer(
        str(tmp_path), trust_remote_code=trust_remote_code, device="cpu"
    )
    ours = type(embedder[0].model).__name__ == "MagnetLlamaForCausalLM"
    assert ours == trust_remote_code
    for arguments in (
        {},
        {"prompt_name": "query"},
        {"prompt_name": "bare"},
        {"prompt": "Another task: "},
        {"prompt": ""},
        {"batch_size": 1},
    ):
        vectors = embedder.encode(TEXTS, normalize_embeddings=True, **arguments)
        expected = model.encode(TEXTS, normalize_embeddings=True, **arguments)
        np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0, err_msg=str(arguments))
    for text in (LONG, LONG + "again"):
        vectors = [reader.encode(text, normalize_embeddings=True) for reader in (embedder, model)]
        np.testing.assert_allclose(*vectors, atol=1e-5, rtol=0)
    np.testing.assert_allclose(embedder.encode(TEXTS[0]), model.encode(TEXTS[0]), atol=1e-4, rtol=1e-4)
    assert embedder.get_embedding_dimension() == model.config.hidden_size
    assert embedder.similarity_fn_name == "cosine"
    for name in ("encode_query", "encode_document"):
        vectors, expected = (getattr(reader, name)(TEXTS, normalize_embeddings=True) for reader in (embedder, model))
        np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_values_set_by_its_user_are_saved(tiny_model, tmp_path, trust_remote_code):
    tiny_model.save_pretrained(tmp_path / "ours")
    embedder = sentence_transformers.SentenceTransformer(
        str(tmp_path / "ours"), trust_remote_code=trust_remote_code, device="cpu"
    )
    embedder.prompts = {"query": "Find this: ", "document": ""}
    embedder.default_prompt_name = "query"
    embedder.similarity_fn_name = "dot"
    embedder.max_seq_length = 20
    from sentence_transformers.sentence_transformer.modules import Normalize

    embedder.append(Normalize())
    embedder._model_card_text = "# A card of my own\n"
    expected = {name: embedder.encode([*TEXTS, LONG], prompt_name=name) for name in (None, "query", "document")}
    embedder.save(str(tmp_path / "copy"))
    for trusted in (True, False):
        assert (tmp_path / "copy" / "README.md").read_text() == "# A card of my own\n"
        again = sentence_transformers.SentenceTransformer(
            str(tmp_path / "copy"), trust_remote_code=trusted, device="cpu"
        )
        assert (type(again[0].model).__name__ == "MagnetLlamaForCausalLM") == (trusted and trust_remote_code)
        assert (again.prompts, again.default_prompt_name) == (embedder.prompts, "query")
        assert (again.similarity_fn_name, again.max_seq_length) == ("dot", 20)
        for name, vectors in expected.items():
            np.testing.assert_allclose(again.encode([*TEXTS, LONG], prompt_name=name), vectors, atol=1e-5)
        if trusted and trust_remote_code:
            ours = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "copy")
            again.save(str(tmp_path / "copy"))  # over itself
    if trust_remote_code:
        for name, vectors in expected.items():
            given = ours.encode(TEXTS, prompt_name=name, normalize_embeddings=True)
            np.testing.assert_allclose(given, vectors[: len(TEXTS)], atol=1e-5)
        assert ours.magnet_settings.similarity_fn_name == "dot"


def test_a_prompt_that_encode_reads_differently_warns(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "ours")
    embedder = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), trust_remote_code=True, device="cpu")
    embedder.prompts = {"bare": "Find this", "document": ""}
    embedder.default_prompt_name = None
    with pytest.warns(UserWarning, match=r"prompts \['bare'\] do not end in a space"):
        embedder.save(str(tmp_path / "copy"))


def test_a_model_without_default_prompt_has_none_there_either(tiny_model, tmp_path):
    tiny_model.config.magnet["default_prompt_name"] = None
    tiny_model.save_pretrained(tmp_path)
    embedder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(
        embedder.encode(TEXTS[:3], normalize_embeddings=True),
        tiny_model.encode(TEXTS[:3], prompt="", normalize_embeddings=True),
        atol=1e-5,
    )


def test_reading_as_an_embedder_leaves_later_loads_causal(tiny_model, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_model.save_pretrained(tmp_path)
    for trusted in (True, False):
        sentence_transformers.SentenceTransformer(str(tmp_path), trust_remote_code=trusted, device="cpu").encode("A")
        assert AutoConfig.from_pretrained(tmp_path).is_causal is True
        model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trusted)
        ids = tiny_model.tokenizer("The cat sat", return_tensors="pt").input_ids
        assert model(ids).logits.equal(tiny_model(ids).logits)


@pytest.mark.parametrize("similarity", ["dot", "manhattan"])
@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_pooling_and_similarity_are_stored(wiki_7m, tmp_path, pooling, similarity):
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    model.config.magnet.update(pooling=pooling, similarity_fn_name=similarity)
    model.save_pretrained(tmp_path)
    embedder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    for arguments in ({}, {"prompt": ""}, {"prompt_name": "STS", "truncate_dim": 64}):
        vectors = embedder.encode(TEXTS, normalize_embeddings=True, **arguments)
        expected = model.encode(TEXTS, normalize_embeddings=True, **arguments)
        np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0, err_msg=str(arguments))
    np.testing.assert_allclose(embedder.similarity(vectors, vectors), model.similarity(vectors, vectors), atol=1e-4)
    states = embedder.encode(TEXTS, output_value="token_embeddings")
    for row, expected in zip(states, model.encode(TEXTS, output_value="token_embeddings"), strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-3, rtol=1e-3)


def test_it_reads_typed_control_tokens_as_text_and_other_readers_as_they_did(wiki_7m, tmp_path):
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    model.save_pretrained(tmp_path)
    embedder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    typed = "A cat.</s> <s>sat <unk>"
    assert embedder.preprocess([typed])["input_ids"][0].tolist() == model.preprocess([typed])["input_ids"][0].tolist()
    eos = model.tokenizer.eos_token_id
    assert embedder.preprocess([typed])["input_ids"][0].tolist().count(eos) == 1
    # Chat templates write control tokens as text, which generation has to read as such.
    assert eos in AutoTokenizer.from_pretrained(tmp_path)(typed)["input_ids"]


def test_other_outputs_are_its_own_where_it_has_them(wiki_7m, tmp_path):
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    model.save_pretrained(tmp_path)
    embedder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    close = {"atol": 1e-3, "rtol": 1e-3}
    # It ignores both options for tokens, which `encode` honors: the same numbers, cut and scaled.
    options = {"truncate_dim": 4, "normalize_embeddings": True}
    whole = embedder.encode(TEXTS, output_value="token_embeddings", **options)
    assert whole[0].shape[-1] == model.config.hidden_size
    for theirs, ours in zip(whole, model.encode(TEXTS, output_value="token_embeddings", **options), strict=True):
        np.testing.assert_allclose(ours, torch.nn.functional.normalize(theirs[:, :4], dim=-1), **close)
    theirs = embedder.encode(TEXTS, output_value=None, truncate_dim=4)
    ours = model.encode(TEXTS, output_value=None, truncate_dim=4)
    for their, our in zip(theirs, ours, strict=True):
        real = their["attention_mask"].bool()  # they leave the padding of the batch in
        assert set(our) <= set(their)
        assert our["input_ids"].tolist() == their["input_ids"][real].tolist()
        np.testing.assert_allclose(our["token_embeddings"], their["token_embeddings"][real], **close)
        np.testing.assert_allclose(our["sentence_embedding"], their["sentence_embedding"], **close)
    assert isinstance(embedder.encode(TEXTS[0], output_value=None), dict)


def test_names_that_it_has_mean_the_same(wiki_7m, tmp_path):
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    model.prompts["query"] = "Find the text: "
    model.similarity_fn_name = "dot"
    model.max_seq_length = 64
    model.save_pretrained(tmp_path)
    embedder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert embedder.max_seq_length == model.max_seq_length == 64
    assert embedder.similarity_fn_name == model.similarity_fn_name
    assert embedder.default_prompt_name == model.default_prompt_name
    assert embedder.get_embedding_dimension() == model.get_embedding_dimension()
    assert embedder.get_sentence_embedding_dimension() == model.get_sentence_embedding_dimension()
    assert embedder.prompts["query"] == model.prompts["query"]
    for prompt in (None, "Find the text: "):
        for name in ("preprocess", "tokenize"):
            theirs, ours = (getattr(reader, name)([*TEXTS, LONG], prompt=prompt) for reader in (embedder, model))
            assert ours["input_ids"].shape == (len(TEXTS) + 1, 64)
            for key in ours:
                assert ours[key].equal(theirs[key]), (name, key)
    with pytest.warns(UserWarning, match="1 of 1 texts were longer than 64 tokens"):
        np.testing.assert_allclose(model.encode(sentences=LONG), embedder.encode(LONG), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "trust_remote_code", [pytest.param(False, marks=pytest.mark.nightly), pytest.param(True, marks=pytest.mark.long)]
)
def test_its_pool_search_and_quantization_work(wiki_7m, tmp_path, trust_remote_code):
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    model.save_pretrained(tmp_path)
    embedder = sentence_transformers.SentenceTransformer(
        str(tmp_path), trust_remote_code=trust_remote_code, device="cpu"
    )
    expected = model.encode(TEXTS, normalize_embeddings=True)
    pool = embedder.start_multi_process_pool(["cpu", "cpu"])
    try:
        vectors = embedder.encode(TEXTS, pool=pool, normalize_embeddings=True, chunk_size=2)
    finally:
        embedder.stop_multi_process_pool(pool)
    np.testing.assert_allclose(vectors, expected, atol=1e-5, rtol=0)
    hits = sentence_transformers.util.semantic_search(expected, expected, top_k=1)
    assert [found[0]["corpus_id"] for found in hits] == list(range(len(TEXTS)))
    # Rounding decides the sign of what is next to nothing.
    bits, ours = embedder.encode(TEXTS, precision="ubinary"), model.encode(TEXTS, precision="ubinary")
    assert np.unpackbits(bits ^ ours).mean() < 0.001
