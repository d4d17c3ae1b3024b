"""Errors for users' mistakes and bad files, and notices."""


class Error(Exception):
    """A user's mistake or a bad file: one line that says what is wrong, with which file, and what to do.

    The command line prints the line and exits with 1, without a traceback.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ImageError(Error):
    """An image that can't be read, or a file that isn't an image."""


class ModelError(Error):
    """A model file that can't be read, isn't a VGG network, or doesn't support the request."""


class Notice(UserWarning):
    """Information about work that succeeded: an assumption, or a format that was expanded."""


def printable(text: str) -> str:
    """Text on one line: control characters, line breaks and bytes that are not UTF-8 are escaped, as in Python's source.

    Names of files and names in broken files may hold any characters.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def utf8(text: str) -> str:
    """Text that any file can hold: a byte of a name that is not UTF-8 becomes `\\udc80` to `\\udcff`."""
    return text.encode(errors="backslashreplace").decode()


def counted(count: int, noun: str) -> str:
    """A number and what it counts: `1 image`, `2,500 images`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def one_line(text: object) -> str:
    """Another library's error message on one line, without control characters, cut after 300 characters.

    Some messages quote the broken file, zipfile's up to 64 KiB of it.
    """
    text = str(text)
    start = " ".join("".join(letter if letter.isprintable() else " " for letter in text[:300]).split())
    return start if len(text) <= 300 else f"{start}…"
