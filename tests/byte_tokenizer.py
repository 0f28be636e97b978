"""Build the tokenizer of most tests without a network; also used in processes that tests start."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]
SENTENCES = [
    "She ate the apple for breakfast and the bread for lunch.",
    "The cat sat on the mat, and the dog barked at the cat.",
    "Given the sentence, find its representation: there was a little girl who lived in the forest.",
]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Train byte-level BPE on three sentences. It tokenizes any text, prepends BOS, and has `_` as one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=256,
    )
