"""What both ends need of a model beside its weights: vocabulary, tokenizer, chat template."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from outrider.engine import EngineSpec
from outrider.models import source, template, tokenizer
from outrider.models.template import ChatTemplate
from outrider.models.tokenizer import Tokenizer
from outrider.models.vocabulary import from_tokenizer_bytes
from outrider.protocol.messages import ModelDescription
from outrider.protocol.vocabulary import Vocabulary


@dataclass(frozen=True)
class Served:
    """`chat_template` is empty where the model has none; `bos` and `eos` are its token names."""

    digest: str
    vocabulary: Vocabulary
    tokenizer_json: bytes
    chat_template: str
    bos: str
    eos: str

    @property
    def tokenizer_digest(self) -> str:
        return hashlib.sha256(self.tokenizer_json).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer_json, self.vocabulary)

    @cached_property
    def template(self) -> ChatTemplate:
        names = {"bos_token": self.bos, "eos_token": self.eos}
        return ChatTemplate(self.chat_template or None, names)


def load(spec: EngineSpec) -> Served:
    """Of a model on this machine. Raises what its files deserve."""
    if spec.engine == "fake":
        return fake(spec.model)
    files = source.resolve(spec.model)
    found = tokenizer.load(files)
    rendered = template.load(files)
    names = rendered._tokens
    return Served(
        digest=files.digest,
        vocabulary=found.vocabulary,
        tokenizer_json=found.source,
        chat_template=rendered.source or "",
        bos=names.get("bos_token", ""),
        eos=names.get("eos_token", ""),
    )


def described(description: ModelDescription) -> Served:
    """Of a model that a cloud serves and sent the tokenizer of.

    Raises ModelCorrupt when the tokenizer is not the one that was announced, or spells
    another vocabulary.
    """
    from outrider.errors import ModelCorrupt

    data = description.tokenizer_json
    config = {"eos_token_id": list(description.end_ids), "vocab_size": description.vocabulary_size}
    vocabulary = from_tokenizer_bytes(data, config)
    if hashlib.sha256(data).hexdigest() != description.tokenizer_digest or (
        vocabulary.digest != description.vocabulary_digest
    ):
        raise ModelCorrupt(
            "the cloud's tokenizer is not the one it announced",
            why="its digest, or the vocabulary that it spells, differs",
            effect="the cloud is not used",
            todo="update both sides to one release",
        )
    return Served(
        description.model_digest,
        vocabulary,
        data,
        description.chat_template,
        description.bos,
        description.eos,
    )


def fake(name: str) -> Served:
    """A byte-level tokenizer for the fake engine: every byte is a token."""
    from outrider.engines.fake import vocabulary

    found = vocabulary()
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Served(digest, found, _fake_tokenizer(), "", "", "<|end|>")


def _fake_tokenizer() -> bytes:
    from outrider.models.vocabulary import alphabet

    letters = {letter: number for letter, number in alphabet().items()}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": 256,
                    "content": "<|end|>",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ],
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": False,
            },
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": False,
            },
            "model": {"type": "BPE", "vocab": letters, "merges": []},
        }
    ).encode()
