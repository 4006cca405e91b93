//! Any chat template ends in a text or a message, soon, and without a panic; and the date that one reads can be pinned.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use text::{Ending, Message, NaiveDate, Tokenizer};

use crate::folders::tokenizer;

/// What the template makes of a conversation: its text, or the message.
fn render(template: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let conversation =
        [Message::system("Be kind."), Message::user("Hello."), Message::assistant("Hi."), Message::user("?")];
    let tokenizer = tokenizer(folder.path(), template).map_err(|e| e.to_string())?;
    tokenizer.template().unwrap().render(&conversation).map_err(|e| e.to_string())
}

fn refused(template: &str, said: &str) {
    let start = Instant::now();
    let message = render(template).expect_err(template);
    assert!(message.contains("chat template"), "{template}: {message}");
    assert!(message.contains(said), "{template}: expected `{said}` in: {message}");
    assert!(start.elapsed() < Duration::from_secs(20), "{template}: {:?}", start.elapsed());
}

const MANY: &str = "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% set x = c %}\
                    {% endfor %}{% endfor %}{% endfor %}";

#[test]
fn a_template_without_end_runs_out_of_fuel() {
    refused(MANY, "fuel");
    refused(&MANY.replace("{% set x = c %}", "x"), "fuel");
}

#[test]
fn a_template_that_calls_itself_without_end_is_refused() {
    refused("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "recursion limit");
    refused("{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('ab') }}", "builds more than");
    refused("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion limit");
    refused("{% include 'chat' %}", "include");
    refused(&format!("{}1{}", "{{ ".to_owned() + &"(".repeat(5000), ")".repeat(5000) + " }}"), "recursion");
}

#[test]
fn a_template_that_builds_gigabytes_is_refused_before_it_does() {
    let doubling = |what: &str| format!("{{% set n = namespace(x={what}) %}}{{% for i in range(60) %}}{{% set n.x = ");
    for (start, step) in [
        ("'a'", "n.x ~ n.x"),
        ("'a'", "n.x + n.x"),
        ("'a'", "n.x * 2"),
        ("'a'", "n.x|replace('a', 'aa')"),
        ("'a'", "n.x.replace('a', 'aa')"),
        ("'a'", "[n.x, n.x]|join"),
        ("'a'", "''.join([n.x, n.x])"),
        ("'a'", "'%s%s'|format(n.x, n.x)"),
        ("'a'", "'{}{}'.format(n.x, n.x)"),
        ("'a'", "(n.x ~ '\n' ~ n.x)|indent(99)"),
        ("[1]", "n.x + n.x"),
        ("[1]", "n.x * 2"),
    ] {
        refused(&(doubling(start) + step + " %}{% endfor %}{{ n.x|length }}"), "builds more than");
    }
    // Through what is written, caught, and bound by other tags.
    refused(&(doubling("'a'") + "n.x ~ n.x %}{{ n.x }}{% endfor %}"), "builds more than");
    refused(
        &("{% set x = 'a' %}".to_owned() + &"{% set x %}{{ x }}{{ x }}{% endset %}".repeat(40)),
        "builds more than",
    );
    refused(&("{% set x = [1] %}".to_owned() + &"{% set x = [x, x] %}".repeat(40) + "{{ x }}"), "builds more than");
    refused(
        &("{% set x = [1] %}".to_owned() + &"{% set x = [x, x] %}".repeat(40) + "{{ x|tojson }}"),
        "builds more than",
    );
    refused(
        &("{% set x = [1] %}".to_owned() + &"{% set x = [x, x] %}".repeat(40) + "{{ x|string|length }}"),
        "builds more than",
    );
    let long =
        "{% set t %}{% for a in range(99999) %}{% for b in range(99999) %}TEXT{% endfor %}{% endfor %}{% endset %}";
    refused(&long.replace("TEXT", &"x".repeat(99_999)), "builds more than");
}

#[test]
fn huge_numbers_are_refused() {
    refused("{{ 'a' * 10**12 }}", "builds more than");
    refused("{{ 'a' * (messages|length * 10**12) }}", "builds more than");
    refused("{{ [1] * 10**12 }}", "builds");
    refused("{{ 'a' * 90000000 }}", "a constant of");
    refused("{% for i in range(10**12) %}{% endfor %}", "range has too many elements");
    refused("{{ 'a\nb'|indent(10**12) }}", "at most 1000000");
    refused("{{ 'a\nb'|indent(width=10**12) }}", "at most 1000000");
    refused("{{ [1]|batch(10**12)|list }}", "at most 1000000");
    refused("{{ [1]|slice(10**12)|list }}", "at most 1000000");
    refused("{{ '%999999999999d'|format(1) }}", "below 10,000");
    refused("{{ '%*d'|format(999999999999, 1) }}", "at most 1000000");
    refused("{{ '{:>999999999999}'.format(1) }}", "below 10,000");
    refused("{{ messages|tojson(indent=10**12) }}", "builds more than");
    refused("{{ 2 ** 300 }}", "unable to calculate");
    refused("{{ 10**38 * messages|length * 10 }}", "too large");
}

#[test]
fn what_templates_do_is_allowed_and_comes_out_as_before() {
    for (template, text) in [
        ("{{ 1 + 2 }} {{ 1 + 2.5 }} {{ 2 * 3.0 }} {{ true + 1 }} {{ -1 + 1 }}", "3 3.5 6.0 2 0"),
        ("{{ 'a' + 'b' }}{{ 'c' ~ 1 ~ none ~ x }}{{ 'ab' * 2 }}{{ 2 * 'ab' }}", "abc1Noneabababab"),
        (
            "{{ ([1] + [2, 3])|tojson }} {{ ([1] * 3)|length }} {{ messages[1:] + messages[:1] == 3 }}",
            "[1, 2, 3] 3 False",
        ),
        ("{{ 'a-b'|replace('-', '+') }}{{ 'a-b'.replace('-', '+') }}{{ 'x y'.split(' ')|join(',') }}", "a+ba+bx,y"),
        ("{{ messages|map(attribute='role')|list|join(' ') }}", "system user assistant user"),
        ("{{ '%05d %s'|format(7, 'x') }} {{ '{} {:>4}'.format('a', 12345678) }}", "00007 x a 12345678"),
        ("{{ 'a\nb'|indent(2) }} {{ [1, 2, 3]|batch(2)|list }} {{ 5|string ~ '' }}", "a\n  b [[1, 2], [3]] 5"),
        ("{{ 'abab'.count('b') }}{{ 'abab'.count('') }}", "25"), // Python's; the library's own never ends
        ("{{ {'id': 12345678901}.get('x', 98765432101) }}", "98765432101"),
        (
            "{% set n = namespace(t='') %}{% for m in messages %}{% set n.t = n.t + m.role[0] %}{% endfor %}{{ n.t }}",
            "suau",
        ),
    ] {
        assert_eq!(render(template).as_deref(), Ok(text), "{template}");
    }
    // Long texts of the template's own, between jumps of every kind.
    let long = "x".repeat(200);
    let jumps = "LONG{% for m in messages %}LONG{% if loop.first and m.role == 'system' or false %}LONG1{% else %}LONG2{% endif %}\
                 {% macro f(x) %}LONG{{ x }}{% if x > 1 %}LONG{% endif %}{% endmacro %}{{ f(loop.index) }}{% if loop.last %}\
                 {% continue %}{% endif %}LONG3{% else %}LONG4{% endfor %}{% block b %}LONG{{ 5 if messages else 6 }}{% endblock %}LONG";
    let short = render(&jumps.replace("LONG", "+")).unwrap();
    assert_eq!(short, "+++1+1+3++2+2++3++2+3++3++2+4++5+");
    assert_eq!(render(&jumps.replace("LONG", &long)).unwrap(), short.replace('+', &long));
    // A long conversation.
    let folder = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{% if m.role == 'user' %}U{{ m.content|trim }}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}";
    let tokenizer = tokenizer(folder.path(), template).unwrap();
    let conversation = vec![Message::user("word ".repeat(100)); 2000];
    assert_eq!(tokenizer.template().unwrap().render(&conversation).unwrap().len(), 2000 * 500);
}

const DATED: &str = "{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";

#[test]
fn any_format_of_dates_ends_in_a_text_or_a_message() {
    refused("{{ strftime_now('%Q') }}", "a format of dates such as `%d %b %Y`, found `%Q`");
    refused("{{ strftime_now('%') }}", "found `%`");
    refused("{{ strftime_now('%-') }}", "found");
    assert!(render("{{ strftime_now('%d %b %Y, %H:%M:%S %z %Z %%') }}").is_ok());
}

#[test]
fn a_pinned_date_decides_the_rows_and_the_identity() {
    let folder = tempfile::tempdir().unwrap();
    let load = || tokenizer(folder.path(), DATED).unwrap();
    let on = |day| NaiveDate::from_ymd_opt(2026, 3, day).unwrap();
    let row = |t: &Tokenizer| t.row(&[Message::user("x")], "y", Ending::Finished).unwrap();
    let (one, again, other) =
        (load().with_date(on(5)).unwrap(), load().with_date(on(5)).unwrap(), load().with_date(on(6)).unwrap());
    assert!(one.reads_the_date());
    assert_eq!(one.date(), Some(on(5)));
    assert_eq!(row(&one), row(&again));
    assert_eq!(one.identity(), again.identity());
    assert_ne!(row(&one), row(&other));
    assert_ne!(one.identity(), other.identity());
    assert!(one.decode(&row(&one).ids).unwrap().contains("05 March"), "{}", one.decode(&row(&one).ids).unwrap());
    assert_eq!(other.with_date(on(5)).unwrap().identity(), one.identity());
    // A branch that the probe does not take.
    let hidden = "{% if messages|length > 1 %}{{ strftime_now('%d') }}{% endif %}{{ messages[0].content }}";
    let of = |day| tokenizer(folder.path(), hidden).unwrap().with_date(on(day)).unwrap().identity().to_owned();
    assert_ne!(of(5), of(6));
    // Whoever reads no date does not care.
    let plain = tokenizer(folder.path(), "{{ messages[0].content }}").unwrap();
    assert_eq!((plain.reads_the_date(), plain.date()), (false, None));
    let before = plain.identity().to_owned();
    assert_eq!(plain.with_date(on(5)).unwrap().identity(), before);
}

/// Operators between two expressions.
const OPERATORS: &str = "+ - * ~ / // % ** == < in and or is";

/// Filters without an argument.
const FILTERS: &str = "trim length tojson upper list join string first last sort unique reverse sum int float round items dictsort title abs urlencode lines generation safe e min";

/// Filters that are given one.
const FILTERS_WITH_AN_ARGUMENT: &str =
    "default replace join indent batch slice format map select selectattr groupby split attr round";

/// Methods that are given an argument.
const METHODS: &str = "split strip replace startswith get format find count join";

/// One of the words of a list.
fn one_of(words: &'static str) -> impl Strategy<Value = &'static str> + Clone {
    prop::sample::select(words.split(' ').collect::<Vec<_>>())
}

fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("messages".to_owned()),
        Just("messages[0].content".to_owned()),
        Just("messages[-1]['role']".to_owned()),
        Just("bos_token".to_owned()),
        Just("tools".to_owned()),
        Just("undefined_name".to_owned()),
        Just("n.x".to_owned()),
        Just("none".to_owned()),
        Just("loop".to_owned()),
        Just("loop.index".to_owned()),
        Just("strftime_now('%d %b')".to_owned()),
        Just("raise_exception('no')".to_owned()),
        Just("{'a': [1, 'b']}".to_owned()),
        Just("[]".to_owned()),
        any::<i64>().prop_map(|n| format!("({n})")),
        any::<f64>().prop_map(|x| format!("({x:?})")),
        "'[a-zé%{}\\\\n <|]{0,8}'".prop_map(|t| t),
        "[ -~]{0,6}".prop_map(|format| format!("strftime_now({:?})", format.replace('\\', ""))),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            (two.clone(), one_of(OPERATORS)).prop_map(|((a, b), op)| format!("({a} {op} {b})")),
            (inner.clone(), one_of(FILTERS)).prop_map(|(a, f)| format!("({a})|{f}")),
            (two.clone(), one_of(FILTERS_WITH_AN_ARGUMENT)).prop_map(|((a, b), f)| format!("({a})|{f}({b})")),
            (two.clone(), one_of(METHODS)).prop_map(|((a, b), m)| format!("({a}).{m}({b})")),
            (inner.clone(), two.clone()).prop_map(|(a, (b, c))| format!("({a})[{b}:{c}]")),
            (inner.clone(), two.clone()).prop_map(|(a, (b, c))| format!("({a} if {b} else {c})")),
            (inner.clone(), two).prop_map(|(a, (b, c))| format!("range({a}, {b}, {c})")),
            inner.prop_map(|a| format!("m({a})")),
        ]
    })
}

fn template() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        expression().prop_map(|e| format!("{{{{ {e} }}}}")),
        expression().prop_map(|e| format!("{{%- set n.x = {e} -%}}")),
        expression().prop_map(|e| format!("{{% set y = {e} %}}")),
        "[ -~\n]{0,12}".prop_map(|t| t),
        prop::sample::select(vec![
            "{%",
            "%}",
            "{{",
            "}}",
            "{#",
            "#}",
            "{% break %}",
            "{% endfor %}",
            "{% raw %}{{{% endraw %}",
            "{% endgeneration %}"
        ])
        .prop_map(str::to_owned),
    ];
    let blocks = leaf.prop_recursive(4, 32, 3, |inner| {
        let body = prop::collection::vec(inner, 0..3).prop_map(|parts| parts.concat());
        prop_oneof![
            (expression(), body.clone()).prop_map(|(e, b)| format!("{{% for i in {e} %}}{b}{{% endfor %}}")),
            (expression(), body.clone())
                .prop_map(|(e, b)| format!("{{% for i in {e} recursive %}}{b}{{{{ loop([i]) }}}}{{% endfor %}}")),
            (expression(), body.clone()).prop_map(|(e, b)| format!("{{% if {e} %}}{b}{{% else %}}-{{% endif %}}")),
            body.clone().prop_map(|b| format!("{{% macro m(a) %}}{b}{{% endmacro %}}")),
            body.clone().prop_map(|b| format!("{{% generation %}}{b}{{% endgeneration %}}")),
            body.clone().prop_map(|b| format!("{{% set y %}}{b}{{% endset %}}")),
            body.prop_map(|b| format!("{{% call m(1) %}}{b}{{% endcall %}}")),
        ]
    });
    prop::collection::vec(blocks, 1..5).prop_map(|parts| format!("{{% set n = namespace(x='') %}}{}", parts.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_template_ends_in_a_text_or_a_message(template in template()) {
        let start = Instant::now();
        _ = render(&template);
        prop_assert!(start.elapsed() < Duration::from_secs(20), "{template}: {:?}", start.elapsed());
    }
}
