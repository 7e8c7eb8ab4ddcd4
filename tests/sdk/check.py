"""The OpenAI Python SDK against a running Hearth: each check is a sentence; the last line counts them.

Run by tests/run.sh through `deploy/quickstart.sh --run`, which sets HEARTH_URL, HEARTH_KEY and HEARTH_CA.
"""

import os
import ssl
import sys
import time

import openai

URL, KEY, CA = (os.environ[name] for name in ("HEARTH_URL", "HEARTH_KEY", "HEARTH_CA"))
PARIS = [{"role": "user", "content": "What is the capital of France?"}]
CHECKS = []


def client(key=KEY, **options):
    attempts = []
    trusted = ssl.create_default_context(cafile=CA)
    http = openai.DefaultHttpxClient(verify=trusted, event_hooks={"request": [lambda request: attempts.append(request)]})
    made = openai.OpenAI(base_url=f"{URL}/v1", api_key=key, http_client=http, **options)
    made.attempts = attempts
    return made


def check(function):
    CHECKS.append(function)
    return function


@check
def a_question_is_answered_with_usage_and_routing():
    answer = client().chat.completions.create(model="fast", messages=PARIS, temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris.", answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model_extra["_routing"]["tier"] == "fast"


@check
def a_stream_carries_the_same_text_and_ends_with_a_finish_reason():
    chunks = list(client().chat.completions.create(model="fast", messages=PARIS, temperature=0, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The capital of France is Paris.", text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["_routing"]["tier"] == "fast"
    assert len({chunk.id for chunk in chunks}) == 1


@check
def a_stream_reports_usage_only_when_asked():
    plain = list(client().chat.completions.create(model="fast", messages=PARIS, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)
    asked = list(client().chat.completions.create(model="fast", messages=PARIS, stream=True, stream_options={"include_usage": True}))
    assert asked[-1].choices == [] and asked[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in asked[:-1])


@check
def models_are_listed_and_found_by_id():
    listed = [model.id for model in client().models.list()]
    assert {"auto", "fast", "primary", "heavy"} <= set(listed), listed
    assert client().models.retrieve("fast").id == "fast"


@check
def the_response_names_its_request_and_its_limits():
    raw = client().chat.completions.with_raw_response.create(model="fast", messages=PARIS, max_tokens=3)
    assert raw.headers["x-request-id"].startswith("req_")
    assert int(raw.headers["x-ratelimit-remaining-requests"]) >= 0
    assert raw.headers["x-routing-tier"] == "fast"
    assert raw.parse().choices[0].finish_reason == "length"


@check
def a_wrong_key_raises_authentication_error_after_one_attempt():
    stranger = client("hearth_sk_wrong")
    try:
        stranger.chat.completions.create(model="fast", messages=PARIS)
        raise AssertionError("a wrong key was let in")
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key" and error.request_id, error
    assert len(stranger.attempts) == 1


@check
def an_unknown_model_raises_not_found_and_names_the_nearest():
    try:
        client().chat.completions.create(model="fasst", messages=PARIS)
        raise AssertionError("an unknown model answered")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found" and "fast" in str(error), error


@check
def a_bad_value_raises_bad_request_and_names_the_parameter():
    try:
        client().chat.completions.create(model="fast", messages=PARIS, temperature=7)
        raise AssertionError("temperature 7 was accepted")
    except openai.BadRequestError as error:
        assert error.param == "temperature", error


@check
def a_prompt_beyond_the_context_raises_bad_request_with_the_numbers():
    try:
        client().chat.completions.create(model="fast", messages=[{"role": "user", "content": "word " * 6000}])
        raise AssertionError("a prompt beyond the context was accepted")
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded" and "2048" in str(error).replace(",", ""), error


@check
def an_aborted_stream_frees_the_connection_and_the_next_question_is_answered():
    one = client()
    with one.chat.completions.create(model="fast", messages=[{"role": "user", "content": "Tell me a short story."}], stream=True) as stream:
        next(iter(stream))
    started = time.monotonic()
    again = one.chat.completions.create(model="fast", messages=PARIS, temperature=0)
    assert again.choices[0].message.content and time.monotonic() - started < 5


@check
def a_tool_call_comes_back_as_a_tool_call():
    tools = [{"type": "function", "function": {"name": "get_weather", "description": "Get the weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    choice = client().chat.completions.create(model="fast", messages=asked, tools=tools, temperature=0).choices[0]
    assert choice.finish_reason == "tool_calls", choice
    assert choice.message.tool_calls[0].function.name == "get_weather", choice
    deltas = client().chat.completions.create(model="fast", messages=asked, tools=tools, temperature=0, stream=True)
    pieces = [call for chunk in deltas for call in (chunk.choices[0].delta.tool_calls or [])]
    assert "".join(call.function.arguments or "" for call in pieces) == choice.message.tool_calls[0].function.arguments


@check
def legacy_completions_answer_too():
    answer = client().completions.create(model="fast", prompt="Hello", max_tokens=5)
    assert answer.object == "text_completion" and answer.usage.completion_tokens <= 5


def main():
    for function in CHECKS:
        try:
            function()
        except Exception as error:  # noqa: BLE001: a check may fail in any way
            print(f"openai-python {openai.__version__}: FAILED {function.__name__}: {error!r}", file=sys.stderr)
            sys.exit(1)
    print(f"openai-python {openai.__version__}: {len(CHECKS)} passed")


main()
