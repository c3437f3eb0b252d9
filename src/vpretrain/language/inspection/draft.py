"""`vpretrain init`: a recipe over data files, with templates guessed from their columns."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from vpretrain.bounds import LONGEST
from vpretrain.errors import UnknownColumns, Unreadable, UserError
from vpretrain.inspection.reading import SECONDS
from vpretrain.language.config import DesignerConfig, SourceConfig, StreamConfig
from vpretrain.language.data.encode import Document, collate, encode, encoded_problems, fitted
from vpretrain.language.data.example import Example, fields_of
from vpretrain.language.data.feedback import pairs
from vpretrain.language.data.files import data_files
from vpretrain.language.data.source import first_rows, open_source
from vpretrain.language.data.text_files import FORMAT, file_name
from vpretrain.language.data.turns import ASSISTANT, is_chat, turns_of
from vpretrain.language.inspection.inspect import legend, marked
from vpretrain.language.model.load import load_config, load_tokenizer, tokens_of
from vpretrain.modality import Draft
from vpretrain.plain import nearest, noted, quoted
from vpretrain.types import Json

# Names of columns, the likeliest first.
PROMPTS = ("question", "problem", "prompt", "instruction", "query", "input")
RESPONSES = ("answer", "solution", "response", "completion", "output", "target")
TEXTS = ("text", "content", "document", "body")
# Of the problems that roles share, by the hash of each.
SHARES = {"stream": 0.8, "feedback": 0.1, "evaluation": 0.1}
_SHOWN = 2  # examples of each role
_SHOWN_TOKENS, _SHOWN_END = 160, 40  # of an example, and those of its end among them
_STEP, _USUAL = 64, 1024  # tokens: lengths are multiples of the one, and above the other only where prompts are
_LEARNED = 16  # tokens of an answer that fit at least
_SCANNED = 2000  # rows of the stream that are looked at; further ones are searched for the other roles' problems
_MEASURED, _BEGINNING = 200, 20_000  # examples of a role that are looked at, and characters of raw text
_HELD = 0.99  # of the documents of a role fit into its length whole
_PROBLEMS = 64  # of the evaluation


@dataclass(frozen=True)
class _Role:
    """A role's source, the first of its examples, and what they are as tokens."""

    source: SourceConfig
    examples: Sequence[Example]
    documents: Sequence[Document]
    of: int  # examples before the roles that share problems were divided

    @property
    def raw(self) -> bool:
        return self.source.text is not None


def reads(stream: str) -> bool:
    """Whether a path holds text files."""
    try:
        return bool(data_files(SourceConfig(path=stream)))
    except UserError:
        return False


def draft(
    name: str, learner: str, stream: str, feedback: str, evaluation: str | None, given: Sequence[Mapping[str, str]]
) -> Draft:
    """Return a recipe with comments, and two examples of every role as the learner will see them.

    Args:
        name: of the runs.
        learner: hub name or directory.
        stream, feedback, evaluation: paths of data. Roles whose data share problems are divided by the hash of the problem;
            without an evaluation, feedback and evaluation are.
        given: templates or names of columns, each of text or of prompt and response, for the roles that have these columns.

    Raises:
        UserError: the learner or the data cannot be read, or there are too few problems.
        UnknownColumns: no columns are found that make a pair, or text.
    """
    sources = _sources(stream, feedback, feedback if evaluation is None else evaluation, given)
    # Only now: a learner may be fetched first, or converted, which a mistake in a path or a column should not wait for.
    tokenizer, config = load_tokenizer(learner), load_config(learner).get_text_config()
    examples = {role: pairs(source)[0] for role, source in sources.items() if role != "stream"}
    problems = [frozenset(example.key for example in own) for own in examples.values()]
    streamed = _of_stream(sources["stream"], problems)
    whole = _divided(sources, {"stream": streamed, **examples})
    most = getattr(config, "max_position_embeddings", None) or LONGEST
    read = {role: len(own) for role, own in ({"stream": streamed} | examples).items()}
    roles = {
        role: _Role(source, own, _documents(role, own, tokenizer), read[role]) for role, (source, own) in whole.items()
    }
    shown = [legend("Examples of each role"), *(text for item in roles.items() for text in _shown(*item, tokenizer))]
    shown += _within(sources)
    return Draft(_recipe(name, learner, roles, most, tokens_of(tokenizer)), shown)


def _sources(
    stream: str, feedback: str, evaluation: str, given: Sequence[Mapping[str, str]]
) -> dict[str, SourceConfig]:
    """Return the sources of all roles, with the given templates or guessed ones. Raises like `draft`."""
    paths = {"stream": stream, "feedback": feedback, "evaluation": evaluation}
    opened = {role: _opened(path, pair=role != "stream") for role, path in paths.items()}
    wrong = _wrong_name(given, [row for _, rows in opened.values() for row in rows])
    sources = {
        role: _guessed_source(source, rows, given, wrong, pair=role != "stream")
        for role, (source, rows) in opened.items()
    }
    for form in map(_form_of, given):
        if not any(form.items() <= source.model_dump(include=set(form)).items() for source in sources.values()):
            named = ", ".join(f"{setting} {quoted(template)}" for setting, template in form.items())
            raise UserError(wrong or f"{named}: no role has these columns; give others")
    _check_text(sources)
    return sources


def _check_text(sources: Mapping[str, SourceConfig]) -> None:
    """Raise UserError for a stream of raw text from a file that gives another role pairs: no parts keep them apart.

    The hash of a row is that of its problem, and of raw text that of the text, so that the same row has two hashes; unless the
    text is the problem.
    """
    stream = sources["stream"]
    for role, source in sources.items():
        if stream.text is None or role == "stream" or not _files(stream) & _files(source):
            continue
        if source.prompt is None or fields_of(stream.text) != fields_of(source.prompt):
            raise UserError(
                f"{stream.path}: as raw text it cannot be kept apart from the pairs of {role} in the same file: leave --text "
                "out (of pairs the loss is on the responses alone anyway), or give other files"
            )


def _within(sources: Mapping[str, SourceConfig]) -> list[Text]:
    """Return a remark if the stream's files are those of another role and more, which may not be meant."""
    stream = _files(sources["stream"])
    return [
        Text(f"\nstream: {sources['stream'].path} holds the files of {role}, too, so both share their problems; to keep the "
             "stream out of them, name its files alone (a pattern such as 'data/stream*.jsonl')", style="yellow")
        for role, source in sources.items()
        if _files(source) < stream
    ][:1]  # fmt: skip


def _files(source: SourceConfig) -> set[str]:
    return set(map(os.path.realpath, data_files(source)[0]))


def _wrong_name(given: Sequence[Mapping[str, str]], rows: Sequence[Json]) -> str:
    """Say which of the given templates has a column that no role's rows have; empty if there is none."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for setting, value in (item for form in given for item in form.items()):
        names = fields_of(_form_of({setting: value})[setting])
        if set(names) & set(columns):
            continue
        meant = nearest(names[0] if names else value, columns, cutoff=0.4)
        hint = f"did you mean '{meant}'? " if meant else ""
        chats = "; chats need no templates" if "messages" in (guessed_form(rows) or {}) else ""
        return f"--{setting} {quoted(value)}: no file has this column: {hint}columns: {', '.join(columns)}{chats}"
    return ""


def _opened(path: str, *, pair: bool) -> tuple[SourceConfig, list[Json]]:
    """Return the source at a path and its first rows; with `pair` all must be readable. Raises UserError."""
    source = SourceConfig(path=path)
    rows = first_rows(source, skips=not pair)
    if (field := _field_of_rows(path, rows)) is not None:
        source = source.model_copy(update={"field": field})
        rows = first_rows(source, skips=not pair)
    if not rows:
        first_rows(source)  # says why rows were skipped
        raise UserError(f"cannot load {path}: it has no row; check the file")
    return source, rows


def _guessed_source(
    source: SourceConfig, rows: Sequence[Json], given: Sequence[Mapping[str, str]], wrong: str, *, pair: bool
) -> SourceConfig:
    """Return a source with the given templates, or with templates guessed from the columns of its first rows.

    With `pair` its rows must be pairs or chats, as those of feedback and evaluation.

    Raises UnknownColumns if no columns are known; `wrong` says which of the templates is to blame, if one is.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    form = given_form(given, columns, pair=pair) or guessed_form(rows)
    for name in fields_of((form or {}).get("text", "")):
        if any(is_chat(row.get(name)) for row in rows):
            raise UserError(f"{source.path}: {name} holds chats, which need no templates: leave --text out")
    if form is None or (pair and "text" in form):
        path = str(source.path)
        wanted = "question and answer (or a chat in messages)" if pair else "text, or question and answer"
        options = "--prompt and --response" if pair else "--text, or with --prompt and --response"
        turns = _turns_of_another_form(rows)
        remedy = f"rename them, or name them with {options}" if turns is None else turns
        raise UnknownColumns(
            wrong or f"{path}: no columns such as {wanted} among {', '.join(columns)}: {remedy}", path, pair
        )
    return source.model_copy(update=form)


def _turns_of_another_form(rows: Sequence[Json]) -> str | None:
    """Return the remedy if a column holds chats without an assistant, or what looks like chats; else None."""
    for name, value in (item for row in rows for item in row.items()):
        if turns := turns_of(value):
            roles = ", ".join(dict.fromkeys(turn["role"] for turn in turns))
            return f"{name} holds chats without a turn of the assistant, whose turns the loss is on (roles: {roles})"
        if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
            return (
                f"{name} looks like a chat, whose turns have {', '.join(value[0])}: write them as role (user, assistant) and "
                "content"
            )
        if isinstance(value, str) and value.startswith("[{'"):
            return f"{name} looks like Python's text of a list: write it as JSON, with json.dumps"
    return None


def _field_of_rows(path: str, rows: Sequence[Json]) -> str | None:
    """Return the field that holds the rows of a JSON document, which is one object without any known column; or None."""
    found = FORMAT.search(file_name(path))
    if found is None or found[1] != "json" or len(rows) != 1 or guessed_form(rows) is not None:
        return None
    lists = [name for name, value in rows[0].items() if isinstance(value, list) and value]
    lists = [name for name in lists if all(isinstance(one, dict) for one in rows[0][name])]
    return lists[0] if len(lists) == 1 else None


def given_form(given: Sequence[Mapping[str, str]], columns: Collection[str], *, pair: bool) -> Json | None:
    """Return the first of the given templates that use columns which there are, raw text unless it must be a pair; or None."""
    for form in map(_form_of, given):
        if not (pair and "text" in form) and all(set(fields_of(one)) & set(columns) for one in form.values()):
            return form
    return None


def _form_of(given: Mapping[str, str]) -> Json:
    """Templates as they are, with \\n for a new line, or those of columns by their names."""
    form = {}
    for setting, value in given.items():
        end = "\n" if setting == "prompt" else ""
        form[setting] = value.replace("\\n", "\n") if "{" in value else f"{{{value}}}{end}"
    return form


def guessed_form(rows: Sequence[Json]) -> Json | None:
    """Guess templates from the columns of some rows: of a pair, of a chat, or of raw text; None if no column is known."""
    values = {name: value for row in rows for name, value in row.items() if value is not None}
    plain = {name.casefold(): name for name, value in values.items() if isinstance(value, str | int | float)}
    chats = {name.casefold(): name for name, value in values.items() if is_chat(value)}

    def first(known: Sequence[str], among: Mapping[str, str]) -> str | None:
        return next((among[name] for name in known if name in among), None)

    prompt, response, text = (first(known, plain) for known in (PROMPTS, RESPONSES, TEXTS))
    if prompt and response:
        if (prompt, response) == ("prompt", "completion"):  # of TRL: whole as they are
            return {"prompt": "{prompt}", "response": "{completion}"}
        # A line that holds only an empty field disappears.
        more = f"{{{plain['input']}}}\n" if prompt.casefold() == "instruction" and "input" in plain else ""
        return {"prompt": f"{{{prompt}}}\n{more}", "response": f"{{{response}}}"}
    if "prompt" in chats and "completion" in chats:
        return {"messages": [chats["prompt"], chats["completion"]]}
    for name in chats.values():
        if any(turn["role"] == ASSISTANT for turn in turns_of(values[name]) or ()):
            return {"messages": name}
    return {"text": f"{{{text}}}"} if text else None


def _of_stream(source: SourceConfig, problems: Sequence[Collection[str]]) -> list[Example]:
    """The first examples of a stream, and after them the first problem of each other role, as far as `check` would read."""
    opened = open_source(source.model_copy(update={"streaming": True}), skips=True).outcomes()  # as a run does
    examples: list[Example] = []
    unmet = list(problems)
    end = time.monotonic() + SECONDS
    for number, found in enumerate(opened):
        if number >= _SCANNED and (not unmet or time.monotonic() > end):
            break
        if isinstance(found, Unreadable) or found.lacks:
            continue
        still = [keys for keys in unmet if found.key not in keys]
        if number < _SCANNED or len(still) < len(unmet):
            examples.append(found)
        unmet = still
    if not examples:
        raise UserError(
            f"{source.origin}: none of its first {_SCANNED:,} rows has anything to learn from; check the fields"
        )
    return examples


def _divided(
    sources: Mapping[str, SourceConfig], examples: Mapping[str, Sequence[Example]]
) -> dict[str, tuple[SourceConfig, Sequence[Example]]]:
    """Divide roles that share problems among these by their hash. Raises UserError if that leaves a role without any."""
    keys = {role: {example.key for example in of} for role, of in examples.items()}
    sharing = [role for role in sources if any(keys[role] & keys[other] for other in sources if other != role)]
    total = sum(SHARES[role] for role in sharing)
    whole: dict[str, tuple[SourceConfig, Sequence[Example]]] = {}
    low = 0.0
    for role, source in sources.items():
        of = examples[role]
        if role in sharing:
            high = 1.0 if role == sharing[-1] else round(low + SHARES[role] / total, 2)
            part = (low, high)
            source = source.model_copy(update={"part": part})
            of = [example for example in of if example.is_in(part)]
            low = high
        if not of:
            raise UserError(
                f"{source.origin}: too few problems to be divided among {', '.join(sharing)}: give other files"
            )
        whole[role] = source, of
    return whole


def _documents(role: str, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """Encode the first examples whole, of raw text the beginning. Raises UserError for a problem that is refused."""
    if role == "evaluation":
        return encoded_problems(examples[:_PROBLEMS], tokenizer)
    some = [one if one.prompt else replace(one, response=one.response[:_BEGINNING]) for one in examples[:_MEASURED]]
    found = [fitted(one, tokenizer, LONGEST) for one in some]
    documents = [document for document in found if isinstance(document, Document)]
    if not documents:
        encode(some[0], tokenizer)  # says what is wrong with it
    return documents


def _shown(role: str, one: _Role, tokenizer: PreTrainedTokenizerBase) -> Iterator[Text]:
    part = "" if one.source.part is None else f", the part {list(one.source.part)} of its problems by their hash"
    if part and role != "stream":  # of which only the beginning was read
        part += f": {len(one.examples):,} of {one.of:,}"
    form = ", ".join(f"{key}: {value}" for key, value in _form(one.source).items())
    yield Text(f"\n{role}: {one.source.path}{part}\n  {form}")
    for document in one.documents[:_SHOWN]:
        parts = [slice(None)]
        if len(document) > _SHOWN_TOKENS:  # the end shows what the loss ends with, such as a chat's last turn
            parts = [slice(_SHOWN_TOKENS - _SHOWN_END), slice(-_SHOWN_END, None)]
        batch = collate([document], tokenizer)
        shown = [marked(batch, 0, tokenizer, part) for part in parts]
        yield Text("\n").append_text(Text(" ... ", style="yellow").join(shown))


def _form(source: SourceConfig) -> dict[str, str]:
    """How a source's rows become text, as YAML."""
    form = {key: getattr(source, key) for key in ("text", "prompt", "response", "messages")}
    return {key: quoted(value) for key, value in form.items() if value is not None}


def _length(role: _Role, most: int, *, whole: bool = False) -> int:
    """The tokens that nearly all documents fit into; at least half of the answers begin within them, and with `whole` all.

    Raises UserError if no answer begins within what the learner reads, with `whole` if one does not.
    """
    contexts, lengths = (sorted(of) for of in zip(*((one.context, len(one)) for one in role.documents), strict=True))
    needed = max(
        min(_USUAL, lengths[math.ceil(_HELD * len(lengths)) - 1]),
        contexts[-1 if whole else len(contexts) // 2] + _LEARNED,
    )
    length = min(most, _STEP * math.ceil(needed / _STEP))
    prompt = contexts[-1 if whole else 0]
    if prompt >= length:
        which = "a prompt has" if whole else "the shortest prompt has"
        raise UserError(
            f"{role.source.path}: {which} {prompt:,} tokens, of {most:,} that the learner reads: leave out what is longer, or "
            "take a learner that reads more"
        )
    return length


def _recipe(name: str, learner: str, roles: Mapping[str, _Role], most: int, tokens: int) -> str:
    stream, feedback, evaluation = (roles[role] for role in SHARES)
    row = min(most, StreamConfig.model_fields["length"].default)
    row = row if stream.raw else max(row, _length(stream, most))
    few = sorted(map(len, stream.documents))[len(stream.documents) // 10]
    lines = [
        noted(f"name: {quoted(name)}", f"runs are written to runs/{name}"),
        "learner:",
        f"  name: {quoted(learner)}",
        noted("  # precision: bf16", "on a GPU, or a CPU with bf16 instructions"),
        noted("  # lora: {r: 8, alpha: 16}", "trains adapters alone; then optimizer.lr: 2.0e-4"),
        noted("stream:", "what the learner trains on"),
        noted(f"  length: {row}", "tokens per row; several documents share one"),
        *([noted("  min_chunk: 4", "shorter pieces of text are left out")] if stream.raw and few < _LEARNED else []),
        "  sources:",
        *_source(stream.source),
        noted("feedback:", "verified examples: they steer, and are never trained on"),
        noted(f"  length: {_length(feedback, most)}", "longer ones are cut"),
        "  sources:",
        *_source(feedback.source),
        noted("budget: {minutes: 30}", "of training, for each arm"),
        noted("evaluation:", "held-out examples, measured before and after"),
        f"  length: {_length(evaluation, most, whole=True)}",
        noted(f"  problems: {_PROBLEMS}", "at most"),
        noted("  # pass_at_1_problems: 16", "of these are solved by decoding: minutes per evaluation on a CPU"),
        "  sources:",
        *_source(evaluation.source),
        noted("  retention:", "text unrelated to the feedback, in which forgetting shows"),
        "    - builtin: python-manual",
    ]
    if tokens < DesignerConfig.model_fields["top_k"].default:
        lines.append(noted(f"designer: {{top_k: {tokens}}}", "candidates per token: the whole vocabulary"))
    return "\n".join(lines) + "\n"


def _source(source: SourceConfig) -> list[str]:
    form = [f"{key}: {value}" for key, value in _form(source).items()]
    field = [] if source.field is None else [f"field: {quoted(source.field)}"]
    part = [] if source.part is None else [noted(f"part: {list(source.part)}", "by the hash of each problem")]
    first, *others = [f"path: {quoted(str(source.path))}", *field, *part, *form]
    return [f"    - {first}", *(f"      {other}" for other in others)]
