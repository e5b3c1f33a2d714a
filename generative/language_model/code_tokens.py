"""Codes as tokens of text, for anyone's language model.

    text = codes_to_tokens(row["codes"])  # "<a_0_17><a_1_402><a_0_9>..."
    codes = tokens_to_codes(text, num_codebooks=2)

``<a_k_c>`` is code c of codebook k. The codes of a frame follow each other, and so do the frames.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from jaxtyping import Int

from tokenizer.errors import InputError

_TOKEN = re.compile(r"<a_(\d+)_(\d+)>")
# As much of a text as an error shows.
_SHOWN = 20


def code_token(codebook: int, code: int) -> str:
    """The token of a code."""
    return f"<a_{codebook}_{code}>"


def code_tokens(codebook_sizes: Sequence[int]) -> list[str]:
    """The tokens of all codes: what to add to the vocabulary of a language model's tokenizer."""
    return [code_token(k, c) for k, size in enumerate(codebook_sizes) for c in range(size)]


@overload
def codes_to_tokens(codes: Any) -> str: ...
@overload
def codes_to_tokens(codes: Any, tokenizer: Any) -> list[int]: ...
def codes_to_tokens(codes: Any, tokenizer: Any = None) -> str | list[int]:
    """Turns codes ``[T, K]`` into text, or into the ids of a tokenizer that has `code_tokens`.

    Args:
        codes: Integers, e.g. the ``codes`` of a row.
        tokenizer: A tokenizer of `transformers`. Default: none, which returns the text.

    Raises:
        ValueError: If these are no codes, or the tokenizer lacks their tokens.
    """
    array = np.asarray(codes)
    if array.ndim != 2 or not array.shape[1] or array.dtype.kind not in "iu":
        raise InputError(f"Codes are integers [T, K], not {array.dtype} {list(array.shape)}.")
    if array.size and array.min() < 0:
        raise InputError(f"A code is {array.min()}: codes are not negative.")
    names = [code_token(k, c) for frame in array.tolist() for k, c in enumerate(frame)]
    if tokenizer is None:
        return "".join(names)
    ids = tokenizer.convert_tokens_to_ids(names)
    for name, token in zip(names, ids, strict=True):
        if token is None or token == tokenizer.unk_token_id:
            raise InputError(f"The tokenizer has no {name}: add code_tokens(...) to it.")
    return list(ids)


def tokens_to_codes(
    tokens: str | Iterable[Any], num_codebooks: int, tokenizer: Any = None
) -> Int[np.ndarray, "T K"]:
    """The inverse of `codes_to_tokens`: codes ``[T, K]``, int64.

    Args:
        tokens: Text, or ids as a list, array or tensor. Special tokens among ids are skipped; text
            holds codes only.
        num_codebooks: K.
        tokenizer: The tokenizer of the ids.

    Raises:
        ValueError: If something is no code, a code is not of the codebook in turn, or the last
            frame is incomplete.
    """
    if num_codebooks < 1:
        raise InputError(f"num_codebooks={num_codebooks}: it must be at least 1.")
    if isinstance(tokens, str):
        names = _split(tokens)
    elif tokenizer is None:
        raise InputError("Ids are those of a tokenizer: name it with tokenizer=.")
    else:
        names = _names(tokens, tokenizer)
    codes = []
    for index, name in enumerate(names):
        match, expected = _TOKEN.fullmatch(name), index % num_codebooks
        if match is None or int(match[1]) != expected:
            raise InputError(
                f"Token {index} is {name[:_SHOWN]!r}, where a code of codebook {expected} comes,"
                f" such as {code_token(expected, 0)}."
            )
        codes.append(int(match[2]))
    if missing := -len(codes) % num_codebooks:
        raise InputError(
            f"The last frame is incomplete: {num_codebooks - missing} of {num_codebooks} codes."
        )
    return np.array(codes, dtype=np.int64).reshape(-1, num_codebooks)


def _split(text: str) -> Iterator[str]:
    """The codes of a text, and what is between them."""
    place = 0
    for match in _TOKEN.finditer(text):
        if text[place : match.start()].strip():
            yield text[place : match.start()]
        yield match[0]
        place = match.end()
    if text[place:].strip():
        yield text[place:]


def _names(ids: Iterable[Any], tokenizer: Any) -> Iterator[str]:
    special = set(tokenizer.all_special_ids)
    for token in map(int, ids):
        name = str(tokenizer.convert_ids_to_tokens(token))
        # Codes may have been added as special tokens.
        if token not in special or _TOKEN.fullmatch(name):
            yield name
