"""A place in a Markdown file that a command fills: what is between `<!-- begin NAME -->` and `<!-- end NAME -->`."""

from pathlib import Path

from errors import ConfigError


def put_into(path: Path, name: str, text: str) -> None:
    """Replace what is there. Raises ConfigError when the file has no such place."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    try:
        before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_begin or not found_end:
            raise ConfigError(f"--into {path}: has no place for it, which is between {begin} and {end}")
        path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--into {path}: {error.strerror}") from None
