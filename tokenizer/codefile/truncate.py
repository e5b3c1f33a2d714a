"""Lower rates from a finished code file, without its audio or its model's weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tokenizer.codefile.header import CodeFileError, Source, Target
from tokenizer.codefile.reader import CodeReader
from tokenizer.codefile.writer import CodeWriter


def truncate_codes(
    source: Source, target: Target, n_codebooks: int, counts: np.ndarray | None = None
) -> int:
    """Copies the first codebooks of a code file; returns the new file's size in bytes.

    ``target`` may be the source's path; ``counts`` as for `CodeReader`.

    Raises:
        CodeFileError: If the file has fewer codebooks, or is refused by `CodeReader`.
    """
    with CodeReader(source, counts) as reader:
        sizes = reader.header.codebook_sizes
        if not 1 <= n_codebooks <= len(sizes):
            raise CodeFileError(f"n_codebooks={n_codebooks} is not in 1..{len(sizes)}.")
        header = replace(reader.header, codebook_sizes=sizes[:n_codebooks])
        with CodeWriter(target, header, counts) as writer:
            for codes in reader.chunks():
                writer.write(codes[:, :, :n_codebooks])
            assert reader.header.num_samples is not None
            writer.finish(reader.header.num_samples)
    return writer.num_bytes
