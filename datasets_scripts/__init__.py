"""Preparation of public corpora, one file a corpus."""

import tokenizer

# PyPI's `tokenizer` may hide ours: then nothing of ours has run yet, and this is the first place
# that can tell.
if "LatentTokenizer" not in getattr(tokenizer, "__all__", ()):
    raise ImportError(
        f"The package 'tokenizer' at {tokenizer.__file__} is not latent-tokenizer's, which"
        f" {__name__!r} needs. Use a fresh environment (python -m venv), or run `pip uninstall"
        " tokenizer latent-tokenizer` and install latent-tokenizer again."
    )
