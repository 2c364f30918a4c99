"""Tokenise a corpus and pack it for training: the way to read one of the Hugging Face hub.

    python -m tasks.prepare                                       the standard library, BPE
    python -m tasks.prepare corpus=files files=book.txt documents=paragraphs vocabulary_size=4000
    python -m tasks.prepare corpus=files files='["text/", "more/*.jsonl.zst"]' tokenizer=bytes
    python -m tasks.prepare corpus=c4 train_tokens=6000000000 --workers 16

The options are those of the task ``language``; give the same to a run, which then finds the data.
A corpus that lies on this machine is also packed by the first run that needs it. Packed text stays
in the cache (MOEUT_CACHE names another folder). After a stop the same command goes on; neither that
nor the number of workers changes a byte. Look at it with ``python -m tasks.show
language`` and the same options.
"""

from __future__ import annotations

import logging
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from tasks.base import options
from tasks.base.command_line import Parser, run
from tasks.base.console import make_console
from tasks.language.corpora import CORPORA
from tasks.language.shards import check_files
from tasks.language.task import Language
from tasks.menu import describe_options
from tasks.show import show_text


def describe_corpora() -> str:
    """Return the values of ``corpus``, and who decides which documents each holds out."""
    return "\n".join(
        f"  {name}: {entry.summary}\n      divided by {entry.fixes_splits}"
        for name, entry in CORPORA.items()
    )


def main(words: Sequence[str] | None = None) -> None:
    """Prepare as the command line says.

    Raises:
        ValueError: a wrong option, or a corpus that is empty or cannot be read.
        OSError: the cache cannot be written to.
    """
    parser = Parser(
        prog="python -m tasks.prepare",
        description=__doc__,
        epilog=f"corpora:\n\n{describe_corpora()}\n\noptions:\n\n{describe_options(Language, 2)}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("options", nargs="*", metavar="option=value", help="see below")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that pack; default: one for each core"
    )
    parser.add_argument(
        "--check", action="store_true", help="read every packed file again and compare checksums"
    )
    arguments = parser.parse_intermixed_args(words)
    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers={arguments.workers}: must be at least 1")
    task = Language(**options.parse_words("language", Language, arguments.options))
    prepared = task.prepare(workers=arguments.workers)
    read = check_files(prepared.folder, prepared.shards(), prepared.dtype, thorough=arguments.check)
    show_text(task, make_console(120), num_windows=0)
    if arguments.check:
        print(f"{read} files read: all as they were packed")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tasks").setLevel(logging.INFO)
    run(main)
