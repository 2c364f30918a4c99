"""Run our language models in lm-evaluation-harness: ``pip install 'moeut-suite[eval]'``.

    python -m runners.harness RUN --tasks blimp,piqa [--limit 100] [--json]
    python -m runners.harness RUN --tasks my_task --include-path folder/with/yaml

or, in Python,

    import lm_eval
    from runners.harness import harness_model
    from runners.scoring.language_model import load_language_model

    model = harness_model(load_language_model("runs/…/seed0"))
    lm_eval.simple_evaluate(model, tasks=["blimp", "piqa"])

Log-likelihoods are those of ``runners.scoring.likelihoods``. The harness downloads the data of its
own tasks from the Hugging Face hub; ``runners.evaluate --task`` needs no harness and reads local
files.
"""

from __future__ import annotations

from runners.process.start import begin

if __name__ == "__main__":
    begin()  # what follows takes seconds to import

import argparse
import importlib
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.scoring.continuation import Settings, continue_ids
from runners.scoring.language_model import (
    LanguageModel,
    add_tokenizer_argument,
    load_language_model,
)
from runners.scoring.likelihoods import BATCH_SIZE, Request, encode, score_requests
from runners.scoring.room import check_room, shortage
from tasks.base.command_line import DONE, Parser, bad_input_in_one_line, exit_with
from tasks.zero_shot import Likelihood

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 256
"""Tokens generated where a task does not say how many."""
MAX_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call that number; the first one given counts, as in the harness's own models."""


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"lm-evaluation-harness cannot be imported ({error}): pip install 'moeut-suite[eval]'"
        ) from error


def harness_model(
    language: LanguageModel, *, batch_size: int = BATCH_SIZE, num_repeats: int | None = None
) -> LM:
    """Return a language model as the harness wants it, an ``lm_eval.api.model.LM``.

    Args:
        language: from ``runners.scoring.language_model``.
        batch_size: continuations, or prompts, of a batch.
        num_repeats: depth; None: the model's own.

    Raises:
        ValueError: the harness is not installed.
    """
    base = _need("lm_eval.api.model").LM

    class HarnessModel(base):  # type: ignore[misc, valid-type]
        """A ``LanguageModel``; the three methods answer the harness's three kinds of requests."""

        def __init__(self) -> None:
            super().__init__()
            self._device = language.device

        def loglikelihood(
            self, requests: list[Instance], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            """Return log-likelihood, and whether it is greedy, of each (context, continuation)."""
            pairs = [encode(language.tokenizer, *request.args[:2]) for request in requests]
            # What a row of the data has in common is read once, as in our own scores.
            rows: dict[Any, list[int]] = {}
            for index, request in enumerate(requests):
                rows.setdefault(_row(request, index), []).append(index)
            questions = [[pairs[index] for index in row] for row in rows.values()]
            answers: list[Likelihood | None] = [None] * len(requests)
            for row, found in zip(rows.values(), _score(questions), strict=True):
                for index, answer in zip(row, found, strict=True):
                    answers[index] = answer
            results = []
            for request, one in zip(requests, answers, strict=True):
                assert one is not None
                results.append((one.log_likelihood, one.is_greedy))
                self.cache_hook.add_partial("loglikelihood", request.args, results[-1])
            return results

        def loglikelihood_rolling(
            self, requests: list[Instance], disable_tqdm: bool = False
        ) -> list[float]:
            """Return the log-likelihood of each whole text, each token scored once."""
            found = _score([[_whole(language, request.args[0])] for request in requests])
            results = [answer.log_likelihood for (answer,) in found]
            for request, result in zip(requests, results, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
            return results

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            """Return the continuation of each prompt, up to the first of its stop strings.

            A prompt is read whole. Where learned positions end, fewer tokens follow.

            Raises:
                ValueError: a prompt leaves no room; nothing was generated.
            """
            for notice in _check_room(language, requests):
                logger.warning(notice)
            results: list[str] = []
            for first in range(0, len(requests), batch_size):
                results += _continue(language, requests[first : first + batch_size], num_repeats)
            for request, result in zip(requests, results, strict=True):
                self.cache_hook.add_partial("generate_until", request.args, result)
            return results

    def _score(questions: Sequence[Sequence[Request]]) -> list[list[Likelihood]]:
        return score_requests(language, questions, batch_size=batch_size, num_repeats=num_repeats)

    return HarnessModel()


def _row(request: Instance, index: int) -> Any:
    """Return what the requests of one row of a task's data have in common."""
    if request.doc_id is None:
        return index
    return request.task_name, request.doc_id, request.repeats


def _whole(language: LanguageModel, text: str) -> Request:
    """Return a text after the boundary; an empty one has nothing to score."""
    if text:
        return encode(language.tokenizer, "", text)
    return Request((language.tokenizer.boundary_id or 0,), ())


def _continue(
    language: LanguageModel, requests: Sequence[Instance], num_repeats: int | None
) -> list[str]:
    results = [""] * len(requests)
    alike: dict[str, list[int]] = {}  # a batch decodes with one setting
    for index, request in enumerate(requests):
        alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
    for indices in alike.values():
        settings = dict(requests[indices[0]].args[1])
        texts = [requests[index].args[0] for index in indices]
        for index, text in zip(
            indices, _continue_alike(language, texts, settings, num_repeats), strict=True
        ):
            results[index] = text
    return results


def _continue_alike(
    language: LanguageModel,
    prompts: Sequence[str],
    settings: dict[str, Any],
    num_repeats: int | None,
) -> list[str]:
    tokenizer = language.tokenizer
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    temperature = settings.get("temperature")
    sampled = bool(settings.get("do_sample", temperature is not None)) and temperature != 0
    decoded = continue_ids(
        language,
        _prompt_ids(language, prompts),
        Settings(
            max_tokens=_max_tokens(settings),
            temperature=float(1.0 if temperature is None else temperature) if sampled else 0.0,
            top_k=settings.get("top_k") if sampled else None,
            top_p=settings.get("top_p") if sampled else None,
            repeats=num_repeats,
        ),
    )
    texts = []
    for row, length in zip(decoded.tokens.tolist(), decoded.lengths.tolist(), strict=True):
        text = tokenizer.decode(row[:length])
        for stop in filter(None, until):
            text = text.split(stop)[0]
        texts.append(text)
    return texts


def _prompt_ids(language: LanguageModel, prompts: Sequence[str]) -> list[list[int]]:
    tokenizer = language.tokenizer
    start = [] if tokenizer.boundary_id is None else [tokenizer.boundary_id]
    return [start + tokenizer.encode(prompt) for prompt in prompts]


def _max_tokens(settings: dict[str, Any]) -> int:
    given = (settings[key] for key in MAX_TOKENS_KEYS if settings.get(key) is not None)
    return int(next(given, DEFAULT_MAX_TOKENS))


def _check_room(language: LanguageModel, requests: Sequence[Instance]) -> list[str]:
    """Return what is to be said of prompts that are too long for all of their continuation.

    Raises:
        ValueError: a prompt that nothing can follow, or without any token to begin from.
    """
    alike: dict[int, list[str]] = {}
    for request in requests:
        alike.setdefault(_max_tokens(request.args[1]), []).append(request.args[0])
    notices: list[str | None] = []
    beyond = 0
    for max_tokens, prompts in alike.items():
        rows = _prompt_ids(language, prompts)
        check_room(language, rows, prompts)
        notices.append(shortage(language, rows, max_tokens))
        beyond += sum(len(row) > language.context_length for row in rows)
    if beyond:
        notices.append(
            f"{beyond} of {len(requests)} prompts are longer than the windows of "
            f"{language.context_length} tokens that the model was trained on; they are read whole"
        )
    return [notice for notice in notices if notice is not None]


# --- the command ------------------------------------------------------------------------


@bad_input_in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    library = _need("lm_eval")
    _check(options)
    language = load_language_model(options.run, tokenizer=options.tokenizer)
    model = harness_model(language, batch_size=options.batch_size, num_repeats=options.repeats)
    manager = _task_manager(options.include_path)
    names = [name for name in options.tasks.split(",") if name]
    found = {name: manager.match_tasks([name]) for name in names}
    unknown = [name for name in names if not found[name]]
    if unknown:
        raise ValueError(f"--tasks {','.join(unknown)}: not among the harness's tasks")
    names = list(dict.fromkeys(itertools.chain.from_iterable(found.values())))
    results = library.simple_evaluate(model, tasks=names, limit=options.limit, task_manager=manager)
    if options.json:
        print(json.dumps({"results": results["results"]}, indent=1, default=str))
    else:
        make_table = _need("lm_eval.utils").make_table
        print(make_table(results))
        if "groups" in results:
            print(make_table(results, "groups"))
    return DONE


def _task_manager(include_path: Path | None) -> Any:
    """Return the harness's finder of tasks, which answers unreadable ones with one line."""
    base = _need("lm_eval.tasks").TaskManager

    class Manager(base):  # type: ignore[misc, valid-type]
        """Says in one line which task cannot be read."""

        def load(self, task_list: Sequence[str]) -> Any:
            try:
                return super().load(list(task_list))
            except Exception:  # whatever datasets and Jinja raise
                for name in task_list:
                    self._load_alone(name)
                raise

        def _load_alone(self, name: str) -> None:
            """Raise ValueError if this task is one that cannot be read."""
            try:
                super().load([name])
            except Exception as error:
                place = getattr(self.task_index.get(name), "yaml_path", None) or "of the harness"
                reasons = _reasons(error)
                raise ValueError(f"--tasks {name} ({place}): cannot be read: {reasons}") from error

    return Manager(include_path=None if include_path is None else str(include_path))


def _reasons(error: BaseException | None) -> str:
    """Return what an error says, and what those say that it came from."""
    texts: list[str] = []
    while error is not None:
        text = str(error) or type(error).__name__
        if not any(text in other for other in texts):
            texts.append(text)
        error = error.__cause__ or error.__context__
    return ": ".join(texts)


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError for an option that is out of range."""
    for name in ("limit", "batch_size"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise ValueError(f"--{name.replace('_', '-')} {number}: must be at least 1")
    if options.include_path is not None and not options.include_path.is_dir():
        raise ValueError(f"--include-path {options.include_path}: no such folder")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m runners.harness",
        description="Evaluate a language model with lm-evaluation-harness, which downloads the\n"
        "data of its own tasks; runners.evaluate --task reads local files and needs no harness.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run, one of its checkpoints, or a .ckpt file"
    )
    parser.add_argument(
        "--tasks", required=True, metavar="NAMES", help="tasks of the harness, as blimp,piqa"
    )
    parser.add_argument(
        "--include-path", type=Path, metavar="DIR", help="folder with tasks of your own (YAML)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows of each task")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help=f"continuations read at once ({BATCH_SIZE})",
    )
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="depth, instead of the model's own"
    )
    add_tokenizer_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the harness's results as JSON")
    return parser


if __name__ == "__main__":
    exit_with(main)
