"""Text: normalisation, tokenisers trained on a corpus, and corpora tokenised once into a memory-mapped file.

``sources.tokens`` and ``sources.token_windows`` read what ``write_tokens`` writes. Tokenisers and normalisation run in
the library ``tokenizers`` (pip install 'tftoolkit[text]').
"""

from tftoolkit.pipelines.sources.token_file import TokenFile
from tftoolkit.pipelines.text.corpus import write_tokens
from tftoolkit.pipelines.text.normalization import normalize, normalizer
from tftoolkit.pipelines.text.tokenizer import (
    Tokenizer,
    byte_tokenizer,
    tokenize,
    train_bpe_tokenizer,
    train_word_tokenizer,
)

__all__ = [
    "TokenFile",
    "Tokenizer",
    "byte_tokenizer",
    "normalize",
    "normalizer",
    "tokenize",
    "train_bpe_tokenizer",
    "train_word_tokenizer",
    "write_tokens",
]
