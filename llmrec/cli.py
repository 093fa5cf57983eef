"""The `llmrec` command: one verb per stage, flags from the stage's config, errors without a traceback.

torch is imported by the stage that needs it, so that `llmrec --help` answers at once. `llmrec tokenize` and `llmrec
teach` import it for their flags, which are the options of the item tokenizer and of the ranker.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import keyword
import os
import sys
import typing
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import NoReturn

from llmrec import __version__
from llmrec.configs import STAGES
from llmrec.configs.file import load_config, read_yaml
from llmrec.configs.options import Config, suggestion
from llmrec.runtime import errors, processes
from llmrec.runtime.terminal import inert, libraries_kept_quiet

CLOSED_PIPE = 128 + 13  # as a shell says of SIGPIPE, a signal that Windows does not have
# Stage -> the option that names a method, which has options of its own, and the module that knows them.
METHODS = {"tokenize": ("method", "llmrec.tokenizers.config"), "teach": ("ranker", "llmrec.baselines.config")}
EPILOG = """\
A stage prints its result on stdout, and messages and progress on stderr. After
an interruption, the same command continues. See `llmrec STAGE --help`.

exit status: 0    done
             1    an error that llmrec did not foresee, with a log
             2    the input is at fault, as one line on stderr says
             130  interrupted
             141  the reader of stdout, such as `head`, is gone"""
LIGHTER = {  # advice for a stage that runs out of memory
    "teach": "Lower batch_size, max_history or hidden.",
    "sft": "Lower micro_batch_size (the result stays the same) or max_history, or set gradient_checkpointing.",
    "alternate": "Lower batch_size or max_history, or set gradient_checkpointing.",
    "refine": "Lower batch_size (the result stays the same).",
    "dpo": "Lower micro_batch_size (the result stays the same) or negatives, or set gradient_checkpointing.",
    "grpo": "Lower micro_batch_size (the result stays the same) or num_generations, or set gradient_checkpointing.",
    "evaluate": "Lower batch_size (the result stays the same) or num_beams; exact_examples needs most.",
    "ensemble": "Lower batch_size (the result stays the same) or depth.",
    "recommend": "Lower batch_size (the result stays the same), or give a large file as --users instead of --input.",
    "embed": "Lower batch_size (the result stays the same).",
    "serve": "Lower max_batch or max_beams, or choose precision bfloat16.",
    "quickstart": "Run the stages by themselves, with a smaller micro_batch_size and batch_size, or a smaller model.",
}


class Parser(argparse.ArgumentParser):
    """Parser that reports an error on one line, without a list of all flags."""

    def error(self, message: str) -> NoReturn:
        """Print the error, and exit."""
        self.exit(2, f"{self.prog}: {inert(message)}; see `{self.prog} --help`.\n")


def build_parser(argv: Sequence[str] = ()) -> Parser:
    """Parser with the flags of every stage, and for one of METHODS those of the method that `argv` names."""
    parser = Parser(
        prog="llmrec",
        usage="llmrec STAGE [options]",
        description="Make an LLM recommend the items of a catalogue, by their semantic IDs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"llmrec {__version__}")
    verbs = parser.add_subparsers(dest="stage", prog="llmrec", metavar="STAGE", required=True)
    for stage, config in STAGES.items():
        summary = (config.__doc__ or "").strip()
        usage = f"llmrec {stage} [options]"  # a list of all flags would fill the screen, and they follow anyway
        verb = verbs.add_parser(stage, help=summary, usage=usage, description=summary, allow_abbrev=False)
        verb.add_argument("--config", help="YAML file whose keys are the options below; flags win over it.")
        verb.add_argument("--json", action="store_true", help="Print the result on stdout as one JSON object.")
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            if typing.get_origin(hints[field.name]) is not dict:
                _add_flag(verb, field, hints[field.name])
        if stage in METHODS and stage == next(iter(argv), None):  # nothing is read or loaded for the others
            _add_method_flags(verb, stage, argv)
    return parser


def _add_method_flags(verb: argparse.ArgumentParser, stage: str, argv: Sequence[str]) -> None:
    """Add the flags of the method that a command line names; none if there is no such method."""
    of_the_stage = {field.name for field in dataclasses.fields(STAGES[stage])}
    with contextlib.suppress(ValueError):  # said again when the config is loaded
        for kind in option_blocks(stage, argv).values():
            hints = typing.get_type_hints(kind)
            group = verb.add_argument_group(f"options of the {METHODS[stage][0]}", kind.__doc__)
            for field in dataclasses.fields(kind):
                if field.name not in of_the_stage:
                    _add_flag(group, field, hints[field.name])


def option_blocks(stage: str, argv: Sequence[str]) -> dict[str, type[Config]]:
    """Blocks of options that another class than that of the stage knows; loads torch for one of METHODS.

    Raises:
        ValueError: If the command line or its config file names a method that does not exist.
    """
    if stage not in METHODS:
        return {}
    key, module = METHODS[stage]
    return importlib.import_module(module).option_blocks(named_value(argv, key))


def named_value(argv: Sequence[str], key: str) -> str | None:
    """Text that a command line, or its config file, gives for the option `key`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in (key, "config"):
        parser.add_argument(f"--{name}", nargs="?")
    flags = vars(parser.parse_known_args(argv)[0])
    try:
        method = flags[key] or (read_yaml(flags["config"]).get(key) if flags["config"] else None)
    except ValueError:  # said again when the config is loaded
        method = None
    return method if isinstance(method, str) else None  # so is any other kind of value


def _add_flag(verb: argparse._ActionsContainer, field: dataclasses.Field, hint: object) -> None:
    is_list = "list[" in str(hint)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    required = default is dataclasses.MISSING
    shown = " ".join(map(str, default)) if isinstance(default, list) else default  # as the flag takes it
    note = " Required." if required else "" if default in (None, []) else f" Default: {shown}."
    choices = ("true", "false") if hint is bool else _choices(hint)
    names = ["--" + field.name.replace("_", "-")] + ([f"-{field.name}"] if len(field.name) == 1 else [])
    verb.add_argument(
        *names,
        dest=field.name,
        default=argparse.SUPPRESS,
        nargs="*" if is_list else "?" if hint is bool else None,
        const="true" if hint is bool else None,
        metavar=f"{{{','.join(choices)}}}" if choices else field.name.upper(),
        help=(field.metadata["help"] + note).replace("%", "%%"),
    )


def _choices(hint: object) -> tuple[str, ...]:
    kinds = (hint, *typing.get_args(hint))  # an optional choice is a union
    return next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is typing.Literal), ())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage, and print its result on stdout.

    Args:
        argv: Command line without the program's name; that of the process by default.

    Returns:
        Exit status: 0; 2 after one line on stderr if the input is at fault; 130 after an interrupt; 141 if the reader
        of stdout is gone; 1 after an error that llmrec did not foresee, whose traceback is put into a file.
    """
    argv = sys.argv[1:] if argv is None else argv
    stage = argv[0] if argv and argv[0] in STAGES else ""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a title may have letters that the terminal lacks
    try:
        try:
            run(argv)
        finally:
            sys.stdout.flush()  # also what argparse has printed before it exits
        return 0
    except BrokenPipeError:  # the reader (`| head`) has seen enough; nor may the flush at exit complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the terminal has written ^C
        complain(stage, "interrupted; run the same command again to continue.")
        return 130
    except BaseException as error:  # a panic of polars is no Exception
        if isinstance(error, SystemExit) or os.environ.get("LLMREC_TRACEBACK"):
            raise
        lighter = LIGHTER.get(stage, "Use a machine with more memory.")
        status, text = errors.explain(error, argv, named_value(argv, "out"), lighter)
        complain(stage, text)
        return status


def run(argv: Sequence[str]) -> None:
    """Run the stage that a command line names.

    Raises:
        ValueError: If there is no such stage, or its options are wrong.
    """
    if not argv:
        build_parser().print_help(sys.stderr)
        raise SystemExit(2)
    if not argv[0].startswith("-") and argv[0] not in STAGES:
        raise ValueError(f"there is no stage '{argv[0]}'; {suggestion(argv[0], STAGES)} `llmrec --help` explains all.")
    known, unknown = build_parser(argv).parse_known_args(argv)
    flags = vars(known)
    stage, path, as_json = flags.pop("stage"), flags.pop("config"), flags.pop("json")
    if processes.is_cut_to_one():
        print("accelerate started one process; for several on the CPU, give --multi_gpu, not --cpu.", file=sys.stderr)
    blocks = option_blocks(stage, argv)
    keys = {field.name for kind in (STAGES[stage], *blocks.values()) for field in dataclasses.fields(kind)}
    given = flags | unknown_flags(stage, unknown, keys - blocks.keys())
    config = load_config(STAGES[stage], path, given, blocks)
    with libraries_kept_quiet():
        module = module_of(stage)
        result = module.main(config)
    if not processes.is_main():
        return
    if as_json:
        print(json.dumps(result, indent=2, default=str))
    else:
        module.show(result)


def module_of(stage: str) -> ModuleType:
    """Import the module of a stage; that of `import`, a word of Python, has an underscore behind its name."""
    return importlib.import_module(f"llmrec.stages.{stage}" + "_" * keyword.iskeyword(stage))


def complain(stage: str, text: str) -> None:
    """Print what is wrong on stderr."""
    print(" ".join(["llmrec", stage]).rstrip() + f": {text}", file=sys.stderr)


def unknown_flags(stage: str, arguments: list[str], known: Collection[str] = ()) -> dict[str, None]:
    """Collect the names of flags that the parser does not know; `load_config` refuses them with all other problems.

    Args:
        stage: Name of the stage.
        arguments: What the parser left over.
        known: Keys of the stage and its blocks.

    Raises:
        ValueError: If a value stands where a flag is expected, or if a flag of a known key is not spelled as a flag.
    """
    if arguments and not arguments[0].startswith("-"):
        raise ValueError(f"unexpected argument '{arguments[0]}'; see `llmrec {stage} --help`.")
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    keys = {flag: flag.lstrip("-").replace("-", "_") for flag in flags}
    # Their values would be lost: `--k_core 3` is not the flag --k-core, though k_core is a key that exists.
    misspelled = [flag for flag, key in keys.items() if key in known and flag != f"--{key.replace('_', '-')}"]
    if misspelled:
        spelled = ", ".join(f"--{keys[flag].replace('_', '-')} for {flag}" for flag in misspelled)
        raise ValueError(f"a flag has two hyphens in front and hyphens within; write {spelled}.")
    return dict.fromkeys(keys.values())
