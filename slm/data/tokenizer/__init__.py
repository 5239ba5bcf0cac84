"""Tokenizers: what is asked for (`TokenizerPart`), what runs (`Tokenizer`), and what runs fast (`backend`).

`BytePairs`, `SentencePieceBPE` and `SentencePieceUnigram` learn a vocabulary from the training documents, `Bytes`
needs none, `FromFile` takes one that exists. All become a `Tokenizer`, which a store or checkpoint keeps as one file.
"""

from slm.data.tokenizer.backends import BackendName, backend, why_not
from slm.data.tokenizer.base import END_OF_TEXT, Tokenizer
from slm.data.tokenizer.byte_pairs import BytePairs, Bytes
from slm.data.tokenizer.encoder import Encoder, Verified
from slm.data.tokenizer.file import FromFile
from slm.data.tokenizer.hf import HuggingFace
from slm.data.tokenizer.part import TokenizerPart, TokenizerSlot, Trained, interleaved, tokenizer
from slm.data.tokenizer.pretokenizers import PRETOKENIZERS, Pretokenizer
from slm.data.tokenizer.sp import SentencePiece
from slm.data.tokenizer.sp_train import SentencePieceBPE, SentencePieceUnigram

__all__ = [
    "END_OF_TEXT",
    "PRETOKENIZERS",
    "BackendName",
    "BytePairs",
    "Bytes",
    "Encoder",
    "FromFile",
    "HuggingFace",
    "Pretokenizer",
    "SentencePiece",
    "SentencePieceBPE",
    "SentencePieceUnigram",
    "Tokenizer",
    "TokenizerPart",
    "TokenizerSlot",
    "Trained",
    "Verified",
    "backend",
    "interleaved",
    "tokenizer",
    "why_not",
]
