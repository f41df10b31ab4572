//! Templates with the constructs of the families in use, and hostile ones.

use super::{dates::strftime, *};

fn render(source: &str, messages: &[(&str, &str)], prompt: GenerationPrompt) -> Result<String> {
    let messages = messages
        .iter()
        .map(|&(role, content)| Message::new(role, content));
    let conversation = Conversation::from(messages.collect::<Vec<_>>());
    ChatTemplate::new(source, "<s>", "</s>")?.render(&conversation, prompt)
}

/// Renders an expression or a small template without messages.
fn shown(source: &str) -> String {
    render(source, &[], GenerationPrompt::Omit).unwrap_or_else(|e| panic!("{source}: {e}"))
}

fn refusal(source: &str) -> String {
    match render(source, &[("user", "hi")], GenerationPrompt::Omit) {
        Err(error @ Error::Template(_)) => error.to_string(),
        other => panic!("{source}: {other:?}"),
    }
}

const TALK: [(&str, &str); 3] = [("user", "Hi"), ("assistant", "Yes?"), ("user", " 2 < 3? ")];

#[test]
fn chatml() {
    let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>' + '\\n'}}{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";
    assert_eq!(
        render(source, &TALK, GenerationPrompt::Add).unwrap(),
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n\
         <|im_start|>user\n 2 < 3? <|im_end|>\n<|im_start|>assistant\n"
    );
    let with_system = [&[("system", "S")], &TALK[..1]].concat();
    assert_eq!(
        render(source, &with_system, GenerationPrompt::Omit).unwrap(),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    );
}

#[test]
fn llama_3() {
    let source = "{{- bos_token }}
{%- if tools is not none %}tools{% endif -%}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content.strip() %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if strftime_now is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- endif %}
{%- if system %}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + ' (' + date[-4:][:2] + ')<|eot_id|>' }}{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
";
    let messages = [
        ("system", " Be brief. "),
        ("user", "2 < 3? "),
        ("ipython", "x"),
    ];
    assert_eq!(
        render(source, &messages, GenerationPrompt::Add).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief. (20)<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\n2 < 3?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

#[test]
fn gemma() {
    let source = "{{ bos_token }}
{%- set ns = namespace(first = '') -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set ns.first = messages[0]['content'] + '\\n\\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception(\"Roles must alternate\") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (ns.first if loop.first else '') }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
";
    let with_system = [&[("system", "S")], &TALK[..]].concat();
    assert_eq!(
        render(source, &with_system, GenerationPrompt::Add).unwrap(),
        "<s><start_of_turn>user\nS\n\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n\
         <start_of_turn>user\n2 < 3?<end_of_turn>\n<start_of_turn>model\n"
    );
    let error = render(source, &TALK[1..], GenerationPrompt::Add).unwrap_err();
    assert!(
        matches!(&error, Error::Template(text) if text.contains("refuses this conversation: Roles must alternate")),
        "{error}"
    );
}

#[test]
fn pythons_methods_and_loop_controls() {
    let cases = [
        (
            "{{ ' a '.strip() ~ 'ab'.upper() ~ 'a,b'.split(',')[-1] ~ 'xay'.replace('a', '-') }}",
            "aABbx-y",
        ),
        (
            "{{ '<think>a</think>\\nb'.split('</think>')[-1].lstrip('\\n') }}",
            "b",
        ),
        (
            "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ none }}",
            "True True None",
        ),
        (
            "{% for key, value in {'a': 1, 'b': 2}.items() %}{{ key }}{{ value }}{% endfor %}",
            "a1b2",
        ),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "023",
        ),
        (
            "{% macro turn(x) %}[{{ x }}]{% endmacro %}{{ turn('a') + turn('b') }}",
            "[a][b]",
        ),
        (
            "{{ [1, 2, 3][::-1]|join('') }}{{ ('a' if undefined_name is not defined else 'b') }}{{ undefined_name }}",
            "321a",
        ),
        (
            "{{ '%s-%d'|format('a', 3) ~ '{}'.format(7) ~ ('ab' in 'cabd') }}",
            "a-37True",
        ),
        ("{{ {'a': 1}.get('b', 'none') ~ messages|length }}", "none0"),
        (
            "{{ none is iterable }}{{ 'a' is iterable }}{{ [] is iterable }}{{ 1 is iterable }}{{ x is iterable }}",
            "FalseTrueTrueFalseTrue",
        ),
        (
            "a\n{%- generation %}b{% if true %}c{%endif%}\n{% endgeneration -%} \n d",
            "abcd",
        ),
        // Blocks are trimmed on both sides, a line of their own leaves nothing; one line end at the end goes.
        ("a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"),
    ];
    for (source, expected) in cases {
        assert_eq!(shown(source), expected, "{source}");
    }
}

#[test]
fn to_json_writes_what_python_writes() {
    let cases = [
        (
            "{{ {'b': [1, 2.5, true, none], 'a': 'é<\"\\\\\\n\\t&'}|tojson }}",
            r#"{"b": [1, 2.5, true, null], "a": "é<\"\\\n\t&"}"#,
        ),
        (
            "{{ {'b': 1, 'a': 2}|tojson(sort_keys=true) }}",
            r#"{"a": 2, "b": 1}"#,
        ),
        (
            "{{ {'a': [1, {}], 'b': []}|tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}",
        ),
        (
            "{{ [1, {'a': 2}]|tojson(separators=(',', ':')) }}",
            r#"[1,{"a":2}]"#,
        ),
        (
            "{{ 'é😀'|tojson(ensure_ascii=true) }}",
            r#""\u00e9\ud83d\ude00""#,
        ),
        (
            "{{ messages|tojson }}{{ (1, 2)|tojson(indent=none) }}",
            "[][1, 2]",
        ),
        ("{{ {1: 'a'}|tojson }}", r#"{"1": "a"}"#),
    ];
    for (source, expected) in cases {
        assert_eq!(shown(source), expected, "{source}");
    }
    let messages = render("{{ messages|tojson }}", &TALK[..1], GenerationPrompt::Omit).unwrap();
    assert_eq!(messages, r#"[{"role": "user", "content": "Hi"}]"#);
    assert!(refusal("{{ 1|tojson(nonsense=1) }}").contains("nonsense"));
    assert!(refusal("{{ 1|tojson(separators=(1, 2, 3)) }}").contains("separators"));
}

#[test]
fn dates() {
    // 2024-02-29 and 2000-12-31, checked against date(1).
    let cases = [
        (
            1_709_210_096,
            "%Y-%m-%d %H:%M:%S %j %a %A",
            "2024-02-29 12:34:56 060 Thu Thursday",
        ),
        (
            978_307_199,
            "%d %b %Y, %B %y %I %p %-d",
            "31 Dec 2000, December 00 11 PM 31",
        ),
        (
            0,
            "%F %T %e %-e %-m%% %Z%z",
            "1970-01-01 00:00:00  1 1 1% UTC+0000",
        ),
        (4_107_542_400, "%F %a", "2100-03-01 Mon"),
    ];
    for (seconds, format, expected) in cases {
        assert_eq!(strftime(format, seconds).unwrap(), expected);
    }
    assert!(refusal("{{ strftime_now('%Q') }}").contains("%Q"));
    assert!(refusal("{{ strftime_now('%') }}").contains('%'));
    let year: u64 = shown("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!(year >= 2024);
}

#[test]
fn mistakes_are_named_with_their_line() {
    assert!(refusal("a\n{% if %}").contains(":2)"));
    assert!(refusal("{{ nothing_here() }}").contains("nothing_here"));
    assert!(refusal("{{ messages[0].content.nonsense() }}").contains("nonsense"));
    assert!(refusal("{{ undefined_name.attribute }}").contains("undefined"));
    assert!(refusal("{{ range }}").contains("kind"));
    assert!(refusal("{% include 'secret' %}").contains("secret"));
    assert!(refusal("{{ messages.append(1) }}").contains("append"));
}

#[test]
fn work_and_output_are_bounded() {
    let hostile = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'a' * 99999999 }}",
        "{{ 'a'.replace('', 'b' * 9999).replace('', 'b' * 9999) }}",
        "{{ '{:>2000000000}'.format(1) }}",
        "{{ '%2000000000d'|format(1) }}",
        "{{ 'a\nb'|indent(2000000000) }}",
        "{{ [1]|batch(2000000000, 1)|list|length }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x'|tojson(indent=99999999999999999999) }}",
        "{{ [[[[1]]]]|tojson(indent='a' * 19000000) }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set long = 'a' * 9999999 %}{{ [long, long, long, long]|tojson }}",
        "{% set long = 'a' * 9999999 %}{{ [long, long, long, long] }}",
    ];
    for source in hostile {
        refusal(source);
    }
    assert!(refusal(hostile[0]).contains("limit of work"));
}

#[test]
fn nesting_does_not_overflow_the_stack() {
    // Values wrapped into one another, sixty thousand times or until the fuel is gone, then dropped; compared on the way.
    let nested = |rounds: usize, end: &str| {
        let deep = |name: &str| format!("{}ns.{name}{}", "[".repeat(40), "]".repeat(40));
        let set = format!(
            "{{% set ns.x = {} %}}{{% set ns.y = {} %}}",
            deep("x"),
            deep("y")
        );
        format!(
            "{{% set ns = namespace(x=1, y=1) %}}{{% for i in range({rounds}) %}}{set}{{% endfor %}}{end}"
        )
    };
    assert_eq!(shown(&nested(1_500, "")), "");
    assert_eq!(shown(&nested(1_500, "{{ ns.x == ns.y }}")), "True");
    assert!(refusal(&nested(1_500, "{{ ns.x|tojson }}")).contains("inside one another"));
    assert!(refusal(&nested(99_999, "")).contains("limit of work"));
    // Chains in the source, parsed by recursion.
    for (link, last) in [("-", "1"), ("not ", "1"), ("1+", "1"), ("1 and ", "1")] {
        let chain = link.repeat((MAX_SOURCE - 20) / link.len());
        ChatTemplate::new(&format!("{{{{ {chain}{last} }}}}"), "", "").unwrap();
    }
    assert!(
        refusal(&format!(
            "{{{{ {}1{} }}}}",
            "(".repeat(9_999),
            ")".repeat(9_999)
        ))
        .contains("recursion")
    );
    let large = ChatTemplate::new(&" ".repeat(MAX_SOURCE + 1), "", "").unwrap_err();
    assert!(large.to_string().contains("131073 bytes"), "{large}");
}

#[test]
fn long_conversations_are_within_the_bounds() {
    let source = "{% for message in messages %}{{ message.role + ': ' + message.content.strip().replace('\\r', '') | trim + '\\n' }}{% endfor %}";
    let long = "long text ".repeat(100_000);
    let text = render(
        source,
        &[("user", &long), ("assistant", &long)],
        GenerationPrompt::Omit,
    )
    .unwrap();
    assert!(text.len() > 1_900_000);
    let many = vec![("user", "short"); 20_000];
    assert_eq!(
        render(source, &many, GenerationPrompt::Omit)
            .unwrap()
            .lines()
            .count(),
        20_000
    );
}
