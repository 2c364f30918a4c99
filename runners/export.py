"""Write a language model for Transformers: ``python -m runners.export RUN --output DIR``.

RUN is a run's directory, one of its checkpoints, or a ``.ckpt`` file of the paper's training code.
Needs the extra ``[hf]``.
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
from pathlib import Path

from runners.config.schema import ConfigError
from runners.scoring.language_model import (
    LanguageModel,
    add_model_argument,
    add_tokenizer_argument,
    load_language_model,
)
from tasks.base.command_line import DONE, Parser, bad_input_in_one_line, exit_with


def export(loaded: LanguageModel, folder: Path) -> None:
    """Write ``config.json``, the weights, and the tokenizer's file into a folder.

    ``AutoModelForCausalLM.from_pretrained(folder)`` reads it after ``import
    moeut.interop.huggingface``.
    The tokenizer's file is our own; only a ``tokenizer.json`` is one that Transformers reads.

    Raises:
        ValueError: the folder is not empty, or Transformers is not installed.
        OSError: the folder cannot be written to.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output {folder}: is there already, and is not an empty folder")
    try:
        from moeut.interop.huggingface import wrap
    except ImportError as error:
        raise ConfigError(str(error)) from error
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = wrap(loaded.model)
    # None where there is no boundary: Transformers takes every pad token in a prompt for padding.
    boundary = loaded.tokenizer.boundary_id
    wrapped.generation_config.eos_token_id = boundary
    wrapped.generation_config.pad_token_id = boundary
    wrapped.save_pretrained(folder)
    loaded.tokenizer.save(folder)


@bad_input_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = Parser(
        prog="python -m runners.export",
        description="Write a trained language model as a folder that Hugging Face Transformers\n"
        "reads: config.json, model.safetensors, and the file of its tokenizer.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""example:
  python -m runners.export runs/lm_44m/moeut-1a2b3c4d/seed0 --output my-model

read it back, where moeut is installed, with:
  import moeut.interop.huggingface                       # registers the model with Transformers
  from tasks.language.tokenizers import load_tokenizer
  from transformers import AutoModelForCausalLM
  model = AutoModelForCausalLM.from_pretrained("my-model")
  tokenizer = load_tokenizer("my-model")         # one with a boundary begins texts after it""",
    )
    add_model_argument(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write; new or empty"
    )
    add_tokenizer_argument(parser)
    options = parser.parse_args(arguments)
    loaded = load_language_model(options.model, tokenizer=options.tokenizer, device="cpu")
    export(loaded, options.output)
    written = ", ".join(sorted(file.name for file in options.output.iterdir()))
    print(f"{options.output}: {loaded.name}: {written}")
    return DONE


if __name__ == "__main__":
    exit_with(main)
