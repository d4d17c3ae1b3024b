"""Files and folders that systems and programs leave between images. At no depth are they images or classes."""

# In any case of letters: of macOS's archives and shared folders; Windows; network storage by Synology and QNAP; Linux's file
# systems; Python.
NAMES = frozenset((
    "__macosx", "icon\r", "network trash folder", "temporary items", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin",
    "recycler", "recycled", "system volume information", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",
    "lost+found", "__pycache__",
))  # fmt: skip


def is_ignored(name: str) -> bool:
    """Whether the name of a file or folder is hidden, such as `.git`, `.ipynb_checkpoints` or `._1.jpg`, or one of `NAMES`."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in NAMES


def is_within_ignored(path: str) -> bool:
    """Whether a part of a path with slashes is ignored."""
    return any(map(is_ignored, path.split("/")))
