"""Corrected label maps from a file of CVAT, COCO or Label Studio; the content determines the format."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.corrections import coco, cvat, label_studio
from pipelines.corrections.archive import open_archive
from pipelines.corrections.base import MAX_BYTES, Correction, Outcome, Source, parse_json
from pipelines.datasets.splits import read_regular, refuse_irregular
from pipelines.errors import SsrError

__all__ = ["Correction", "Source", "corrections"]

_EXPECTED = "CVAT's masks (.zip) or XML, COCO's instances or Label Studio's JSON"


def corrections(source: Source) -> Iterator[Outcome]:
    """Yield the label maps of a file, one at a time.

    Raises:
        SsrError: The file cannot be read or is in an unknown format.
        UsageError: A class is not in the list, or a name is unsafe.
    """
    path = source.path
    try:
        refuse_irregular(path)
        with path.open("rb") as file:
            start = file.read(4)
        if start.startswith(b"PK"):
            yield from _of_archive(source)
            return
        if (size := path.stat().st_size) > MAX_BYTES:
            raise SsrError(f"{path}: expected at most {MAX_BYTES:,} bytes, found {size:,}", "export fewer images at a time")
        data = read_regular(path)
    except OSError as error:
        raise SsrError(f"{path}: cannot read: {error.strerror or error}") from None
    yield from _of_text(source, data)


def _of_archive(source: Source) -> Iterator[Outcome]:
    with open_archive(source.path) as archive:
        if cvat.LABELS in archive:
            yield from cvat.masks(source, archive)
            return
        texts = [name for name in archive.names() if name.lower().endswith((".json", ".xml"))]
        if not texts:
            raise SsrError(f"{source.path}: expected {_EXPECTED}, found a zip without {cvat.LABELS}, .json or .xml")
        for name in texts:
            yield from _of_text(source, archive.read(name))


def _of_text(source: Source, data: bytes) -> Iterator[Outcome]:
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return cvat.images(source, data)
    content = parse_json(data, source.path)
    if isinstance(content, list):
        return label_studio.tasks(source, content)
    if isinstance(content, dict):
        return coco.instances(source, content)
    raise SsrError(f"{source.path}: expected {_EXPECTED}, found a {type(content).__name__}")
