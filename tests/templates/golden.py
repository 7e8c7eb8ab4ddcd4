#!/usr/bin/env python3
"""Renders chat templates with Python's jinja2, as Hugging Face does, and writes what comes out.

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36   # carries llama.cpp's collection of templates
    tests/templates/golden.py <folder of *.jinja> > tests/templates/golden.json

For each template its SHA-256 and, for each conversation of conversations.json, the SHA-256 of the prompt, or null where
the template refuses the conversation. The templates belong to their models' makers and are not kept here; the test
`real_templates_render_as_in_python` reads them from the folder named by HEARTH_TEMPLATES. --text FILE ALSO prints prompts.
"""

import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


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
    epoch = datetime.datetime(1970, 1, 1)
    env.globals["strftime_now"] = epoch.strftime
    return env


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def main():
    folder = pathlib.Path(sys.argv[1])
    here = pathlib.Path(__file__).parent
    conversations = json.loads((here / "conversations.json").read_text())
    env = environment()
    found = {}
    for file in sorted(folder.glob("*.jinja")):
        source = file.read_text()
        prompts = {}
        for name, variables in conversations.items():
            variables = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True, **variables}
            try:
                text = env.from_string(source).render(**variables)
                prompts[name] = digest(text)
                if len(sys.argv) > 3 and sys.argv[2] == "--text":
                    out = pathlib.Path(sys.argv[3])
                    out.mkdir(parents=True, exist_ok=True)
                    (out / f"{file.stem}.{name}.txt").write_text(text)
            except Exception:  # whatever a template does wrong is a refusal
                prompts[name] = None
        found[file.name] = {"sha256": digest(source), "prompts": prompts}
    json.dump(found, sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
