"""Code files (``.ltk``): the codes of one clip, packed, checked and streamed.

    header = CodeFileHeader(model_fingerprint="0123456789abcdef", sampling_rate=44_100, ...)
    with CodeWriter("speech.ltk", header) as writer:
        for codes in blocks:                      # integers [t, K] or [groups, t, K]
            writer.write(codes)
        writer.finish(num_samples)

    with CodeReader("speech.ltk", expected_fingerprint="0123456789abcdef") as reader:
        for codes in reader.chunks():             # int32 [groups, t, K]
            ...

The same codes give the same bytes however they are cut into blocks, on every machine, in a file
and through a pipe. docs/file-format.md defines every byte. A reader refuses whatever deviates from
it, and holds one chunk at a time in memory, whatever a header claims.
"""

from tokenizer.codefile.header import FORMAT_VERSION, CodeFileError, CodeFileHeader, Source, Target
from tokenizer.codefile.reader import CodeFileInfo, CodeReader, read_codes, read_info
from tokenizer.codefile.truncate import truncate_codes
from tokenizer.codefile.writer import CodeWriter, write_codes

__all__ = [
    "FORMAT_VERSION",
    "CodeFileError",
    "CodeFileHeader",
    "CodeFileInfo",
    "CodeReader",
    "CodeWriter",
    "Source",
    "Target",
    "read_codes",
    "read_info",
    "truncate_codes",
    "write_codes",
]
