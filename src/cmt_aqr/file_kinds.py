"""Recognises by its first bytes what a file is that should hold weights and does not."""

import codecs
import json
import tarfile
import zipfile
from pathlib import Path

_HEAD = 1024
"""Bytes that are inspected."""

_LARGEST_HEADER = 100_000_000
"""Bytes, the limit of the safetensors format."""

_AGAIN = "download or copy the weights again"

_SIGNATURES = (
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a rar archive: unpack it first"),
    (b"\x89PNG", f"a PNG picture: {_AGAIN}"),
    (b"\xff\xd8\xff", f"a JPEG picture: {_AGAIN}"),
    (b"GIF8", f"a GIF picture: {_AGAIN}"),
    (b"%PDF", f"a PDF document: {_AGAIN}"),
    (b"\x7fELF", f"a program: {_AGAIN}"),
    (b"\x89HDF", "an HDF5 file, of Keras say, and not of PyTorch: save its tensors with torch.save"),
    (b"\x93NUMPY", "a NumPy array: save tensors by name with torch.save"),
    (b"GGUF", "a GGUF file, of a language model"),
)
"""First bytes of files that are no weights, what the files are, and what to do."""


def is_safetensors(path: Path) -> bool:
    """Whether a file has the header of safetensors: its length in eight bytes, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
        length = int.from_bytes(head[:8], "little")
        if head[8:] != b"{" or length > _LARGEST_HEADER or length + 8 > path.stat().st_size:
            return False
        file.seek(8)
        header = file.read(length)
    try:
        return isinstance(json.loads(header), dict)
    except ValueError:
        return False


def other_file(path: Path) -> str | None:
    """What a file is, and what to do, if it holds neither safetensors nor the output of ``torch.save``.

    Returns:
        The end of a sentence that begins with the path and "is"; ``None`` if the file may hold weights, intact or
        damaged.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head.strip():
        return f"damaged: it is empty; {_AGAIN}"
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        return _other_archive(path)
    if tarfile.is_tarfile(path):
        return "a tar archive: unpack it, and name the file of weights in it"
    text = _text(head)
    return None if text is None else _other_text(text)


def _other_archive(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = [Path(name) for name in archive.namelist()]
    if any(name.name == "constants.pkl" for name in names):
        return "a TorchScript program, which could run code: save the state_dict of its model with torch.save"
    if any(name.name == "data.pkl" for name in names):
        return None
    if names and all(name.suffix == ".npy" for name in names):
        return "an archive of NumPy arrays: save them as tensors by name with torch.save"
    return "a zip archive without a checkpoint of PyTorch: unpack it, and name the file of weights in it"


def _text(head: bytes) -> str | None:
    """The bytes as text, if they are text; UTF-16 has a mark, or zeros between English letters."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in head[:2]:
        encoding = "utf-16-be" if head.startswith(b"\0") else "utf-16-le"
    elif head.lstrip()[:2].lower() in (b"<!", b"<h", b"<?"):
        encoding = "latin-1"  # takes any byte; the first characters are enough to recognise a page
    else:
        encoding = "utf-8-sig"
    try:
        # Incrementally, because the bytes may end in the middle of a character.
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character.isspace() for character in text) else None


def _other_text(text: str) -> str:
    start = text.lstrip("\ufeff \t\r\n")
    if start.startswith("<"):
        return f"a web page (a log-in or an error page that a download was answered with, say): {_AGAIN}"
    if start.startswith("version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself: run git lfs pull"
    if start.startswith(("{", "[")):
        return f"a text in JSON: {_AGAIN}"
    return f'a text that begins with "{" ".join(start.split())[:40]}": {_AGAIN}'
