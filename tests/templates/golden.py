#!/usr/bin/env python3
"""Renders chat templates with Python's jinja2, as Hugging Face's transformers does, and writes down what comes out.

    tests/templates/golden.py                    # writes golden.json for corpus/*.jinja
    tests/templates/golden.py --check            # says whether golden.json is what jinja2 makes now
    tests/templates/golden.py --folder DIR       # the same for other templates: DIR/*.jinja into DIR/golden.json

The templates in corpus/ are ours, written after the ways of real models. Real ones belong to their makers: llama.cpp's
source brings a collection in models/templates, and `HEARTH_TEMPLATES=DIR cargo nextest run -p node-agent templates` holds
the agent to DIR/golden.json instead of ours.

What the agent does to messages before a template sees them is done here too, in Python, so that both are checked: content
is always text, arguments are objects, Gemma 4 gets results within the turn that called, and a template that knows no tools
gets them as text. Each golden is the prompt, or null where the template refuses the conversation.
"""

import argparse
import copy
import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent
EPOCH = datetime.datetime(1970, 1, 1)


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks text for training and changes nothing."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = EPOCH.strftime
    return env


def text_of(content):
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content)


def arguments_of(text):
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def plain(message):
    """A message as templates expect it, its fields in the order in which the agent writes them."""
    out = {"role": message["role"], "content": text_of(message["content"])}
    if "reasoning_content" in message:
        out["reasoning_content"] = message["reasoning_content"]
    if "tool_calls" in message:
        out["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {
                "name": call["function"]["name"], "arguments": arguments_of(call["function"]["arguments"])}}
            for call in message["tool_calls"]]
    if "tool_call_id" in message:
        out["tool_call_id"] = message["tool_call_id"]
    return out


def folded(messages):
    """Gemma 4: results, and the answer to them, within the turn that called."""
    out, turn = [], None
    for message in messages:
        if turn is not None and message["role"] == "tool":
            responses = turn.setdefault("tool_responses", [])
            calls = turn["tool_calls"]
            named = [call for call in calls if call["id"] == message["tool_call_id"]]
            call = named[0] if named else calls[min(len(responses), len(calls) - 1)]
            try:
                response = json.loads(message["content"])
            except ValueError:
                response = message["content"]
            responses.append({"name": call["function"]["name"], "response": response})
            continue
        calls = message.get("tool_calls")
        answers = message["role"] == "assistant" and not calls and message["content"]
        if turn is not None and "tool_responses" in turn and answers and not turn["content"]:
            turn["content"] = message["content"]
            turn = None
            continue
        turn = message if message["role"] == "assistant" and calls else None
        out.append(message)
    return out


def described(messages, tools):
    """For templates that know no tools: all about them as text."""
    out = []
    for message in messages:
        if message["role"] == "tool":
            out.append({"role": "user", "content": f"<tool_response>\n{text_of(message['content'])}\n</tool_response>"})
        elif message.get("tool_calls"):
            said = [text_of(message["content"])] if text_of(message["content"]) else []
            for call in message["tool_calls"]:
                function = call["function"]
                said.append("<tool_call>\n{\"name\": %s, \"arguments\": %s}\n</tool_call>"
                            % (json.dumps(function["name"]), function["arguments"]))
            out.append({"role": "assistant", "content": "\n".join(said)})
        else:
            out.append(message)
    if tools:
        lines = "".join(json.dumps(tool, ensure_ascii=False, separators=(",", ":")) + "\n" for tool in tools)
        text = ("You may call one or more functions to help the user. The functions, one a line:\n<tools>\n" + lines
                + "</tools>\nTo call a function, answer with a JSON object between these tags:\n<tool_call>\n"
                + "{\"name\": <function-name>, \"arguments\": <arguments>}\n</tool_call>")
        if out[0]["role"] == "system":
            out[0] = {**out[0], "content": text_of(out[0]["content"]) + "\n\n" + text}
        else:
            out.insert(0, {"role": "system", "content": text})
    return out


def prompt(env, source, conversation, tools, generate):
    messages = copy.deepcopy(conversation["messages"])
    tools = tools.get(conversation.get("tools"), [])
    if "tools" not in source:
        messages, tools = described(messages, tools), []
    messages = [plain(message) for message in messages]
    if "tool_responses" in source:
        messages = folded(messages)
    variables = {
        **conversation.get("chat_template_kwargs", {}),
        "messages": messages, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": generate,
        **({"tools": tools} if tools else {}),
    }
    try:
        text = env.from_string(source).render(**variables)
    except Exception:  # whatever a template does wrong is a refusal
        return None
    if generate and "tool_responses" in source and text.endswith("<turn|>\n"):
        text += "<|turn>model\n"
    return text


def rendered(folder):
    conversations = json.loads((HERE / "conversations.json").read_text())
    tools = json.loads((HERE / "tools.json").read_text())
    env = environment()
    found = {}
    for file in sorted(folder.glob("*.jinja")):
        source = file.read_text()
        found[file.name] = {
            "prompts": {name: prompt(env, source, talk, tools, True) for name, talk in conversations.items()},
            # without the place where the model speaks, for what is already complete
            "complete": {name: prompt(env, source, conversations[name], tools, False) for name in ("system", "answered")},
        }
    return found


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true")
    options.add_argument("--folder", type=pathlib.Path)
    options = options.parse_args()
    folder, golden = HERE / "corpus", HERE / "golden.json"
    if options.folder:
        folder, golden = options.folder, options.folder / "golden.json"
    text = json.dumps(rendered(folder), ensure_ascii=False, indent=1) + "\n"
    if not options.check:
        golden.write_text(text)
        return
    if golden.read_text() != text:
        sys.exit(f"{golden} is not what jinja2 {jinja2.__version__} makes: run {sys.argv[0]} and look at the difference")
    print(f"{sum(len(kind) for one in json.loads(text).values() for kind in one.values())} passed")


if __name__ == "__main__":
    main()
