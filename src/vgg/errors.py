"""What can go wrong through no fault of ours, and what is worth a remark though nothing went wrong."""


class Error(Exception):
    """A user's mistake or a bad file: one line that says what is wrong, with which file, and what to do.

    The command line prints the line and exits with 1; it never shows a traceback for one of these.
    """

    def __str__(self) -> str:
        # Names out of a broken file may hold anything; the message stays one line all the same.
        return "".join(letter if letter.isprintable() else " " for letter in super().__str__())


class ImageError(Error):
    """A picture that can't be read, or isn't one."""


class ModelError(Error):
    """A model file that can't be read, isn't a VGG network, or doesn't fit what is asked of it."""


class Notice(UserWarning):
    """Something that went well but that the user should know: a guess that was made, a format that was expanded."""


def one_line(text: object) -> str:
    """What an error of somebody else's says, on one line and without what a terminal would take for a command."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
