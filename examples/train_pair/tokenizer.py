"""The tokenizer: byte-level BPE with GPT-2's pre-tokenisation, so that any bytes have ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains on the texts; id 0 is the end of a text and stands at its beginning too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_or_train(file: Path, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Reads the file if an earlier run wrote it, else trains and writes it."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        train_tokenizer(texts, vocab_size).save(str(file))
    return Tokenizer.from_file(str(file))
