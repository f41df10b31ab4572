#!/usr/bin/env python3
"""Render chat templates with the original (Hugging Face transformers on Jinja2), for the engine's tests to compare with.

    python3 tools/chat_cases.py own OUT       templates written here, with the constructs of the families in use:
                                              crates/engine/tests/fixtures/chat
    python3 tools/chat_cases.py real OUT FILE...
                                              templates of real models (*.jinja, tokenizer_config.json or a GGUF file), for
                                              the test's COUNTDOWN_CHAT_TEMPLATES

OUT/<name>.json holds the template's `source` and `cases`: a `conversation` (messages, tools, variables), whether the
assistant's turn is opened (`prompt`), and the `text`, or null and the `error` where the original refuses. Today's date in a text is
replaced by the directives that made it, as `{%d %b %Y}`.

Pinned: transformers 5.17.0, Jinja2 3.1.6.
"""
import datetime
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TZ"] = "UTC"

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

PINNED = {"transformers": (transformers, "5.17.0"), "jinja2": (jinja2, "3.1.6")}
BOS, EOS = "<s>", "</s>"
DATES = ["%d %b %Y", "%B %d, %Y", "%Y-%m-%d", "%d %B %Y"]

user = lambda text: {"role": "user", "content": text}
assistant = lambda text, **more: {"role": "assistant", "content": text, **more}
system = lambda text: {"role": "system", "content": text}
call = lambda name, arguments, **more: {"type": "function", "function": {"name": name, "arguments": arguments}, **more}

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather of a \"place\" <now> & later",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "City, e.g. Zürich"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}, "days": {"type": "integer", "default": 1.5}}, "required": ["place"]}}},
    {"type": "function", "function": {"name": "now", "description": "The time\nof day.", "parameters": {"type": "object", "properties": {}}}},
]
QUESTION = [user("What's the weather in Zürich?")]
CALL = assistant("", tool_calls=[call("get_weather", {"place": "Zürich", "days": 2, "x": [1, 2.5, None, True]}, id="abcdef123")])
RESULT = {"role": "tool", "content": "{\"celsius\": 12.5}", "name": "get_weather", "tool_call_id": "abcdef123"}
TWO_CALLS = {"role": "assistant", "tool_calls": [call("get_weather", {"place": "Rome"}, id="abcdef124"), call("now", {}, id="abcdef125")]}
RESULTS = [{**RESULT, "tool_call_id": "abcdef124"}, {"role": "tool", "name": "now", "content": "12:00", "tool_call_id": "abcdef125"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Part one."}, {"type": "text", "text": " Part two. "}]}]

CONVERSATIONS = [
    {"messages": [user("Hi")]},
    {"messages": [system("Be brief."), user("Hi")]},
    {"messages": [system(" Be\nbrief. \n"), user(" 2 < 3 & \"x\" ? \n"), assistant("\n Yes. "), user("Why?")]},
    {"messages": [user("Hi"), assistant("Hello!"), user("Bye"), assistant("Bye, 'friend' é😀.")]},
    {"messages": [user("One"), user("Two")]},
    {"messages": [assistant("I begin."), user("Go on")]},
    {"messages": [user("Think"), assistant("<think>\nhmm\n</think>\n\nDone."), user("Again")]},
    {"messages": [user("Think"), assistant("Done.", reasoning_content="hmm"), user("Again"), assistant("<think>\nlast\n</think>\n\nEnd.")]},
    {"messages": [user("Think")], "variables": {"enable_thinking": False}},
    {"messages": [system("/no_think Be kind."), user("Hi")], "variables": {"enable_thinking": True}},
    {"messages": [system(""), user("")]},
    {"messages": PARTS},
    {"messages": QUESTION, "tools": TOOLS},
    {"messages": [system("Use tools."), *QUESTION], "tools": TOOLS},
    {"messages": [*QUESTION, CALL, RESULT], "tools": TOOLS},
    {"messages": [*QUESTION, CALL, RESULT, assistant("12.5 degrees.")], "tools": TOOLS},
    {"messages": [system("Use tools."), *QUESTION, CALL, RESULT, assistant("12.5 degrees."), user("And Rome?"), TWO_CALLS, *RESULTS], "tools": TOOLS},
    {"messages": [*QUESTION, CALL, RESULT]},
    {"messages": [*QUESTION, {**CALL, "content": "Let me see."}, {**RESULT, "content": {"celsius": [12.5, None, True, "it's"]}}], "tools": TOOLS},
    {"messages": [user("Hi")], "variables": {"date_string": "26 Jul 2024", "tools_in_user_message": False, "documents": None, "thinking": True}},
]

# Written for these tests: what real templates do, in other words.
OWN = {
    "chatml-tools": r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- "You may call:\n<tools>" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- endif %}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}{%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' }}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thoughts)) %}{{- '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' }}{%- endif %}
        {{- content.lstrip('\n') }}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<r>\n' }}{{- content }}{{- '\n</r>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}""",
    "headers-dates": r"""{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|h|>system<|/h|>\n\n" }}
{%- if tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
{{- "Today: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {%- else %}{{- raise_exception("No first user message!") }}{%- endif %}
    {{- '<|h|>user<|/h|>\n\n' -}}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}
    {{- first + "<|eot|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|h|>' + message['role'] + '<|/h|>\n\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("Only single tool-calls!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|h|>assistant<|/h|>\n\n' -}}{{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|h|>ipython<|/h|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\n\n' }}{%- endif %}
""",
    "inst-alternating": r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}{{- raise_exception("Roles must alternate: " + message["role"]) }}{%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}{{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}{%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}{{- raise_exception("Bad id") }}{%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}{%- set content = message.content.content %}{%- else %}{%- set content = message.content %}{%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}{{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception("Unknown role " + message.role) }}{%- endif %}
{%- endfor %}
""",
    "turns-parts": r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set prefix = messages[0]['content'] + '

' -%}{%- else -%}{%- set prefix = messages[0]['content'][0]['text'] + '

' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception("Conversation roles must alternate") }}{%- endif -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<turn>' + role + '
' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '</turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model
' }}{%- endif -%}
""",
    "lines-trimmed": r"""{% for message in messages %}
    {% if message['role'] == 'system' and message['content'] %}
{{'<|system|>
' + message['content'] + '<|end|>
'}}
    {% elif message['role'] == 'user' %}
{{'<|user|>
' + message['content'] | string + '<|end|>
'}}
    {% elif message['role'] == 'assistant' %}
{% generation %}
{{'<|assistant|>
' + (message['content'] or '') + '<|end|>
'}}
{% endgeneration %}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}
""",
    "python": r"""{%- macro schema(spec, depth=0) -%}
    {%- for key, value in spec | dictsort %}{{ '  ' * depth }}{{ key }}: {% if value is mapping %}{{ '\n' ~ schema(value, depth + 1) }}{% else %}{{ value }}{{ '\n' }}{% endif %}{%- endfor %}
{%- endmacro -%}
{%- set names = [] -%}
{%- for tool in tools or [] %}{%- set _ = tool.function.name %}{{ loop.index }}/{{ loop.length }} {{ schema(tool.function) }}{%- endfor -%}
{{ messages[0] }}|{{ messages | length }}|{{ messages | map(attribute='role') | join(', ') }}|{{ (messages | last).role | upper }}
{%- for message in messages if message.role != 'system' %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
    {%- if message.content is none or message.content is not string %}{{ '\n?' ~ message.role }}{% continue %}{% endif %}
{{ loop.index0 }} {{ loop.revindex }} {{ message.get('name', 'nobody') }} {{ message.role.title() }} {{ message.content.split() | length }} {{ message.content | tojson(ensure_ascii=true) }} {{ message.content[:3] | replace('i', 'I') | trim }} {{ loop.previtem.role if loop.previtem is defined else '^' }} {{ loop.cycle('a', 'b') }}
{%- endfor %}{% for message in messages if message.role == 'nobody' %}{{ message }}{% else %}none{% endfor %}
{{ [1, 2.0, 1e-7, 1e16, none, true, 'it\'s', "say \"x\"", 'a\n\té\u200b'] }} {{ {'a': [], 'b': {}} }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }} {{ 7 / 2 }} {{ -3 | abs }}
{{ {'b': 1, 'a': [1, {'c': 2}]} | tojson(indent=2, sort_keys=true) }} {{ {'x': 'é<&>'} | tojson(separators=(',', ':')) }} {{ 1e22 | tojson }} {{ '' is sequence }} {{ messages is sequence }} {{ messages[0] is mapping }} {{ 3 is number }} {{ undefined_thing | default('d') }} {{ 'b' in {'b': 1} }}
{{- ' %s' | format('f') }} {{ 'a-b-c'.rsplit('-', 1) | first }} {{ 'a-b-c'.rsplit('-') | join }} {{ 'a-b'.removeprefix('a-') ~ 'a-b'.removesuffix('b') ~ 'a-b'.removeprefix('b') }} {{ 'a,b,c'.partition(',')[2] }} {{ 'a,b,c'.rpartition(',')[2] }} {{ 'abc'.partition('x')[0] }} {{ messages[0] | trim }} {{ [1e-7] | trim }} {{ 'xxax' | trim('x') }} {{ '%02d' | format(5) }} {{ 'x'.join(['1', '2']) }} {{ 'abc'.find('c') }} {{ ' pad '.lstrip() ~ '|' }} {{ ['b', 'a'] | sort | join }} {{ [3, 1] | min }} {{ messages | selectattr('role', 'in', ['user']) | list | length }} {{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | list }}
{%- set ns = namespace(n=0) %}{% for i in range(2, 8, 3) %}{% set ns.n = ns.n + i %}{% endfor %} {{ ns.n }} {{ '{}:{}'.format(1, 'x') }} {{ 'Ab'.lower() }} {{ 'a,b'.partition(',')[2] if false else 'p' }} {{ strftime_now('%Y-%m-%d') }}
{%- if add_generation_prompt %} go{% endif %}""",
}


def rendered(source, conversation, prompt):
    tools = conversation.get("tools")
    try:
        [text], _ = render_jinja_template([conversation["messages"]], tools=tools, documents=None, chat_template=source, add_generation_prompt=prompt,
                                          **{"bos_token": BOS, "eos_token": EOS, **{k: v for k, v in conversation.get("variables", {}).items() if k != "documents"}})
    except Exception as e:  # what a template raises, and what Python does inside it
        return None, f"{type(e).__name__}: {e}"
    if "&#34;" in text or "&lt;" in text:
        # Jinja2 escapes for HTML what is added to a text that the template calls safe: a mistake of the template.
        return None, "Markup: escaped for HTML"
    for directives in DATES:
        text = text.replace(datetime.datetime.now().strftime(directives), "{" + directives + "}")
    return text, None


def write(out, name, source):
    cases, refused = [], []
    for i, conversation in enumerate(CONVERSATIONS):
        for prompt in [True, False]:
            text, error = rendered(source, conversation, prompt)
            refused += [(i, error)] if error else []
            cases.append({"conversation": i, "prompt": prompt, "text": text, **({"error": error} if error else {})})
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    (out / f"{name}.json").write_text(json.dumps({"source": source}, ensure_ascii=False)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
    print(name, len(cases), "cases,", len(refused), "refused", sorted({f"{i}: {e}"[:90] for i, e in refused})[:3])


def templates(path):
    path = Path(path)
    if path.suffix == ".gguf":
        import gguf
        field = gguf.GGUFReader(path).fields.get("tokenizer.chat_template")
        return {path.stem: field.contents()} if field else {}
    if path.suffix == ".json":
        home = path.parent.parent if path.parent.name == "models" else path.parent
        found = json.loads(path.read_text()).get("chat_template") or []
        named = [{"name": "default", "template": found}] if isinstance(found, str) else found
        return {f"{home.name}-{t['name']}": t["template"] for t in named}
    return {path.stem: path.read_text()}


def main():
    for name, (module, wanted) in PINNED.items():
        if module.__version__ != wanted:
            print(f"warning: {name} {module.__version__} instead of {wanted}", file=sys.stderr)
    what, out, *files = sys.argv[1:]
    out = Path(out)
    out.mkdir(parents=True)
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in CONVERSATIONS)
    (out / "conversations.json").write_text("[\n" + lines + "\n]\n")
    found = OWN if what == "own" else {k: v for file in files for k, v in templates(file).items()}
    for name, source in found.items():
        write(out, name, source)


if __name__ == "__main__":
    main()
