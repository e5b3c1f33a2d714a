"""Latent Tokenizer: one continuous audio autoencoder, any quantizer fitted afterwards.

    from tokenizer import load_tokenizer

    tokenizer = load_tokenizer()
    row = tokenizer.encode_codes("speech.wav")
    audio = tokenizer.decode_codes(row)

Names are imported when they are first used, so that ``import tokenizer`` is quick.
"""

from __future__ import annotations

import lazy_loader

from tokenizer._clash import check_clash
from tokenizer._moved import keep_old_paths
from tokenizer._registering import register_with_auto_classes

check_clash()
keep_old_paths()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"

register_with_auto_classes()
