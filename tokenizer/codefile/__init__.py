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

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
